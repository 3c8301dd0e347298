"""Samplers against exact denoisers: what comes out is then the sampler's own error and nothing else.

x0 ~ N(1, 0.5²), spacing `lambda`: mean and standard deviation of the samples after 10, 20 and 50 steps. Without a zero
terminal SNR the mean stays short of 1, as sampling starts at N(0, 1) where training has mean α_T.

| schedule                  | method           | 10            | 20            | 50            |
|---------------------------|------------------|---------------|---------------|---------------|
| scaled_linear, epsilon, v | ddim, euler      | 0.996 (0.408) | 0.996 (0.454) | 0.995 (0.480) |
|                           | heun             | 0.990 (0.520) | 0.994 (0.503) | 0.995 (0.499) |
|                           | dpm_solver++_2m  | 0.995 (0.508) | 0.995 (0.502) | 0.995 (0.499) |
| zero terminal SNR, v      | ddim, euler      | 1.000 (0.408) | 1.000 (0.453) | 1.000 (0.480) |
|                           | heun             | 0.995 (0.520) | 0.999 (0.503) | 1.000 (0.499) |
|                           | dpm_solver++_2m  | 1.000 (0.508) | 1.000 (0.502) | 1.000 (0.499) |
| cosine, v                 | ddim, euler      | 1.000 (0.400) | 1.000 (0.450) | 1.000 (0.480) |
|                           | heun             | 0.994 (0.525) | 0.999 (0.505) | 1.000 (0.501) |
|                           | dpm_solver++_2m  | 1.000 (0.514) | 1.000 (0.505) | 1.000 (0.500) |
| rectified_flow            | ddim, euler      | 1.000 (0.400) | 1.000 (0.450) | 1.000 (0.480) |
|                           | euler, trailing  | 1.000 (0.431) | 1.000 (0.464) | 1.000 (0.485) |
|                           | heun             | 1.000 (0.511) | 1.000 (0.503) | 1.000 (0.500) |
|                           | dpm_solver++_2m  | 1.000 (0.513) | 1.000 (0.505) | 1.000 (0.500) |

`heun` takes 2N - 1 evaluations for its N steps. `trailing` on scaled_linear: DPM-Solver++ 0.362, 0.429, 0.473.
MONAI 1.6.1's DDIM at 20 steps of the first: 0.967 (0.453).
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler

from common.diffusion.noise_schedule import NoiseSchedule
from common.diffusion.samplers import Known, Sampler, guided_output, spaced_timesteps
from common.errors import UserError
from common.seeding import derive_seed, seeded_normal

MEAN, STD = 1.0, 0.5
KINDS = {
    "epsilon": {"schedule": "scaled_linear_beta", "prediction_type": "epsilon"},
    "v": {"schedule": "scaled_linear_beta", "prediction_type": "v_prediction"},
    "v zero terminal": {"schedule": "scaled_linear_beta", "prediction_type": "v_prediction", "zero_terminal_snr": True},
    "v cosine": {"schedule": "cosine", "prediction_type": "v_prediction"},
    "flow": {"schedule": "rectified_flow", "prediction_type": "flow"},
}
METHODS = ("ddim", "euler", "heun", "dpm_solver++_2m")
# Bounds of the error after 10, 20, 50 steps, a little above the table.
MEAN_BOUNDS = (0.013, 0.009, 0.007)
STD_BOUNDS = {
    "ddim": (0.105, 0.055, 0.025),
    "euler": (0.105, 0.055, 0.025),
    "heun": (0.035, 0.01, 0.004),
    "dpm_solver++_2m": (0.018, 0.008, 0.004),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_method = pytest.mark.parametrize("method", METHODS)


def make(kind: str, **changes) -> NoiseSchedule:
    return NoiseSchedule(**{**KINDS[kind], **changes})


class ExactDenoiser:
    """Stands for a network: the best prediction of x0 for a known distribution, told in the schedule's own words."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule
        self.batch_sizes: list[int] = []

    def expected_x0(self, noisy, alpha, sigma):
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return MEAN + gain * (noisy - alpha * MEAN)

    def __call__(self, noisy, timesteps, context=None):
        self.batch_sizes.append(len(noisy))
        noisy = noisy.double()
        alpha, sigma = (
            each.double().view(-1, *[1] * (noisy.ndim - 1)) for each in self.schedule.alpha_sigma(timesteps)
        )
        x0 = self.expected_x0(noisy, alpha, sigma)
        noise = (noisy - alpha * x0) / sigma
        kind = self.schedule.prediction_type
        output = {"epsilon": noise, "v_prediction": alpha * noise - sigma * x0, "flow": noise - x0}[kind]
        return output.float()


