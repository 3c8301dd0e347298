"""Fine-tuning: all weights learn, randomness is a function of draw or step, and a resumed run is the same."""

from types import SimpleNamespace

import pytest
import torch
from ignite.metrics import ConfusionMatrix
from ignite.metrics.confusion_matrix import mIoU
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, from_engine
from monai.losses import DiceCELoss
from resuming import assert_resumes, killable_trainer, whole_run
from test_diffusion_segmenter import make_tiny_segmenter
from test_trainer import PHANTOMS
from torch.utils.data import DataLoader, default_collate

from common.data.dataset import RadiographDataset, StepBatchSampler
from common.errors import DatasetError, NonFiniteLossError
from common.seeding import Purpose, derive_seed
from common.training.ema import ExponentialMovingAverage
from common.training.lr_schedule import WarmupConstantDecay
from common.training.segmentation_step import SegmentationStep, logits_and_labels

CPU = torch.device("cpu")
IMAGES = [item["image"][:, ::2, ::2].contiguous() for item in PHANTOMS]
LABELLED = [{"image": image, "label": torch.bucketize(image, torch.tensor([0.3, 0.6]))} for image in IMAGES]


def make_loss():
    return DiceCELoss(to_onehot_y=True, softmax=True, batch=True)


def roll(image, mask, seeds):
    """Shift each image and its mask by as much as its seed says."""
    shifts = [seed % 5 for seed in seeds]
    return tuple(
        torch.stack([one.roll(by, -1) for one, by in zip(both, shifts, strict=True)]) for both in (image, mask)
    )


def make_step(segmenter, max_grad_norm=1.0, augmentation=None):
    ema = ExponentialMovingAverage(segmenter, 0.9)
    options = {"max_grad_norm": max_grad_norm, "amp": False, "augmentation": augmentation}
    return SegmentationStep(loss_function=make_loss(), ema=ema, **options)


def make_engine(network, lr=0.0, iteration=1):
    optimizer = torch.optim.Adam(network.parameters(), lr)
    return SimpleNamespace(state=SimpleNamespace(device=CPU, iteration=iteration), network=network, optimizer=optimizer)


def make_batch(count=2):
    return default_collate([{**item, "draw": number} for number, item in enumerate(LABELLED[:count])])


def test_one_batch_is_learnt_by_heart_by_all_weights():
    segmenter = make_tiny_segmenter()
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    step, engine, batch = make_step(segmenter), make_engine(segmenter, lr=1e-2), make_batch()
    losses = [step(engine, batch)["loss"] for _ in range(50)]
    assert losses[-1] < losses[0] / 4
    predicted = segmenter.eval()(batch["image"]).argmax(1, keepdim=True)
    assert (predicted == batch["label"]).float().mean() > 0.95
    assert [name for name, value in segmenter.state_dict().items() if torch.equal(value, before[name])] == []
    assert step.ema.num_updates == 50


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
    with pytest.raises(DatasetError, match=f"label: expected values 0 to 2, found 0 to {value}; choose the class"):
        make_step(segmenter)(make_engine(segmenter, lr=1e-2), batch)


def test_a_loss_that_is_not_finite_leaves_everything_as_it_was():
    segmenter, batch = make_tiny_segmenter(), make_batch()
    step, engine = make_step(segmenter), make_engine(segmenter, lr=1e-2, iteration=7)
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    batch["image"][0, 0, 3, 3] = float("nan")
    with pytest.raises(NonFiniteLossError, match="step 7: expected finite losses"):
        step(engine, batch)
    assert all(torch.equal(value, before[name]) for name, value in segmenter.state_dict().items())
    assert step.ema.num_updates == 0


def make_trainer(folder, kill_at=None):
    """A whole fine-tuning: augmentation, dropout, schedule, EMA, validation; 4 steps an epoch, two epochs."""
    segmenter = make_tiny_segmenter(dropout=0.3)
    train = RadiographDataset(LABELLED, transform=dict)
    sampler = StepBatchSampler(len(train), batch_size=2, seed=0)
    optimizer = torch.optim.AdamW(segmenter.parameters(), 1e-2, fused=True)
    step = make_step(segmenter, augmentation=roll)
    metric = IgniteMetricHandler(loss_fn=make_loss(), output_transform=from_engine(["pred", "label"]))
    evaluator = SupervisedEvaluator(
        CPU,
        DataLoader(RadiographDataset(LABELLED[:2], transform=dict), batch_size=1),
        step.ema.network,
        key_val_metric={"val_loss": metric},
        decollate=False,
    )
    return killable_trainer(
        folder,
        step,
        kill_at,
        network=segmenter,
        optimizer=optimizer,
        lr_scheduler=WarmupConstantDecay(optimizer, warmup_steps=2, total_steps=8),
        sampler=sampler,
        train_data_loader=DataLoader(train, batch_sampler=sampler),
        validator=evaluator,
        best_metric="val_loss",
        max_epochs=2,
        checkpoint_every_steps=3,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    trainer, losses = make_trainer(tmp_path_factory.mktemp("uninterrupted"))
    return whole_run(trainer, losses)


@pytest.mark.parametrize("kill_at", [2, 6])
def test_killed_and_resumed_equals_uninterrupted_to_the_bit(uninterrupted, tmp_path, kill_at):
    assert_resumes(lambda kill: make_trainer(tmp_path, kill), kill_at, uninterrupted)


def test_perfect_logits_have_an_iou_of_one_and_half_right_ones_less():
    label = torch.tensor([[[[0, 1], [2, 2]]]])
    values = []
    for prediction in (label, torch.tensor([[[[0, 1], [1, 2]]]])):
        metric = mIoU(ConfusionMatrix(num_classes=3), ignore_index=0)
        logits = torch.nn.functional.one_hot(prediction[:, 0], 3).permute(0, 3, 1, 2).bfloat16()
        metric.update(logits_and_labels({"pred": logits, "label": label}))
        values.append(metric.compute().item())
    assert values == pytest.approx([1.0, 0.5])
