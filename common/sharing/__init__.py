"""Packaging, checking, exporting and publishing of bundles."""
