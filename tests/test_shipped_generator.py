"""The generator's weights in the repository are the trained ones: images, prior and encoder fit each other."""

import json

import pytest
import torch

from common.fingerprint import network_sha256
from common.io import read_radiograph
from common.pipelines import DinoDiffusion

BUNDLE = "bundles/cxr_dino_latent_diffusion"


@pytest.fixture(scope="module")
def pipe(request):
    return DinoDiffusion.from_bundle(request.config.rootpath / BUNDLE, "cpu", num_inference_steps=6, amp=False)


@pytest.fixture(scope="module")
def samples(pipe):
    """Two images of the prior, and their tokens."""
    tokens = pipe.token_sampler.sample([1, 2])
    return pipe.image_sampler.sample(tokens, [3, 4]), tokens


def test_samples_are_pictures_not_noise(samples):
    images, _ = samples
    assert images.shape == (2, 1, 256, 256) and images.min() >= 0 and images.max() <= 1
    smooth = torch.nn.functional.avg_pool2d(images, 8)
    assert (smooth.var((1, 2, 3)) > 0.8 * images.var((1, 2, 3))).all(), "most of a radiograph is in its large shapes"
    assert (images[0] - images[1]).abs().mean() > 0.03


def test_images_follow_their_tokens(pipe, samples):
    """An image's own tokens are nearer to those it was drawn from than to those of the other image."""
    images, wanted = samples
    found, wanted = (pipe.scaler.scale(tokens).flatten(1) for tokens in (pipe.encode(images), wanted))
    distances = torch.cdist(found, wanted)
    assert distances[0, 0] < distances[0, 1] and distances[1, 1] < distances[1, 0]


def test_the_bundle_carries_the_weights_that_its_figures_are_of(pipe, repository):
    report = json.loads((repository / BUNDLE / "docs" / "evaluation.json").read_text())
    assert report["weights_sha256"] == network_sha256(pipe.network)
    assert report["prior_sha256"] == network_sha256(pipe.token_sampler.prior)


def test_samples_folder_is_the_generators(repository):
    images = sorted((repository / BUNDLE / "samples").rglob("*.png"))
    assert len(images) >= 8
    for path in images:
        assert read_radiograph(path).pixels.shape == (1, 256, 256)
    total = sum(path.stat().st_size for path in (repository / BUNDLE / "samples").rglob("*") if path.is_file())
    assert total < 2 * 2**20


def test_bundle_is_small_enough(repository):
    total = sum(path.stat().st_size for path in (repository / BUNDLE / "models").rglob("*") if path.is_file())
    assert total < 100 * 2**20
