import pytest
import torch

from common.data.phantom import draw_chest_phantom
from common.data.views import augmented_view

SIZE = 64
SEEDS = range(60)


def square():
    """A bright square of a quarter of the side in the middle."""
    image = torch.zeros(1, SIZE, SIZE)
    image[:, 24:40, 24:40] = 1.0
    return image


def centroid(image):
    """Of the brightness, (row, column) in px."""
    pixels = torch.arange(SIZE) + 0.5
    return torch.stack([(image[0].sum(1) * pixels).sum(), (image[0].sum(0) * pixels).sum()]) / image.sum()


def test_a_seed_gives_one_view_and_another_seed_another():
    image = draw_chest_phantom(SIZE, SIZE, seed=0)
    before = image.clone()
    views = [augmented_view(image, seed) for seed in (1, 1, 2)]
    assert torch.equal(views[0], views[1])
    assert (views[0] - views[2]).abs().mean() > 0.01
    assert (views[0] - image).abs().mean() > 0.01
    assert torch.equal(image, before)


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (40, 72)])
def test_shape_and_range_stay(shape):
    image = draw_chest_phantom(*shape, seed=0)
    for seed in SEEDS:
        view = augmented_view(image, seed)
        assert view.shape == (1, *shape) and view.dtype == torch.float32
        assert view.min() >= 0.0 and view.max() <= 1.0


def test_left_stays_left_and_top_stays_top():
    left, top = torch.zeros(1, SIZE, SIZE), torch.zeros(1, SIZE, SIZE)
    left[..., : SIZE // 2], top[:, : SIZE // 2] = 1.0, 1.0
    for seed in SEEDS:
        view = augmented_view(left, seed)
        assert view[..., : SIZE // 4].mean() > 0.9 and view[..., -SIZE // 4 :].mean() < 0.1
        view = augmented_view(top, seed)
        assert view[:, : SIZE // 4].mean() > 0.9 and view[:, -SIZE // 4 :].mean() < 0.1


def test_nothing_dark_comes_in_from_outside():
    for seed in SEEDS:
        view = augmented_view(torch.full((1, SIZE, SIZE), 0.7), seed)
        torch.testing.assert_close(view, torch.full((1, SIZE, SIZE), 0.7))


def test_views_are_moved_and_scaled_as_far_as_said():
    moves = torch.stack([centroid(augmented_view(square(), seed)) - SIZE / 2 for seed in SEEDS])
    assert moves.abs().max() < 1.4 * 0.05 * SIZE + 0.2  # the scale enlarges the move
    assert (moves.abs().amax(0) > 0.04 * SIZE).all()  # both ways are used
    scales = torch.stack([(augmented_view(square(), seed).sum() / 16**2).sqrt() for seed in SEEDS])
    assert 0.88 < scales.min() < 0.95 and 1.3 < scales.max() < 1.42


def test_edges_are_sharpened_and_never_blurred():
    image = torch.full((1, SIZE, SIZE), 0.3)
    image[..., SIZE // 2 :] = 0.7
    contrasts = [float(view.max() - view.min()) for view in (augmented_view(image, seed) for seed in SEEDS)]
    assert min(contrasts) > 0.399 and max(contrasts) > 0.5
