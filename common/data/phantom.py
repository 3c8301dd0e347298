"""A chest radiograph drawn by code: test data and sample images that belong to no patient.

The picture is a small projection model. Every structure adds (bone, soft tissue) or removes (air) an amount of
absorbing thickness along the ray; scatter blurs the sum, a film-like curve turns it into grey values and noise follows
the number of quanta that get through. Coordinates: the shorter image side spans -1 to 1, x grows to the image's right
(the patient's left), y downwards, so that all sizes show the same anatomy and longer sides show more around it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import Tensor

from .body_canvas import Array, BodyCanvas, smooth_curve

_GEOMETRY, _VESSELS, _NOISE = 0, 1, 2  # one random stream each, so that the mask needs none of the others
_LETTERS = {
    "L": ("1000", "1000", "1000", "1000", "1000", "1111"),
    "R": ("1110", "1001", "1001", "1110", "1010", "1001"),
}


def _within(low: float, high: float) -> float:
    """A field of `_Anatomy`, drawn uniformly between the two."""
    return field(metadata={"range": (low, high)})


@dataclass(frozen=True)
class _Anatomy:
    """What differs from one drawn person to the next, with its range."""

    tilt: float = _within(-0.035, 0.035)  # rotation of the person in the picture, radians
    shift_x: float = _within(-0.04, 0.04)
    shift_y: float = _within(0.06, 0.14)
    scale: float = _within(1.12, 1.24)
    body_width: float = _within(0.86, 1.02)
    fat: float = _within(0.8, 1.25)  # soft tissue in front of and behind the lungs
    lung_width: float = _within(0.92, 1.05)
    apex: float = _within(-0.80, -0.70)  # y of the lung tips
    dome_right: float = _within(0.36, 0.54)  # y of the diaphragm; the left dome lies lower
    dome_drop: float = _within(0.03, 0.09)
    heart_size: float = _within(0.86, 1.14)
    heart_angle: float = _within(0.45, 0.85)
    aorta: float = _within(0.07, 0.105)
    rib_tilt: float = _within(0.56, 0.72)
    rib_phase: float = _within(-0.04, 0.04)
    bone: float = _within(0.85, 1.2)
    scoliosis: float = _within(-0.02, 0.02)
    stomach: float = _within(0.03, 0.12)  # radius of the air bubble under the left dome
    contrast: float = _within(0.9, 1.15)
    brightness: float = _within(-0.04, 0.04)
    marker: float = _within(0.0, 1.0)  # below 0.4 none, below 0.7 "L", else "R"
    border: float = _within(-0.10, 0.05)  # width of the dark collimation border when positive


def _draw_person(height: int, width: int, seed: int) -> tuple[BodyCanvas, _Anatomy]:
    rng = np.random.default_rng([seed, _GEOMETRY])
    anatomy = _Anatomy(**{f.name: float(rng.uniform(*f.metadata["range"])) for f in fields(_Anatomy)})
    return BodyCanvas(height, width, anatomy.tilt, (anatomy.shift_x, anatomy.shift_y), anatomy.scale), anatomy


def _rib_cage(anatomy: _Anatomy, y: Array) -> Array:
    """Half the inner width of the rib cage at height y: zero at the lung tips, widest above the diaphragm."""
    top, widest = anatomy.apex, 0.5
    depth = np.clip((widest - y) / (widest - top), -0.4, 1.0)
    profile = np.clip(1.0 - np.abs(depth) ** 2.7, 0.0, None) ** 0.46
    return anatomy.lung_width * 0.73 * profile


def _dome(anatomy: _Anatomy, x: Array, side: int) -> Array:
    """Height y of the diaphragm at |x| of one side (-1: patient's right, image left; 1: patient's left)."""
    top = anatomy.dome_right + (anatomy.dome_drop if side > 0 else 0.0)
    offset = (np.abs(x) - 0.33) / 0.42
    return top + 0.20 * np.abs(offset) ** 2.4 + np.where(offset < 0, 0.05 * offset**2, 0.08 * offset**2)


def _lung_side(canvas: BodyCanvas, anatomy: _Anatomy, side: int) -> NDArray[np.bool_]:
    """One lung without heart and mediastinum cut out of it."""
    x = canvas.x * side
    lateral = _rib_cage(anatomy, canvas.y)
    tip = np.clip((canvas.y - anatomy.apex) / 0.22, 0.0, 1.0)
    medial = 0.105 + 0.15 * (1.0 - tip) ** 2.5
    return (x > medial) & (x < lateral) & (canvas.y < _dome(anatomy, canvas.x, side))


def _heart(canvas: BodyCanvas, anatomy: _Anatomy) -> Array:
    """Thickness of heart, aortic arch and great vessels, 0 to about 1."""
    size = anatomy.heart_size
    bottom = anatomy.dome_right + anatomy.dome_drop
    ventricles = canvas.ellipse((0.16, bottom - 0.145), (0.36 * size, 0.24 * size), anatomy.heart_angle)
    atrium = canvas.ellipse((-0.03, bottom - 0.19), (0.16 * size, 0.23 * size))
    trunk = canvas.ellipse((0.09, -0.06), (0.12, 0.20), 0.25)
    arch = canvas.ellipse((0.085, -0.30), (anatomy.aorta, anatomy.aorta))
    cava = canvas.ellipse((-0.07, -0.30), (0.07, 0.34))
    return np.maximum.reduce([ventricles, 0.85 * atrium, 0.8 * trunk, 0.75 * arch, 0.45 * cava])


def _lungs(canvas: BodyCanvas, anatomy: _Anatomy) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Both whole lungs (the air also behind the heart), and what one sees of them beside the heart's shadow."""
    whole = _lung_side(canvas, anatomy, -1) | _lung_side(canvas, anatomy, 1)
    return whole, whole & (_heart(canvas, anatomy) < 0.2)