class PointDenoiser(ExactDenoiser):
    """Every x0 is 0.7."""

    def expected_x0(self, noisy, alpha, sigma):
        return torch.full_like(noisy, 0.7)


class MixtureDenoiser(ExactDenoiser):
    """Four narrow Gaussians in the plane, [B, 2]."""

    centres = torch.tensor([[-1.5, -0.7], [-0.4, 1.2], [0.5, -1.0], [1.4, 0.5]], dtype=torch.float64)
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    width = 0.1

    def expected_x0(self, noisy, alpha, sigma):
        variance = alpha**2 * self.width**2 + sigma**2  # [B, 1]
        away = noisy[:, None] - alpha[..., None] * self.centres  # [B, 4, 2]
        share = torch.softmax(self.weights.log() - away.square().sum(-1) / (2 * variance), dim=1)
        each = self.centres + (alpha * self.width**2 / variance)[..., None] * away
        return (share[..., None] * each).sum(1)


def mean_and_std(samples: torch.Tensor, seed: int) -> tuple[float, float]:
    """Of all samples there could be: on a Gaussian, a deterministic sampler is exactly z ↦ std·z + mean."""
    start, end = seeded_normal([seed], samples.shape[1:])[0].double(), samples[0].double()
    std = ((end - end.mean()) * (start - start.mean())).sum() / (start - start.mean()).square().sum()
    torch.testing.assert_close(end - std * start, (end - std * start).mean().expand_as(end), rtol=0, atol=1e-4)
    return (end.mean() - std * start.mean()).item(), std.item()


def gaussian_row(kind: str, method: str, spacing: str = "lambda") -> list[tuple[float, float]]:
    schedule = make(kind)
    samplers = [Sampler(schedule, method, steps, spacing) for steps in (10, 20, 50)]
    return [mean_and_std(each.sample(ExactDenoiser(schedule), (16,), [0]), 0) for each in samplers]


@every_kind
@every_method
def test_a_gaussian_is_recovered(kind, method):
    rows = zip(gaussian_row(kind, method), MEAN_BOUNDS, STD_BOUNDS[method], strict=True)
    for (mean, std), mean_bound, std_bound in rows:
        assert mean == pytest.approx(MEAN, abs=mean_bound)
        assert std == pytest.approx(STD, abs=std_bound)


def monai_ddim(network, steps: int, start: torch.Tensor, eta: float = 0.0, seed: int = 0, **betas) -> torch.Tensor:
    scheduler = DDIMScheduler(clip_sample=False, **betas)
    scheduler.set_timesteps(steps)
    for step, timestep in enumerate(scheduler.timesteps):
        generator = torch.Generator().manual_seed(derive_seed(seed, step))
        output = network(start, timestep.expand(len(start)))
        start, _ = scheduler.step(output, int(timestep), start, eta, generator)
    return start


def test_monais_ddim_misses_what_ours_hits():
    schedule = make("epsilon")
    betas = {"num_train_timesteps": 1000, "schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0205}
    theirs = mean_and_std(monai_ddim(ExactDenoiser(schedule), 20, seeded_normal([0], (16,)), **betas), 0)
    assert theirs == (pytest.approx(0.967, abs=0.005), pytest.approx(0.453, abs=0.005))
    for method in ("ddim", "dpm_solver++_2m"):
        mean, _ = gaussian_row("epsilon", method)[1]
        assert abs(mean - MEAN) < 0.2 * abs(theirs[0] - MEAN)
    _, std = gaussian_row("epsilon", "dpm_solver++_2m")[1]
    assert abs(std - STD) < 0.2 * abs(theirs[1] - STD)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "lambda"])
def test_with_every_training_timestep_ddim_is_monais(spacing):
    betas = {"num_train_timesteps": 100, "schedule": "linear_beta", "beta_start": 1e-3, "beta_end": 0.1}
    schedule = NoiseSchedule(prediction_type="epsilon", **betas)
    network = MixtureDenoiser(schedule)
    theirs = monai_ddim(network, 100, seeded_normal(range(8), (2,)), **betas)
    ours = Sampler(schedule, "ddim", 100, spacing).sample(network, (2,), range(8))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    theirs = monai_ddim(network, 100, seeded_normal([3], (2,)), eta=0.7, seed=3, **betas)
    ours = Sampler(schedule, "ddim", 100, spacing, eta=0.7).sample(network, (2,), [3])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@every_kind
