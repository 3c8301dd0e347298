import pytest
import torch

from common.experiments.segment_merging import anchor_indices, label_map, merge, symmetric_kl


def attention_of(labels):
    """Every place attends to its own segment alone, a little unevenly."""
    generator = torch.Generator().manual_seed(0)
    flat = labels.flatten()
    weights = (flat[:, None] == flat[None]).float() * (1 + 0.1 * torch.rand(len(flat), len(flat), generator=generator))
    return (weights / weights.sum(1, keepdim=True)).reshape(*labels.shape, *labels.shape)


@pytest.fixture
def quarters():
    """Four segments of unequal size, 8 × 12."""
    labels = torch.zeros(8, 12, dtype=torch.int64)
    labels[:3, 5:], labels[3:, :5], labels[3:, 5:] = 1, 2, 3
    return labels


def test_the_divergence_is_the_textbook_one():
    first, second = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    kl = 0.5 * ((0.5 - 0.9) * torch.tensor(0.5 / 0.9).log() + (0.5 - 0.1) * torch.tensor(0.5 / 0.1).log())
    torch.testing.assert_close(symmetric_kl(first, second), torch.stack([kl, torch.tensor(0.0)])[None])
    torch.testing.assert_close(symmetric_kl(second, first), symmetric_kl(first, second).T)


def test_known_segments_come_back_exactly(quarters):
    proposals = merge(attention_of(quarters), anchors=4, threshold=0.5)
    assert len(proposals) == 4
    found = label_map(proposals, (8, 12))
    pairs = torch.unique(torch.stack([found.flatten(), quarters.flatten()]), dim=1)
    assert pairs.shape[1] == 4  # one to one
    torch.testing.assert_close(proposals.sum((1, 2)), torch.ones(4))


def test_threshold_zero_gives_the_anchors_and_a_huge_one_a_single_segment(quarters):
    attention = attention_of(quarters)
    alone = merge(attention, anchors=4, threshold=0.0)
    expected = attention.reshape(96, 8, 12)[anchor_indices((8, 12), 4)]
    assert torch.equal(alone, expected)
    assert len(merge(attention, anchors=4, threshold=1e6)) == 1


def test_anchors_are_spread_evenly_and_never_twice():
    assert anchor_indices((4, 4), 2).tolist() == [5, 7, 13, 15]
    assert anchor_indices((2, 3), 5).tolist() == list(range(6))


def test_labels_have_the_size_that_is_asked_for(quarters):
    labels = label_map(merge(attention_of(quarters), 4, 0.5), (40, 61))
    assert labels.shape == (40, 61) and len(labels.unique()) == 4
