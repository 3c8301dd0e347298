"""The forward process, its prediction types and inverses, and the weights of the loss."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from common.diffusion.noise_schedule import NoiseSchedule
from common.errors import UserError

KINDS = {
    "epsilon": {"schedule": "scaled_linear_beta", "prediction_type": "epsilon"},
    "epsilon linear": {"schedule": "linear_beta", "prediction_type": "epsilon", "beta_start": 1e-4, "beta_end": 0.02},
    "v": {"schedule": "scaled_linear_beta", "prediction_type": "v_prediction"},
    "v zero terminal": {"schedule": "scaled_linear_beta", "prediction_type": "v_prediction", "zero_terminal_snr": True},
    "v cosine": {"schedule": "cosine", "prediction_type": "v_prediction"},
    "flow": {"schedule": "rectified_flow", "prediction_type": "flow"},
    "sample": {"schedule": "rectified_flow", "prediction_type": "sample"},
    "preconditioned": {"schedule": "rectified_flow", "prediction_type": "preconditioned"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: str, **changes) -> NoiseSchedule:
    return NoiseSchedule(**{**KINDS[kind], **changes})


def all_timesteps(schedule: NoiseSchedule) -> torch.Tensor:
    steps = torch.arange(schedule.last_timestep + 1)
    return steps.float() if schedule.is_flow else steps


@every_kind
def test_perfect_prediction_gives_back_x0_and_noise_at_every_timestep(kind):
    schedule = make(kind)
    timesteps = all_timesteps(schedule)
    x0, noise = torch.randn(2, len(timesteps), 2, 3, 3)
    noisy = schedule.add_noise(x0, noise, timesteps)
    found_x0, found_noise = schedule.to_x0_and_noise(schedule.target(x0, noise, timesteps), noisy, timesteps)
    if kind == "sample":  # it divides by σ, 0 at the clean end
        found_noise[0] = noise[0]
    # float32; only epsilon divides, by α >= 0.006
    torch.testing.assert_close(found_x0, x0, rtol=0, atol=2e-4 if "epsilon" in kind else 2e-6)
    torch.testing.assert_close(found_noise, noise, rtol=0, atol=5e-4 if kind == "sample" else 2e-6)


def test_targets_are_the_published_ones():
    x0, noise, timesteps = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2), torch.tensor([0, 400, 999])
    monai = DDPMScheduler(1000, "scaled_linear_beta", beta_start=0.0015, beta_end=0.0205)
    assert make("epsilon").target(x0, noise, timesteps) is noise
    velocity = make("v").target(x0, noise, timesteps)
    torch.testing.assert_close(velocity, monai.get_velocity(x0, noise, timesteps), rtol=0, atol=1e-5)
    flow = make("flow")
    later, sooner = (flow.add_noise(x0, noise, timesteps.float() + shift) for shift in (0.5, -0.5))
    slope = (later - sooner) * 1000  # dz/dt, t = timestep / 1000
    torch.testing.assert_close(flow.target(x0, noise, timesteps.float()), slope, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("name", "kind"), [("scaled_linear_beta", "epsilon"), ("cosine", "v cosine")])
def test_noised_samples_equal_monais(name, kind):
    betas = {} if name == "cosine" else {"beta_start": 0.0015, "beta_end": 0.0205}
    timesteps = torch.arange(1000)
    x0, noise = torch.randn(2, 1000, 1, 2, 2)
    expected = DDPMScheduler(1000, name, **betas).add_noise(x0, noise, timesteps)
    torch.testing.assert_close(make(kind).add_noise(x0, noise, timesteps), expected, rtol=0, atol=1e-4)


@every_kind
def test_moments_of_noised_samples(kind):
    schedule = make(kind)
    timestep = torch.tensor([600])
    noisy = schedule.add_noise(torch.full((1, 40_000), 3.0), torch.randn(1, 40_000), timestep)
    alpha, sigma = schedule.alpha_sigma(timestep)
    assert noisy.mean().item() == pytest.approx(3 * alpha.item(), abs=0.02)
    assert noisy.std().item() == pytest.approx(sigma.item(), abs=0.02)


@every_kind
def test_noise_grows_and_tables_preserve_variance(kind):
    schedule = make(kind)
    alpha, sigma = schedule.alpha_sigma(all_timesteps(schedule))
    assert alpha.dtype == sigma.dtype == torch.float32
    assert (alpha.diff() < 0).all() and (sigma.diff() >= 0).all()
    total = alpha + sigma if schedule.is_flow else alpha**2 + sigma**2
    torch.testing.assert_close(total, torch.ones_like(total))


def test_zero_terminal_snr_moves_the_last_to_pure_noise_and_keeps_the_first():
    (plain, _), (alpha, sigma) = (make(kind).alpha_sigma(torch.arange(1000)) for kind in ("v", "v zero terminal"))
    assert plain[-1] > 0 and alpha[-1] == 0 and sigma[-1] == 1
    assert alpha[0] == plain[0]
    torch.testing.assert_close(alpha[500], (plain[500] - plain[-1]) * plain[0] / (plain[0] - plain[-1]))


def test_one_timestep_per_sample_in_any_number_of_dimensions():
    schedule = make("v")
    timesteps = torch.tensor([10, 900])
    for shape in [(2,), (2, 5), (2, 3, 4, 4), (2, 1, 2, 2, 2)]:
        x0, noise = torch.randn(2, *shape)
        alone = [schedule.add_noise(x0[i : i + 1], noise[i : i + 1], timesteps[i : i + 1]) for i in range(2)]
        assert torch.equal(schedule.add_noise(x0, noise, timesteps), torch.cat(alone))
    with pytest.raises(ValueError, match=r"expected shape \(2,\), found \(1,\)"):
        schedule.add_noise(x0, noise, timesteps[:1])


def test_half_precision_samples_do_not_make_coefficients_coarse():
    schedule = make("v")
    x0 = torch.ones(1, 1, dtype=torch.bfloat16)
    noisy = schedule.add_noise(x0, torch.zeros_like(x0), torch.tensor([300]))
    assert noisy.dtype == torch.float32 and noisy.item() == schedule.alpha_sigma(torch.tensor([300]))[0].item()


def test_table_timesteps_are_uniform_and_reach_both_ends():
    schedule = make("epsilon")
    draws = torch.arange(100_000) / 100_000
    counts = schedule.sample_timesteps(draws).bincount(minlength=1000)
    assert len(counts) == 1000 and counts.min() >= 99 and counts.max() <= 101
    assert make("epsilon", num_train_timesteps=1025).sample_timesteps(torch.tensor([1 - 2**-24])).item() == 1024


def test_a_preconditioned_network_predicts_numbers_of_unit_variance_at_every_noise_level():
    generator, schedule = torch.Generator().manual_seed(0), make("preconditioned")
    x0, noise = 0.5 * torch.randn(5, 100_000, generator=generator), torch.randn(5, 100_000, generator=generator)
    timesteps = torch.tensor([0.0, 10.0, 500.0, 990.0, 1000.0])
    target = schedule.target(x0, noise, timesteps)
    torch.testing.assert_close(target.std(1), torch.ones(5), rtol=0, atol=0.01)
    torch.testing.assert_close(target[0], -noise[0])
    torch.testing.assert_close(target[-1], 2 * x0[-1])
    noisy = schedule.add_noise(x0, noise, timesteps)
    wrong = schedule.to_x0_and_noise(target + 1, noisy, timesteps)[0] - x0  # c_out
    expected = wrong.square().mean(1) * ((1000 - timesteps) / timesteps).square().clamp(max=5.0)
    torch.testing.assert_close(schedule.loss_weight(timesteps[1:], 5.0), expected[1:], rtol=1e-3, atol=1e-6)


def test_flow_timesteps_are_logit_normal_and_in_range():
    draws = torch.rand(50_000)
    timesteps = make("flow", logit_normal_mean=0.5, logit_normal_std=0.8).sample_timesteps(draws)
    assert timesteps.dtype == torch.float32 and timesteps.min() >= 0 and timesteps.max() < 1000
    logit = torch.logit(timesteps.double() / 1000)
    assert logit.mean().item() == pytest.approx(0.5, abs=0.02)
    assert logit.std().item() == pytest.approx(0.8, abs=0.02)
    assert torch.equal(make("flow").sample_timesteps(torch.tensor([0.0, 0.5])), torch.tensor([0.0, 500.0]))


def test_min_snr_weights_are_the_published_ones():
    timesteps = torch.tensor([1, 100, 400, 900])
    for kind in ("epsilon", "v", "flow"):
        schedule = make(kind)
        snr = schedule.log_snr(timesteps).exp()
        clipped = snr.clamp(max=5.0)
        assert snr[0] > 5 > snr[-1]
        expected = {"epsilon": clipped / snr, "v": clipped / (snr + 1), "flow": clipped * (timesteps / 1000) ** 2}[kind]
        torch.testing.assert_close(schedule.loss_weight(timesteps, 5.0), expected, rtol=1e-4, atol=1e-7)
        assert torch.equal(schedule.loss_weight(timesteps, None), torch.ones(4))


@every_kind
def test_min_snr_weighs_an_error_of_x0_alike_for_every_prediction_type(kind):
    """An error of the output, turned into one of x0, counts min(SNR, γ) times its square."""
    schedule = make(kind)
    timesteps = torch.tensor([50, 500, 900])
    noisy, output = torch.randn(2, 3, 1).double()
    shifted = output + 0.1
    before, after = (schedule.to_x0_and_noise(each, noisy, timesteps)[0] for each in (output, shifted))
    expected = (after - before).square().squeeze(1) * schedule.log_snr(timesteps).exp().clamp(max=5.0)
    found = schedule.loss_weight(timesteps, 5.0).double() * 0.1**2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_the_loss_of_a_predicted_sample_is_that_of_the_velocity_it_stands_for():
    sample, flow = make("sample"), make("flow")
    timesteps = torch.tensor([60.0, 500.0, 900.0])
    noisy, x0 = torch.randn(2, 3, 4)
    velocities = [(noisy - each) / (timesteps / 1000)[:, None] for each in (x0, x0 + 0.1)]
    expected = (velocities[1] - velocities[0]).square().mean(1) * flow.loss_weight(timesteps, None)
    torch.testing.assert_close(sample.loss_weight(timesteps, None) * 0.1**2, expected, rtol=1e-4, atol=0)
    assert sample.loss_weight(torch.tensor([0.0]), None).isfinite()


def test_weights_and_log_snr_at_both_ends():
    flow, zero = make("flow"), make("v zero terminal")
    ends = torch.tensor([0.0, 1000.0])
    assert flow.log_snr(ends).tolist() == [torch.inf, -torch.inf]
    assert zero.log_snr(torch.tensor([999])).item() == -torch.inf
    assert flow.loss_weight(ends, 5.0).tolist() == [0.0, 0.0]
    assert zero.loss_weight(torch.tensor([999]), 5.0).item() == 0.0


@every_kind
def test_nearest_timesteps_invert_log_snr(kind):
    schedule = make(kind)
    timesteps = torch.tensor([1, 37, 500, 990])
    found = schedule.nearest_timesteps(schedule.log_snr(timesteps))
    torch.testing.assert_close(found.double(), timesteps.double(), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "expected one of .*'linear_beta'.*'rectified_flow'.*found 'linear'"),
        ({"prediction_type": "noise"}, "expected one of .*'v_prediction'.*found 'noise'"),
        ({"prediction_type": "flow"}, "'rectified_flow' together with .* found 'scaled_linear_beta' and 'flow'"),
        ({"schedule": "rectified_flow"}, "found 'rectified_flow' and 'epsilon'"),
        ({"zero_terminal_snr": True}, "use v_prediction or flow"),
        ({"num_train_timesteps": 1}, "at least 2, found 1"),
        ({"beta_end": 0.001}, "found 0.0015, 0.001"),
        ({"logit_normal_std": 0.0}, "found 0.0"),
    ],
)
def test_knobs_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        make("epsilon", **changes)
    assert isinstance(caught.value, ValueError)


def test_gamma_must_be_positive():
    with pytest.raises(UserError, match="found 0"):
        make("v").loss_weight(torch.tensor([1]), 0.0)
