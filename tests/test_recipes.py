"""Synthetic images are named by content and number, and those of a subset are among those of every larger one."""

import pytest

from common.experiments.benefit_recipes import BLOCK, MIX_RANGE, Recipes, first_recipes, prior_blocks
from common.experiments.benefit_subsets import SubsetError


@pytest.fixture
def order(tmp_path):
    """Sixty files of three classes in turn."""
    found = []
    for number in range(60):
        path = tmp_path / f"{number}.png"
        path.write_text(f"content {number}")
        found.append({"image": str(path), "patient_id": f"p{number}", "label": "abc"[number % 3]})
    return found


def flat(blocks):
    return [recipe for own in blocks for block in own for recipe in block]


@pytest.mark.parametrize("strategy", ["variation", "interpolation"])
def test_those_of_a_subset_and_a_ratio_are_among_those_of_larger_ones(order, strategy):
    recipes = Recipes(order, 0)
    small, large = (flat(recipes.blocks(strategy, *knobs)) for knobs in ((27, 5), (60, 10)))
    assert len(small) == 27 * 5 and len(large) == 600
    assert set(small) < set(large)
    assert len({recipe.name for recipe in large}) == len({recipe.seed for recipe in large}) == 600


def test_whole_blocks_are_made_and_the_ratio_is_taken(order):
    (first, *_) = Recipes(order, 0).blocks("variation", 3, 7)
    assert [len(block) for block in first] == [BLOCK, BLOCK]
    assert [recipe.number for recipe in first_recipes(first, 7)] == list(range(7))


def test_variations_are_shared_by_seeds_and_copies_of_a_file(order, tmp_path):
    one = Recipes(order, 0).blocks("variation", 1, 1)[0][0][0]
    copy = tmp_path / "copy.png"
    copy.write_text("content 0")
    other = Recipes([{**order[0], "image": str(copy)}], 7).blocks("variation", 1, 1)[0][0][0]
    assert (one.name, one.seed) == (other.name, other.seed) and "0.png" not in one.name


def test_pairs_are_of_one_class_never_of_an_image_with_itself_and_within_the_subset(order):
    small = 12  # fewer than the first partners of larger subsets
    inside = {item["image"] for item in order[:small]}
    found = flat(Recipes(order, 0).blocks("interpolation", small, 10))
    label = {item["image"]: item["label"] for item in order}
    for recipe in found:
        first, second = recipe.sources
        assert first != second and label[first] == label[second] == recipe.label and {first, second} <= inside
        assert MIX_RANGE[0] <= recipe.mix <= MIX_RANGE[1]
    assert found != flat(Recipes(order, 1).blocks("interpolation", small, 10))
    with pytest.raises(SubsetError, match="single image of a"):
        Recipes(order, 0).blocks("interpolation", 2, 1)
    with pytest.raises(ValueError, match="strategy"):
        Recipes(order, 0).blocks("prior", 2, 1)


def test_samples_of_the_prior_belong_to_nobody():
    blocks = prior_blocks(12)
    assert [len(block) for block in blocks] == [BLOCK] * 3
    assert all(recipe.sources == () and recipe.mix is None and recipe.label == "" for recipe in blocks[0])
    assert len({recipe.seed for block in blocks for recipe in block}) == 15
    assert blocks[1][0].name == "prior/000/00005"
