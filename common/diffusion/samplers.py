"""Sampling a diffusion or flow model: any number of steps, each from the noise level it is at to the one it goes to.

MONAI 1.6.1's DDIM steps by T // N whatever the list of timesteps says, its guidance fills the context with a constant,
and it has no second-order solver; hence this module. Samples are drawn from a seed each, so that a sample depends on
neither the batch that it is in nor its place there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import SettingsError
from ..progress import ProgressBar
from ..seeding import derive_seed, seeded_normal
from .noise_schedule import NoiseSchedule

Method = Literal["ddim", "dpm_solver++_2m", "euler", "heun"]
Spacing = Literal["leading", "trailing", "lambda"]
Network = Callable[..., Tensor]
Predict = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # (noisy, step) to (x0, noise)

SMALLEST_EPSILON_ALPHA = 1e-3  # x0 = (z - σε)/α: below it an error of 1 % in ε is an error of 10 in x0
LOG_SNR_LIMIT = 8.0  # of the spacing `lambda`: beyond it is too little to see, or too little noise to be seen


@dataclass(frozen=True)
class Known:
    """What is given of samples, put back at every noise level (Blended Latent Diffusion, arXiv 2206.02779).

    Attributes:
        x0: [B, ...] what is given.
        hole: bool, broadcastable to it: True where it is to be drawn.
        repeats: times that a step at the middle levels is made, so that what is drawn learns of what is given (RePaint,
            arXiv 2201.09865, section 4.2).
        levels: those middle levels, shares of the schedule's last timestep.
    """

    x0: Tensor
    hole: Tensor
    repeats: int = 2
    levels: tuple[float, float] = (0.3, 0.8)

    def attempts(self, share: float) -> int:
        """How often the step from a level is made."""
        return self.repeats if self.levels[0] <= share <= self.levels[1] else 1

    def put_back(self, noisy: Tensor, noise: Tensor, alpha: float, sigma: float) -> Tensor:
        """What is given at a noise level, always with the same noise, and what was drawn elsewhere."""
        return torch.where(self.hole, noisy, alpha * self.x0 + sigma * noise)


class Sampler:
    """Samples of q(x0) by integrating the probability flow from pure noise to x0, which the last step reaches exactly.

    Methods, N the number of steps:

    - `ddim`: Song et al. 2021, eq. 12, with η = `eta`; N evaluations.
    - `euler`: the same with η = 0. Euler's rule in σ/α for a table, and z + (t' - t)·v for rectified flow, are both
      α'·x̂0 + σ'·ε̂.
    - `heun`: two evaluations per step, the last step Euler's (Karras et al. 2022, Algorithm 1): 2N - 1 evaluations.
    - `dpm_solver++_2m`: Lu et al. 2022b, Algorithm 2; second order at N evaluations.

    Args:
        schedule: forward process and prediction type that the network was trained with.
        method: see above.
        num_inference_steps: N.
        spacing: where the steps are, see `spaced_timesteps`; tests/test_samplers.py has measured errors. With
            `dpm_solver++_2m` take `lambda`, for rectified flow in 20 steps or more either; `trailing` for Euler on it.
        guidance_scale: w of classifier-free guidance (Ho & Salimans 2022), output = null + w·(conditional - null).
            0 is unconditional, 1 conditional; both cost one half.
        guidance_interval: timesteps to guide, [low, high] as shares of the schedule's last timestep, 0 the clean end
            (Kynkäänniemi et al. 2024). Elsewhere only the conditional half is evaluated.
        eta: noise put back by `ddim` at each step, 0 deterministic, 1 ancestral (DDPM).

    Raises:
        SettingsError: unknown name, number out of range, or knobs that contradict each other or the schedule.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        method: Method,
        num_inference_steps: int,
        spacing: Spacing = "lambda",
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        eta: float = 0.0,
    ) -> None:
        if method not in get_args(Method):
            raise SettingsError(f"method: expected one of {get_args(Method)}, found {method!r}")
        low, high = guidance_interval
        if not 0.0 <= low <= high <= 1.0:
            raise SettingsError(f"guidance_interval: expected 0 <= low <= high <= 1, found {guidance_interval}")
        if not 0.0 <= guidance_scale < math.inf:
            raise SettingsError(f"guidance_scale: expected a number of at least 0, found {guidance_scale}")
        if not 0.0 <= eta <= 1.0 or (eta > 0.0 and method != "ddim"):
            raise SettingsError(f"eta: expected a number in [0, 1], above 0 only with 'ddim'; found {eta}, {method!r}")
        self.schedule, self.method, self.eta = schedule, method, eta
        self.guidance_scale, self.guidance_interval = guidance_scale, (low, high)
        self.timesteps = spaced_timesteps(schedule, num_inference_steps, spacing)
        alpha, sigma = schedule.alpha_sigma(self.timesteps)
        if schedule.prediction_type == "epsilon" and alpha[0] < SMALLEST_EPSILON_ALPHA:
            raise SettingsError(
                f"sampling from timestep {self.timesteps[0].item()} with prediction_type 'epsilon': x0 = (z - σε)/α "
                f"with α = {alpha[0].item():.1e} multiplies the network's error, expected α >= "
                f"{SMALLEST_EPSILON_ALPHA}; train with v_prediction or another schedule, or use spacing 'leading'"
            )
        # (α, σ) at each timestep, and x0 itself as the last; double precision from here on
        self._levels = [*zip(alpha.tolist(), sigma.tolist(), strict=True), (1.0, 0.0)]
        share = self.timesteps.double() / schedule.last_timestep
        self._share = share.tolist()
        self._is_guided = [low <= each <= high for each in self._share]

    @property
    def settings(self) -> dict[str, Any]:
        """What a sample depends on, in plain JSON types, as a manifest names it."""
        steps = len(self.timesteps)
        return {"method": self.method, "num_inference_steps": steps, "guidance_scale": self.guidance_scale}

    @torch.no_grad()
    def sample(
        self,
        network: Network,
        shape: Sequence[int],
        seeds: Sequence[int],
        context: Tensor | None = None,
        null_context: Tensor | None = None,
        device: torch.device | str = "cpu",
        progress: bool = False,
        known: Known | None = None,
    ) -> Tensor:
        """Draw one sample per seed.

        Args:
            network: called as network(noisy [B, ...], timesteps [B], context=...), as MONAI's DiffusionModelUNet; in
                eval mode, its output of the schedule's prediction type.
            shape: of one sample, such as (C, H, W).
            seeds: non-negative, one per sample; the same seed and context give the same sample. Torch's generator
                reads the low 32 bits of a seed and no more.
            context: [B, N, D], or None for an unconditional network.
            null_context: what the network learned as "no context", [1, N, D] or [B, N, D]; needed unless the guidance
                scale is 1.
            device: where the network is.
            progress: show a progress bar.
            known: what is given of the samples.

        Returns:
            Samples of x0, float32 [B, *shape] on `device`, not clipped.

        Raises:
            SettingsError: seeds, context and guidance do not fit each other.
        """
        null_context = self._check_context(seeds, context, null_context)

        def predict(noisy: Tensor, step: int) -> tuple[Tensor, Tensor]:
            timesteps = self.timesteps[step].to(device).expand(len(seeds))
            scale = self.guidance_scale if self._is_guided[step] else 1.0
            output = guided_output(network, noisy, timesteps, context, null_context, scale)
            return self.schedule.to_x0_and_noise(output, noisy, timesteps)

        first_noise = noisy = seeded_normal(list(seeds), tuple(shape)).to(device)
        previous_x0: Tensor | None = None
        for step in ProgressBar(range(len(self.timesteps)), desc="sampling", disable=not progress):
            before = previous_x0
            for attempt in range(1 if known is None else known.attempts(self._share[step])):
                if attempt:
                    noisy = self._back(noisy, step, [derive_seed(seed, step, attempt) for seed in seeds])
                if known is not None:
                    noisy = known.put_back(noisy, first_noise, *self._levels[step])
                x0, noise = predict(noisy, step)
                if self.method == "dpm_solver++_2m":
                    noisy, previous_x0 = self._multistep(noisy, x0, before, step), x0
                elif self.method == "heun":
                    noisy = self._heun_step(noisy, x0, noise, step, predict)
                else:
                    noisy = self._ddim_step(x0, noise, step, seeds)
        return noisy if known is None else known.put_back(noisy, first_noise, *self._levels[-1])

    def _back(self, noisy: Tensor, step: int, seeds: Sequence[int]) -> Tensor:
        """From the level after a step to that before it, q(z | z') (Lugmayr et al. 2022, Algorithm 1, line 9)."""
        (alpha, sigma), (next_alpha, next_sigma) = self._levels[step : step + 2]
        ratio = alpha / next_alpha
        added = math.sqrt(max(0.0, sigma**2 - (ratio * next_sigma) ** 2))
        return ratio * noisy + added * seeded_normal(list(seeds), tuple(noisy.shape[1:])).to(noisy)

    def _ddim_step(self, x0: Tensor, noise: Tensor, step: int, seeds: Sequence[int]) -> Tensor:
        """Step z' = α'·x̂0 + √(σ'² - s²)·ε̂ + s·n, s² = η²·σ'²·(1 - SNR/SNR') (Song et al. 2021, eq. 12 and 16).

        Their s², (1-ᾱ')/(1-ᾱ)·(1 - ᾱ/ᾱ'), is the variance of q(z' | z, x0), written here for any α and σ.
        """
        (alpha, sigma), (next_alpha, next_sigma) = self._levels[step : step + 2]
        snr_ratio = (alpha * next_sigma / (next_alpha * sigma)) ** 2
        added = self.eta * next_sigma * math.sqrt(1.0 - snr_ratio)
        next_noisy = next_alpha * x0 + math.sqrt(next_sigma**2 - added**2) * noise
        if added > 0.0:
            fresh = seeded_normal([derive_seed(seed, step) for seed in seeds], tuple(x0.shape[1:]))
            next_noisy = next_noisy + added * fresh.to(x0)
        return next_noisy

    def _heun_step(self, noisy: Tensor, x0: Tensor, noise: Tensor, step: int, predict: Predict) -> Tensor:
        """Euler's step, then the trapezoidal rule z' = z + (u' - u)·(slope + slope')/2.

        Rectified flow: u = t, slope ε - x0. Tables: the angle u = arctan(σ/α), slope v = α·ε - σ·x0 (Salimans & Ho
        2022, appendix D), finite also at pure noise. In σ/α, which is so long at high noise, ten steps of an exact
        denoiser on `cosine` ended at ten times the true standard deviation.
        """
        (alpha, sigma), (next_alpha, next_sigma) = self._levels[step : step + 2]
        euler = next_alpha * x0 + next_sigma * noise
        if next_sigma == 0.0:
            return euler  # nothing to evaluate at x0
        end_x0, end_noise = predict(euler, step + 1)
        if self.schedule.is_flow:
            slope, end_slope, width = noise - x0, end_noise - end_x0, next_sigma - sigma
        else:
            slope, end_slope = alpha * noise - sigma * x0, next_alpha * end_noise - next_sigma * end_x0
            width = math.atan2(next_sigma, next_alpha) - math.atan2(sigma, alpha)
        return noisy + 0.5 * width * (slope + end_slope)

    def _multistep(self, noisy: Tensor, x0: Tensor, previous_x0: Tensor | None, step: int) -> Tensor:
        """Step z' = (σ'/σ)·z + α'·(1 - e^(-h))·D, D = x̂0 + (x̂0 - x̂0_before)/2r (Lu et al. 2022b, Algorithm 2).

        λ = log(α/σ), h = λ' - λ, r = h_before/h. First order at the first step, where nothing came before, after pure
        noise, from which h is infinite, and at the last, which ends at D = x̂0.
        """
        (alpha, sigma), (next_alpha, next_sigma) = self._levels[step : step + 2]
        decay = alpha * next_sigma / (next_alpha * sigma)  # e^(-h), finite also where λ is not
        data = x0
        if previous_x0 is not None and next_sigma > 0.0 and self._levels[step - 1][0] > 0.0:
            before, here, there = (math.log(a / s) for a, s in self._levels[step - 1 : step + 2])
            weight = 0.5 * (there - here) / (here - before)
            data = x0 + weight * (x0 - previous_x0)
        return (next_sigma / sigma) * noisy + next_alpha * (1.0 - decay) * data

    def _check_context(
        self, seeds: Sequence[int], context: Tensor | None, null_context: Tensor | None
    ) -> Tensor | None:
        """Refuse what does not fit, and return the null context with one entry per sample."""
        if not seeds:
            raise SettingsError("seeds: expected at least one, found none")
        if context is not None and len(context) != len(seeds):
            raise SettingsError(f"context: expected one per seed, {len(seeds)}, found {len(context)}")
        if self.guidance_scale == 1.0:
            return None
        if context is None or null_context is None:
            missing = "context" if context is None else "null_context"
            raise SettingsError(
                f"guidance_scale {self.guidance_scale}: expected a {missing}, found none; or set it to 1"
            )
        if len(null_context) not in (1, len(seeds)) or null_context.shape[1:] != context.shape[1:]:
            raise SettingsError(
                f"null_context: expected shape {(1, *context.shape[1:])} or {tuple(context.shape)}, "
                f"found {tuple(null_context.shape)}"
            )
        return null_context.expand_as(context)


