"""Experiments of many cells, and those of the bundles: label efficiency of segmenters, tokens of an encoder."""
