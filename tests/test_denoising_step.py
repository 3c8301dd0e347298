"""Training and validation of the denoiser, on oracles whose error is known and on a network that learns."""

import pytest
import torch
from conftest import make_tiny_denoiser, make_tiny_store, randomise, run_ranks
from torch.utils.data import default_collate
from trainings import CPU, Known, make_engine, perfect, phantoms

from common.data.dataset import StepBatchSampler
from common.data.latent_store import LatentDataset
from common.diffusion.noise_schedule import NoiseSchedule
from common.errors import SettingsError
from common.intensity import to_signed
from common.networks.conditioning import TokenSelection
from common.networks.latent_denoiser import DenoisingPass
from common.seeding import Purpose, derive_seed
from common.training.denoising_step import (
    DenoisingStep,
    DenoisingValidation,
    ImageDenoisingStep,
    ImageDenoisingValidation,
    MeanError,
    alignment_loss,
    spread_uniform,
)
from common.training.ema import ExponentialMovingAverage

SCHEDULES = {
    "epsilon": ("scaled_linear_beta", "epsilon"),
    "v_prediction": ("cosine", "v_prediction"),
    "flow": ("rectified_flow", "flow"),
}
SELECTION = TokenSelection(use_registers=False, patch_grid=1)  # two tokens
CLS = TokenSelection(use_registers=False, patch_grid=0)


def make_schedule(prediction_type="flow"):
    return NoiseSchedule(*SCHEDULES[prediction_type])


def make_step(network, prediction_type="flow", uncond_prob=0.1, min_snr_gamma=None, selection=CLS, **alignment):
    ema = ExponentialMovingAverage(network, 0.9)
    schedule = make_schedule(prediction_type)
    kwargs = {"min_snr_gamma": min_snr_gamma, "amp": False, **alignment}
    return DenoisingStep(schedule=schedule, selection=selection, uncond_prob=uncond_prob, ema=ema, **kwargs)


def batch_of(mean, std=0.0, draws=None):
    """A batch as the store gives it, from latents [B, C, h, w]."""
    count = len(mean)
    draws = torch.arange(count) if draws is None else torch.as_tensor(draws)
    tokens = {"cls_token": torch.zeros(count, 6), "register_tokens": torch.zeros(count, 0, 6)}
    tokens["patch_grid"] = torch.zeros(count, 0, 0, 6)
    return {"latents_mean": mean, "latents_std": torch.full_like(mean, std), "draw": draws, "index": draws, **tokens}


# ---- what is random ------------------------------------------------------------------------------------------------


def discrepancy(numbers):
    """Largest distance of the empirical distribution from the uniform one (Kolmogorov-Smirnov)."""
    ordered, count = numbers.sort().values, len(numbers)
    above = (torch.arange(1, count + 1) / count - ordered).max()
    return float(torch.maximum(above, (ordered - torch.arange(count) / count).max()))


def test_timesteps_are_spread_more_evenly_than_chance_over_any_run_of_draws():
    for first in (0, 1000, 10**7):
        assert discrepancy(spread_uniform(list(range(first, first + 1000)), seed=0)) < 0.006  # by chance about 0.03
        assert discrepancy(spread_uniform(list(range(first, first + 32)), seed=0)) < 0.1  # by chance about 0.15
    assert spread_uniform(list(range(10_000)), seed=0).min() >= 0.0 and spread_uniform([10**9], seed=0).max() < 1.0


def test_each_single_image_gets_all_timesteps_in_the_course_of_a_training():
    num_items = 55  # a Fibonacci number: draws so far apart have nearly the same timestep
    draws = {item: [] for item in range(3)}
    stream = iter(StepBatchSampler(num_items, batch_size=num_items, seed=0))
    for _ in range(400):
        for item, draw in next(stream):
            if item in draws:
                draws[item].append(draw)
    for numbers in draws.values():
        counts = torch.histc(spread_uniform(numbers, seed=0).float(), bins=10, min=0.0, max=1.0)
        assert ((counts - 40) ** 2 / 40).sum() < 27.9  # chi-square of 9 degrees of freedom, 0.1 %


