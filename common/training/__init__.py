"""Training: steps of optimisers, engines, handlers, checkpoints, and the record of a run."""
