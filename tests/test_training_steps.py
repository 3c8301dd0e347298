"""What holds for the steps of all workflows: they learn, stop at what is not finite, and resume to the bit."""

from types import SimpleNamespace

import pytest
import torch
from conftest import make_tiny_codec, make_tiny_denoiser, make_tiny_store, randomise
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, from_engine
from monai.losses import DiceCELoss
from test_diffusion_segmenter import make_tiny_segmenter
from test_embedding_prior import make_tiny_prior
from test_pixel_denoiser import TINY
from torch.utils.data import DataLoader, default_collate
from trainings import CPU, assert_resumes, killable_trainer, make_engine, phantoms, roll, whole_run

from common.data.dataset import RadiographDataset, StepBatchSampler
from common.data.latent_store import LatentDataset
from common.diffusion.noise_schedule import NoiseSchedule
from common.errors import NonFiniteLossError
from common.networks.conditioning import TokenSelection
from common.networks.embedding_prior import PriorPass, start_prior
from common.networks.latent_codec import VariationalPass
from common.networks.latent_denoiser import DenoisingPass
from common.networks.pixel_denoiser import PixelDenoiser
from common.training.autoencoder_step import AutoencoderStep
from common.training.denoising_step import (
    DenoisingStep,
    DenoisingValidation,
    ImageDenoisingStep,
    ImageDenoisingValidation,
    MeanError,
)
from common.training.ema import ExponentialMovingAverage
from common.training.losses import ReconstructionLoss
from common.training.lr_schedule import WarmupConstantDecay
from common.training.pretext_steps import GaussianNoise, MaskedPatches, PretextStep, PretextValidation
from common.training.prior_step import PriorStep, PriorValidation, TokenDataset
from common.training.segmentation_step import SegmentationStep

FLOW, COSINE = NoiseSchedule("rectified_flow", "flow"), NoiseSchedule("cosine", "epsilon", num_train_timesteps=4000)
SELECTION = TokenSelection(use_registers=False, patch_grid=1)  # two tokens
DIFFUSION = ["denoising", "prior", "images", "masked", "noisy"]
WITH_DROPOUT = ["prior", "images", "masked", "noisy", "segmentation"]


def images(count, **more):
    pixels = phantoms(count)
    return [{"image": image, **{name: make(image) for name, make in more.items()}} for image in pixels]


def average(network):
    return {"ema": ExponentialMovingAverage(network, 0.9)}


def denoising(store, dropout):
    denoiser = make_tiny_denoiser()
    step = DenoisingStep(schedule=FLOW, selection=SELECTION, uncond_prob=0.3, amp=False, **average(denoiser))
    validation = DenoisingValidation(schedule=FLOW, selection=SELECTION, num_levels=2, amp=False)
    return DenoisingPass(denoiser), step, validation, [LatentDataset(store, split) for split in ("train", "val")]


def prior(store, dropout):
    train, val = (LatentDataset(store, split) for split in ("train", "val"))
    network = start_prior(make_tiny_prior(dropout=dropout), SELECTION.select(train.all_tokens()))
    step = PriorStep(schedule=FLOW, uncond_prob=0.3, **average(network))
    data = [TokenDataset(part, SELECTION, network) for part in (train, val)]
    return PriorPass(network), step, PriorValidation(schedule=FLOW, num_levels=2), data


def on_images(step, validation, **options):
    def make(store, dropout):
        network = PixelDenoiser(**{**TINY, "channels": [16, 32]}, dropout=dropout)
        data = [RadiographDataset(images(count), transform=dict) for count in (8, 3)]
        made = step(**options, amp=False, **average(network))
        return network, made, validation(**options, amp=False, seed=0), data

    return make


def segmentation(store, dropout):
    network, loss = make_tiny_segmenter(dropout=dropout), DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    step = SegmentationStep(loss_function=loss, amp=False, augmentation=roll, **average(network))
    labelled = images(8, label=lambda image: torch.bucketize(image, torch.tensor([0.3, 0.6])))
    data = [RadiographDataset(part, transform=dict) for part in (labelled, labelled[:2])]
    return network, step, IgniteMetricHandler(loss_fn=loss, output_transform=from_engine(["pred", "label"])), data


def autoencoder(store, dropout):
    codec = make_tiny_codec()
    sizes = {"patch_size": 16, "full_size_from_step": 1}
    step = AutoencoderStep(
        reconstruction_loss=ReconstructionLoss(None, 0.0), kl_weight=1e-6, amp=False, **sizes, **average(codec)
    )
    return VariationalPass(codec), step, None, [RadiographDataset(images(2), transform=dict)]


