"""What users import: trained networks as pipelines, and folders of images turned into folders of results."""

from importlib import import_module
from typing import Any

# Each is imported where it is asked for, so that a packaged bundle need not carry the networks of the others.
_HOMES = {
    "DentalSegmenter": "segmenter",
    "DinoDiffusion": "diffusion",
    "RadiographAutoencoder": "autoencoder",
    "Segmentation": "segmenter",
}
__all__ = ["DentalSegmenter", "DinoDiffusion", "RadiographAutoencoder", "Segmentation"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"{__name__} has no {name}; it has {', '.join(_HOMES)}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
