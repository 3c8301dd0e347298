"""What the radiograph diffusion bundles share: reading, data lists, networks, losses, training, metrics."""

__version__ = "0.1.0"
