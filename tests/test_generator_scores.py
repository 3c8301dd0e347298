"""Scores where the answer is known: sources themselves, copies of training images, noise."""

import pytest
import torch
from conftest import draw_radiographs
from tiny_ablation import SIZE

from common.data.transforms import load_square
from common.experiments.generator_scores import FIGURES, GeneratorScores, GeneratorScoresError
from common.networks.dino import DinoEncoder

NUM_TRAIN, NUM_VAL = 12, 20
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """Phantoms of training and held-out patients."""
    folder = tmp_path_factory.mktemp("scores") / "data"
    draw_radiographs(folder, NUM_TRAIN + NUM_VAL, SIZE)
    found = [{"image": str(folder / f"phantom_{n}.png"), "patient_id": str(n)} for n in range(NUM_TRAIN + NUM_VAL)]
    return found[:NUM_TRAIN], found[NUM_TRAIN:]


@pytest.fixture(scope="module")
def judge(items, tiny_dino):
    """The judge, and what it makes of real images."""
    encoder = DinoEncoder(tiny_dino, 56)
    return {
        name: encoder(pictures(part)).cls_token for name, part in zip(("train", "val"), items, strict=True)
    }, encoder


@pytest.fixture(scope="module")
def scores(items, judge, tmp_path_factory):
    return GeneratorScores(*items, *judge, None, tmp_path_factory.mktemp("cache"), SIZE, 8, 0, False, CPU)


def pictures(items):
    return torch.stack([load_square(item["image"], SIZE) for item in items])


def test_the_floor_is_one_half_of_the_real_images_against_the_other(scores):
    found = scores.real()
    assert found["dino_fd_over_floor"] == pytest.approx(1) and found["dino_fd"] > 0
    assert {f"dino_{name}" for name in FIGURES} < set(found) and found["num_images"] == NUM_VAL
    assert 0 < found["ms_ssim_to_source"] == found["ms_ssim_between_variations"] < 0.9
    assert found["cosine_to_source"] < 1 and "flagged" not in found


def test_sources_themselves_are_the_closest_and_are_found(scores, items):
    images = pictures(items[1])
    found = scores.score(images, torch.stack([images[:3], images[:3]], dim=1))
    assert found["ms_ssim_to_source"] == pytest.approx(1) == found["ms_ssim_between_variations"]
    assert found["cosine_to_source"] == pytest.approx(1, abs=1e-4)
    assert found["own_source_nearest_embedding"] == 1 == found["own_source_nearest_pixels"]
    assert found["dino_fd_over_floor"] == pytest.approx(1, rel=1e-2), "they are the other half of the real images"
    assert found["num_copies"] == 0 and found["nearer_than_held_out_pixels"] == pytest.approx(0.5, abs=0.1)


def test_copies_of_training_images_are_nearer_than_new_patients(scores, items):
    images = pictures([items[0][number % NUM_TRAIN] for number in range(NUM_VAL)])
    found = scores.score(images)
    assert found["nearer_than_held_out_embedding"] == 1 == found["nearer_than_held_out_pixels"]
    assert found["own_source_nearest_pixels"] == 0 and "ms_ssim_between_variations" not in found


def test_a_source_that_is_a_training_picture_is_no_copy(items, judge, tmp_path):
    """Under another patient's name."""
    train, val = items[0], items[1] * 3  # with too few held-out images it could be chance
    tokens = {"train": judge[0]["train"], "val": judge[0]["val"].repeat(3, 1)}
    tokens["val"][4] = tokens["train"][3]
    leaking = [{**item, "image": train[3]["image"]} if row == 4 else item for row, item in enumerate(val)]
    scores = GeneratorScores(train, leaking, tokens, judge[1], None, tmp_path, SIZE, 8, 0, False, CPU)
    found = scores.score(pictures(leaking))
    assert found["num_leaked_sources"] == 1 and found["num_copies"] == 0
    assert found["own_source_nearest_pixels"] == 1


def test_noise_is_far_from_everything(scores, items):
    noise = torch.rand(NUM_VAL, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    found, near = scores.score(noise), scores.score((pictures(items[1]) + 0.05 * noise).clamp(0, 1))
    assert found["dino_fd_over_floor"] > 2 * near["dino_fd_over_floor"]
    assert found["ms_ssim_to_source"] < near["ms_ssim_to_source"]


def test_what_cannot_be_scored_is_told(scores, items, judge, tmp_path):
    with pytest.raises(GeneratorScoresError, match=f"one per source, {NUM_VAL}"):
        scores.score(pictures(items[1][:2]))
    with pytest.raises(GeneratorScoresError, match="at least 176"):
        GeneratorScores(*items, *judge, None, tmp_path, 128, 8, 0, False, CPU)
