"""Random changes of images, and of masks with them, as functions of the draw: a resumed run sees what it would have."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..seeding import Purpose, derive_seed

# Of the views that DiNO-Diffusion trains on (arXiv 2407.11594, section 2.5)
MAX_SHEAR, MAX_TRANSLATION = 0.05, 0.05  # of the side
SCALE_RANGE = (0.9, 1.4)
MAX_SHARPENING = 1.0  # weight of image - blurred

# (image [B, 1, H, W] in [0, 1], mask [B, 1, H, W], one seed per image) to both changed
Augmentation = Callable[[Tensor, Tensor, Sequence[int]], tuple[Tensor, Tensor]]


def augmented_pair(
    augmentation: Augmentation | None, image: Tensor, mask: Tensor, seed: int, draws: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Change images and masks, each pair by its draw; None leaves them."""
    if augmentation is None:
        return image, mask
    return augmentation(image, mask, [derive_seed(seed, Purpose.AUGMENTATION, draw) for draw in draws])


def augmented_image(augmentation: Augmentation | None, image: Tensor, seed: int, draws: Sequence[int]) -> Tensor:
    """Change images without masks just as `augmented_pair` would."""
    background = torch.zeros_like(image, dtype=torch.int64)
    return augmented_pair(augmentation, image, background, seed, draws)[0]


class RandomAugmentation:
    """Flips, rotation, translation, scale, gamma and gain.

    All geometry is one resampling, bilinear for images and to the nearest pixel for masks; what comes from outside is
    black and background, as padding is. Intensities become gain · x^gamma, which leaves black padding black.

    Args:
        mirrored_labels: the label that each label becomes when an image is flipped left to right, see `ClassTable`;
            [0] where there are no masks.
        flip_horizontal: flip half of the images left to right.
        flip_vertical: flip half of them upside down.
        max_rotation_degrees: either way.
        max_translation: of the side, either way.
        max_scale, max_gamma, max_gain: factors of at least 1; drawn are those between 1 / this and this.

    Raises:
        ValueError: a factor below 1.
    """

    def __init__(
        self,
        mirrored_labels: Sequence[int],
        flip_horizontal: bool,
        flip_vertical: bool,
        max_rotation_degrees: float,
        max_translation: float,
        max_scale: float,
        max_gamma: float,
        max_gain: float,
    ) -> None:
        for name, factor in {"max_scale": max_scale, "max_gamma": max_gamma, "max_gain": max_gain}.items():
            if factor < 1:
                raise ValueError(f"{name}: expected at least 1 (no change), found {factor}")
        self.mirrored_labels = torch.tensor(list(mirrored_labels))
        self.flips = flip_horizontal, flip_vertical
        self.max_rotation = math.radians(max_rotation_degrees)
        self.max_translation = max_translation
        self.max_logs = np.log([max_scale, max_gamma, max_gain])

    def __call__(self, image: Tensor, mask: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Change images [B, 1, H, W] in [0, 1] and labels of the same shape, integers, by one seed for each."""
        height, width = image.shape[-2:]
        draws = [self._draw(np.random.default_rng(seed), height / width) for seed in seeds]
        matrices = torch.from_numpy(np.stack([matrix for matrix, _, _ in draws])).to(image)
        grid = F.affine_grid(matrices, list(image.shape), align_corners=False)
        moved = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        labels = F.grid_sample(mask.to(image), grid, mode="nearest", padding_mode="zeros", align_corners=False).long()
        is_mirrored = torch.tensor([mirrored for _, mirrored, _ in draws], device=mask.device).view(-1, 1, 1, 1)
        labels = torch.where(is_mirrored, self.mirrored_labels.to(mask.device)[labels], labels)
        factors = torch.from_numpy(np.stack([intensity for _, _, intensity in draws])).to(image)
        gamma, gain = factors.T.view(2, -1, 1, 1, 1)
        return (gain * moved.clamp(0, 1) ** gamma).clamp(0, 1), labels.to(mask.dtype)

    def _draw(self, generator: np.random.Generator, aspect: float) -> tuple[np.ndarray, bool, np.ndarray]:
        """Matrix [2, 3] from output to input in coordinates of -1 to 1, whether it mirrors, and gamma and gain.

        Every number is drawn whether used or not, so that switching one change off leaves the others as they were.
        """
        flips = (generator.random(2) < 0.5) & self.flips
        angle = generator.uniform(-self.max_rotation, self.max_rotation)
        translation = generator.uniform(-self.max_translation, self.max_translation, 2) * 2  # coordinates span 2
        scale, gamma, gain = np.exp(generator.uniform(-self.max_logs, self.max_logs))
        cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
        # Coordinates are fractions of each side; the aspect ratio makes the rotation one in pixels.
        rotation = np.array([[cosine, -sine * aspect], [sine / aspect, cosine]])
        matrix = np.concatenate([rotation * np.where(flips, -1.0, 1.0), translation[:, None]], axis=1)
        return matrix, bool(flips[0]), np.array([gamma, gain])


def augmented_view(image: Tensor, seed: int) -> Tensor:
    """Random shear, translation, scale and sharpening of [1, H, W] in [0, 1] by a seed; never a mirror image.

    A mirrored chest has its heart on the wrong side. What lies outside the image repeats its border.
    """
    generator = np.random.default_rng(seed)
    shear = generator.uniform(-MAX_SHEAR, MAX_SHEAR, 2)
    translation = generator.uniform(-MAX_TRANSLATION, MAX_TRANSLATION, 2) * 2  # grid coordinates span 2
    scale = math.exp(generator.uniform(*np.log(SCALE_RANGE)))
    matrix = torch.tensor([[1.0, shear[0], translation[0]], [shear[1], 1.0, translation[1]]], dtype=torch.float32)
    matrix[:, :2] /= scale
    grid = F.affine_grid(matrix[None], [1, *image.shape], align_corners=False)
    moved = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    blurred = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    sharpened = moved + generator.uniform(0.0, MAX_SHARPENING) * (moved - blurred)
    return sharpened[0].clamp(0.0, 1.0)