def test_ancestral_steps_recover_the_gaussian(kind):
    """η = 1: 0.998 (0.460) after 50 steps and 1.000 (0.485) after 200, from 40,000 draws."""
    schedule = make(kind)
    samples = Sampler(schedule, "ddim", 50, eta=1.0).sample(ExactDenoiser(schedule), (40_000,), [1])
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert samples.std().item() == pytest.approx(STD, abs=0.045)


@every_kind
@every_method
@pytest.mark.parametrize("spacing", ["trailing", "lambda"])
def test_every_path_ends_exactly_at_a_known_x0(kind, method, spacing):
    """Also from pure noise, where α is 0, and with one step only."""
    schedule = make(kind)
    for steps in (1, 2, 7):
        samples = Sampler(schedule, method, steps, spacing).sample(PointDenoiser(schedule), (4,), [0, 1])
        torch.testing.assert_close(samples, torch.full((2, 4), 0.7), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_second_order_beats_first_on_a_mixture_at_twenty_evaluations(kind):
    """Distance, sample by sample, to the end of the exact path from the same noise."""
    schedule = make(kind)
    network = MixtureDenoiser(schedule)
    exact = Sampler(schedule, "heun", 150).sample(network, (2,), range(100))
    error = {}
    for method in ("ddim", "dpm_solver++_2m"):
        network.batch_sizes.clear()
        samples = Sampler(schedule, method, 20).sample(network, (2,), range(100))
        assert len(network.batch_sizes) == 20
        error[method] = (samples - exact).square().sum(1).mean().sqrt().item()
    assert error["dpm_solver++_2m"] < 0.04
    assert error["dpm_solver++_2m"] < error["ddim"] / 3


def test_euler_on_a_flow_is_its_textbook_rule():
    schedule = make("flow")
    network = MixtureDenoiser(schedule)
    expected = seeded_normal([4, 5], (2,))
    for timestep in (1000.0, 750.0, 500.0, 250.0):
        expected = expected - 0.25 * network(expected, torch.full((2,), timestep))
    found = Sampler(schedule, "euler", 4, "trailing").sample(network, (2,), [4, 5])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_dpm_solver_is_its_textbook_rule():
    """Lu et al. 2022b, Algorithm 2, on t of uneven steps in λ: first order after pure noise and at the end."""
    schedule = make("flow")
    network = MixtureDenoiser(schedule)
    noisy, times = seeded_normal([4, 5], (2,)).double(), torch.linspace(1, 0, 7, dtype=torch.float64).tolist()
    before, logs = None, [math.log((1 - t) / t) if 0 < t < 1 else None for t in times]
    for step, (t, following) in enumerate(pairwise(times)):
        x0 = noisy - t * network(noisy.float(), torch.full((2,), 1000 * t)).double()
        data = x0
        if 1 < step < 5:
            r = (logs[step] - logs[step - 1]) / (logs[step + 1] - logs[step])
            data = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        decay = (1 - t) * following / ((1 - following) * t)
        noisy, before = following / t * noisy + (1 - following) * (1 - decay) * data, x0
    found = Sampler(schedule, "dpm_solver++_2m", 6, "trailing").sample(network, (2,), [4, 5])
    torch.testing.assert_close(found, noisy.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("method", "eta"), [("ddim", 0.0), ("ddim", 0.8), ("heun", 0.0), ("dpm_solver++_2m", 0.0)])
def test_a_sample_depends_on_its_seed_alone(method, eta):
    schedule = make("v zero terminal")
    sampler, network = Sampler(schedule, method, 6, eta=eta), MixtureDenoiser(schedule)
    seeds = [11, 3, 7, 2**62 + 2, 5, 0, 1, 9]
    together = sampler.sample(network, (2,), seeds)
    assert torch.equal(together, sampler.sample(network, (2,), seeds))
    alone = torch.cat([sampler.sample(network, (2,), [seed]) for seed in seeds])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)
    torch.testing.assert_close(sampler.sample(network, (2,), seeds[::-1]).flip(0), together, rtol=0, atol=1e-6)
    assert len({tuple(each) for each in together.tolist()}) == len(seeds)


