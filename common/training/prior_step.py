"""Training and validation of the prior over DINO tokens, as MONAI's `iteration_update`."""

from __future__ import annotations

from typing import Any, cast

from monai.engines import SupervisedEvaluator
from torch import Tensor
from torch.utils.data import Dataset

from ..data.latent_store import LatentDataset
from ..diffusion.noise_schedule import NoiseSchedule
from ..networks.conditioning import TokenSelection
from ..networks.embedding_prior import EmbeddingPrior
from .denoising_step import DiffusionStep, DiffusionValidation, Predict, checked_share, context_drop
from .ema import ExponentialMovingAverage


class TokenDataset(Dataset):
    """Tokens and labels of one split of a store, in memory: "tokens" [N, D], "label" (index), "draw", "index".

    Args:
        dataset: the split.
        selection: which tokens condition the denoiser.
        prior: knows the labels; what is not among them becomes "no label".
    """

    def __init__(self, dataset: LatentDataset, selection: TokenSelection, prior: EmbeddingPrior) -> None:
        self.tokens = selection.select(dataset.all_tokens())
        names = [dataset.store.items[row].get("label", "") for row in dataset.rows]
        self.labels = prior.label_indices(names)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """One image; `key` is its index, or (index, number of the draw)."""
        index, draw = key if isinstance(key, tuple) else (key, 0)
        return {"tokens": self.tokens[index], "label": self.labels[index], "draw": draw, "index": index}


class PriorStep(DiffusionStep[EmbeddingPrior]):
    """The step on components of tokens, with labels as context; float32, as they are small.

    Args:
        schedule: forward process and prediction type.
        uncond_prob: share of samples trained without their label.
        ema: updated after each step.
        max_grad_norm: gradients are clipped to this norm.
        seed: of noise, timesteps, dropped labels and dropout.

    Raises:
        ValueError: `uncond_prob` outside [0, 1).
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        uncond_prob: float,
        ema: ExponentialMovingAverage[EmbeddingPrior],
        max_grad_norm: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(schedule, ema, max_grad_norm=max_grad_norm, amp=False, seed=seed)
        self.uncond_prob = checked_share(uncond_prob)

    def clean(self, batch: dict[str, Any], draws: list[int]) -> Tensor:
        """The components [B, K], on the network's device."""
        components = self.ema.network.components  # those of the network in training
        return components.encode(batch["tokens"].to(components.directions.device))

    def conditions(self, batch: dict[str, Any], draws: list[int]) -> tuple[Tensor, ...]:
        """Label indices [B], "no label" where they are dropped."""
        drop = context_drop(draws, self.seed, self.uncond_prob)
        return (batch["label"].masked_fill(drop, len(self.ema.network.labels)),)


class PriorValidation(DiffusionValidation):
    """The validation on components of tokens; labels are never dropped.

    Args:
        schedule: forward process and prediction type.
        num_levels: strata of equal probability in training, 0 the least noisy.
        seed: of the noise.
    """

    def __init__(self, schedule: NoiseSchedule, num_levels: int = 4, seed: int = 0) -> None:
        super().__init__(schedule, num_levels, False, seed)

    def prepare(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> tuple[list[int], Tensor, Predict]:
        """The components, and the prior with the label of each image."""
        prior, device = cast(EmbeddingPrior, engine.network), engine.state.device
        labels = batch["label"].to(device)

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return prior(noisy, timesteps, prior.encode_labels(labels))

        return batch["index"].tolist(), prior.components.encode(batch["tokens"].to(device)), predict
