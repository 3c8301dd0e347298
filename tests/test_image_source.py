"""The unconditional source; that of embeddings is what tests/test_generation.py runs through."""

import json

import pytest
import torch
from test_pixel_image_sampler import make_sampler

from common.data.mask_transforms import PadResized
from common.data.phantom import draw_chest_phantom
from common.diffusion.pixel_image_sampler import PixelImageSampler
from common.io.image_writer import trim_padding
from common.pipelines.image_source import ImageSourceError, UnconditionalImages


class PaddedSampler(PixelImageSampler):
    """Draws phantoms with bars at the sides, as a denoiser of padded images does."""

    def sample(self, seeds, progress=False):
        pad = PadResized(["image"], self.image_size)
        phantoms = (draw_chest_phantom(20, 24, seed).clamp(0.1, 1.0) for seed in seeds)
        return torch.stack([pad({"image": phantom})["image"] for phantom in phantoms])


def make_source(num_samples=5, seed=0, trim=False, **knobs):
    return UnconditionalImages(make_sampler(**knobs), num_samples, seed, trim)


def test_every_image_has_a_name_and_a_seed_of_its_own():
    requests = make_source(2000).requests()
    assert [request.name for request in requests[:2]] == ["0000", "0001"]
    assert len({request.name for request in requests}) == len({request.seed for request in requests}) == 2000
    assert all(0 <= request.seed < 2**32 and request.sources == () and request.label == "" for request in requests)


def test_more_images_begin_with_the_same_ones_and_another_seed_changes_all():
    assert make_source(5).requests() == make_source(9).requests()[:5]
    seeds = {request.seed for request in make_source(50).requests()}
    assert seeds.isdisjoint(request.seed for request in make_source(50, seed=1).requests())


def test_an_image_is_the_sample_of_its_seed():
    source = make_source()
    requests = source.requests()[1:3]
    images = source.images(requests)
    expected = make_sampler().sample([request.seed for request in requests])
    assert torch.equal(torch.stack(list(images)), expected)
    assert source.table is None and source.source_images(requests[0]) == []


def test_trimming_gives_the_images_their_aspect():
    base = make_sampler(image_size=(16, 24))
    padded = PaddedSampler(base.denoiser, base.sampler, (16, 24), False, torch.device("cpu"))
    source = UnconditionalImages(padded, 2, 0, trim=True)
    requests = source.requests()
    for image, whole in zip(source.images(requests), padded.sample([r.seed for r in requests]), strict=True):
        assert image.shape == (1, 16, 19) and torch.equal(image, trim_padding(whole))
    whole = UnconditionalImages(padded, 2, 0, trim=False).images(requests)
    assert [image.shape for image in whole] == [(1, 16, 24)] * 2


def test_settings_are_plain_and_tell_runs_apart():
    variants = [
        make_source(),
        make_source(trim=True),
        make_source(eta=0.5),
        make_source(method="heun"),
        make_source(prediction_type="v_prediction"),
        make_source(image_size=(8, 8)),
        make_source(amp=True),
    ]
    texts = {json.dumps(source.settings) for source in variants}
    assert len(texts) == len(variants)
    assert make_source(9).settings == make_source().settings, "a folder may be given more images"


def test_no_images_are_refused():
    with pytest.raises(ImageSourceError, match="num_samples: expected at least 1, found 0"):
        make_source(0)