WORKFLOWS = {
    **{"denoising": denoising, "prior": prior, "segmentation": segmentation, "autoencoder": autoencoder},
    "images": on_images(ImageDenoisingStep, ImageDenoisingValidation, schedule=COSINE),
    "masked": on_images(PretextStep, PretextValidation, pretext=MaskedPatches(4, 0.5), timestep=1),
    "noisy": on_images(PretextStep, PretextValidation, pretext=GaussianNoise(0.3), timestep=1),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = make_tiny_store(tmp_path_factory.mktemp("store"), num_train=8, num_val=3, num_views=2)
    store.items = [{**item, "label": "ab"[number % 2]} for number, item in enumerate(store.items)]
    return store


@pytest.fixture
def workflow(store):
    """Network, step, validation, training and validation data of a workflow by its name."""

    def make(name, dropout=0.0):
        torch.manual_seed(0)
        network, step, validation, data = WORKFLOWS[name](store, dropout)
        return SimpleNamespace(network=network, step=step, validation=validation, data=data)

    return make


def batch_of(dataset, draws):
    return default_collate([dataset[number, draw] for number, draw in enumerate(draws)])


@pytest.mark.parametrize("name", WORKFLOWS)
def test_one_batch_is_learnt_by_heart_by_all_weights(workflow, name):
    made = workflow(name)
    before = {key: value.clone() for key, value in made.network.named_parameters()}
    engine, batch = (
        make_engine(made.network, lr=1e-2 if name != "autoencoder" else 3e-3),
        batch_of(made.data[0], [0, 1]),
    )
    term = "l1" if name == "autoencoder" else "loss"
    losses = [made.step(engine, batch)[term] for _ in range(60)]
    assert losses[-1] < losses[0] / 2 and made.step.ema.num_updates == 60
    unused = {"prior": ["label"], "denoising": []}.get(name, [])
    kept = [key for key, value in made.network.named_parameters() if torch.equal(value, before[key])]
    assert not [key for key in kept if not any(part in key for part in unused)]


@pytest.mark.parametrize(("name", "poisoned"), [*zip(WORKFLOWS, ["cls_token", "tokens", *["image"] * 5], strict=True)])
def test_a_loss_that_is_not_finite_leaves_everything_as_it_was(workflow, name, poisoned):
    made = workflow(name)
    engine, batch = make_engine(made.network, lr=1e-2, iteration=7), batch_of(made.data[0], [0, 1])
    batch[poisoned].view(-1)[5] = float("nan")
    before = {key: value.clone() for key, value in made.network.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match="step 7"):
        made.step(engine, batch)
    assert all(torch.equal(value, before[key]) for key, value in made.network.state_dict().items())
    assert not engine.optimizer.state and made.step.ema.num_updates == 0


@pytest.mark.parametrize("name", DIFFUSION)
def test_a_sample_is_treated_alike_whatever_batch_it_is_in(workflow, name):
    made, given, draws = workflow(name), [], [4, 9, 6, 10**6, 10**6 + 2]
    made.network.register_forward_pre_hook(lambda network, inputs: given.append(inputs))
    batch = batch_of(made.data[0], draws)
    made.step(make_engine(made.network), batch)
    for number in range(len(draws)):
        alone = {key: value[number : number + 1] for key, value in batch.items()}
        made.step(make_engine(made.network, iteration=5 + number), alone)
        for one, together in zip(given[-1], given[0], strict=True):
            torch.testing.assert_close(one[0], together[number], atol=1e-5, rtol=0)
    assert name in ("masked", "noisy") or len(given[0][1].unique()) == len(draws)  # timesteps
    if hasattr(made.step, "uncond_prob"):
        assert len(set(made.step.dropped(draws).tolist())) == 2  # some with their context, some without


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_dropout_is_a_function_of_the_step_and_touches_no_other_randomness(workflow, name):
    made = workflow(name, dropout=0.5)
    randomise(made.network, 0.3)
    batch, losses = batch_of(made.data[0], range(8)), []
    for iteration, global_seed in [(1, 3), (1, 4), (2, 4)]:
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        losses.append(made.step(make_engine(made.network, iteration=iteration), batch)["loss"])
        assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("name", DIFFUSION)
def test_validation_is_the_same_each_time_in_any_batches_and_without_dropout(workflow, name):
    made = workflow(name, dropout=0.5)
    randomise(made.network, 0.3)
    network, dataset = made.step.ema.network, made.data[1]
    randomise(network, 0.3)

    def errors(numbers):
        batch = default_collate([dataset[number, number] for number in numbers])
        return made.validation(make_engine(network), batch)["errors"]

    together = errors([0, 1, 2])
    torch.manual_seed(5)
    assert torch.equal(errors([0, 1, 2]), together)
    assert together.shape == (3, {"masked": 1, "noisy": 1, "images": 4}.get(name, 2)) and not together.requires_grad
    assert len(together.unique()) == together.numel()
    torch.testing.assert_close(torch.cat([errors([2]), errors([0, 1])]), together[[2, 0, 1]], atol=1e-4, rtol=1e-4)


# ---- resuming ------------------------------------------------------------------------------------------------------


def make_trainer(made, folder, kill_at=None):
    """A whole training as the configs put it together: 4 steps a round, two rounds."""
    if isinstance(made.validation, IgniteMetricHandler):
        measured = {"key_val_metric": {"val_loss": made.validation}}
    else:
        measured = {"iteration_update": made.validation, "key_val_metric": {"val_loss": MeanError()}}
    train, val = made.data
    sampler = StepBatchSampler(len(train), batch_size=2, seed=0)
    optimizer = torch.optim.AdamW(made.network.parameters(), 1e-2, fused=True)
    return killable_trainer(
        folder,
        made.step,
        kill_at,
        network=made.network,
        optimizer=optimizer,
        lr_scheduler=WarmupConstantDecay(optimizer, warmup_steps=2, total_steps=8),
        sampler=sampler,
        train_data_loader=DataLoader(train, batch_sampler=sampler),
        validator=SupervisedEvaluator(
            CPU, DataLoader(val, batch_size=2), made.step.ema.network, decollate=False, **measured
        ),
        best_metric="val_loss",
        max_epochs=2,
        checkpoint_every_steps=3,
    )


@pytest.mark.parametrize("name", ["denoising", *WITH_DROPOUT])
def test_killed_and_resumed_equals_uninterrupted_to_the_bit(workflow, name, tmp_path):
    def make(folder, kill_at=None):
        return make_trainer(workflow(name, dropout=0.3), folder, kill_at)

    expected = whole_run(*make(tmp_path / "whole"))
    for kill_at in (2, 6, 8):
        assert_resumes(lambda kill, at=kill_at: make(tmp_path / str(at), kill), kill_at, expected)