def test_seeds_differ_in_where_the_sequence_starts():
    assert spread_uniform([0], seed=0) != spread_uniform([0], seed=1)


def test_the_context_is_dropped_as_often_as_said_and_at_any_noise_level():
    network = Known()
    make_step(network, uncond_prob=0.1)(make_engine(network), batch_of(torch.zeros(4000, 1, 1, 1)))
    drop, timesteps = network.given[0].drop, network.given[0].timesteps
    assert drop.float().mean() == pytest.approx(0.1, abs=0.015)  # three standard deviations
    assert timesteps[drop].mean() == pytest.approx(float(timesteps.mean()), abs=40)
    none = Known()
    make_step(none, uncond_prob=0.0)(make_engine(none), batch_of(torch.zeros(4000, 1, 1, 1)))
    assert not none.given[0].drop.any()


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_a_batch_in_parts_makes_the_step_of_the_whole_batch(tmp_path, parts):
    dataset = LatentDataset(make_tiny_store(tmp_path), "train")
    batch = default_collate([dataset[index, 10 + index] for index in range(7)])
    found = []
    for accumulation_steps in (1, parts):
        torch.manual_seed(0)
        network = DenoisingPass(make_tiny_denoiser())
        step = make_step(network, uncond_prob=0.5, selection=SELECTION, accumulation_steps=accumulation_steps)
        engine = make_engine(network)
        engine.optimizer = torch.optim.SGD(network.parameters(), 1.0)  # Adam blows up what is zero but for rounding
        found.append([step(engine, batch), torch.cat([weight.detach().flatten() for weight in network.parameters()])])
    (whole, expected), (summed, weights) = found
    assert summed == pytest.approx(whole, rel=1e-6)
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("parts", [0, 2.0])
def test_a_batch_in_no_parts_is_refused(parts):
    with pytest.raises(SettingsError, match="accumulation_steps"):
        make_step(Known(), accumulation_steps=parts)(make_engine(Known()), batch_of(torch.zeros(2, 1, 1, 1)))


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_dropping_all_or_less_than_none_is_refused(share):
    with pytest.raises(ValueError, match="uncond_prob"):
        make_step(Known(), uncond_prob=share)


def test_the_draw_of_the_posterior_and_the_noise_are_not_the_same():
    network = Known()
    logged = make_step(network)(make_engine(network), batch_of(torch.zeros(200, 1, 8, 8), std=1.0))
    assert logged["loss"] == pytest.approx(2.0, abs=0.1)  # E|ε - x0|², 0 if they were


def test_noise_of_a_whole_batch_is_as_random_and_repeats():
    def noisy(seed, draws):
        network = Known()
        step = make_step(network)
        step.noise_device, step.seed = CPU, seed
        logged = step(make_engine(network), batch_of(torch.zeros(len(draws), 1, 8, 8), 1.0, draws))
        assert logged["loss"] == pytest.approx(2.0, abs=0.1)
        return network.given[0].noisy

    first = noisy(0, range(200))
    assert torch.equal(noisy(0, range(200)), first)
    assert not torch.equal(noisy(1, range(200)), first) and not torch.equal(noisy(0, range(200, 400)), first)


# ---- the loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", SCHEDULES)
def test_a_perfect_prediction_has_no_loss_and_no_gradient(prediction_type):
    x0 = torch.randn(2, 4, 4)
    network = Known(perfect(make_schedule(prediction_type), x0))
    logged = make_step(network, prediction_type)(make_engine(network, lr=0.25), batch_of(x0.repeat(64, 1, 1, 1)))
    assert logged["loss"] < 1e-6
    assert logged["grad_norm"] < 1e-3
    assert logged["learning_rate"] == 0.25


@pytest.mark.parametrize("prediction_type", SCHEDULES)
def test_min_snr_weighs_each_sample_by_its_noise_level(prediction_type):
    latents = torch.randn(1, 2, 4, 4)
    schedule = make_schedule(prediction_type)
    weights = []
    for draw in range(8):
        network = Known()
        batch = batch_of(latents, draws=[draw])
        plain, weighted = (
            make_step(network, prediction_type, min_snr_gamma=gamma)(make_engine(network), batch)["loss"]
            for gamma in (None, 0.5)
        )
        weights.append(weighted / plain)
        expected = schedule.loss_weight(network.given[-1].timesteps, 0.5)
        assert weights[-1] == pytest.approx(float(expected), rel=1e-4)
    assert max(weights) > 2 * min(weights)


