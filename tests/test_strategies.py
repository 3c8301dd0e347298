"""Each strategy gives the embeddings it says, to the sources, labels and seeds it says."""

import math

import pytest
import torch
from test_image_samplers import make_pixel_sampler, make_token_sampler
from test_source_table import make_table

from common.data.mask_transforms import PadResized
from common.data.phantom import draw_chest_phantom
from common.diffusion.pixel_image_sampler import PixelImageSampler
from common.errors import SettingsError
from common.io.image_writer import trim_padding
from common.networks.conditioning import TokenScaler
from common.pipelines.interpolation import Interpolation
from common.pipelines.strategies import Neighbourhood, Prior, Unconditional, Variation


def angle(first, second):
    return torch.cosine_similarity(first.double(), second.double(), dim=-1).acos()


PATIENTS = ["P", "P", "Q", "R", "S", "S", "T"]
LABELS = ["a", "a|b", "b|a", "b", "", "", ""]


def fitted_scaler(table):
    """Statistics that differ by position and feature."""
    scaler = TokenScaler(*table.tokens.shape[1:])
    scaler.fit(table.tokens * torch.linspace(0.5, 20.0, table.tokens.shape[-1]))
    return scaler


TABLE = make_table(PATIENTS, LABELS)
SCALER = fitted_scaler(TABLE)


def interpolation(table=TABLE, num_samples=10, mode="lerp", mix_range=(0.25, 0.75), seed=0):
    return Interpolation(table, num_samples, mode, mix_range, SCALER, seed)


def neighbourhood(table=TABLE, num_per_source=2, num_neighbours=2, noise_scale=0.5, scaler=SCALER, seed=0):
    return Neighbourhood(table, num_per_source, num_neighbours, noise_scale, scaler, seed)


def prior(num_samples=10, label=None, seed=0):
    return Prior(make_token_sampler(), num_samples, label, seed)


# ---- what all share ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [prior, interpolation])
def test_more_samples_begin_with_those_of_fewer(make):
    many = make(num_samples=60)
    for count in (1, 7, 59):
        few = make(num_samples=count)
        assert few.requests() == many.requests()[:count]
        assert few.settings == many.settings
    assert many.requests() != make(num_samples=60, seed=1).requests()


@pytest.mark.parametrize("seed", range(2))
def test_seeds_are_all_different_and_such_that_torch_tells_them_apart(seed):
    requests = prior(num_samples=10_000, seed=seed).requests()
    seeds = {request.seed for request in requests}
    assert len(seeds) == 10_000 and min(seeds) >= 0 and max(seeds) < 2**32
    assert len({request.name for request in requests}) == 10_000
    assert not seeds & {request.seed for request in prior(num_samples=100, seed=seed + 1).requests()}


@pytest.mark.parametrize("make", [interpolation, neighbourhood, prior])
def test_tokens_depend_on_the_request_alone(make):
    strategy = make()
    requests = strategy.requests()
    tokens = strategy.tokens(requests)
    assert tokens.shape == (len(requests), 2, 6) and tokens.dtype == torch.float32
    assert torch.equal(make().tokens(requests), tokens)
    part = [5, 0, 8]
    alone = torch.cat([strategy.tokens([requests[number]]) for number in part])
    torch.testing.assert_close(alone, tokens[part], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(strategy.tokens([requests[n] for n in part]), tokens[part], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (lambda **k: Variation(k.pop("table", TABLE), **{"num_per_source": 2, "seed": 0, **k}), {"num_per_source": 3}),
        (interpolation, {"mode": "slerp", "mix_range": (0.25, 0.5)}),
        (neighbourhood, {"num_per_source": 3, "num_neighbours": 3, "noise_scale": 0.6}),
    ],
)
def test_settings_tell_runs_apart_that_must_not_share_a_folder(make, changes):
    changes = {**changes, "table": TABLE.subset([0, 1, 2, 3])}
    settings = [make().settings, *(make(**{name: value}).settings for name, value in changes.items())]
    assert all(settings.count(each) == 1 for each in settings)
    assert make().settings == settings[0]


def test_settings_of_the_prior_name_its_weights_and_its_sampler():
    samplers = [make_token_sampler(), make_token_sampler(steps=5), make_token_sampler(guidance_scale=2.0)]
    samplers.append(make_token_sampler())
    samplers[-1].prior.outlet.bias.data += 0.1
    settings = [Prior(sampler, 4, None, 0).settings for sampler in samplers] + [prior(label="a").settings]
    assert all(settings.count(each) == 1 for each in settings)


# ---- variation -----------------------------------------------------------------------------------------------------


def test_variations_are_several_of_each_source_with_its_tokens_and_label():
    strategy = Variation(TABLE, num_per_source=3, seed=0)
    requests = strategy.requests()
    assert [request.sources for request in requests] == [(source,) for source in range(7) for _ in range(3)]
    assert [request.label for request in requests] == [label for label in LABELS for _ in range(3)]
    assert requests[4].name == "variation_000004" and requests[4].mix is None
    assert torch.equal(strategy.tokens([requests[9], requests[0]]), TABLE.tokens[[3, 0]])


# ---- neighbourhood -------------------------------------------------------------------------------------------------


def standardised(tokens):
    return SCALER.scale(tokens).flatten(1).double()


