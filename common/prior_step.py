"""Training and validation of the prior over DINO tokens, as MONAI's `iteration_update`."""

from __future__ import annotations

from typing import Any, cast

import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import Tensor
from torch.utils.data import Dataset

from .conditioning import TokenSelection
from .denoising_step import spread_uniform
from .descent import descend
from .distributed import rank
from .ema import ExponentialMovingAverage
from .latent_store import LatentDataset
from .networks.embedding_prior import EmbeddingPrior
from .noise_schedule import NoiseSchedule
from .seeding import Purpose, derive_seed, seeded_normal


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


class PriorStep:
    """One optimiser step on ‖output - target‖² of token components; all randomness is a function of draw or step.

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
        max_grad_norm: float,
        seed: int,
    ) -> None:
        if not 0.0 <= uncond_prob < 1.0:
            raise ValueError(f"uncond_prob: expected a share in [0, 1), found {uncond_prob}")
        self.schedule = schedule
        self.uncond_prob = uncond_prob
        self.ema = ema
        self.max_grad_norm = max_grad_norm
        self.seed = seed

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> dict[str, float]:
        """Do one step; return loss, learning rate and gradient norm.

        Raises:
            NonFiniteLossError: names the step.
        """
        device = engine.state.device
        draws = batch["draw"].tolist()
        prior = self.ema.network  # its components and labels are those of the network in training
        x0 = prior.components.encode(batch["tokens"].to(device))
        noise = self._noise(draws, x0.shape[1]).to(device)
        timesteps = self.schedule.sample_timesteps(spread_uniform(draws, self.seed)).to(device)
        labels = batch["label"].masked_fill(self._drop(draws), len(prior.labels)).to(device)
        noisy = self.schedule.add_noise(x0, noise, timesteps)
        engine.network.train()
        # Dropout draws from the global generators: seed them for this step, and leave them as they were.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self.seed, Purpose.PRIOR, engine.state.iteration, rank()))
            output = engine.network(noisy, timesteps, labels)
        loss = (output - self.schedule.target(x0, noise, timesteps)).square().mean()
        learning_rate = float(engine.optimizer.param_groups[0]["lr"])
        logged, grad_norm = descend(
            engine.network, engine.optimizer, {"loss": loss}, self.max_grad_norm, engine.state.iteration
        )
        self.ema.update()
        return {**logged, "grad_norm": grad_norm, "learning_rate": learning_rate}

    def _noise(self, draws: list[int], size: int) -> Tensor:
        return seeded_normal([derive_seed(self.seed, Purpose.NOISE, draw) for draw in draws], (size,))

    def _drop(self, draws: list[int]) -> Tensor:
        chances = [derive_seed(self.seed, Purpose.CONTEXT_DROP, draw) / 2**63 for draw in draws]
        return torch.tensor(chances, dtype=torch.float64) < self.uncond_prob


class PriorValidation:
    """Error of the output on fixed noise and timesteps, one per stratum of noise levels and image.

    Args:
        schedule: forward process and prediction type.
        num_levels: strata of equal probability in training, 0 the least noisy.
        seed: of the noise.
    """

    def __init__(self, schedule: NoiseSchedule, num_levels: int, seed: int) -> None:
        self.schedule = schedule
        self.num_levels = num_levels
        self.seed = seed

    def __call__(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return "errors" [B, num_levels]."""
        device = engine.state.device
        prior, indices = cast(EmbeddingPrior, engine.network), batch["index"].tolist()
        with torch.no_grad():
            x0 = prior.components.encode(batch["tokens"].to(device))
            context = prior.encode_labels(batch["label"].to(device))
            errors = []
            for level in range(self.num_levels):
                seeds = [derive_seed(self.seed, Purpose.NOISE, level, index) for index in indices]
                noise = seeded_normal(seeds, tuple(x0.shape[1:])).to(device)
                within = spread_uniform(indices, self.seed)
                timesteps = self.schedule.sample_timesteps((level + within) / self.num_levels).to(device)
                output = prior(self.schedule.add_noise(x0, noise, timesteps), timesteps, context)
                errors.append((output - self.schedule.target(x0, noise, timesteps)).square().mean(1))
        return {"errors": torch.stack(errors, dim=1)}