def make_batch(folder, count=4):
    dataset = LatentDataset(make_tiny_store(folder), "train")
    return default_collate([dataset[index, index] for index in range(count)])


def test_the_middle_is_aligned_with_the_patch_tokens_for_the_first_steps(tmp_path):
    denoiser = make_tiny_denoiser()
    batch = make_batch(tmp_path)
    network = DenoisingPass(denoiser, alignment_dim=batch["patch_grid"].shape[-1])
    step = make_step(denoiser, uncond_prob=0.3, selection=SELECTION, alignment_weight=0.5, alignment_steps=60)
    engine = make_engine(network, lr=1e-2)
    losses = []
    for engine.state.iteration in range(1, 62):
        losses.append(step(engine, batch)["alignment"])
    assert losses[59] < 0.9 * losses[0] and losses[60] == 0.0
    assert step.ema.network.state_dict().keys() == denoiser.state_dict().keys()


def test_the_alignment_is_nothing_where_features_are_the_tokens_less_their_mean():
    tokens = torch.randn(3, 4, 4, 6) + 5.0
    features = (tokens - tokens.mean((0, 1, 2))).permute(0, 3, 1, 2)
    assert alignment_loss(features, tokens).item() == pytest.approx(0.0, abs=1e-5)
    assert alignment_loss(-features, tokens).item() == pytest.approx(2.0, abs=1e-5)


# ---- validation ----------------------------------------------------------------------------------------------------


def errors_of(network, prediction_type, latents, num_levels=4, indices=None):
    validation = DenoisingValidation(
        schedule=make_schedule(prediction_type), selection=CLS, num_levels=num_levels, amp=False, seed=0
    )
    return validation(make_engine(network), batch_of(latents, draws=indices))["errors"]


def expected_error(prediction_type, x0_factor, noise_factor, level, num_levels=4):
    """Mean over one stratum of a²·9 + b², for an error a·x0 + b·ε with x0 of standard deviation 3."""
    schedule = make_schedule(prediction_type)
    timesteps = schedule.sample_timesteps((level + torch.linspace(0.0005, 0.9995, 1000)) / num_levels)
    alpha, sigma = schedule.alpha_sigma(timesteps)
    return float((9 * x0_factor(alpha, sigma) ** 2 + noise_factor(alpha, sigma) ** 2).mean())


@pytest.mark.parametrize(
    ("prediction_type", "predict", "x0_factor", "noise_factor", "direction"),
    [
        # Predicting nothing, the error is the target: ε, α·ε - σ·x0, ε - x0.
        ("epsilon", None, lambda a, s: 0 * a, lambda a, s: 1 + 0 * a, 0),
        ("v_prediction", None, lambda a, s: s, lambda a, s: a, 1),
        ("flow", None, lambda a, s: 1 + 0 * a, lambda a, s: 1 + 0 * a, 0),
        # Predicting z = α·x0 + σ·ε instead, it is z less the target.
        ("epsilon", lambda z, t: z, lambda a, s: a, lambda a, s: 1 - s, -1),
        ("flow", lambda z, t: z, lambda a, s: 1 + a, lambda a, s: 1 - s, -1),
    ],
)
def test_errors_of_a_known_predictor_at_each_noise_level(prediction_type, predict, x0_factor, noise_factor, direction):
    network = Known(*([predict] if predict else []))
    errors = errors_of(network, prediction_type, 3 * torch.randn(64, 2, 8, 8)).mean(0)
    expected = [expected_error(prediction_type, x0_factor, noise_factor, level) for level in range(4)]
    assert errors.tolist() == pytest.approx(expected, rel=0.06)
    assert all(direction * difference > 0 for difference in errors.diff().tolist() if direction)