def guided_output(
    network: Network,
    noisy: Tensor,
    timesteps: Tensor,
    context: Tensor | None,
    null_context: Tensor | None,
    guidance_scale: float,
) -> Tensor:
    """Model output null + w·(conditional - null), [B, ...]; both halves in one batch, one half alone at w = 0 and 1.

    Given z_t, x0 and ε are affine in the output of every prediction type, so guiding the output guides them alike.
    """
    if guidance_scale in (0.0, 1.0):
        output = network(noisy, timesteps, context=context if guidance_scale == 1.0 else null_context)
    else:
        assert context is not None and null_context is not None
        both = network(torch.cat([noisy] * 2), torch.cat([timesteps] * 2), context=torch.cat([context, null_context]))
        conditional, unconditional = both.to(noisy).chunk(2)
        output = unconditional + guidance_scale * (conditional - unconditional)
    if output.shape != noisy.shape:
        raise ValueError(f"network output: expected shape {tuple(noisy.shape)}, found {tuple(output.shape)}")
    return output.to(noisy)  # under autocast the output is half, the state must not be


def spaced_timesteps(schedule: NoiseSchedule, num_inference_steps: int, spacing: Spacing) -> Tensor:
    """Timesteps [N] at which the network is evaluated, strictly decreasing; the step after the last goes to x0.

    - `trailing`: T, T - T/N, ... T/N, of a table less one (Lin et al. 2023, section 3.3); starts at the last timestep.
    - `leading`: multiples of T // N below T (Song et al. 2021). Starts short of the last timestep, where samples are
      not yet pure noise; for networks that were tuned with it.
    - `lambda`: uniform in log-SNR (Lu et al. 2022) within -8 to 8, but from the last timestep on; without
      the limits, cosine, zero-terminal and flow schedules spend their steps where nothing happens. A table's nearest
      timesteps are taken, and kept apart where several points meet.

    Raises:
        SettingsError: unknown spacing, N below 1 or above T, or `leading` where sampling must start at pure noise.
    """
    total = schedule.num_train_timesteps
    if spacing not in get_args(Spacing):
        raise SettingsError(f"spacing: expected one of {get_args(Spacing)}, found {spacing!r}")
    if num_inference_steps < 1 or num_inference_steps > total:
        raise SettingsError(f"num_inference_steps: expected 1 to {total}, found {num_inference_steps}")
    if spacing == "leading":
        last_alpha, _ = schedule.alpha_sigma(torch.tensor([schedule.last_timestep]))
        if last_alpha.item() == 0.0:
            raise SettingsError("spacing 'leading': this schedule ends at pure noise, so start there; use 'trailing'")
        return torch.arange(num_inference_steps - 1, -1, -1) * (total // num_inference_steps)
    if spacing == "trailing":
        down = total * (1.0 - torch.arange(num_inference_steps, dtype=torch.float64) / num_inference_steps)
        return down.float() if schedule.is_flow else down.round().long() - 1
    return _uniform_in_log_snr(schedule, num_inference_steps)


def _uniform_in_log_snr(schedule: NoiseSchedule, num_inference_steps: int) -> Tensor:
    """The spacing `lambda`."""
    cleanest = 1 if schedule.is_flow else 0
    ends = schedule.log_snr(torch.tensor([schedule.last_timestep, cleanest])).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)
    timesteps = schedule.nearest_timesteps(torch.linspace(ends[0].item(), ends[1].item(), num_inference_steps))
    timesteps[0] = schedule.last_timestep
    if not schedule.is_flow:
        # Where a table has fewer timesteps than there are points, push points up, one apart, and down from the top.
        order = torch.arange(num_inference_steps)
        timesteps = (timesteps + order).flip(0).cummax(0).values.flip(0).clamp(max=schedule.last_timestep) - order
    return timesteps
