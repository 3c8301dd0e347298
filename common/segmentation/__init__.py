"""Segmenters: classes, masks from and to files, inference, metrics and evaluation."""
