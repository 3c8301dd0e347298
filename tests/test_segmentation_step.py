"""Fine-tuning: the loss, the augmentation of pairs, masks of other classes; see also test_training_steps."""

import pytest
import torch
from ignite.metrics import ConfusionMatrix
from ignite.metrics.confusion_matrix import mIoU
from monai.losses import DiceCELoss
from test_diffusion_segmenter import make_tiny_segmenter
from trainings import make_engine, phantoms, roll

from common.errors import DatasetError
from common.seeding import Purpose, derive_seed
from common.training.ema import ExponentialMovingAverage
from common.training.segmentation_step import SegmentationStep, logits_and_labels


def make_loss():
    return DiceCELoss(to_onehot_y=True, softmax=True, batch=True)


def make_step(segmenter, max_grad_norm=1.0, augmentation=None):
    ema = ExponentialMovingAverage(segmenter, 0.9)
    options = {"max_grad_norm": max_grad_norm, "amp": False, "augmentation": augmentation}
    return SegmentationStep(loss_function=make_loss(), ema=ema, **options)


def make_batch():
    image = phantoms(2)
    return {"image": image, "label": torch.bucketize(image, torch.tensor([0.3, 0.6])), "draw": torch.arange(2)}


def test_the_loss_is_that_of_the_logits_and_gradients_are_clipped():
    segmenter, batch = make_tiny_segmenter(), make_batch()
    expected = make_loss()(segmenter(batch["image"]), batch["label"])
    logged = make_step(segmenter, max_grad_norm=1e-3)(make_engine(segmenter, lr=0.0), batch)
    assert logged["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert logged["grad_norm"] > 1e-3 and logged["learning_rate"] == 0.0
    norm = torch.stack([parameter.grad.norm() for parameter in segmenter.parameters()]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-2)


def test_images_and_masks_are_augmented_together_each_pair_by_its_draw():
    segmenter, batch = make_tiny_segmenter(), make_batch()
    batch["draw"] = torch.tensor([7, 10**6])
    seeds = [derive_seed(0, Purpose.AUGMENTATION, draw) for draw in (7, 10**6)]
    image, label = roll(batch["image"], batch["label"], seeds)
    expected = make_loss()(segmenter(image), label)
    logged = make_step(segmenter, augmentation=roll)(make_engine(segmenter), batch)
    assert logged["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert make_step(segmenter)(make_engine(segmenter), batch)["loss"] != pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("value", [3, 255])
def test_a_mask_of_another_class_table_is_refused_before_the_step(value):
    segmenter, batch = make_tiny_segmenter(), make_batch()
    batch["label"][1, 0, 3, 3] = value
    with pytest.raises(DatasetError, match=str(value)):
        make_step(segmenter)(make_engine(segmenter, lr=1e-2), batch)


def test_perfect_logits_have_an_iou_of_one_and_half_right_ones_less():
    label = torch.tensor([[[[0, 1], [2, 2]]]])
    values = []
    for prediction in (label, torch.tensor([[[[0, 1], [1, 2]]]])):
        metric = mIoU(ConfusionMatrix(num_classes=3), ignore_index=0)
        logits = torch.nn.functional.one_hot(prediction[:, 0], 3).permute(0, 3, 1, 2).bfloat16()
        metric.update(logits_and_labels({"pred": logits, "label": label}))
        values.append(metric.compute().item())
    assert values == pytest.approx([1.0, 0.5])
