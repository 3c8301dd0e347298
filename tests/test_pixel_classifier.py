import copy

import pytest
import torch
from test_pixel_denoiser import make_tiny_pixel_denoiser
from torch.nn import functional as F

from common.diffusion.noise_schedule import NoiseSchedule
from common.experiments.pixel_classifier import PixelClassifier, PixelClassifierError
from common.intensity import to_signed
from common.seeding import Purpose, derive_seed, seeded_normal

TIMESTEPS = (40, 10)


def make_classifier(denoiser=None, **changes):
    """Two members on both decoder blocks of a tiny denoiser, at two timesteps: 48 features, 3 classes."""
    knobs = {"timesteps": TIMESTEPS, "blocks": (0, 1), "num_classes": 3, "ensemble_size": 2, "seed": 5, **changes}
    return PixelClassifier(
        denoiser or make_tiny_pixel_denoiser(), NoiseSchedule("cosine", "epsilon", num_train_timesteps=400), **knobs
    )


def draw_squares(count, size=16, seed=0):
    """Images [N, 1, H, W] whose left half is dark, with a bright square at the right, and their labels 0, 1, 2."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.1 * torch.rand(count, 1, size, size, generator=generator)
    labels = torch.zeros(count, 1, size, size, dtype=torch.int64)
    for number in range(count):
        top = int(torch.randint(size // 2, (1,), generator=generator))
        labels[number, :, :, size // 2 :] = 1
        labels[number, :, top : top + size // 2, size // 2 :] = 2
    return images + 0.4 * labels, labels


@pytest.fixture(scope="module")
def fitted():
    return make_classifier().fit(*draw_squares(3), max_steps=60, batch_pixels=64, learning_rate=0.01)


# ---- features ------------------------------------------------------------------------------------------------------


def test_features_are_the_blocks_outputs_for_the_noised_image_upsampled():
    classifier, image = make_classifier(), torch.rand(1, 1, 8, 12)
    unet, outputs = classifier.denoiser.unet, {}
    for block in (0, 1):
        unet.up_blocks[block].register_forward_hook(lambda _m, _i, output, block=block: outputs.update({block: output}))
    expected = {0: [], 1: []}
    noise = seeded_normal([derive_seed(5, Purpose.NOISE)], (1, 8, 12))
    for timestep in TIMESTEPS:
        at = torch.tensor([timestep])
        unet(classifier.schedule.add_noise(to_signed(image), noise, at), at)
        for block, output in outputs.items():
            expected[block].append(F.interpolate(output, [8, 12], mode="bilinear")[0])
    features = classifier.features(image)
    assert features.shape == (classifier.feature_dim, 8, 12) == (2 * (16 + 8), 8, 12)
    torch.testing.assert_close(features, torch.cat([*expected[0], *expected[1]]), atol=1e-5, rtol=1e-5)


def test_low_resolution_blocks_are_upsampled():
    denoiser = make_tiny_pixel_denoiser(channels=[8, 16, 16], attention_levels=[False, False, True])
    classifier = make_classifier(denoiser, blocks=[0], timesteps=[10])
    image = torch.rand(1, 1, 16, 16)
    outputs = []
    denoiser.unet.up_blocks[0].register_forward_hook(lambda _m, _i, output: outputs.append(output))
    features = classifier.features(image)
    assert outputs[0].shape == (1, 16, 8, 8) and features.shape == (16, 16, 16)
    torch.testing.assert_close(features, F.interpolate(outputs[0], [16, 16], mode="bilinear")[0])


def test_hooks_are_gone_afterwards_also_after_an_error():
    classifier = make_classifier()
    classifier.features(torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"expected \[B, 1, H, W\]"), classifier._captured():
        classifier.denoiser(torch.rand(1, 1, 9, 9), torch.tensor([1]))
    assert not any(block._forward_hooks for block in classifier.denoiser.unet.up_blocks)


# ---- prediction ----------------------------------------------------------------------------------------------------


def test_the_output_is_the_log_of_the_members_mean_probability(fitted):
    images = torch.rand(2, 1, 8, 12)
    output = fitted(images)
    assert output.shape == (2, 3, 8, 12)
    torch.testing.assert_close(output.exp().sum(1), torch.ones(2, 8, 12))
    for image, found in zip(images, output, strict=True):
        rows = (fitted.features(image[None]).flatten(1).T - fitted.feature_mean) / fitted.feature_sd
        probabilities = [member(rows).softmax(1).T.reshape(3, 8, 12) for member in fitted.members]
        torch.testing.assert_close(found.exp(), (probabilities[0] + probabilities[1]) / 2)
        assert (probabilities[0] - probabilities[1]).abs().max() > 0.01  # members of their own


def test_odd_sizes_are_padded_with_their_border_and_cut_back(fitted):
    image = torch.rand(1, 1, 9, 13)
    padded = F.pad(image, (0, 1, 0, 1), mode="replicate")
    assert fitted(image).shape == (1, 3, 9, 13)
    torch.testing.assert_close(fitted(image), fitted(padded)[..., :9, :13])


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 8, 8)])
def test_what_is_no_batch_of_grey_images_is_refused(fitted, shape):
    with pytest.raises(ValueError, match=r"expected an image \[B, 1, H, W\], found"):
        fitted(torch.rand(shape))


def test_a_prediction_before_training_is_refused():
    with pytest.raises(PixelClassifierError, match="found no training"):
        make_classifier()(torch.rand(1, 1, 8, 8))


def test_weights_come_back(fitted):
    other = make_classifier()
    other.load_state_dict(copy.deepcopy(fitted.state_dict()))
    image = torch.rand(1, 1, 8, 8)
    assert torch.equal(other.eval()(image), fitted(image))


# ---- training ------------------------------------------------------------------------------------------------------


def test_it_learns_what_the_features_show(fitted):
    images, labels = draw_squares(2, seed=9)
    assert not fitted.training
    assert (fitted(images).argmax(1, keepdim=True) == labels).float().mean() > 0.9


def test_only_the_members_learn_and_the_denoiser_stays_in_eval_mode():
    denoiser = make_tiny_pixel_denoiser(dropout=0.5)
    before = copy.deepcopy(denoiser.state_dict())
    classifier = make_classifier(denoiser).fit(*draw_squares(1), max_steps=2, batch_pixels=8)
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())
    image = torch.rand(1, 1, 8, 8)
    classifier.train()
    assert classifier.members[0].training and torch.equal(classifier.features(image), classifier.features(image))


def test_the_same_seed_gives_the_same_whatever_was_drawn_or_trained_before():
    images, labels = draw_squares(2)
    one, other = make_classifier(), make_classifier(seed=6)
    one.fit(images.flip(0), labels, max_steps=3, batch_pixels=16)
    torch.rand(7)
    one.fit(images, labels, max_steps=3, batch_pixels=16)
    again = make_classifier().fit(images, labels, max_steps=3, batch_pixels=16)
    other.fit(images, labels, max_steps=3, batch_pixels=16)
    assert torch.equal(one(images), again(images))
    assert not torch.equal(one.members[0][0].weight, one.members[1][0].weight)
    assert (one(images) - other(images)).abs().max() > 1e-3


def test_features_are_standardised_over_all_pixels_and_constant_ones_drop_out():
    denoiser = make_tiny_pixel_denoiser()
    images, labels = draw_squares(2)
    # With these zeros the first channel of the last block is the bias alone.
    block = denoiser.unet.up_blocks[1].resnets[-1]
    for convolution in (block.conv2, block.skip_connection):
        torch.nn.init.zeros_(convolution.conv.weight[0].data)
    classifier = make_classifier(denoiser, blocks=[1]).fit(images, labels, max_steps=1, batch_pixels=8)
    rows = torch.cat([classifier._standardised(image[None]) for image in images])
    torch.testing.assert_close(rows.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    constant = torch.tensor([number in (0, 8) for number in range(16)])
    torch.testing.assert_close(rows.std(0, unbiased=False), (~constant).float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"timesteps": []}, r"timesteps \[\]; expected different ones from 0 to 399"),
        ({"timesteps": [10, 400]}, r"timesteps \[10, 400\]"),
        ({"blocks": [1, 1]}, r"blocks \[1, 1\]; expected different ones from 0 to 1"),
        ({"blocks": [-1]}, r"blocks \[-1\]"),
        ({"num_classes": 1}, "num_classes 1"),
        ({"ensemble_size": 0}, "ensemble_size 0"),
    ],
)
def test_impossible_knobs_are_refused(knobs, message):
    with pytest.raises(PixelClassifierError, match=message):
        make_classifier(**knobs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.rand(1, 1, 8, 9)}, r"images \(1, 1, 8, 9\) and labels \(1, 1, 8, 8\)"),
        ({"labels": torch.full((1, 1, 8, 8), 3)}, "from 3 to 3; expected integers from 0 to 2"),
        ({"labels": torch.zeros(1, 1, 8, 8)}, "labels torch.float32"),
        ({"batch_pixels": 1}, "batch_pixels 1"),
        ({"max_steps": 0}, "max_steps 0"),
        ({"learning_rate": 0.0}, r"learning_rate 0\.0"),
    ],
)
def test_impossible_training_is_refused(change, message):
    good = {"images": torch.rand(1, 1, 8, 8), "labels": torch.zeros(1, 1, 8, 8, dtype=torch.int64)}
    with pytest.raises(PixelClassifierError, match=message):
        make_classifier().fit(**{**good, "max_steps": 1, "batch_pixels": 8, **change})
