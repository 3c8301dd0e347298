import logging
import signal

import pytest
import torch
from conftest import make_tiny_codec
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointLoader, IgniteMetricHandler, LrScheduleHandler, ValidationHandler, from_engine
from monai.networks.nets import PatchDiscriminator
from resuming import Killed, assert_equal_states, state_of
from torch.utils.data import DataLoader

from common.data.dataset import RadiographDataset, StepBatchSampler
from common.data.phantom import draw_chest_phantom
from common.networks.latent_codec import VariationalPass
from common.training.autoencoder_step import AutoencoderStep
from common.training.checkpoint import CheckpointMismatchError, TrainingCheckpoint
from common.training.ema import ExponentialMovingAverage
from common.training.engines import KeepBest, Milestones, ResumableTrainer
from common.training.losses import AdversarialTerm, ReconstructionLoss
from common.training.lr_schedule import WarmupConstantDecay
from common.training.prepare_batch import image_as_label

CPU = torch.device("cpu")
PHANTOMS = [{"image": draw_chest_phantom(32, 32, seed=seed)} for seed in range(7)]


def make_trainer(folder, max_epochs=4, kill_at=None, sigterm_at=None, seed=0, checkpoint_every_steps=3, start=None):
    """A whole training: codec, critic, EMA, schedule, validation; 4 steps an epoch."""
    torch.manual_seed(seed)
    codec = make_tiny_codec(seed)
    network = VariationalPass(codec)
    critic = PatchDiscriminator(spatial_dims=2, in_channels=1, channels=8, num_layers_d=2, norm="INSTANCE")
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), 1e-3)
    scheduler = WarmupConstantDecay(optimizer, warmup_steps=2, total_steps=16)
    ema = ExponentialMovingAverage(codec, ema_decay=0.9)
    loss = ReconstructionLoss(None, 0.0)
    sampler = StepBatchSampler(len(PHANTOMS), batch_size=2, seed=seed)
    dataset = RadiographDataset(PHANTOMS, transform=dict)
    keep_best = KeepBest("reconstruction_loss", ema.network, str(folder / "model.pt"))
    step = AutoencoderStep(
        loss, 1e-6, ema, 1.0, False, seed, 16, 9, AdversarialTerm(critic, 0.01, start_step=5), critic_optimizer
    )
    evaluator = SupervisedEvaluator(
        CPU,
        DataLoader(dataset, batch_size=4),
        ema.network,
        prepare_batch=image_as_label,
        key_val_metric={
            "reconstruction_loss": IgniteMetricHandler(loss_fn=loss, output_transform=from_engine(["pred", "label"]))
        },
        decollate=False,
        val_handlers=[keep_best],
    )
    objects = {
        "network": codec,
        "critic": critic,
        "optimizer": optimizer,
        "critic_optimizer": critic_optimizer,
        "scheduler": scheduler,
        "ema": ema,
        "keep_best": keep_best,
    }
    losses = {}

    def update(engine, batch):
        if engine.state.iteration == kill_at:
            raise Killed
        if engine.state.iteration == sigterm_at:
            signal.raise_signal(signal.SIGTERM)
        output = step(engine, batch)
        losses[engine.state.iteration] = output["l1"]
        return output

    loaders = [CheckpointLoader(str(start), {"model": codec}, strict=False)] if start else []
    trainer = ResumableTrainer(
        checkpoint=TrainingCheckpoint(folder / "last.pt", objects, {"seed": seed, "num_items": len(PHANTOMS)}),
        checkpoint_every_steps=checkpoint_every_steps,
        sampler=sampler,
        validator=evaluator,
        device=CPU,
        max_epochs=max_epochs,
        train_data_loader=DataLoader(dataset, batch_sampler=sampler),
        network=network,
        optimizer=optimizer,
        loss_function=loss,
        iteration_update=update,
        decollate=False,
        train_handlers=[
            *loaders,
            LrScheduleHandler(scheduler, epoch_level=False, print_lr=False),
            ValidationHandler(2, evaluator),
        ],
    )
    return trainer, losses


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    trainer, losses = make_trainer(folder)
    trainer.run()
    return trainer, losses, torch.load(folder / "model.pt", weights_only=True)


@pytest.mark.parametrize("kill_at", [2, 4, 6, 8, 9, 13, 16])
def test_killed_and_resumed_equals_uninterrupted_to_the_bit(uninterrupted, tmp_path, kill_at):
    trainer, losses = make_trainer(tmp_path, kill_at=kill_at)
    with pytest.raises(Killed):
        trainer.run()
    resumed, more_losses = make_trainer(tmp_path)
    torch.manual_seed(999)  # the global generator must not matter
    resumed.run()
    expected_trainer, expected_losses, expected_model = uninterrupted
    assert losses | more_losses == expected_losses
    assert_equal_states(state_of(resumed), state_of(expected_trainer))
    assert_equal_states(torch.load(tmp_path / "model.pt", weights_only=True), expected_model)