def _air(canvas: BodyCanvas, anatomy: _Anatomy, whole: NDArray[np.bool_]) -> Array:
    """Thickness of air: lungs fall off towards their outline, plus windpipe, main bronchi and stomach bubble."""
    inside = distance_transform_edt(whole) * canvas.pixel
    depth = np.sqrt(1.0 - (1.0 - np.clip(inside / 0.26, 0.0, 1.0)) ** 2)
    lungs = (0.35 * np.clip(inside / 0.02, 0.0, 1.0) + 0.65 * depth) * (1.0 - 0.62 * _heart(canvas, anatomy))
    windpipe = smooth_curve([(0.0, -1.4), (0.005, -0.8), (-0.015, -0.45), (-0.005, -0.22)], 90)
    right = smooth_curve([(-0.005, -0.22), (-0.07, -0.14), (-0.13, -0.05)], 40)
    left = smooth_curve([(-0.005, -0.22), (0.09, -0.15), (0.18, -0.09)], 40)
    tubes = canvas.tube(windpipe, np.full(90, 0.042)) / 0.042 * 0.30
    for branch in (right, left):
        tubes = np.maximum(tubes, canvas.tube(branch, np.full(40, 0.026)) / 0.026 * 0.20)
    top = _dome(anatomy, np.array(0.30), 1)
    bubble = canvas.ellipse((0.36, float(top) + 0.09 + anatomy.stomach * 0.6), (1.7 * anatomy.stomach, anatomy.stomach))
    return canvas.blur(lungs, 0.006) + canvas.blur(tubes, 0.008) + 0.35 * canvas.blur(bubble, 0.012)


def _soft_tissue(canvas: BodyCanvas, anatomy: _Anatomy) -> Array:
    """Thickness of the body without its air: trunk, neck, shoulders and arms, abdomen, heart."""
    heights = [-2.5, -1.1, -0.93, -0.82, -0.72, -0.6, -0.3, 0.2, 0.7, 1.2, 3.0]
    widths = [0.30, 0.25, 0.27, 0.42, 0.66, 0.84, 0.87, 0.86, 0.88, 0.92, 0.95]
    half = PchipInterpolator(heights, widths)(np.clip(canvas.y, -2.5, 3.0)) * anatomy.body_width
    ratio = np.clip(np.abs(canvas.x) / half, 0.0, 1.0)
    trunk = (1.0 - ratio**3.2) ** 0.6
    arms = canvas.zero
    for side in (-1, 1):
        path = smooth_curve([(side * 0.88, -0.50), (side * 1.10, -0.1), (side * 1.24, 0.6), (side * 1.3, 2.0)], 120)
        arm = canvas.tube(path * [anatomy.body_width, 1.0], np.linspace(0.26, 0.17, 120))
        arms = np.maximum(arms, 2.0 * arm)
    body = anatomy.fat * np.maximum(0.82 * trunk, arms)
    below = 1.0 / (1.0 + np.exp(-(canvas.y - anatomy.dome_right - 0.1) / 0.07))
    middle = np.exp(-((canvas.x / 0.15) ** 4))
    return body * (1.0 + 0.28 * below * (1.0 - ratio**4)) + trunk * (0.10 * middle) + 0.30 * _heart(canvas, anatomy)


