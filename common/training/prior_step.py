"""Training and validation of the prior over DINO tokens, as MONAI's `iteration_update`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from monai.engines import SupervisedEvaluator
from torch import Tensor
from torch.utils.data import Dataset

from ..data.latent_store import LatentDataset
from ..networks.conditioning import TokenSelection
from ..networks.embedding_prior import EmbeddingPrior
from .denoising_step import ConditionalStep, DiffusionValidation, Predict


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


@dataclass(kw_only=True, eq=False)
class PriorStep(ConditionalStep):
    """The step on components of tokens, with labels as context; float32, as they are small."""

    amp: bool = False

    def clean(self, batch: dict[str, Any], draws: list[int]) -> Tensor:
        """The components [B, K], on the network's device."""
        components = self.ema.network.components  # those of the network in training
        return components.encode(batch["tokens"].to(components.directions.device))

    def conditions(self, batch: dict[str, Any], draws: list[int]) -> tuple[Tensor, ...]:
        """Label indices [B], "no label" where they are dropped."""
        return (batch["label"].masked_fill(self.dropped(draws), len(self.ema.network.labels)),)


@dataclass(kw_only=True, eq=False)
class PriorValidation(DiffusionValidation):
    """The validation on components of tokens, in float32; labels are never dropped."""

    amp: bool = False

    def prepare(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> tuple[list[int], Tensor, Predict]:
        """The components, and the prior with the label of each image."""
        prior: Any = engine.network
        device = engine.state.device
        labels = batch["label"].to(device)

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return prior(noisy, timesteps, prior.encode_labels(labels))

        return batch["index"].tolist(), prior.components.encode(batch["tokens"].to(device)), predict
