"""A picture in the coordinates of a body: blur, ellipsoids and tubes as thickness along the ray."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

Array = NDArray[np.floating]


class BodyCanvas:
    """The pixel grid in body coordinates, and the drawing primitives on it; every array is [H, W].

    `tilt` is the rotation of the body in the picture, radians; `shift` its origin, (x, y), in half shorter sides;
    `scale` half shorter sides per body unit. Sizes below 16 pixels raise ValueError.
    """

    def __init__(
        self, height: int, width: int, tilt: float = 0.0, shift: tuple[float, float] = (0.0, 0.0), scale: float = 1.0
    ) -> None:
        if min(height, width) < 16:
            raise ValueError(f"a chest phantom needs at least 16×16 pixels, got {height}×{width}")
        self.pixel = 2.0 / min(height, width)
        self.frame_y, self.frame_x = np.meshgrid(
            (np.arange(height) + 0.5 - height / 2) * self.pixel,
            (np.arange(width) + 0.5 - width / 2) * self.pixel,
            indexing="ij",
        )
        x, y = self.frame_x - shift[0], self.frame_y - shift[1]
        cos, sin = np.cos(tilt), np.sin(tilt)
        self.x = (cos * x + sin * y) / scale
        self.y = (cos * y - sin * x) / scale
        self.pixel /= scale
        self.zero = np.zeros_like(self.x)

    def blur(self, image: Array, radius: float) -> Array:
        """Gaussian blur with a radius in body units."""
        return gaussian_filter(image, radius / self.pixel, mode="nearest")

    def ellipse(self, centre: tuple[float, float], axes: tuple[float, float], angle: float = 0.0) -> Array:
        """Thickness of an ellipsoid: 1 in the middle, 0 from the outline on."""
        x, y = self.x - centre[0], self.y - centre[1]
        along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        return np.sqrt(np.clip(1.0 - (along / axes[0]) ** 2 - (across / axes[1]) ** 2, 0.0, None))

    def tube(self, points: Array, radii: Array, hollow: float = 0.0) -> Array:
        """Thickness of a tube along `points` [N, 2] (x, y) with `radii` [N]; `hollow` is the marrow's share of it."""
        out = np.zeros_like(self.x)
        margin = float(radii.max()) + 2 * self.pixel
        low, high = points.min(0) - margin, points.max(0) + margin
        near = (self.x > low[0]) & (self.x < high[0]) & (self.y > low[1]) & (self.y < high[1])
        if not near.any():
            return out
        pixels = np.stack([self.x[near], self.y[near]], axis=-1)
        distance, index = cKDTree(points).query(pixels, distance_upper_bound=margin)
        true_radius = np.append(radii, 0.0)[index]
        radius = np.maximum(true_radius, 0.8 * self.pixel)
        squared = np.where(np.isfinite(distance), distance, 9.0) ** 2
        wall = np.sqrt(np.clip(radius**2 - squared, 0.0, None))
        marrow = np.sqrt(np.clip((0.72 * radius) ** 2 - squared, 0.0, None))
        out[near] = (wall - hollow * marrow) * np.minimum(true_radius / radius, 1.0)
        return out


def smooth_curve(points: list[tuple[float, float]], count: int) -> Array:
    """A smooth curve [count, 2] through a few (x, y) points."""
    knots = np.asarray(points)
    along = np.linspace(0.0, 1.0, len(points))
    return PchipInterpolator(along, knots)(np.linspace(0.0, 1.0, count))