def test_monais_unet_is_guided_by_context_and_null():
    torch.manual_seed(0)
    network = DiffusionModelUNet(
        2, 2, 2, num_res_blocks=1, channels=(8, 8), attention_levels=(False, True), norm_num_groups=4,
        num_head_channels=8, with_conditioning=True, cross_attention_dim=3,
    ).eval()  # fmt: skip
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # the last layer starts at 0, which would hide everything
    sampler = Sampler(make("v"), "dpm_solver++_2m", 3, guidance_scale=2.0)
    context, null = torch.randn(3, 5, 3), torch.randn(1, 5, 3)
    together = sampler.sample(network, (2, 8, 8), [1, 2, 3], context, null)
    alone = sampler.sample(network, (2, 8, 8), [2], context[1:2], null)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(together, sampler.sample(network, (2, 8, 8), [1, 2, 3], context, null + 1), atol=1e-3)
    assert together.shape == (3, 2, 8, 8) and not together.requires_grad


class ContextFlow:
    """A flow whose constant velocity is the mean of the context; it counts its batches."""

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def __call__(self, noisy, timesteps, context):
        assert len(noisy) == len(timesteps) == len(context)
        self.batch_sizes.append(len(noisy))
        return context.mean((1, 2))[:, None].expand_as(noisy)


CONTEXT = torch.tensor([1.0, 2.0])[:, None, None].expand(2, 4, 3)
NULL = torch.full((1, 4, 3), -0.5)


@pytest.mark.parametrize("null", [NULL, NULL.expand(2, 4, 3)])
@pytest.mark.parametrize(
    ("scale", "velocity", "batch"), [(0.0, [-0.5, -0.5], 2), (1.0, [1.0, 2.0], 2), (7.0, [10.0, 17.0], 4)]
)
def test_guidance_is_unconditional_conditional_or_beyond(scale, velocity, batch, null):
    network = ContextFlow()
    samples = Sampler(make("flow"), "euler", 5, guidance_scale=scale).sample(network, (3,), [0, 1], CONTEXT, null)
    expected = seeded_normal([0, 1], (3,)) - torch.tensor(velocity)[:, None]
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-5)
    assert network.batch_sizes == [batch] * 5


def test_outside_the_interval_only_the_conditional_half_is_evaluated():
    network = ContextFlow()
    sampler = Sampler(make("flow"), "euler", 10, "trailing", guidance_scale=3.0, guidance_interval=(0.25, 0.6))
    samples = sampler.sample(network, (3,), [0, 1], CONTEXT, NULL)
    assert network.batch_sizes == [2] * 4 + [4] * 4 + [2] * 2  # t = 1 ... 0.7 | 0.6 ... 0.3 | 0.2, 0.1
    velocity = 0.6 * torch.tensor([1.0, 2.0]) + 0.4 * torch.tensor([4.0, 7.0])
    torch.testing.assert_close(samples, seeded_normal([0, 1], (3,)) - velocity[:, None], rtol=0, atol=1e-5)


def test_the_interval_reaches_from_the_first_to_the_last_timestep_of_a_table():
    network = ContextFlow()
    for interval in [(1.0, 1.0), (0.0, 0.0)]:
        sampler = Sampler(make("v"), "ddim", 3, guidance_scale=3.0, guidance_interval=interval)
        sampler.sample(network, (3,), [0, 1], CONTEXT, NULL)
    assert network.batch_sizes == [4, 2, 2, 2, 2, 4]


@pytest.mark.parametrize(("method", "evaluations"), [("ddim", 6), ("euler", 6), ("dpm_solver++_2m", 6), ("heun", 11)])
def test_number_of_evaluations(method, evaluations):
    schedule = make("v zero terminal")
    network = ExactDenoiser(schedule)
    Sampler(schedule, method, 6).sample(network, (2,), [0, 1, 2])
    assert network.batch_sizes == [3] * evaluations


def test_half_precision_outputs_leave_the_state_in_full():
    def network(noisy, timesteps, context):
        return (0.1 * noisy).bfloat16()

    assert guided_output(network, torch.ones(1, 2), torch.zeros(1), None, None, 1.0).dtype == torch.float32
    assert Sampler(make("epsilon"), "ddim", 2).sample(network, (2,), [0]).dtype == torch.float32


def test_timesteps_of_each_spacing():
    assert spaced_timesteps(make("v"), 4, "trailing").tolist() == [999, 749, 499, 249]
    assert spaced_timesteps(make("v"), 4, "leading").tolist() == [750, 500, 250, 0]
    assert spaced_timesteps(make("flow"), 4, "trailing").tolist() == [1000.0, 750.0, 500.0, 250.0]
    assert spaced_timesteps(make("v"), 3, "trailing").tolist() == [999, 666, 332]


