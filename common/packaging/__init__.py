"""A bundle as a folder and a zip that run alone, its exports, and the checks of the model zoo."""
