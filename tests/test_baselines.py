import numpy as np
import torch

from common.experiments.lung_baselines import kmeans_labels, membership_affinity, otsu_labels, otsu_threshold


def test_k_means_finds_groups_of_tokens_and_repeats_itself():
    tokens = torch.randn(4 * 6, 5, generator=torch.Generator().manual_seed(0)) * 0.01
    tokens.view(4, 6, 5)[:, 3:] += 1.0
    labels = kmeans_labels(tokens, (4, 6), (40, 60), clusters=2, seed=0)
    assert labels.shape == (40, 60)
    assert len(np.unique(labels[:, :30])) == 1 == len(np.unique(labels[:, 30:])) and labels[0, 0] != labels[0, -1]
    assert np.array_equal(labels, kmeans_labels(tokens, (4, 6), (40, 60), clusters=2, seed=0))


def test_otsu_splits_two_modes():
    rng = np.random.default_rng(0)
    image = np.concatenate([rng.normal(0.2, 0.02, 300), rng.normal(0.7, 0.05, 700)]).reshape(20, 50)
    assert 0.25 < otsu_threshold(image) < 0.6
    assert otsu_labels(image).sum() == 300
    assert np.isfinite(otsu_threshold(np.full((4, 4), 0.5)))


def test_otsu_is_the_exhaustive_search():
    image = np.random.default_rng(1).random((30, 30)) ** 2
    threshold = otsu_threshold(image, bins=64)

    def between(value):
        low, high = image[image < value], image[image >= value]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    edges = np.linspace(image.min(), image.max(), 65)[1:-1]
    assert between(threshold) > 0.999 * max(between(edge) for edge in edges)


def test_the_affinity_of_segments_is_within_them():
    labels = np.zeros((8, 8), int)
    labels[:, 4:] = 1
    affinity = membership_affinity(labels, (4, 4))
    np.testing.assert_allclose(affinity.sum(1), 1, rtol=1e-6)
    assert affinity[0, 1] == 1 / 8 and affinity[0, 3] == 0
