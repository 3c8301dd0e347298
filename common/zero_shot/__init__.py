"""Lungs without lung labels: segments from what a denoiser attends to, and their choice without ground truth."""