@every_kind
def test_lambda_is_even_in_log_snr_and_never_stands_still(kind):
    schedule = make(kind)
    for steps in (1, 2, 20, 50, 999, 1000):
        timesteps = spaced_timesteps(schedule, steps, "lambda")
        assert timesteps[0] == schedule.last_timestep and len(timesteps) == steps
        assert (timesteps.diff() < 0).all() and timesteps[-1] >= 0
    steps = schedule.log_snr(spaced_timesteps(schedule, 9, "lambda"))[1:].diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("v", {"method": "plms"}, "expected one of .*'dpm_solver.*found 'plms'"),
        ("v", {"spacing": "karras"}, "expected one of .*'lambda'.*found 'karras'"),
        ("v", {"num_inference_steps": 0}, "expected 1 to 1000, found 0"),
        ("v", {"num_inference_steps": 1001}, "expected 1 to 1000, found 1001"),
        ("v", {"guidance_scale": -1.0}, "found -1"),
        ("v", {"guidance_interval": (0.8, 0.2)}, r"found \(0.8, 0.2\)"),
        ("v", {"eta": 0.5, "method": "heun"}, "only with 'ddim'; found 0.5, 'heun'"),
        ("v", {"eta": 1.5, "method": "ddim"}, "found 1.5"),
        ("flow", {"spacing": "leading"}, "use 'trailing'"),
        ("v zero terminal", {"spacing": "leading"}, "use 'trailing'"),
    ],
)
def test_knobs_that_do_not_fit_are_refused(kind, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        Sampler(make(kind), **{"method": "dpm_solver++_2m", "num_inference_steps": 5, **changes})
    assert isinstance(caught.value, ValueError)


def test_noise_prediction_does_not_start_where_x0_cannot_be_told():
    schedule = make("epsilon", schedule="cosine")
    with pytest.raises(UserError, match=r"α = 4\.9e-05"):
        Sampler(schedule, "ddim", 20)
    Sampler(schedule, "ddim", 20, "leading")


@pytest.mark.parametrize(
    ("scale", "arguments", "message"),
    [
        (1.0, {"seeds": []}, "at least one"),
        (1.0, {"context": CONTEXT}, "one per seed, 3, found 2"),
        (2.0, {}, "expected a context"),
        (2.0, {"seeds": [0, 1], "context": CONTEXT}, "expected a null_context"),
        (2.0, {"seeds": [0, 1], "context": CONTEXT, "null_context": NULL[:, :1]}, r"found \(1, 1, 3\)"),
        (2.0, {"seeds": [0, 1], "context": CONTEXT, "null_context": NULL.expand(3, 4, 3)}, r"found \(3, 4, 3\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(scale, arguments, message):
    with pytest.raises(UserError, match=message):
        Sampler(make("flow"), "euler", 2, guidance_scale=scale).sample(
            ContextFlow(), (3,), **{"seeds": [0, 1, 2], **arguments}
        )


def test_an_output_of_another_shape_is_refused():
    noisy = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"expected shape \(1, 2\), found \(1, 1\)"):
        guided_output(lambda *_, context: noisy[:, :1], noisy, torch.zeros(1), None, None, 1.0)


class Twins(ExactDenoiser):
    """Two numbers that are always the same: the best guess of both is that for their mean, which has half the noise."""

    def expected_x0(self, noisy, alpha, sigma):
        return super().expected_x0(noisy.mean(1, keepdim=True), alpha, sigma / 2**0.5).expand_as(noisy)


@pytest.mark.parametrize("method", ["ddim", "heun", "dpm_solver++_2m"])
def test_what_is_drawn_follows_what_is_given(method):
    schedule = make("flow")
    given = torch.linspace(0.0, 2.0, 32)[:, None].expand(32, 2)
    errors = []
    for repeats in (1, 3):
        known = Known(given, torch.tensor([[False, True]]), repeats)
        drawn = Sampler(schedule, method, 20).sample(Twins(schedule), (2,), range(32), known=known)
        assert torch.equal(drawn[:, 0], given[:, 0])
        errors.append((drawn - given)[:, 1].abs().mean().item())
    free = Sampler(schedule, method, 20).sample(Twins(schedule), (2,), range(32))
    assert max(errors) < 0.3 * (free - given)[:, 1].abs().mean().item()