def test_strata_cut_the_timesteps_into_parts_from_least_to_most_noise():
    network = Known()
    errors_of(network, "v_prediction", torch.zeros(50, 1, 2, 2))
    for level, given in enumerate(network.given):
        low, high = 250 * level, 250 * (level + 1)
        assert low <= given.timesteps.min() < low + 25 and high - 25 <= given.timesteps.max() < high


def test_a_perfect_prediction_has_no_validation_error():
    x0 = torch.randn(2, 4, 4)
    assert errors_of(Known(perfect(make_schedule(), x0)), "flow", x0.repeat(3, 1, 1, 1)).max() < 1e-6


def test_the_mean_error_is_that_over_images_not_over_batches():
    errors = torch.rand(7, 3)
    for metric, expected in [(MeanError(), errors.mean()), (MeanError(2), errors[:, 2].mean())]:
        for part in errors.split([4, 1, 2]):
            metric.update(metric._output_transform({"errors": part}))
        assert isinstance(metric.compute(), float)
        assert metric.compute() == pytest.approx(float(expected), rel=1e-6)


def test_the_mean_of_many_errors_does_not_lose_digits():
    metric, errors = MeanError(), torch.rand(20_000, 3)
    for part in errors.split(5000):
        metric.update(metric._output_transform({"errors": part}))
    assert metric.compute() == pytest.approx(float(errors.double().mean()), rel=1e-12)


def test_processes_with_unequal_shares_agree_on_the_mean(tmp_path):
    def run(rank):
        metric = MeanError()
        metric.update(metric._output_transform({"errors": torch.tensor([[1.0], [2.0]] if rank == 0 else [[9.0]])}))
        assert metric.compute() == pytest.approx(4.0)

    run_ranks(run, 2, tmp_path)


def test_the_network_gets_the_tokens_of_each_image(tmp_path):
    dataset = LatentDataset(make_tiny_store(tmp_path), "val")
    network = Known()
    randomise(network, 1.0)
    validation = DenoisingValidation(schedule=make_schedule(), selection=SELECTION, num_levels=1, amp=False, seed=0)
    batch = default_collate([dataset[index] for index in range(3)])
    validation(make_engine(network), batch)
    assert torch.equal(network.given[0].tokens[:, 0], batch["cls_token"])
    torch.testing.assert_close(network.given[0].tokens[:, 1], batch["patch_grid"].mean((1, 2)))


# ---- on images -----------------------------------------------------------------------------------------------------

IMAGES = NoiseSchedule("cosine", "epsilon", num_train_timesteps=4000)


def make_image_step(network, augmentation=None):
    ema = ExponentialMovingAverage(network, 0.9)
    return ImageDenoisingStep(schedule=IMAGES, ema=ema, augmentation=augmentation, amp=False)


def images_of(image, draws=None):
    return {"image": image, "draw": torch.arange(len(image)) if draws is None else torch.as_tensor(draws)}


def test_who_knows_the_image_has_no_error_so_images_enter_as_minus_one_to_one():
    image = phantoms(1)
    network = Known(perfect(IMAGES, to_signed(image)))
    assert make_image_step(network)(make_engine(network), images_of(image.repeat(16, 1, 1, 1)))["loss"] < 1e-5
    validation = ImageDenoisingValidation(schedule=IMAGES, num_levels=3, amp=False, seed=0)
    errors = validation(make_engine(network), images_of(image.repeat(4, 1, 1, 1)))["errors"]
    assert errors.shape == (4, 3) and errors.max() < 1e-5


def test_images_are_augmented_each_by_its_draw():
    def darken(image, mask, seeds):
        assert image.shape == mask.shape and not mask.any()
        assert seeds == [derive_seed(0, Purpose.AUGMENTATION, draw) for draw in (4, 9)]
        return image / 2, mask

    image = phantoms(1)
    network = Known(perfect(IMAGES, to_signed(image / 2)))
    batch = images_of(image.repeat(2, 1, 1, 1), [4, 9])
    assert make_image_step(network, darken)(make_engine(network), batch)["loss"] < 1e-5
    assert make_image_step(network)(make_engine(network), batch)["loss"] > 1e-3
