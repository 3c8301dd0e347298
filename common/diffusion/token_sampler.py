"""Draw DINO tokens from the prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SettingsError
from ..networks.embedding_prior import EmbeddingPrior
from .samplers import Sampler


@dataclass(eq=False, repr=False)
class TokenSampler:
    """Draw tokens with a trained prior on its device, guided towards the label, where one is given."""

    prior: EmbeddingPrior
    sampler: Sampler
    device: torch.device | str

    def check_label(self, label: str | None) -> None:
        """Refuse a label that the prior does not know: SettingsError, which says what it knows."""
        if label is not None and label not in self.prior.labels:
            known = ", ".join(self.prior.labels) or "none"
            raise SettingsError(f"label: expected one that the prior knows ({known}) or null, found {label!r}")

    @torch.inference_mode()
    def sample(self, seeds: Sequence[int], label: str | None = None) -> Tensor:
        """Tokens [B, N, D] as the encoder would give them, one set per seed, on the CPU; for a label, or any (None).

        Raises:
            SettingsError: the prior does not know this label; says which it knows.
        """
        self.check_label(label)
        self.prior.eval()
        indices = self.prior.label_indices([label or ""] * len(seeds)).to(self.device)
        components = self.sampler.sample(
            self.prior,
            (self.prior.num_components,),
            seeds,
            context=self.prior.encode_labels(indices),
            null_context=self.prior.null_context,
            device=self.device,
        )
        return self.prior.components.decode(components).float().cpu()