def _ribs(canvas: BodyCanvas, anatomy: _Anatomy) -> Array:
    """The ribs as tilted hoops seen from the front: the back part runs high, the front part low."""
    total = canvas.zero.copy()
    theta = np.linspace(0.10, 2.55, 140)
    for number in range(10):
        height = -0.78 + 0.142 * number + anatomy.rib_phase
        middle = height + 0.35 * anatomy.rib_tilt
        reach = float(_rib_cage(anatomy, np.array(min(middle, 0.5)))) + 0.015
        if reach < 0.2:
            continue
        drop = anatomy.rib_tilt * min(1.0, 0.45 + 0.09 * number)
        fade = np.clip((2.55 - theta) / 0.35, 0.25, 1.0)
        y = height + drop * (0.5 - 0.5 * np.cos(theta)) - 0.05 * np.sin(2 * np.clip(theta, 0, np.pi / 2))
        for side in (-1, 1):
            path = np.stack([side * reach * np.sin(theta), y], axis=-1)
            back = theta < np.pi / 2
            rib = canvas.tube(path[back], np.full(back.sum(), 0.031), hollow=0.62)
            total += rib + 0.75 * canvas.tube(path[~back], 0.034 * fade[~back] ** 0.2, hollow=0.7)
    return total


def _spine(canvas: BodyCanvas, anatomy: _Anatomy) -> Array:
    """Vertebral bodies with pedicles and spinous processes."""
    x = canvas.x - anatomy.scoliosis * np.sin(2.2 * canvas.y)
    phase = (canvas.y - anatomy.rib_phase) / 0.142 * 2 * np.pi
    waist = 0.068 + 0.008 * np.cos(phase) + 0.012 * canvas.y
    column = 1.0 / (1.0 + np.exp((np.abs(x) - waist) / 0.006))
    body = column * (0.75 + 0.25 * np.tanh(4.0 * (0.72 + np.cos(phase + np.pi))))
    local = (phase / (2 * np.pi) % 1.0 - 0.5) * 0.142
    pedicles = np.exp(-(((np.abs(x) - 0.045) / 0.014) ** 2) - ((local - 0.01) / 0.024) ** 2)
    process = np.exp(-((x / 0.012) ** 2) - ((local + 0.03) / 0.03) ** 2)
    return 0.06 * body + 0.025 * pedicles + 0.03 * process


def _shoulder_bones(canvas: BodyCanvas, anatomy: _Anatomy) -> Array:
    """Clavicles, shoulder blades and the heads of the upper arms."""
    total = canvas.zero.copy()
    width = anatomy.body_width
    for side in (-1, 1):
        ends = [(0.075, -0.50), (0.20, -0.575), (0.42, -0.60), (0.62, -0.66), (0.76 * width, -0.655)]
        clavicle = smooth_curve([(side * x, y) for x, y in ends], 120)
        total += canvas.tube(clavicle, 0.034 + 0.014 * np.linspace(-1, 1, 120) ** 2, hollow=0.6)
        blade = smooth_curve([(side * x, y) for x, y in [(0.60, -0.50), (0.66, -0.2), (0.74, 0.05), (0.80, -0.2)]], 120)
        total += 0.35 * canvas.tube(blade * [width, 1.0], np.full(120, 0.03), hollow=0.5)
        arm = smooth_curve([(side * x, y) for x, y in [(0.90, -0.54), (1.02, -0.30), (1.16, 0.4), (1.22, 2.0)]], 160)
        radii = np.interp(np.linspace(0, 1, 160), [0, 0.07, 0.16, 1.0], [0.10, 0.10, 0.06, 0.055])
        total += 0.9 * canvas.tube(arm * [width, 1.0], radii, hollow=0.65)
    return total


def _vessel_tree(rng: np.random.Generator, start: tuple[float, float], angle: float, radius: float) -> Array:
    """One vessel with its branches as points [N, 3]: x, y, radius."""
    points: list[tuple[float, float, float]] = []
    stack = [(start[0], start[1], angle, radius)]
    while stack:
        x, y, angle, radius = stack.pop()
        bend = rng.normal(0.0, 0.08)
        for _ in range(int(rng.integers(12, 24))):
            angle += bend * 0.35 + rng.normal(0.0, 0.06)
            x, y = x + 0.007 * np.cos(angle), y + 0.007 * np.sin(angle)
            radius *= 0.988
            points.append((x, y, radius))
        if radius > 0.0022:
            fork = rng.uniform(0.3, 0.6)
            stack.append((x, y, angle + fork, radius * 0.72))
            stack.append((x, y, angle - fork * 0.6, radius * 0.82))
    return np.asarray(points)


