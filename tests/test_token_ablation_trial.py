import pytest
import torch
from tiny_ablation import tiny_training

from common.experiments.token_ablation import CLS, UNCONDITIONAL, Cell
from common.experiments.token_ablation_trial import Sampling, Trial

CPU = torch.device("cpu")
SAMPLING = Sampling(2, 1.5, num_diverse_sources=2, num_diverse=2, batch_size=2, amp=False)


@pytest.fixture(scope="module")
def trial(tmp_path_factory, tiny_dino):
    training = tiny_training(tmp_path_factory.mktemp("trial"), tiny_dino)
    return Trial(training, "tiny", None, SAMPLING, CPU)


def drawn(trial, cell, tokens_times=1.0):
    """Images and variations of a cell; the tokens of the store may be made larger."""
    trained = trial.training(cell)
    store, codec = trial.training.store_and_codec("tiny")
    store.arrays["cls_token"] = store.arrays["cls_token"] * tokens_times
    return trial.draw(cell, trained, store, codec)


def test_images_are_functions_of_tokens_seed_and_number(trial):
    images, variations = drawn(trial, Cell(CLS, "tiny"))
    assert images.shape == (3, 1, 32, 32) and variations.shape == (2, 2, 1, 32, 32)
    assert torch.equal(variations[:, 0], images[:2])
    assert not torch.equal(variations[:, 1], variations[:, 0])
    assert torch.equal(drawn(trial, Cell(CLS, "tiny"))[0], images)
    assert not torch.equal(drawn(trial, Cell(CLS, "tiny"), 3.0)[0], images)


def test_the_unconditional_denoiser_draws_without_tokens(trial):
    images, _ = drawn(trial, Cell(UNCONDITIONAL, "tiny"))
    assert torch.equal(drawn(trial, Cell(UNCONDITIONAL, "tiny"), 3.0)[0], images)


def test_settings_leave_out_what_changes_no_figure():
    assert "batch_size" not in SAMPLING.settings() and SAMPLING.settings()["guidance_scale"] == 1.5
