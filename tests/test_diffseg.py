import pytest
import torch
from tiny_benefit import tiny_pipe

from common.errors import SettingsError
from common.experiments.diffseg import (
    aggregate,
    anchor_indices,
    attention_layers,
    label_map,
    merge,
    saved_attention,
    symmetric_kl,
)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory, tiny_dino):
    return tiny_pipe(tmp_path_factory.mktemp("bundle"), tiny_dino)


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
