from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_benefit import tiny_pipe

from common.data.phantom import draw_chest_phantom, draw_lung_mask
from common.errors import SettingsError
from common.experiments.chest_atlas import make_atlas
from common.experiments.diffseg import (
    aggregate,
    anchor_indices,
    attention_layers,
    label_map,
    merge,
    saved_attention,
    symmetric_kl,
)
from common.experiments.lung_choice import EXCLUDED, ChoiceSettings, Tuned
from common.experiments.lung_segments import (
    DIFFSEG,
    METHODS,
    SegmentSettings,
    encode_chest,
    fitted_size,
    gather,
    kmeans_labels,
    membership_affinity,
    otsu_lungs,
    otsu_threshold,
    segments,
)
from common.experiments.lung_study import find_lungs

SETTINGS = SegmentSettings(threshold=0.0, max_segments=1000, anchors=4, clusters=3)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory, tiny_dino):
    return tiny_pipe(tmp_path_factory.mktemp("bundle"), tiny_dino)


@pytest.fixture(scope="module")
def atlas():
    images = [draw_chest_phantom(60, 80, seed)[0].numpy() for seed in range(4)]
    return make_atlas(images, [draw_lung_mask(60, 80, seed)[0].numpy() for seed in range(4)])


@pytest.fixture(scope="module")
def encoded(pipe, atlas):
    """A chest in the middle of a black picture."""
    pixels = torch.zeros(1, 120, 160)
    pixels[:, 30:90, 50:130] = draw_chest_phantom(60, 80, seed=9)
    return encode_chest(pipe, pixels, SETTINGS, atlas)


def test_what_is_encoded_is_the_chest(encoded):
    rows, columns = encoded.box
    assert 25 <= rows.start < 45 and 75 < rows.stop <= 95 and 45 <= columns.start < 65 and 115 < columns.stop <= 135
    assert abs(np.prod(encoded.size) - 256**2) < 0.1 * 256**2 and encoded.whole == (120, 160)
    mask = np.ones(encoded.whole, bool)
    assert encoded.part(mask).shape == encoded.size and encoded.part(mask).all()
    whole = encoded.whole_mask(np.ones(encoded.size, bool))
    assert whole[encoded.box].all() and whole.sum() == (rows.stop - rows.start) * (columns.stop - columns.start)
    assert encoded.pose.frame(encoded.size)[0].stop <= encoded.size[0]


@pytest.mark.parametrize(
    ("size", "expected"), [((256, 256), (256, 256)), ((2000, 2000), (256, 256)), ((1000, 2000), (192, 352))]
)
def test_the_fitted_size_keeps_area_and_aspect(size, expected):
    assert fitted_size(*size, side=256, multiple=32) == expected
    with pytest.raises(SettingsError):
        fitted_size(*size, side=16, multiple=32)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_segments_and_evidence_of_the_same_size(encoded, atlas, method):
    assert encoded.patch_tokens.shape == (encoded.patch_size[0] * encoded.patch_size[1], 16)
    labels, affinity = segments(encoded, method, SETTINGS)
    found = gather(encoded, labels, affinity, atlas)
    assert {part.shape for part in (labels, *vars(found).values())} == {encoded.size}
    assert len(np.unique(labels)) > 1
    assert np.array_equal(labels, segments(encoded, method, SETTINGS)[0])


def test_the_threshold_rises_until_few_segments_are_left(encoded):
    few = replace(SETTINGS, threshold=1e-9, max_segments=3)
    assert 1 <= len(np.unique(segments(encoded, DIFFSEG, few)[0])) <= 3


def test_lungs_come_back_at_the_images_own_size_and_always_the_same(pipe, atlas):
    tuned = Tuned(atlas, dict.fromkeys(METHODS, SETTINGS), dict.fromkeys(METHODS, ChoiceSettings()))
    pixels = draw_chest_phantom(50, 70, seed=1)
    mask = find_lungs(pipe, tuned, pixels, EXCLUDED)
    assert mask.shape == (50, 70) and mask.dtype == bool and 0 < mask.mean() < 0.9
    assert np.array_equal(mask, find_lungs(pipe, tuned, pixels, EXCLUDED))


