"""Pixels classified by small networks on a frozen denoiser's features (Baranchuk et al. 2022, arXiv 2112.03126)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..diffusion.noise_schedule import NoiseSchedule
from ..errors import UserError
from ..intensity import to_signed
from ..networks.pixel_denoiser import PixelDenoiser
from ..seeding import Purpose, derive_seed, seeded_normal

FEW_CLASSES = 30  # below it the smaller hidden layers
HIDDEN_FEW, HIDDEN_MANY = (128, 32), (256, 128)
INITIAL_STD = 0.02

_logger = logging.getLogger(__name__)


class PixelClassifierError(UserError, ValueError):
    """Knobs or training data that the classifier of pixels cannot use, or a prediction before any training."""


class PixelClassifier(nn.Module):
    """Image to log-probabilities; an ensemble of MLPs sees each pixel's features alone, the denoiser is frozen.

    As the authors' code: features are what decoder blocks give for the image with noise, upsampled bilinearly; the
    noise is one and the same for all images and timesteps; weights start from N(0, 0.02²). Other than there: features
    are standardised; members draw their pixels with replacement, for a given number of steps; and the members'
    probabilities are averaged where the paper lets them vote, so that the output can be scored as any segmenter's.

    Args:
        denoiser: with its trained weights; from now on frozen and in eval mode.
        schedule: that it was trained with.
        timesteps: of the schedule, as the denoiser is fed them; the paper's 50, 150, 250 of 1000 are 200, 600, 1000 of
            4000.
        blocks: of the decoder, whose features are taken; 0 is at the lowest resolution and, as all but the last, ends
            with an upsampling to the next. MONAI's blocks are levels; the paper's (5, 6, 7, 8, 12 of 18 at 6 levels)
            are single residual blocks of them.
        num_classes: K, background included.
        ensemble_size: members; the paper has 10.
        seed: of noise, initial weights and order.

    Raises:
        PixelClassifierError: a number out of range, or the same twice.
    """

    feature_mean: Tensor
    feature_sd: Tensor

    def __init__(
        self,
        denoiser: PixelDenoiser,
        schedule: NoiseSchedule,
        timesteps: Sequence[int],
        blocks: Sequence[int],
        num_classes: int,
        ensemble_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        up_blocks = denoiser.unet.up_blocks
        _check_choice("timesteps", timesteps, schedule.last_timestep + 1)
        _check_choice("blocks", blocks, len(up_blocks))
        if num_classes < 2 or ensemble_size < 1:
            raise PixelClassifierError(
                f"pixel classifier: found num_classes {num_classes}, ensemble_size {ensemble_size}; expected at least "
                "2 classes, background included, and 1 member."
            )
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.schedule = schedule
        self.timesteps = tuple(timesteps)
        self.blocks = tuple(blocks)
        self.num_classes = num_classes
        self.seed = seed
        channels = [cast(int, up_blocks[block].resnets[-1].out_channels) for block in self.blocks]  # type: ignore
        self.feature_dim = sum(channels) * len(self.timesteps)
        device = next(denoiser.parameters()).device
        self.register_buffer("feature_mean", torch.zeros(self.feature_dim, device=device))
        self.register_buffer("feature_sd", torch.zeros(self.feature_dim, device=device))  # zeros: not fitted
        self.members = nn.ModuleList(_member(self.feature_dim, num_classes) for _ in range(ensemble_size)).to(device)

    def train(self, mode: bool = True) -> PixelClassifier:
        """Set the members' mode; the denoiser stays in eval mode, or dropout would change the features."""
        super().train(mode)
        self.denoiser.eval()
        return self

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """Features of one image at its own size, not standardised.

        Args:
            image: [1, 1, H, W] in [0, 1]; padded and cut as `forward` says.

        Returns:
            float32 [D, H, W]: block by block, within it timestep by timestep.
        """
        height, width = image.shape[2], image.shape[3]
        factor = self.denoiser.downsampling_factor
        padded = to_signed(F.pad(image, (0, -width % factor, 0, -height % factor), mode="replicate"))
        timesteps = torch.tensor(self.timesteps, device=image.device)
        noise = seeded_normal([derive_seed(self.seed, Purpose.NOISE)], tuple(padded.shape[1:])).to(padded)
        repeated = (len(self.timesteps), 1, 1, 1)
        noisy = self.schedule.add_noise(padded.repeat(repeated), noise.repeat(repeated), timesteps)
        with self._captured() as found:
            self.denoiser(noisy, timesteps)
        size = list(padded.shape[2:])
        maps = [
            F.interpolate(found[block].float(), size, mode="bilinear", align_corners=False).flatten(0, 1)
            for block in self.blocks
        ]
        return torch.cat(maps)[:, :height, :width]

    def fit(
        self, images: Tensor, labels: Tensor, max_steps: int, batch_pixels: int, learning_rate: float = 1e-3
    ) -> PixelClassifier:
        """Train all members from new initial weights, and return the classifier in eval mode.

        The same seed and data give the same. Features of all pixels are kept in memory, 2·N·H·W·D bytes.

        Args:
            images: [N, 1, H, W] in [0, 1].
            labels: integers [N, 1, H, W], 0 to K-1.
            max_steps: of Adam, for each member.
            batch_pixels: in a step; the authors' code has 64.
            learning_rate: of Adam; the authors' code has 0.001.

        Raises:
            PixelClassifierError: images and labels that do not fit, or a number out of range.
        """
        self._check_training_data(images, labels)
        if max_steps < 1 or batch_pixels < 2 or learning_rate <= 0:
            raise PixelClassifierError(
                f"pixel classifier: found max_steps {max_steps}, batch_pixels {batch_pixels}, learning_rate "
                f"{learning_rate}; expected at least 1 step, at least 2 pixels for batch norm, and a positive rate."
            )
        pixels = self._standardised_pixels(images)
        targets = labels.flatten().cpu().long()
        for number, member in enumerate(self.members):
            generator = torch.Generator().manual_seed(derive_seed(self.seed, Purpose.ORDER, number))
            _initialise(member, generator)
            loss = _train_member(member, pixels, targets, max_steps, batch_pixels, learning_rate, generator)
            _logger.info("member %d of %d: last loss %.4f", number + 1, len(self.members), loss)
        return self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Segment.

        Args:
            image: [B, 1, H, W] in [0, 1]. Sizes that the U-Net cannot halve often enough are padded, by repeating the
                last row and column, and the features cut to size.

        Returns:
            Log-probabilities [B, K, H, W]: of the mean of the members' softmax.

        Raises:
            ValueError: not a batch of images of one channel.
            PixelClassifierError: neither fitted nor loaded from weights that were.
        """
        if image.ndim != 4 or image.shape[1] != 1:
            raise ValueError(f"expected an image [B, 1, H, W], found {tuple(image.shape)}")
        if not self.feature_sd.any():
            raise PixelClassifierError("pixel classifier: found no training; expected `fit` or weights of a fitted one")
        return torch.stack([self._log_probabilities(one[None]) for one in image])

    def _log_probabilities(self, image: Tensor) -> Tensor:
        """[K, H, W] of one image [1, 1, H, W]."""
        pixels = self._standardised(image)
        members = torch.stack([member(pixels).log_softmax(dim=1) for member in self.members])
        mean = members.logsumexp(dim=0) - math.log(len(self.members))
        return mean.T.reshape(self.num_classes, *image.shape[2:])

    def _standardised(self, image: Tensor) -> Tensor:
        """Rows [H·W, D] of one image [1, 1, H, W]."""
        return (self.features(image).flatten(1).T - self.feature_mean) / self.feature_sd

    def _standardised_pixels(self, images: Tensor) -> Tensor:
        """Fit the standardisation; rows float16 [N·H·W, D] on the CPU.

        Two passes through the U-Net instead of one, so that what is rounded to 16 bits is small: no standardised value
        of n pixels exceeds √n.
        """
        device = self.feature_mean.device
        total = torch.zeros(2, self.feature_dim, dtype=torch.float64)
        for image in images:
            values = self.features(image[None].to(device)).flatten(1).double()
            total += torch.stack([values.mean(1), values.square().mean(1)]).cpu()
        mean, square = total / len(images)
        sd = (square - mean.square()).clamp(min=0.0).sqrt()
        # A feature that never changes says nothing; it becomes 0, not rounding errors blown up.
        sd = torch.where(sd > 1e-6 * square.sqrt(), sd, torch.full_like(sd, torch.inf))
        self.feature_mean.copy_(mean)
        self.feature_sd.copy_(sd)
        area = images.shape[2] * images.shape[3]
        pixels = torch.empty(len(images) * area, self.feature_dim, dtype=torch.float16)
        for number, image in enumerate(images):
            pixels[number * area : (number + 1) * area] = self._standardised(image[None].to(device))
        return pixels

    @contextmanager
    def _captured(self) -> Iterator[dict[int, Tensor]]:
        """Within the block, what the chosen decoder blocks gave last."""
        found: dict[int, Tensor] = {}

        def keep(block: int, _module: nn.Module, _inputs: object, output: Tensor) -> None:
            found[block] = output

        up_blocks = self.denoiser.unet.up_blocks
        handles = [up_blocks[block].register_forward_hook(partial(keep, block)) for block in self.blocks]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def _check_training_data(self, images: Tensor, labels: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 1 or not len(images) or labels.shape != images.shape:
            raise PixelClassifierError(
                f"pixel classifier: found images {tuple(images.shape)} and labels {tuple(labels.shape)}; expected "
                "both [N, 1, H, W]."
            )
        if labels.is_floating_point() or labels.min() < 0 or labels.max() >= self.num_classes:
            raise PixelClassifierError(
                f"pixel classifier: found labels {labels.dtype} from {labels.min()} to {labels.max()}; expected "
                f"integers from 0 to {self.num_classes - 1}."
            )


def _check_choice(name: str, chosen: Sequence[int], count: int) -> None:
    if not chosen or len({*chosen}) != len(chosen) or not {*chosen} <= set(range(count)):
        raise PixelClassifierError(
            f"pixel classifier: found {name} {list(chosen)}; expected different ones from 0 to {count - 1}."
        )


def _member(feature_dim: int, num_classes: int) -> nn.Sequential:
    first, second = HIDDEN_FEW if num_classes < FEW_CLASSES else HIDDEN_MANY
    return nn.Sequential(
        nn.Linear(feature_dim, first),
        nn.ReLU(),
        nn.BatchNorm1d(first),
        nn.Linear(first, second),
        nn.ReLU(),
        nn.BatchNorm1d(second),
        nn.Linear(second, num_classes),
    )


def _initialise(member: nn.Module, generator: torch.Generator) -> None:
    for layer in member.children():
        if isinstance(layer, nn.Linear):
            # Drawn on the CPU, so that the start does not depend on the device.
            drawn = torch.randn(layer.weight.shape, generator=generator) * INITIAL_STD
            with torch.no_grad():
                layer.weight.copy_(drawn)
                layer.bias.zero_()
        elif isinstance(layer, nn.BatchNorm1d):
            layer.reset_parameters()


def _train_member(
    member: nn.Module,
    pixels: Tensor,
    targets: Tensor,
    max_steps: int,
    batch_pixels: int,
    learning_rate: float,
    generator: torch.Generator,
) -> float:
    """Minimise the cross-entropy of rows [P, D] and targets [P]; returns the last step's."""
    device = next(member.parameters()).device
    optimizer = torch.optim.Adam(member.parameters(), lr=learning_rate)
    member.train()
    loss = torch.tensor(torch.nan)
    for _ in range(max_steps):
        rows = torch.randint(len(pixels), (batch_pixels,), generator=generator)
        loss = F.cross_entropy(member(pixels[rows].to(device).float()), targets[rows].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())
