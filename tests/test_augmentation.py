import pytest
import torch

from common.data.augmentation import RandomAugmentation, augmented_image, augmented_pair, augmented_view
from common.data.phantom import draw_chest_phantom
from common.seeding import Purpose, derive_seed

NOTHING = {"mirrored_labels": [0, 2, 1], "flip_horizontal": False, "flip_vertical": False, "max_rotation_degrees": 0.0}
NOTHING |= {"max_translation": 0.0, "max_scale": 1.0, "max_gamma": 1.0, "max_gain": 1.0}
ALL = {**NOTHING, "flip_horizontal": True, "flip_vertical": True, "max_rotation_degrees": 20.0}
ALL |= {"max_translation": 0.1, "max_scale": 1.2, "max_gamma": 1.3, "max_gain": 1.1}


def make_batch(count=3, height=32, width=48):
    """Phantoms, left half labelled 1 and right half 2 where they are bright."""
    image = torch.stack([draw_chest_phantom(height, width, seed=seed) for seed in range(count)])
    side = torch.where(torch.arange(width) < width // 2, 1, 2)
    return image, ((image > 0.4) * side).to(torch.uint8)


def test_a_pair_is_changed_by_its_draw_alone():
    image, mask = make_batch()
    augmentation, draws = RandomAugmentation(**ALL), [4, 9, 10**6]
    together = augmented_pair(augmentation, image, mask, 0, draws)
    for number, draw in enumerate(draws):
        part = slice(number, number + 1)
        alone = augmented_pair(augmentation, image[part], mask[part], 0, [draw])
        torch.testing.assert_close(alone[0], together[0][part])
        assert torch.equal(alone[1], together[1][part])
        assert torch.equal(augmented_image(augmentation, image, 0, draws), together[0])
    same_image = augmented_image(augmentation, image[:1].repeat(3, 1, 1, 1), 0, draws)
    assert len({float(one.sum()) for one in same_image}) == 3
    assert not torch.equal(augmented_image(augmentation, image, 1, draws), together[0])
    seeds = [derive_seed(0, Purpose.AUGMENTATION, draw) for draw in draws]
    assert torch.equal(augmentation(image, mask, seeds)[0], together[0])
    assert together[1].dtype == torch.uint8 and together[0].min() >= 0 and together[0].max() <= 1


def test_no_augmentation_and_one_that_does_nothing_leave_all_as_it_was():
    image, mask = make_batch()
    assert augmented_pair(None, image, mask, 0, [0, 1, 2]) == (image, mask)
    unchanged = augmented_pair(RandomAugmentation(**NOTHING), image, mask, 0, [0, 1, 2])
    torch.testing.assert_close(unchanged[0], image, atol=1e-4, rtol=0)
    assert torch.equal(unchanged[1], mask)


@pytest.mark.parametrize(("direction", "axis"), [("flip_horizontal", -1), ("flip_vertical", -2)])
def test_half_of_the_images_are_flipped_and_a_mirror_exchanges_left_and_right(direction, axis):
    image, mask = (part[:1].repeat(100, 1, 1, 1) for part in make_batch())
    changed, labels = RandomAugmentation(**{**NOTHING, direction: True})(image, mask, list(range(100)))
    flipped = torch.isclose(changed, image.flip(axis), atol=1e-4).flatten(1).all(1)
    assert 35 <= flipped.sum() <= 65
    torch.testing.assert_close(changed[~flipped], image[~flipped], atol=1e-4, rtol=0)
    assert torch.equal(labels[~flipped], mask[~flipped])
    expected = mask.flip(axis)
    if direction == "flip_horizontal":
        expected = torch.tensor([0, 2, 1], dtype=torch.uint8)[expected.long()]
    assert torch.equal(labels[flipped], expected[flipped])


def test_the_mask_moves_with_the_image():
    image, mask = make_batch(8)
    geometry = {**ALL, "max_gamma": 1.0, "max_gain": 1.0}
    changed, labels = RandomAugmentation(**geometry)(image, mask, list(range(8)))
    agreement = ((changed > 0.4) == (labels > 0)).float().flatten(1).mean(1)
    assert agreement.min() > 0.93, "bilinear against nearest differ at the edges only"
    assert ((image > 0.4) == (labels > 0)).float().mean() < 0.9, "and it did move"


def test_a_rotation_keeps_angles_in_images_that_are_not_square():
    image = torch.zeros(1, 1, 41, 81)
    image[..., 5:36, 39:42] = 1.0  # an upright bar, 31 px long
    for seed in range(5):
        turned = RandomAugmentation(**{**NOTHING, "max_rotation_degrees": 60.0})(image, image.long(), [seed])[0][0, 0]
        rows, columns = (turned > 0.5).nonzero().float().T
        length = torch.hypot(rows.max() - rows.min(), columns.max() - columns.min())
        assert length == pytest.approx(30.0, abs=3.5)


def test_intensities_change_black_stays_black_and_factors_below_one_are_refused():
    image, mask = make_batch()
    image[..., :10] = 0.0
    changed, labels = RandomAugmentation(**{**NOTHING, "max_gamma": 1.5, "max_gain": 1.2})(image, mask, [0, 1, 2])
    assert changed[..., :9].max() < 1e-4 and torch.equal(labels, mask)
    assert (changed - image).abs().max() > 0.05
    for name in ("max_scale", "max_gamma", "max_gain"):
        with pytest.raises(ValueError, match=name):
            RandomAugmentation(**{**NOTHING, name: 0.9})


# ---- views of radiographs, for a store

SIZE = 64
SEEDS = range(60)


def square():
    """A bright square of a quarter of the side in the middle."""
    image = torch.zeros(1, SIZE, SIZE)
    image[:, 24:40, 24:40] = 1.0
    return image


def test_a_seed_gives_one_view_and_another_seed_another():
    image = draw_chest_phantom(SIZE, SIZE, seed=0)
    before = image.clone()
    views = [augmented_view(image, seed) for seed in (1, 1, 2)]
    assert torch.equal(views[0], views[1])
    assert (views[0] - views[2]).abs().mean() > 0.01
    assert (views[0] - image).abs().mean() > 0.01
    assert torch.equal(image, before)


def test_left_stays_left_top_stays_top_and_nothing_dark_comes_in_from_outside():
    left, top = torch.zeros(1, SIZE, SIZE), torch.zeros(1, SIZE, SIZE)
    left[..., : SIZE // 2], top[:, : SIZE // 2] = 1.0, 1.0
    for seed in SEEDS:
        view = augmented_view(left, seed)
        assert view[..., : SIZE // 4].mean() > 0.9 and view[..., -SIZE // 4 :].mean() < 0.1
        view = augmented_view(top, seed)
        assert view[:, : SIZE // 4].mean() > 0.9 and view[:, -SIZE // 4 :].mean() < 0.1
        grey = torch.full((1, SIZE, SIZE), 0.7)
        torch.testing.assert_close(augmented_view(grey, seed), grey)


def test_views_are_moved_and_scaled_as_far_as_said():
    views = torch.cat([augmented_view(square(), seed) for seed in SEEDS])
    along = torch.arange(SIZE) + 0.5 - SIZE / 2
    moves = torch.stack([(views.sum(axis) * along).sum(1) / views.sum((1, 2)) for axis in (2, 1)], 1)  # of the centroid
    assert moves.abs().max() < 1.4 * 0.05 * SIZE + 0.2  # the scale enlarges the move
    assert (moves.abs().amax(0) > 0.04 * SIZE).all()  # both ways are used
    scales = (views.sum((1, 2)) / 16**2).sqrt()
    assert 0.88 < scales.min() < 0.95 and 1.3 < scales.max() < 1.42


def test_edges_are_sharpened_and_never_blurred():
    image = torch.full((1, SIZE, SIZE), 0.3)
    image[..., SIZE // 2 :] = 0.7
    contrasts = [float(view.max() - view.min()) for view in (augmented_view(image, seed) for seed in SEEDS)]
    assert min(contrasts) > 0.399 and max(contrasts) > 0.5
