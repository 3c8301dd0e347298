"""Does synthetic data help a classifier that has few labels? One training and score per cell."""
