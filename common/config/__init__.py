"""Checks of bundle configs and metadata: before a run, and before a bundle is shared."""
