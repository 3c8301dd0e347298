"""The pool makes every image once, and a killed one goes on to the same pixels."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_benefit import labelled_folder, tiny_generator

from common.experiments.benefit_pool import SyntheticPool, token_features
from common.experiments.benefit_recipes import Recipes, prior_blocks
from common.experiments.benefit_study import labelled_split
from common.experiments.benefit_subsets import draw_order


@pytest.fixture(scope="module")
def setting(tmp_path_factory, tiny_dino):
    """A generator, and blocks of all strategies."""
    root = tmp_path_factory.mktemp("pool")
    generator = tiny_generator(root / "bundle", tiny_dino)
    train, _, classes = labelled_split(str(labelled_folder(root / "data", 2, 1)), None)
    recipes = Recipes(draw_order(train, classes, 0), 0)
    blocks = [block for kind in ("variation", "interpolation") for own in recipes.blocks(kind, 6, 1) for block in own]
    return generator, [*blocks, *prior_blocks(5)]


def pool_in(folder, generator):
    return SyntheticPool(folder / "pool", generator, token_features(generator, folder / "features", False), amp=False)


def contents(pool):
    return {
        str(path.relative_to(pool.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in pool.folder.rglob("*.png")
    }


def test_a_killed_pool_goes_on_to_the_same_files(setting, tmp_path):
    generator, blocks = setting
    whole = pool_in(tmp_path / "whole", generator)
    whole.make(blocks)
    expected = contents(whole)
    assert len(expected) == 5 * len(blocks)
    resumed = pool_in(tmp_path / "resumed", generator)
    resumed.make(blocks[::2])
    for recipe in (*blocks[0][1:3], blocks[-1][0]):  # half of a block is lost
        resumed.path(recipe).unlink()
    stamp = resumed.path(blocks[0][0]).stat().st_mtime_ns
    resumed.make(blocks)
    assert contents(resumed) == expected
    assert resumed.path(blocks[0][0]).stat().st_mtime_ns == stamp


def test_images_are_marked_differ_and_name_no_source(setting, tmp_path):
    generator, blocks = setting
    pool = pool_in(tmp_path, generator)
    pool.make([blocks[0], blocks[-1]])
    assert len(set(contents(pool).values())) == 10
    with Image.open(pool.path(blocks[0][0])) as picture:
        assert picture.size == (32, 32) and picture.text["Synthetic"] == "true"
        assert "images" not in str(picture.text)


def test_a_variation_is_what_its_tokens_and_seed_give(setting, tmp_path):
    generator, blocks = setting
    pool = pool_in(tmp_path, generator)
    pool.make(blocks[:1])
    recipe = blocks[0][2]
    tokens = pool.sources.of_files([recipe.sources[0]]).features.reshape(1, 2, 16)
    image = generator.sampler.sample(torch.from_numpy(tokens), [recipe.seed])[0, 0]
    stored = np.asarray(Image.open(pool.path(recipe)), dtype=np.float32) / 255
    np.testing.assert_allclose(stored, image.clamp(0, 1), atol=1.5 / 255)


def test_other_settings_are_another_folder(setting, tmp_path):
    generator, _ = setting
    other = SyntheticPool(tmp_path / "pool", generator, token_features(generator, tmp_path, False), amp=True)
    assert other.folder != pool_in(tmp_path, generator).folder
