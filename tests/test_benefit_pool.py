"""Synthetic images are named by content and number, and made once; a killed pool goes on to the same pixels."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_benefit import labelled_folder, tiny_pipe

from common.errors import SettingsError
from common.experiments.benefit_pool import (
    BLOCK,
    MIX_RANGE,
    SyntheticPool,
    in_blocks,
    prior_recipes,
    source_recipes,
    token_features,
)
from common.experiments.benefit_trials import draw_order, labelled_split


@pytest.fixture
def order(tmp_path):
    """Sixty files of three classes in turn."""
    found = []
    for number in range(60):
        path = tmp_path / f"{number}.png"
        path.write_text(f"content {number}")
        found.append({"image": str(path), "patient_id": f"p{number}", "label": "abc"[number % 3]})
    return found


def flat(recipes):
    return [recipe for own in recipes for recipe in own]


@pytest.mark.parametrize("strategy", ["variation", "interpolation"])
def test_those_of_a_subset_and_a_ratio_are_among_those_of_larger_ones(order, strategy):
    small, large = (flat(source_recipes(order, 0, strategy, *sizes)) for sizes in ((27, 5), (60, 10)))
    assert len(small) == 27 * 5 and len(large) == 600 and set(small) < set(large)
    assert len({recipe.name for recipe in large}) == len({recipe.seed for recipe in large}) == 600


def test_whole_blocks_are_made_and_variations_shared_by_seeds_and_copies_of_a_file(order, tmp_path):
    (first, *_) = source_recipes(order, 0, "variation", 3, 7)
    assert [recipe.number for recipe in first] == list(range(2 * BLOCK))
    copy = tmp_path / "copy.png"
    copy.write_text("content 0")
    other = flat(source_recipes([{**order[0], "image": str(copy)}], 7, "variation", 1, 1))[0]
    assert (first[0].name, first[0].seed) == (other.name, other.seed) and "copy" not in other.name


def test_pairs_are_of_one_class_never_of_an_image_with_itself_and_within_the_subset(order):
    small = 12  # fewer than the first partners of larger subsets
    inside = {item["image"]: item["label"] for item in order[:small]}
    found = flat(source_recipes(order, 0, "interpolation", small, 10))
    for recipe in found:
        first, second = recipe.sources
        assert first != second and inside[first] == inside[second] == recipe.label
        assert MIX_RANGE[0] <= recipe.mix <= MIX_RANGE[1]
    assert found != flat(source_recipes(order, 1, "interpolation", small, 10))
    with pytest.raises(SettingsError):
        source_recipes(order, 0, "interpolation", 2, 1)


def test_samples_of_the_prior_belong_to_nobody():
    recipes = prior_recipes(12)
    assert [len(block) for block in in_blocks([*recipes, *recipes])] == [BLOCK] * 3  # each once
    assert all(recipe.sources == () and recipe.mix is None and recipe.label == "" for recipe in recipes)
    assert len({recipe.seed for recipe in recipes}) == 15 and recipes[5].name == "prior/000/00005"


def test_blocks_of_several_trials_are_the_blocks_of_each(order):
    trials = [flat(source_recipes(order, seed, "interpolation", size, 1)) for seed in (0, 1) for size in (6, 12)]
    together = in_blocks(recipe for trial in trials for recipe in trial)
    assert set(together) == {block for trial in trials for block in in_blocks(trial)} and len(together) > 12
    assert len(set(together)) == len(together)
    assert all(len({recipe.sources[0] for recipe in block}) == 1 for block in together)


# ---- the pool --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setting(tmp_path_factory, tiny_dino):
    """A generator, and blocks of all strategies."""
    root = tmp_path_factory.mktemp("pool")
    train, _, classes = labelled_split(str(labelled_folder(root / "data", 2, 1)), None)
    order = draw_order(train, classes, 0)
    kinds = (source_recipes(order, 0, kind, 6, 1) for kind in ("variation", "interpolation"))
    return tiny_pipe(root / "bundle", tiny_dino), in_blocks(recipe for kind in kinds for recipe in flat(kind))


def pool_in(folder, pipe):
    return SyntheticPool(folder / "pool", pipe, token_features(pipe, folder / "features", False))


def contents(pool):
    found = (path for path in pool.folder.rglob("*.png"))
    return {str(path.relative_to(pool.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def test_a_killed_pool_goes_on_to_the_same_files(setting, tmp_path):
    pipe, blocks = setting
    blocks = [*blocks, *in_blocks(prior_recipes(5))]
    whole, resumed = (pool_in(tmp_path / name, pipe) for name in ("whole", "resumed"))
    whole.make(blocks)
    expected = contents(whole)
    assert len(expected) == 5 * len(blocks)
    resumed.make(blocks[::2])
    for recipe in (*blocks[0][1:3], blocks[-1][0]):  # half of a block is lost
        resumed.path(recipe).unlink()
    stamp = resumed.path(blocks[0][0]).stat().st_mtime_ns
    resumed.make(blocks)
    assert contents(resumed) == expected
    assert resumed.path(blocks[0][0]).stat().st_mtime_ns == stamp


def test_images_are_marked_differ_name_no_source_and_are_what_their_tokens_and_seed_give(setting, tmp_path):
    pipe, blocks = setting
    pool = pool_in(tmp_path, pipe)
    pool.make([blocks[0], blocks[-1]])
    assert len(set(contents(pool).values())) == 10
    recipe = blocks[0][2]
    with Image.open(pool.path(recipe)) as picture:
        assert picture.size == (32, 32) and picture.text["Synthetic"] == "true"
        assert "images" not in str(picture.text)
        stored = np.asarray(picture, dtype=np.float32) / 255
    tokens = pool.sources.of_files([recipe.sources[0]]).features.reshape(1, 2, 16)
    image = pipe.image_sampler.sample(torch.from_numpy(tokens), [recipe.seed])[0, 0]
    np.testing.assert_allclose(stored, image.clamp(0, 1), atol=1.5 / 255)


def test_other_settings_are_another_folder(setting, tmp_path, tiny_dino):
    other = tiny_pipe(tmp_path / "bundle", tiny_dino, amp=True)
    assert pool_in(tmp_path, other).folder != pool_in(tmp_path, setting[0]).folder