def _vessels(canvas: BodyCanvas, anatomy: _Anatomy, seed: int) -> Array:
    """Lung vessels that fan out of both hila, thicker towards the base."""
    rng = np.random.default_rng([seed, _VESSELS])
    total = canvas.zero.copy()
    for side, hilum in ((-1, (-0.13, -0.04)), (1, (0.15, -0.08))):
        for direction in np.linspace(-1.3, 1.4, 11):
            angle = direction + rng.normal(0.0, 0.08)
            start = (hilum[0], hilum[1] + 0.07 * direction)
            radius = rng.uniform(0.011, 0.017) * (1.0 + 0.25 * direction)
            tree = _vessel_tree(rng, start, angle if side > 0 else np.pi - angle, radius)
            total += canvas.tube(tree[:, :2], tree[:, 2])
        total += 0.014 * canvas.ellipse(hilum, (0.085, 0.13))
    return total


def _expose(canvas: BodyCanvas, anatomy: _Anatomy, thickness: Array, seed: int) -> Array:
    """Grey values [0, 1] of a thickness map: scatter, film-like curve, noise, marker and collimation."""
    rng = np.random.default_rng([seed, _NOISE])
    veiled = 0.86 * canvas.blur(thickness, 0.0035) + 0.14 * canvas.blur(thickness, 0.09)
    grey = 1.0 / (1.0 + np.exp(-3.5 * anatomy.contrast * (veiled - 0.60 - anatomy.brightness)))
    floor = 1.0 / (1.0 + np.exp(3.5 * anatomy.contrast * (0.60 + anatomy.brightness)))
    grey = 0.02 + 0.94 * (grey - floor) / (1.0 - floor)
    grain = gaussian_filter(rng.standard_normal(grey.shape), 0.6)
    grey = grey + grain * (0.006 + 0.022 * np.clip(grey, 0.0, 1.0))
    half_y, half_x = np.abs(canvas.frame_y[0, 0]), np.abs(canvas.frame_x[0, 0])
    if anatomy.marker >= 0.4:
        side, letter = (1, "L") if anatomy.marker < 0.7 else (-1, "R")
        rows = np.floor((canvas.frame_y + half_y - 0.16) / 0.022).astype(int)
        columns = np.floor((canvas.frame_x - side * (half_x - 0.20)) / 0.022).astype(int) + 2
        glyph = np.array([[c == "1" for c in row] for row in _LETTERS[letter]])
        hit = (rows >= 0) & (rows < 6) & (columns >= 0) & (columns < 4)
        grey[hit & glyph[np.clip(rows, 0, 5), np.clip(columns, 0, 3)]] = 0.97
    if anatomy.border > 0:
        edge = np.minimum(half_y - np.abs(canvas.frame_y), half_x - np.abs(canvas.frame_x))
        grey *= 0.04 + 0.96 / (1.0 + np.exp(np.clip((anatomy.border - edge) / 0.004, -60, 60)))
    return np.clip(grey, 0.0, 1.0)


def draw_chest_phantom(height: int, width: int, seed: int) -> Tensor:
    """Draw a frontal chest radiograph of a person who does not exist: float32 [1, height, width] in [0, 1].

    Bone is bright and air dark; the heart lies to the image's right. The anatomy depends on the seed alone, not on the
    size, so that one seed drawn at two sizes shows one person, everywhere the same to the rounding of 8-bit grey
    values. The shorter side shows the chest, a longer one more of what surrounds it.

    Raises:
        ValueError: the size is below 16 pixels or the seed negative.
    """
    canvas, anatomy = _draw_person(height, width, seed)
    whole, _ = _lungs(canvas, anatomy)
    soft = _soft_tissue(canvas, anatomy)
    bones = _ribs(canvas, anatomy) * 3.4 + _spine(canvas, anatomy) * 3.4 + _shoulder_bones(canvas, anatomy) * 3.0
    vessels = _vessels(canvas, anatomy, seed) * canvas.blur(whole.astype(float), 0.01)
    air = np.minimum(_air(canvas, anatomy, whole) * 0.60, 0.8 * soft)
    thickness = soft - air + anatomy.bone * bones + 8.0 * vessels
    return torch.from_numpy(_expose(canvas, anatomy, thickness, seed).astype(np.float32))[None]


def draw_lung_mask(height: int, width: int, seed: int) -> Tensor:
    """The lung fields of `draw_chest_phantom` with the same arguments: bool [1, height, width].

    As in lung segmentation sets, what lies behind the heart, the mediastinum or the diaphragm does not count.
    """
    _, visible = _lungs(*_draw_person(height, width, seed))
    return torch.from_numpy(visible)[None]