@pytest.mark.parametrize(("num_neighbours", "noise_scale"), [(1, 0.5), (3, 1.0), (6, 0.1), (99, 2.0)])
def test_the_shift_is_as_long_as_the_way_to_the_neighbour(num_neighbours, noise_scale):
    strategy = neighbourhood(num_neighbours=num_neighbours, noise_scale=noise_scale)
    requests = strategy.requests()
    assert [request.sources for request in requests] == [(source,) for source in range(7) for _ in range(2)]
    assert [request.label for request in requests] == [label for label in LABELS for _ in range(2)]
    sources = standardised(TABLE.tokens)
    distances = (sources[:, None] - sources[None]).norm(dim=-1).sort(dim=1).values  # column 0: to itself
    expected = noise_scale * distances[:, min(num_neighbours, 6)].repeat_interleave(2)
    shifts = standardised(strategy.tokens(requests)) - sources.repeat_interleave(2, 0)
    assert shifts.norm(dim=1) == pytest.approx(expected, rel=1e-3)
    assert angle(shifts[0::2], shifts[1::2]).min() > 0.05  # another direction each


def test_the_neighbours_of_many_sources_are_found_too():
    table = make_table([str(n) for n in range(1100)])  # more than are compared at a time
    sources = standardised(table.tokens)
    strategy = neighbourhood(table, num_per_source=1, num_neighbours=5, noise_scale=1.0)
    chosen = [0, 511, 512, 1099]
    shifts = standardised(strategy.tokens([strategy.requests()[row] for row in chosen])) - sources[chosen]
    expected = (sources[chosen][:, None] - sources[None]).norm(dim=-1).sort(dim=1).values[:, 5]
    assert shifts.norm(dim=1) == pytest.approx(expected, rel=1e-2)


def test_shifts_are_longest_where_the_sources_differ_most():
    tokens = torch.randn(40, 1, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([4.0] + [0.5] * 7)
    table, scaler = make_table([str(n) for n in range(40)], tokens=tokens), TokenScaler(1, 8)  # standardises nothing
    strategy = neighbourhood(table, num_per_source=10, noise_scale=1.0, scaler=scaler)
    shifts = (strategy.tokens(strategy.requests()) - tokens.repeat_interleave(10, 0)).flatten(1)
    share = (shifts[:, 0].square() / shifts.square().sum(1)).mean()
    assert share > 0.4  # 1/8 if they were the same in all directions


def test_no_noise_gives_the_sources_themselves():
    strategy = neighbourhood(noise_scale=0.0)
    assert torch.equal(strategy.tokens(strategy.requests()), TABLE.tokens.repeat_interleave(2, 0))
    same = make_table(["P", "Q"], tokens=torch.ones(2, 2, 6))
    assert torch.equal(neighbourhood(same).tokens(neighbourhood(same).requests()), torch.ones(4, 2, 6))


# ---- prior ---------------------------------------------------------------------------------------------------------


def test_the_prior_draws_for_its_label_and_says_so():
    strategy = prior(label="b")
    requests = strategy.requests()
    assert {(request.sources, request.label, request.mix) for request in requests} == {((), "b", None)}
    assert len(strategy.table) == 0
    other = prior(label="a").tokens(requests)
    assert (strategy.tokens(requests) - other).abs().amax((1, 2)).min() > 1e-3
    assert {request.label for request in prior().requests()} == {""}
    with pytest.raises(SettingsError):
        prior(label="c")


# ---- unconditional -------------------------------------------------------------------------------------------------


class PaddedSampler(PixelImageSampler):
    """Draws phantoms with bars at the sides, as a denoiser of padded images does."""

    def sample(self, seeds, progress=False):
        pad = PadResized(["image"], self.image_size)
        phantoms = (draw_chest_phantom(20, 24, seed).clamp(0.1, 1.0) for seed in seeds)
        return torch.stack([pad({"image": phantom})["image"] for phantom in phantoms])


def test_an_unconditional_image_is_the_sample_of_its_seed():
    strategy = Unconditional(2000, 0, trim=False)
    requests = strategy.requests()
    assert [request.name for request in requests[:2]] == ["0000", "0001"] and len(strategy.table) == 0
    assert len({request.seed for request in requests}) == 2000
    assert Unconditional(9, 0, False).requests() == requests[:9] != Unconditional(9, 1, False).requests()
    assert Unconditional(9, 0, False).settings == strategy.settings != Unconditional(9, 0, True).settings
    images = strategy.images(make_pixel_sampler(), requests[1:3])
    assert torch.equal(torch.stack(images), make_pixel_sampler().sample([request.seed for request in requests[1:3]]))


def test_trimming_gives_unconditional_images_their_aspect():
    base = make_pixel_sampler(image_size=(16, 24))
    padded = PaddedSampler(base.denoiser, base.sampler, (16, 24), False, torch.device("cpu"))
    strategy = Unconditional(2, 0, trim=True)
    requests = strategy.requests()
    whole = padded.sample([request.seed for request in requests])
    for image, padded_image in zip(strategy.images(padded, requests), whole, strict=True):
        assert image.shape == (1, 16, 19) and torch.equal(image, trim_padding(padded_image))
    assert [image.shape for image in Unconditional(2, 0, False).images(padded, requests)] == [(1, 16, 24)] * 2


# ---- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda: Variation(TABLE, 0, 0), "num_per_source"),
        (lambda: Unconditional(0, 0, True), "num_samples"),
        (lambda: prior(0), "num_samples"),
        (lambda: interpolation(num_samples=0), "num_samples"),
        (lambda: interpolation(mode="nlerp"), "nlerp"),
        (lambda: interpolation(mix_range=(0.5, 0.4)), "low <= high"),
        (lambda: interpolation(mix_range=(0.5, 1.1)), "low <= high"),
        (lambda: neighbourhood(noise_scale=-0.1), "noise_scale"),
        (lambda: neighbourhood(noise_scale=math.nan), "noise_scale"),
        (lambda: neighbourhood(num_neighbours=0), "num_neighbours"),
        (lambda: neighbourhood(make_table(["P"])), "sources"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(make, settings):
    with pytest.raises(SettingsError, match=settings):
        make()
