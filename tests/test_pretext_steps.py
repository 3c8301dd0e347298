"""Baselines of DDPM pre-training: what is hidden, what it costs, and that the same U-Net learns it."""

import pytest
import torch
from trainings import Known, make_engine, phantoms

from common.training.ema import ExponentialMovingAverage
from common.training.pretext_steps import GaussianNoise, MaskedPatches, PretextStep

PRETEXTS = [GaussianNoise(0.5), MaskedPatches(patch_size=4, mask_ratio=0.5)]
both = pytest.mark.parametrize("pretext", PRETEXTS, ids=["denoising autoencoder", "masked images"])


def make_step(pretext, network, augmentation=None):
    ema = ExponentialMovingAverage(network, 0.9)
    return PretextStep(pretext=pretext, timestep=1, ema=ema, augmentation=augmentation)


def batch_of(image, draws=None):
    return {"image": image, "draw": torch.arange(len(image)) if draws is None else torch.as_tensor(draws)}


# ---- corruption ----------------------------------------------------------------------------------------------------


def test_noise_has_the_strength_that_was_said_and_every_pixel_counts():
    image = phantoms(8, 32)
    corrupted, counts = GaussianNoise(0.5).corrupt(image, 0, list(range(8)))
    assert (corrupted - image).std() == pytest.approx(0.5, rel=0.03)
    assert counts.shape == image.shape and (counts == 1).all()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (18, 23)])
def test_whole_patches_are_hidden_as_many_as_said_and_only_they_count(height, width):
    image = 0.5 + torch.rand(3, 1, height, width)
    corrupted, counts = MaskedPatches(4, 0.25).corrupt(image, 0, [0, 1, 2])
    assert torch.equal(corrupted == 0, counts == 1) and torch.equal(corrupted[counts == 0], image[counts == 0])
    corners = counts[:, 0, ::4, ::4]
    whole = corners.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :height, :width]
    assert torch.equal(counts[:, 0], whole)
    assert (corners.flatten(1).sum(1) == round(0.25 * corners[0].numel())).all()
    assert not torch.equal(counts[0], counts[1])


@pytest.mark.parametrize("ratio", [0.001, 0.999])
def test_something_is_always_hidden_and_something_always_seen(ratio):
    _, counts = MaskedPatches(4, ratio).corrupt(torch.rand(1, 1, 8, 8), 0, [0])
    assert 0 < counts.mean() < 1


@both
def test_an_image_is_corrupted_alike_whatever_batch_it_is_in(pretext):
    image, draws = phantoms(3), [4, 9, 10**6]
    together = pretext.corrupt(image, 0, draws)[0]
    for number, draw in enumerate(draws):
        assert torch.equal(pretext.corrupt(image[number : number + 1], 0, [draw])[0][0], together[number])
    assert not torch.equal(pretext.corrupt(image, 1, draws)[0], together)


def test_impossible_knobs_are_refused():
    with pytest.raises(ValueError, match="noise_std"):
        GaussianNoise(0.0)
    for patch_size, ratio in [(0, 0.5), (4, 0.0), (4, 1.0)]:
        with pytest.raises(ValueError, match="mask_ratio"):
            MaskedPatches(patch_size, ratio)
    with pytest.raises(ValueError, match="16 × 12"):
        MaskedPatches(16, 0.5).corrupt(torch.rand(1, 1, 16, 12), 0, [0])


# ---- the steps -----------------------------------------------------------------------------------------------------


def test_the_loss_is_the_square_everywhere_or_the_magnitude_where_hidden():
    image = torch.full((2, 1, 16, 16), 0.5)  # 0 in [-1, 1]
    wrong = torch.full((1, 16, 16), 0.3)
    network = Known(lambda noisy, timesteps: wrong.expand_as(noisy))
    assert make_step(PRETEXTS[0], network)(make_engine(network), batch_of(image))["loss"] == pytest.approx(0.09)
    assert make_step(PRETEXTS[1], network)(make_engine(network), batch_of(image))["loss"] == pytest.approx(0.3)
    assert [given.timesteps.tolist() for given in network.given] == [[1, 1], [1, 1]]
    hidden = MaskedPatches(4, 0.5).corrupt(image[:1], 0, [0])[1]
    right_where_hidden = Known(lambda noisy, timesteps: 1.0 - hidden)
    step = make_step(PRETEXTS[1], right_where_hidden)
    assert step(make_engine(right_where_hidden), batch_of(image[:1]))["loss"] == 0.0


@both
def test_images_are_augmented_before_they_are_corrupted(pretext):
    image = phantoms(1)
    network = Known(lambda noisy, timesteps: 2 * (image / 2) - 1)
    augmented = make_step(pretext, network, lambda image, mask, seeds: (image / 2, mask))
    assert augmented(make_engine(network), batch_of(image))["loss"] < 1e-6
    assert make_step(pretext, network)(make_engine(network), batch_of(image))["loss"] > 1e-3