def test_k_means_finds_groups_of_tokens_and_repeats_itself():
    tokens = torch.randn(4 * 6, 5, generator=torch.Generator().manual_seed(0)) * 0.01
    tokens.view(4, 6, 5)[:, 3:] += 1.0
    labels = kmeans_labels(tokens, (4, 6), (40, 60), clusters=2, seed=0)
    assert labels.shape == (40, 60)
    assert len(np.unique(labels[:, :30])) == 1 == len(np.unique(labels[:, 30:])) and labels[0, 0] != labels[0, -1]
    assert np.array_equal(labels, kmeans_labels(tokens, (4, 6), (40, 60), clusters=2, seed=0))


def test_otsu_is_the_exhaustive_search():
    image = np.random.default_rng(1).random((30, 30)) ** 2
    edges = np.linspace(image.min(), image.max(), 65)[1:-1]

    def between(value):
        low, high = image[image < value], image[image >= value]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    assert between(otsu_threshold(image, bins=64)) > 0.999 * max(between(edge) for edge in edges)
    assert np.isfinite(otsu_threshold(np.full((4, 4), 0.5)))


def test_otsu_alone_takes_the_two_largest_dark_parts_off_the_border():
    image = np.full((40, 60), 0.8)
    image[:, :4] = image[10:30, 8:25] = image[12:30, 35:52] = image[2:5, 28:31] = 0.2
    image[20, 15] = 0.9
    expected = np.zeros(image.shape, bool)
    expected[10:30, 8:25] = expected[12:30, 35:52] = True
    assert np.array_equal(otsu_lungs(image), expected)
    assert not otsu_lungs(np.full((8, 8), 0.5)).any()


def test_the_affinity_of_segments_is_within_them():
    labels = np.zeros((8, 8), int)
    labels[:, 4:] = 1
    affinity = membership_affinity(labels, (4, 4))
    np.testing.assert_allclose(affinity.sum(1), 1, rtol=1e-6)
    assert affinity[0, 1] == 1 / 8 and affinity[0, 3] == 0


# ---- DiffSeg ---------------------------------------------------------------------------------------------------------


def test_layers_are_distributions_that_depend_on_image_context_noise_and_timestep_alone(pipe):
    image, tokens = torch.rand(1, 32, 64), torch.randn(1, 2, 16)  # it need not be square
    one = torch.stack(attention_layers(pipe, image, 300, 0, tokens))
    assert one.shape[1:] == (2, 4, 2, 4)
    assert torch.equal(one, torch.stack(attention_layers(pipe, image, 300, 0, tokens)))
    others = (image.flip(2), 300, 0, tokens), (image, 300, 1, tokens), (image, 700, 0, tokens), (image, 300, 0, None)
    for other in (*others, (image, 300, 0, tokens, 2)):  # the last is the mean of two noises
        layers = torch.stack(attention_layers(pipe, *other))
        assert not torch.allclose(one, layers)
        torch.testing.assert_close(layers.sum((3, 4)), torch.ones(len(layers), 2, 4))
    with saved_attention(pipe.network.unet) as blocks:
        assert all(block.att_mat.numel() == 0 for block in blocks)  # nothing stays behind in the network
    assert not any(block.save_attn for block in blocks)


def test_a_network_without_self_attention_is_refused():
    with pytest.raises(SettingsError), saved_attention(torch.nn.Linear(2, 2)):
        pass