@pytest.mark.parametrize("sigterm_at", [5, 8])  # 8 is the last of an epoch whose validation is still to come
def test_sigterm_saves_the_step_at_hand_and_the_resumed_run_equals_uninterrupted(uninterrupted, tmp_path, sigterm_at):
    trainer, losses = make_trainer(tmp_path, sigterm_at=sigterm_at, checkpoint_every_steps=1000)
    with pytest.raises(SystemExit) as stopped:
        trainer.run()
    assert stopped.value.code == 143
    resumed, more_losses = make_trainer(tmp_path)
    resumed.run()
    expected_trainer, expected_losses, expected_model = uninterrupted
    assert min(more_losses) == sigterm_at + 1
    assert losses | more_losses == expected_losses
    assert_equal_states(state_of(resumed), state_of(expected_trainer))
    assert_equal_states(torch.load(tmp_path / "model.pt", weights_only=True), expected_model)


def test_milestones_keep_the_averages_of_their_steps(tmp_path):
    network, average = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    engine = Engine(lambda engine, batch: network.weight.data.add_(1.0))
    Milestones(2, {"ema": network, "long_ema": average, "none": None}, str(tmp_path)).attach(engine)
    start = network.weight.detach().clone()
    engine.run([0] * 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step_00000{step}_{name}.pt" for step in (2, 4) for name in ("ema", "long_ema")
    ]
    found = torch.load(tmp_path / "step_000002_ema.pt", weights_only=True)["weight"]
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), start + 2.0, rtol=0, atol=2e-3)


def test_without_a_metric_the_last_weights_are_kept(tmp_path):
    network = torch.nn.Linear(1, 1)
    keep = KeepBest(None, network, str(tmp_path / "model.pt"))
    for value in (1.0, 2.0):
        network.weight.data.fill_(value)
        keep(Engine(lambda engine, batch: None))
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == 2.0


def test_a_resumed_run_repeats_no_more_than_the_steps_since_the_checkpoint(tmp_path):
    trainer, _ = make_trainer(tmp_path, kill_at=11)
    with pytest.raises(Killed):
        trainer.run()
    resumed, losses = make_trainer(tmp_path)
    resumed.run()
    assert min(losses) == 10  # the checkpoint of step 9


def test_a_finished_run_is_left_alone(tmp_path, caplog):
    make_trainer(tmp_path)[0].run()
    again, losses = make_trainer(tmp_path)
    with caplog.at_level(logging.INFO):
        again.run()
    assert losses == {}
    assert "nothing to do" in caplog.text


def test_training_improves_the_best_value(uninterrupted):
    trainer, losses, _ = uninterrupted
    assert losses[16] < losses[1]
    assert trainer.checkpoint.objects["keep_best"].best_value < float("inf")


def test_the_last_epoch_is_validated_whatever_the_interval(tmp_path):
    trainer, _ = make_trainer(tmp_path, max_epochs=3)  # the interval is 2
    epochs = []
    trainer.validator.add_event_handler(Events.COMPLETED, lambda: epochs.append(trainer.state.epoch))
    trainer.run()
    assert epochs == [2, 3]


def test_a_run_with_another_seed_does_not_resume(tmp_path):
    make_trainer(tmp_path, max_epochs=1)[0].run()
    with pytest.raises(CheckpointMismatchError, match="seed: 0 there, 1 now"):
        make_trainer(tmp_path, seed=1)[0].run()


def test_weights_that_a_handler_loads_are_the_start_whatever_was_trained_before(tmp_path):
    start = make_tiny_codec(seed=5)
    torch.save(start.state_dict(), tmp_path / "shipped.pt")
    make_trainer(tmp_path, max_epochs=1)[0].run()
    again, losses = make_trainer(tmp_path, max_epochs=1, seed=1, start=tmp_path / "shipped.pt")
    codec, found = again.checkpoint.objects["network"], []
    again.add_event_handler(
        Events.ITERATION_STARTED(once=1), lambda: found.append([p.detach().clone() for p in codec.parameters()])
    )
    again.run()
    assert sorted(losses) == [1, 2, 3, 4]
    assert all(torch.equal(*pair) for pair in zip(found[0], start.parameters(), strict=True))


@pytest.mark.parametrize(
    ("higher_is_better", "expected"), [(False, [1.0, 1.0, 3.0, 3.0]), (True, [1.0, 2.0, 2.0, 2.0])]
)
def test_keep_best_keeps_the_lowest_or_the_highest(tmp_path, higher_is_better, expected):
    from types import SimpleNamespace

    network = torch.nn.Linear(1, 1)
    keep_best = KeepBest("loss", network, str(tmp_path / "best.pt"), higher_is_better)
    kept = []
    for value, weight in [(0.5, 1.0), (0.7, 2.0), (0.4, 3.0), (0.4, 4.0)]:
        torch.nn.init.constant_(network.weight, weight)
        keep_best(SimpleNamespace(state=SimpleNamespace(metrics={"loss": value})))
        kept.append(torch.load(tmp_path / "best.pt", weights_only=True)["weight"].item())
    assert kept == expected


def test_checkpoint_interval_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="checkpoint_every_steps"):
        make_trainer(tmp_path, checkpoint_every_steps=0)
