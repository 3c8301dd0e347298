"""The network's training: MixUp, order of images, determinism, and that it learns."""

import numpy as np
import pytest
import torch
from PIL import Image

from common.experiments.benefit_trials import Example
from common.experiments.densenet import DenseNetClassifier, TrainingSettings, batch_order, load_images, mix_up

SETTINGS = TrainingSettings(image_size=32, num_steps=4, batch_size=6, learning_rate=2e-3, amp=False)


def test_mixup_blends_labels_as_it_blends_images():
    image = torch.arange(6.0).view(6, 1, 1, 1).expand(-1, 1, 4, 4) / 6
    target = torch.eye(6)
    mixed, soft = mix_up(image, target, 0.5, seed=3)
    assert soft.sum(1) == pytest.approx(torch.ones(6)) and (soft > 0).sum(1).max() == 2
    # an image's value names it, so the labels say what the picture must be
    assert torch.allclose(mixed[:, 0, 0, 0], soft @ (torch.arange(6.0) / 6), atol=1e-6)
    again, _ = mix_up(image, target, 0.5, seed=3)
    assert torch.equal(mixed, again) and not torch.equal(mixed, mix_up(image, target, 0.5, seed=4)[0])
    assert mix_up(image, target, 0.0, seed=3)[0] is image


def test_every_image_is_seen_as_often_as_any_other():
    order = batch_order(7, 8, 7, seed=1)
    assert order.shape == (8, 7) and (np.bincount(order.ravel()) == 8).all()
    assert np.array_equal(order, batch_order(7, 8, 7, seed=1)) and not np.array_equal(order[0], order[1])
    assert batch_order(100, 2, 4, seed=0).shape == (2, 4)


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Two classes: a bright square left or above."""
    folder, generator = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    examples = []
    for number in range(24):
        pixels = generator.integers(0, 60, (32, 32)).astype(np.uint8)
        pixels[(slice(8, 24), slice(0, 10)) if number % 2 else (slice(0, 10), slice(8, 24))] = 220
        Image.fromarray(pixels).save(folder / f"{number}.png")
        examples.append(Example(str(folder / f"{number}.png"), number % 2, (str(folder / f"{number}.png"),)))
    return examples


def test_the_same_seed_gives_the_same_network_whatever_came_before(squares):
    train, test = squares[:16], [each.path for each in squares[16:]]
    classifier = DenseNetClassifier(2, test, SETTINGS)
    first, about = classifier(train[:8], train[8:], "pretrained", seed=0)
    torch.randn(3)
    np.random.rand(3)
    again, _ = classifier(train[:8], train[8:], "pretrained", seed=0)
    assert np.array_equal(first, again) and len(about["training_loss"]) == 2
    other, _ = classifier(train[:8], train[8:], "pretrained", seed=1)
    assert not np.array_equal(first, other)


def test_it_learns(squares):
    settings = TrainingSettings(image_size=32, num_steps=14, batch_size=8, learning_rate=2e-3, amp=False)
    classifier = DenseNetClassifier(2, [each.path for each in squares[16:]], settings)
    probabilities, _ = classifier(squares[:16], [], "real_unaugmented", seed=0)
    assert (probabilities.argmax(1) == [each.label for each in squares[16:]]).all()


def test_images_are_what_was_written(squares):
    images = load_images([squares[0].path], 32)
    assert images.dtype == torch.uint8
    assert np.array_equal(images[0, 0].numpy(), np.asarray(Image.open(squares[0].path)))