def test_queries_are_repeated_and_maps_sum_to_one():
    layers = [torch.rand(2, 2, 2, 2), torch.rand(4, 4, 4, 4)]
    maps = aggregate(layers[:1], (8, 8))
    assert torch.equal(maps[0, 0], maps[3, 3]) and not torch.equal(maps[3, 3], maps[4, 3])
    torch.testing.assert_close(aggregate(layers, (8, 8)).sum((2, 3)), torch.ones(8, 8))
    own = layers[0] / layers[0].sum((2, 3), keepdim=True)
    torch.testing.assert_close(aggregate([own], (2, 2)), own)


def test_layers_weigh_as_their_resolution():
    flat, peaked = torch.full((2, 2, 2, 2), 0.25), torch.zeros(4, 4, 4, 4)
    peaked[..., 0, 0] = 1
    maps = aggregate([flat, peaked], (4, 4), exponent=1)
    assert maps[2, 2, 0, 0].item() == pytest.approx(2 / 6 / 16 + 4 / 6)
    assert aggregate([flat, peaked], (4, 4), exponent=0)[2, 2, 0, 0].item() == pytest.approx(0.5 / 16 + 0.5)


@pytest.fixture
def quarters():
    """Four segments of unequal size, 8 × 12; every place attends to its own segment alone, a little unevenly."""
    labels = torch.zeros(8, 12, dtype=torch.int64)
    labels[:3, 5:], labels[3:, :5], labels[3:, 5:] = 1, 2, 3
    flat = labels.flatten()
    weights = (flat[:, None] == flat[None]).float() * (1 + 0.1 * torch.rand(96, 96))
    return labels, (weights / weights.sum(1, keepdim=True)).reshape(8, 12, 8, 12)


def test_the_divergence_is_the_textbook_one():
    first, second = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    kl = 0.5 * ((0.5 - 0.9) * torch.tensor(0.5 / 0.9).log() + (0.5 - 0.1) * torch.tensor(0.5 / 0.1).log())
    torch.testing.assert_close(symmetric_kl(first, second), torch.stack([kl, torch.tensor(0.0)])[None])
    torch.testing.assert_close(symmetric_kl(second, first), symmetric_kl(first, second).T)


def test_known_segments_come_back_exactly_at_whatever_size(quarters):
    labels, attention = quarters
    proposals = merge(attention, anchors=4, threshold=0.5)
    assert len(proposals) == 4
    pairs = torch.unique(torch.stack([label_map(proposals, (8, 12)).flatten(), labels.flatten()]), dim=1)
    assert pairs.shape[1] == 4  # one to one
    torch.testing.assert_close(proposals.sum((1, 2)), torch.ones(4))
    large = label_map(proposals, (40, 61))
    assert large.shape == (40, 61) and len(large.unique()) == 4


def test_threshold_zero_gives_the_anchors_and_a_huge_one_a_single_segment(quarters):
    _, attention = quarters
    alone = merge(attention, anchors=4, threshold=0.0)
    assert torch.equal(alone, attention.reshape(96, 8, 12)[anchor_indices((8, 12), 4)])
    assert len(merge(attention, anchors=4, threshold=1e6)) == 1
    assert anchor_indices((4, 4), 2).tolist() == [5, 7, 13, 15]  # spread evenly, and never twice
    assert anchor_indices((2, 3), 5).tolist() == list(range(6))


def test_segments_follow_the_edges_of_the_image():
    """Two proposals that change at column 16 of 32, grey values that change at column 19."""
    proposals = torch.stack([torch.linspace(1, 0, 8), torch.linspace(0, 1, 8)])[:, None].expand(2, 8, 8)
    image = torch.full((32, 32), 0.2)
    image[:, 19:] = 0.8
    blurred = label_map(proposals, (32, 32))
    assert (blurred[:, :16] == 0).all() and (blurred[:, 16:] == 1).all()
    assert torch.equal(label_map(proposals, (32, 32), image, edges=0.0), blurred)
    sharp = label_map(proposals, (32, 32), image, edges=0.5)
    assert (sharp[:, :18] == 0).all() and (sharp[:, 20:] == 1).all()
