"""The paper's classifier: MONAI's DenseNet-121 from random weights, for a given number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from monai.networks.nets import DenseNet121
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..amp import autocast
from ..data.augmentation import augmented_image
from ..data.transforms import load_square
from ..seeding import Purpose, derive_seed
from .benefit_trials import UNAUGMENTED, Example, stages
from .probe_classifier import plain_augmentation

READING_THREADS = 4
INTENSITY_MEAN, INTENSITY_SD = 0.5, 0.25  # of radiographs in [0, 1], roughly
WARM_UP = 0.1  # of a stage's steps
TEST_BATCH = 64


@dataclass(frozen=True)
class TrainingSettings:
    """Of every training, whatever its regime."""

    image_size: int = 64  # px of the square images
    num_steps: int = 300  # of all stages together
    batch_size: int = 16  # images a step
    learning_rate: float = 1.0e-3  # peak of a one-cycle schedule in every stage
    weight_decay: float = 1.0e-2  # of AdamW
    mixup_alpha: float = 0.2  # of MixUp's Beta distribution; 0 is none
    amp: bool = True  # bfloat16 where the hardware has it


def mix_up(image: Tensor, target: Tensor, alpha: float, seed: int) -> tuple[Tensor, Tensor]:
    """Blend every image [B, 1, H, W] and its target [B, C] with those of another of the batch (Zhang et al. 2018).

    An image's own share is drawn from Beta(alpha, alpha); alpha 0 changes nothing.
    """
    if alpha == 0:
        return image, target
    generator = np.random.default_rng(seed)
    partner = torch.from_numpy(generator.permutation(len(image)))
    share = torch.from_numpy(generator.beta(alpha, alpha, len(image))).to(image)
    wide, narrow = share.view(-1, 1, 1, 1), share.view(-1, 1)
    return wide * image + (1 - wide) * image[partner], narrow * target + (1 - narrow) * target[partner]


def batch_order(num_images: int, num_steps: int, batch_size: int, seed: int) -> NDArray[np.int64]:
    """Which images every step sees [num_steps, batch_size]: all of them in random order, again and again."""
    needed = num_steps * batch_size
    seeds = [derive_seed(seed, Purpose.ORDER, number) for number in range(-(-needed // num_images))]
    orders = [np.random.default_rng(each).permutation(num_images) for each in seeds]
    return np.concatenate(orders)[:needed].reshape(num_steps, batch_size)


@dataclass
class DenseNetClassifier:
    """Train a DenseNet-121 on a regime's images, with the same settings always, and predict the test images."""

    num_classes: int
    test_paths: Sequence[str]
    settings: TrainingSettings
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        self.test_images = load_images(self.test_paths, self.settings.image_size)

    def __call__(
        self, real: Sequence[Example], synthetic: Sequence[Example], regime: str, seed: int, times_steps: int = 1
    ) -> tuple[NDArray[np.float64], dict[str, object]]:
        """Probabilities [N, C] of the test images, and the last training loss of every stage."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, Purpose.NOISE))
            network: nn.Module = DenseNet121(spatial_dims=2, in_channels=1, out_channels=self.num_classes)
        network.to(self.device)
        chosen = {"real": list(real), "synthetic": list(synthetic), "both": [*real, *synthetic]}
        losses = []
        for number, (kind, steps) in enumerate(stages(regime, times_steps * self.settings.num_steps)):
            examples = chosen[kind]
            images = load_images([each.path for each in examples], self.settings.image_size)
            labels = torch.tensor([each.label for each in examples])
            stage_seed = derive_seed(seed, number)
            losses.append(self._train(network, images, labels, steps, regime != UNAUGMENTED, stage_seed))
        return self.predict(network), {"training_loss": losses, "num_images": len(chosen[kind])}

    def _train(
        self, network: nn.Module, images: Tensor, labels: Tensor, num_steps: int, augment: bool, seed: int
    ) -> float:
        """Train for some steps; return the mean loss of the last tenth of them."""
        own = self.settings
        network.train()
        optimiser = torch.optim.AdamW(network.parameters(), lr=own.learning_rate, weight_decay=own.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, max_lr=own.learning_rate, total_steps=max(num_steps, 2), pct_start=WARM_UP
        )
        targets = F.one_hot(labels, self.num_classes).float()
        augmentation = plain_augmentation() if augment else None
        losses: list[float] = []
        for step, rows in enumerate(batch_order(len(images), num_steps, own.batch_size, seed)):
            image = images[rows].float() / 255
            target = targets[rows]
            draws = [step * own.batch_size + place for place in range(own.batch_size)]
            image = augmented_image(augmentation, image, seed, draws)
            if augment:
                image, target = mix_up(image, target, own.mixup_alpha, derive_seed(seed, Purpose.AUGMENTATION, step, 1))
            loss = F.cross_entropy(self._logits(network, image), target.to(self.device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        return float(np.mean(losses[-max(1, num_steps // 10) :]))

    def _logits(self, network: nn.Module, image: Tensor) -> Tensor:
        with autocast(self.device, self.settings.amp):
            return network(((image - INTENSITY_MEAN) / INTENSITY_SD).to(self.device)).float()

    @torch.no_grad()
    def predict(self, network: nn.Module) -> NDArray[np.float64]:
        """Probabilities [N, C] of the test images."""
        network.eval()
        parts = [self._logits(network, batch.float() / 255) for batch in self.test_images.split(TEST_BATCH)]
        return torch.cat(parts).double().softmax(1).cpu().numpy()


def load_images(paths: Sequence[str], size: int) -> Tensor:
    """Radiographs as the networks see them, uint8 [N, 1, size, size]; memory is what limits their number."""

    def load(path: str) -> Tensor:
        return (load_square(path, size).as_subclass(Tensor).clamp(0, 1) * 255).round().to(torch.uint8)

    with ThreadPoolExecutor(READING_THREADS) as pool:
        return torch.stack(list(pool.map(load, paths)))
