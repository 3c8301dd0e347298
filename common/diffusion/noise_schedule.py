"""The one owner of the forward process z_t = α_t·x0 + σ_t·ε: its tables, prediction types, inverses and loss weights.

`timesteps` always means what the network is fed: integers 0 ... T-1 for the tables of betas, and t·T with a real t in
[0, 1] for rectified flow. Nobody outside this file converts between the two, or between model output, x0 and noise.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from monai.networks.schedulers.scheduler import NoiseSchedules, Scheduler
from torch import Tensor

from ..errors import SettingsError
from ..networks.weights import recorded

PredictionType = Literal["epsilon", "v_prediction", "flow", "sample", "preconditioned"]
RECTIFIED_FLOW = "rectified_flow"
FLOW_TYPES = ("flow", "sample", "preconditioned")
LEAST_SIGMA = 0.05  # of the weight of `sample`, as in JiT, Algorithm 1
DATA_STD = 0.5  # σ_data of `preconditioned`, of images in [-1, 1], as in EDM


@recorded
class NoiseSchedule:
    """Forward process q(z_t | x0) = N(α_t·x0, σ_t²·I), either a table of betas or rectified flow.

    Tables are variance preserving, α² + σ² = 1 (Ho et al. 2020), with the betas of MONAI core's registry; core's
    `cosine` follows Nichol & Dhariwal 2021, unlike the one of `generative`, so the two are not exchangeable. Rectified
    flow is the straight line α = 1 - t, σ = t (Liu et al. 2022; Lipman et al. 2022). What the network predicts:

    - `epsilon`: the noise ε; its inverse divides by α, so it says nothing where α is 0.
    - `v_prediction`: v = α·ε - σ·x0 (Salimans & Ho 2022).
    - `flow`: dz/dt = ε - x0. MONAI's RFlowScheduler has the opposite sign.
    - `sample`: x0 itself, of rectified flow, under the loss of the velocity (z - x̂0) / t that follows from it (JiT,
      arXiv 2511.13720): for networks that work on patches of pixels, whose noise they need not reproduce.
    - `preconditioned`: F of x̂0 = c_skip·z + c_out·F (EDM, arXiv 2206.00364, equation 7 and table 1), of rectified flow:
      x0 / σ_data at pure noise, as good for patches, and -ε at none, so that fine detail need not pass the network.

    Args:
        schedule: a name in MONAI's NoiseSchedules (`linear_beta`, `scaled_linear_beta`, `cosine`, ...) or
            `rectified_flow`, which belongs to the prediction types `flow`, `sample` and `preconditioned` alone.
        prediction_type: see above.
        num_train_timesteps: T, timesteps of the table; for rectified flow only the scale of what the network is fed.
        beta_start: first beta; `cosine` and `rectified_flow` do not read it.
        beta_end: last beta; likewise.
        zero_terminal_snr: rescale the table so that the last timestep is pure noise (Lin et al. 2023, Algorithm 1).
            Rectified flow ends there anyway.
        logit_normal_mean: mean of logit(t) among training timesteps of rectified flow (Esser et al. 2024).
        logit_normal_std: its standard deviation.

    Raises:
        SettingsError: unknown name, number out of range, or knobs that contradict each other.
    """

    def __init__(
        self,
        schedule: str,
        prediction_type: PredictionType,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0015,
        beta_end: float = 0.0205,
        zero_terminal_snr: bool = False,
        logit_normal_mean: float = 0.0,
        logit_normal_std: float = 1.0,
    ) -> None:
        self.is_flow = schedule == RECTIFIED_FLOW
        _check_kind(schedule, prediction_type, zero_terminal_snr)
        if num_train_timesteps < 2:
            raise SettingsError(f"num_train_timesteps: expected at least 2, found {num_train_timesteps}")
        if not 0 < beta_start <= beta_end < 1:
            raise SettingsError(f"expected 0 < beta_start <= beta_end < 1, found {beta_start}, {beta_end}")
        if logit_normal_std <= 0:
            raise SettingsError(f"logit_normal_std: expected a positive number, found {logit_normal_std}")
        self.prediction_type = prediction_type
        self.num_train_timesteps = num_train_timesteps
        self.logit_normal_mean, self.logit_normal_std = logit_normal_mean, logit_normal_std
        # A plain tensor [2, T] of α and σ, not a buffer: a module cast to bfloat16 would take a buffer along.
        self._table = torch.empty(2, 0)
        if not self.is_flow:
            betas = _monai_betas(schedule, num_train_timesteps, beta_start, beta_end)
            self._table = _alpha_sigma_table(betas, zero_terminal_snr).float()

    @property
    def last_timestep(self) -> int:
        """The noisiest timestep: T-1 of a table, T (t = 1) of rectified flow."""
        return self.num_train_timesteps if self.is_flow else self.num_train_timesteps - 1

    def sample_timesteps(self, uniform: Tensor) -> Tensor:
        """Turn uniform draws [B] in [0, 1) into training timesteps [B], so that the caller owns the randomness.

        Tables: uniform over 0 ... T-1, int64. Rectified flow: t logit-normal, sigmoid(m + s·Φ⁻¹(u)) (Esser et al. 2024,
        section 3.1), float32 t·T in [0, T].
        """
        draws = uniform.double()
        if self.is_flow:
            logit = self.logit_normal_mean + self.logit_normal_std * torch.special.ndtri(draws)
            return (torch.sigmoid(logit) * self.num_train_timesteps).float()
        return (draws * self.num_train_timesteps).long().clamp(max=self.last_timestep)

    def alpha_sigma(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ at `timesteps` [B], each float32 [B] on their device."""
        if self.is_flow:
            time = timesteps.float() / self.num_train_timesteps
            return 1.0 - time, time
        alpha, sigma = self._table.to(timesteps.device)[:, timesteps]
        return alpha, sigma

    def log_snr(self, timesteps: Tensor) -> Tensor:
        """log(α²/σ²) at `timesteps` [B], float32; -∞ at pure noise, ∞ at no noise."""
        alpha, sigma = self.alpha_sigma(timesteps)
        return 2.0 * (alpha.log() - sigma.log())

    def nearest_timesteps(self, log_snr: Tensor) -> Tensor:
        """Invert `log_snr`: timesteps [N] for log-SNRs [N], exact for rectified flow, the nearest ones of a table."""
        if self.is_flow:
            return (torch.sigmoid(-log_snr / 2.0) * self.num_train_timesteps).float()
        table = self.log_snr(torch.arange(self.num_train_timesteps))
        return (table[None, :] - log_snr[:, None]).abs().argmin(dim=1)

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_t = α·x0 + σ·ε, all [B, ...], one timestep [B] per sample."""
        alpha, sigma = self._alpha_sigma_like(timesteps, x0)
        return alpha * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network shall predict at z_t, [B, ...]; see the class for the equations."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "flow":
            return noise - x0
        if self.prediction_type == "sample":
            return x0
        alpha, sigma = self._alpha_sigma_like(timesteps, x0)
        if self.prediction_type == "preconditioned":
            return (sigma * x0 - alpha * DATA_STD**2 * noise) / (DATA_STD * _noisy_std(alpha, sigma))
        return alpha * noise - sigma * x0

    def to_x0_and_noise(self, model_output: Tensor, noisy: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The x0 and ε that a model output at z_t = `noisy` stands for, all [B, ...]; the inverse of `target`.

        Solved for each type without dividing by σ, but for `sample`, and by α only for `epsilon`, whose tables never
        reach α = 0. At σ = 0 the noise of `sample` is unknown: it comes out finite, and counts for nothing.
        """
        alpha, sigma = self._alpha_sigma_like(timesteps, noisy)
        if self.prediction_type == "epsilon":
            return (noisy - sigma * model_output) / alpha, model_output
        if self.prediction_type == "flow":
            return noisy - sigma * model_output, noisy + alpha * model_output
        if self.prediction_type == "sample":
            return model_output, (noisy - alpha * model_output) / sigma.clamp_min(1e-6)
        if self.prediction_type == "preconditioned":
            std = _noisy_std(alpha, sigma)
            scaled, output = noisy / std.square(), DATA_STD / std * model_output
            return alpha * DATA_STD**2 * scaled + sigma * output, sigma * scaled - alpha * output
        return alpha * noisy - sigma * model_output, sigma * noisy + alpha * model_output

    def loss_weight(self, timesteps: Tensor, min_snr_gamma: float | None) -> Tensor:
        """Weight [B] of each sample's squared error; ones where `min_snr_gamma` is None, but for `sample`.

        An error of x0 is one of the velocity times σ, so `sample` has 1 / max(σ, 0.05)².
        Min-SNR-γ (Hang et al. 2023) weighs the error of x0 by min(SNR, γ). An error of the output becomes
        one of x0 times σ/α (epsilon), σ (v and flow) or c_out (preconditioned), hence min(SNR, γ)/SNR,
        min(SNR, γ)/(SNR + 1) with 1/(SNR + 1) = σ², min(SNR, γ)·σ² and min(SNR, γ)·c_out². At pure noise all but the
        first are 0: with a zero terminal SNR the last timestep itself, where sampling starts, is then trained only
        through its neighbours.
        """
        alpha, sigma = self.alpha_sigma(timesteps)
        if min_snr_gamma is None:
            is_sample = self.prediction_type == "sample"
            return sigma.clamp_min(LEAST_SIGMA) ** -2 if is_sample else torch.ones_like(alpha)
        if min_snr_gamma <= 0:
            raise SettingsError(f"min_snr_gamma: expected a positive number or null, found {min_snr_gamma}")
        if self.prediction_type == "epsilon":
            return (min_snr_gamma * sigma.square() / alpha.square()).clamp(max=1.0)
        if self.prediction_type == "sample":
            return (alpha.square() / sigma.square()).clamp(max=min_snr_gamma)
        # min(SNR, γ)·σ², multiplied out so that σ = 0 needs no care
        weight = torch.minimum(alpha.square(), min_snr_gamma * sigma.square())
        if self.prediction_type == "preconditioned":
            weight = weight * (DATA_STD / _noisy_std(alpha, sigma)).square()
        return weight

    def _alpha_sigma_like(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ on the device of `like` [B, ...], shaped to broadcast; float32, so half precision is promoted."""
        if timesteps.shape != like.shape[:1]:
            raise ValueError(f"timesteps: expected shape {tuple(like.shape[:1])}, found {tuple(timesteps.shape)}")
        shape = (-1, *(1,) * (like.ndim - 1))
        alpha, sigma = self.alpha_sigma(timesteps.to(like.device))
        return alpha.view(shape), sigma.view(shape)


def _check_kind(schedule: str, prediction_type: str, zero_terminal_snr: bool) -> None:
    """Refuse unknown names, and a schedule that the prediction type does not go with."""
    known = (*NoiseSchedules.names, RECTIFIED_FLOW)
    if schedule not in known:
        raise SettingsError(f"schedule: expected one of {known}, found {schedule!r}")
    if prediction_type not in get_args(PredictionType):
        raise SettingsError(f"prediction_type: expected one of {get_args(PredictionType)}, found {prediction_type!r}")
    if (schedule == RECTIFIED_FLOW) != (prediction_type in FLOW_TYPES):
        raise SettingsError(
            f"expected schedule {RECTIFIED_FLOW!r} together with a prediction_type of {FLOW_TYPES}, or neither, "
            f"found {schedule!r} and {prediction_type!r}"
        )
    if zero_terminal_snr and prediction_type == "epsilon":
        raise SettingsError(
            "zero_terminal_snr with prediction_type 'epsilon': the last timestep is pure noise, from which a "
            "predicted noise tells nothing about the image; use v_prediction or flow"
        )


def _noisy_std(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Standard deviation of z, of data with that of `DATA_STD`."""
    return (DATA_STD**2 * alpha.square() + sigma.square()).sqrt()


def _monai_betas(schedule: str, num_train_timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """Betas [T] of MONAI core's registry, in float64."""
    betas_range = {} if schedule == "cosine" else {"beta_start": beta_start, "beta_end": beta_end}
    return Scheduler(num_train_timesteps, schedule, **betas_range).betas.double()


def _alpha_sigma_table(betas: Tensor, zero_terminal_snr: bool) -> Tensor:
    """α = √∏(1-β) and σ = √(1-α²), stacked to [2, T], float64: in float32 1-α² loses half its digits at the start."""
    alpha = (1.0 - betas).cumprod(0).sqrt()
    if zero_terminal_snr:  # Lin et al. 2023, Algorithm 1: shift the last to 0, scale the first back
        first, last = alpha[0].clone(), alpha[-1].clone()
        alpha = (alpha - last) * first / (first - last)
    return torch.stack([alpha, (1.0 - alpha.square()).sqrt()])
