import pytest
import torch

from common.training.prepare_batch import image_as_label, logits_and_labels


def test_the_target_of_an_autoencoder_is_its_input():
    image, label = image_as_label({"image": torch.rand(1, 1, 4, 4), "source": ["a"]}, torch.device("cpu"))
    assert label is image


def test_perfect_logits_have_an_iou_of_one_and_half_right_ones_less():
    from ignite.metrics import ConfusionMatrix
    from ignite.metrics.confusion_matrix import mIoU

    label = torch.tensor([[[[0, 1], [2, 2]]]])
    values = []
    for prediction in (label, torch.tensor([[[[0, 1], [1, 2]]]])):
        metric = mIoU(ConfusionMatrix(num_classes=3), ignore_index=0)
        logits = torch.nn.functional.one_hot(prediction[:, 0], 3).permute(0, 3, 1, 2).bfloat16()
        metric.update(logits_and_labels({"pred": logits, "label": label}))
        values.append(metric.compute().item())
    assert values == pytest.approx([1.0, 0.5])
