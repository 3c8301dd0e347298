import logging
import os
import signal

import pytest
import torch
from conftest import make_tiny_codec
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointLoader, IgniteMetricHandler, from_engine
from monai.networks.nets import PatchDiscriminator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader
from trainings import CPU, Killed, assert_equal_states, killable_trainer, state_of

from common import progress
from common.data.dataset import RadiographDataset, StepBatchSampler
from common.data.phantom import draw_chest_phantom
from common.errors import CheckpointMismatchError, RunError, SettingsError
from common.files import locked_folder
from common.networks.latent_codec import VariationalPass
from common.networks.weights import read_weights
from common.training.autoencoder_step import AutoencoderStep, image_as_label
from common.training.ema import ExponentialMovingAverage
from common.training.losses import AdversarialTerm, ReconstructionLoss
from common.training.lr_schedule import WarmupConstantDecay
from common.training.step_log import read_log

PHANTOMS = [{"image": draw_chest_phantom(32, 32, seed=seed), "name": f"{seed}.png"} for seed in range(7)]


def make_trainer(folder, max_epochs=4, seed=0, start=None, data=PHANTOMS, **kwargs):
    """A whole training: autoencoder, discriminator, average, schedule, validation; 4 steps a round."""
    torch.manual_seed(seed)
    codec = make_tiny_codec(seed)
    network = VariationalPass(codec)
    discriminator = PatchDiscriminator(spatial_dims=2, in_channels=1, channels=8, num_layers_d=2, norm="INSTANCE")
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    discriminator_optimizer = torch.optim.AdamW(discriminator.parameters(), 1e-3)
    ema = ExponentialMovingAverage(codec, ema_decay=0.9, long_decay=0.95)
    loss = ReconstructionLoss(None, 0.0)
    sampler = StepBatchSampler(len(data), batch_size=2, seed=seed)
    dataset = RadiographDataset(data, transform=dict)
    term = AdversarialTerm(discriminator, 0.01, start_step=5)
    step = AutoencoderStep(
        reconstruction_loss=loss,
        kl_weight=1e-6,
        ema=ema,
        patch_size=16,
        full_size_from_step=9,
        adversarial=term,
        discriminator_optimizer=discriminator_optimizer,
        amp=False,
        seed=seed,
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
    )
    arguments = {
        "max_epochs": max_epochs,
        "train_data_loader": DataLoader(dataset, batch_sampler=sampler),
        "network": network,
        "optimizer": optimizer,
        "lr_scheduler": WarmupConstantDecay(optimizer, warmup_steps=2, total_steps=16),
        "sampler": sampler,
        "validator": evaluator,
        "states": {"discriminator": discriminator, "discriminator_optimizer": discriminator_optimizer},
        "best_metric": "reconstruction_loss",
        "val_interval": 2,
        "checkpoint_every_steps": 3,
        "train_handlers": [CheckpointLoader(str(start), {"model": codec}, strict=False)] if start else [],
    }
    return killable_trainer(folder, step, **{**arguments, **kwargs})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    trainer, losses = make_trainer(folder, milestone_every_steps=8)
    trainer.run()
    return trainer, losses, read_weights(folder / "model.pt")


def assert_like(uninterrupted, folder, losses, resumed):
    trainer, expected_losses, weights = uninterrupted
    assert losses == expected_losses
    assert_equal_states(state_of(resumed), state_of(trainer))
    assert_equal_states(read_weights(folder / "model.pt"), weights)

    def told(where):
        return [{key: value for key, value in line.items() if key != "seconds"} for line in read_log(where)]

    assert told(folder) == told(trainer.folder)


@pytest.mark.parametrize("kill_at", [2, 4, 6, 8, 9, 13, 16])
def test_killed_and_resumed_equals_uninterrupted_to_the_bit(uninterrupted, tmp_path, kill_at):
    trainer, losses = make_trainer(tmp_path, kill_at=kill_at)
    with pytest.raises(Killed):
        trainer.run()
    resumed, more_losses = make_trainer(tmp_path)
    torch.manual_seed(999)  # the global generator must not matter
    resumed.run()
    assert_like(uninterrupted, tmp_path, losses | more_losses, resumed)


@pytest.mark.parametrize("sigterm_at", [5, 8])  # 8 is the last of a round whose validation is still to come
def test_sigterm_saves_the_step_at_hand_and_the_resumed_run_equals_uninterrupted(uninterrupted, tmp_path, sigterm_at):
    trainer, losses = make_trainer(tmp_path, sigterm_at=sigterm_at, checkpoint_every_steps=1000)
    with pytest.raises(SystemExit) as stopped:
        trainer.run()
    assert stopped.value.code == 143
    resumed, more_losses = make_trainer(tmp_path)
    resumed.run()
    assert min(more_losses) == sigterm_at + 1
    assert_like(uninterrupted, tmp_path, losses | more_losses, resumed)


def test_a_kill_within_a_validation_does_not_lose_it(uninterrupted, tmp_path):
    trainer, losses = make_trainer(tmp_path, checkpoint_every_steps=1)

    def die(engine):
        raise Killed

    trainer.validator.add_event_handler(Events.STARTED, die)
    with pytest.raises(Killed):
        trainer.run()
    resumed, more_losses = make_trainer(tmp_path)
    resumed.run()
    assert_like(uninterrupted, tmp_path, losses | more_losses, resumed)


def test_a_resumed_run_repeats_no_more_than_the_steps_since_the_checkpoint(tmp_path):
    trainer, _ = make_trainer(tmp_path, kill_at=11)
    with pytest.raises(Killed):
        trainer.run()
    resumed, losses = make_trainer(tmp_path)
    resumed.run()
    assert min(losses) == 10  # the checkpoint of step 9


def test_a_finished_run_is_left_alone_and_more_rounds_go_on(tmp_path):
    make_trainer(tmp_path, max_epochs=2)[0].run()
    again, losses = make_trainer(tmp_path, max_epochs=2)
    again.run()
    assert losses == {}
    longer, losses = make_trainer(tmp_path, max_epochs=3)
    longer.run()
    assert list(losses) == [9, 10, 11, 12]


def test_other_data_are_another_run(tmp_path):
    make_trainer(tmp_path, max_epochs=1)[0].run()
    data = [*PHANTOMS[:6], {**PHANTOMS[6], "name": "other.png"}]
    with pytest.raises(CheckpointMismatchError) as caught:
        make_trainer(tmp_path, data=data)[0].run()
    assert "data" in str(caught.value)


def test_training_improves_the_best_value_and_keeps_its_weights(uninterrupted):
    trainer, losses, weights = uninterrupted
    assert losses[16] < losses[1]
    assert trainer.best["value"] < float("inf") and trainer.best["step"] == 16
    assert_equal_states(weights, trainer.ema.network.state_dict())


def test_where_higher_is_better_the_highest_value_is_kept(uninterrupted, tmp_path):
    trainer, _ = make_trainer(tmp_path, higher_is_better=True)  # of a loss, which falls: the first validation's
    trainer.run()
    assert trainer.best["step"] == 8 and trainer.best["value"] > uninterrupted[0].best["value"]


def test_without_a_metric_the_last_weights_are_kept(tmp_path):
    trainer, _ = make_trainer(tmp_path, max_epochs=2, best_metric=None, val_interval=1)
    trainer.run()
    assert_equal_states(read_weights(tmp_path / "model.pt"), trainer.ema.network.state_dict())


def test_milestones_keep_both_averages_of_their_steps_in_half_precision(uninterrupted):
    trainer = uninterrupted[0]
    names = [f"step_0000{step}_{name}.pt" for step in ("08", "16") for name in ("ema", "long_ema")]
    assert sorted(path.name for path in (trainer.folder / "milestones").glob("*.pt")) == names
    last = read_weights(trainer.folder / "milestones" / "step_000016_long_ema.pt")
    assert torch.float16 in {value.dtype for value in last.values()}
    for key, value in trainer.ema.long_network.state_dict().items():
        torch.testing.assert_close(last[key].to(value.dtype), value, rtol=1e-3, atol=1e-4)


def test_tensorboard_has_training_and_validation_apart_in_one_file(uninterrupted):
    folder = uninterrupted[0].folder / "tensorboard"
    assert len(list(folder.glob("events*"))) == 1
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("val/reconstruction_loss")] == [8, 16]
    assert [event.step for event in events.Scalars("train/l1")] == [10]


def test_the_bar_goes_on_where_the_run_does_and_the_end_says_where_the_weights_are(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    for rounds, told in ((1, [1, 2, 3, 4]), (2, [5, 6, 7, 8]), (2, [])):
        caplog.clear()
        make_trainer(tmp_path, max_epochs=rounds)[0].run()
        bars = [message for message in caplog.messages if message.startswith("training: ")]
        assert [bar.split(",")[0] for bar in bars] == [f"training: {n} of {4 * rounds}" for n in told]
        assert all("l1" in bar for bar in bars)
        assert str(tmp_path / "model.pt") in caplog.messages[-1]
        assert not [record for record in caplog.records if record.name.startswith("ignite")]


def test_two_do_not_train_in_one_folder(tmp_path):
    with locked_folder(tmp_path), pytest.raises(RunError):
        make_trainer(tmp_path)[0].run()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"max_epochs": 0}, "max_epochs"),
        ({"checkpoint_every_steps": 0}, "checkpoint_every_steps"),
        ({"val_interval": 1.5}, "val_interval"),
        ({"device": "cuda:99"}, "cuda:99"),
        *(({"parts": {"image_size": size}}, "image_size") for size in (101, [32, 33])),
    ],
)
def test_numbers_out_of_range_are_named_before_any_work(tmp_path, changes, name):
    with pytest.raises(SettingsError) as caught:
        make_trainer(tmp_path / "new", **changes)
    assert name in str(caught.value) and not (tmp_path / "new").exists()


def test_what_a_kill_has_half_written_is_cleared_away(tmp_path):
    (tmp_path / "milestones").mkdir()
    for name in (".checkpoint_last.pt.1.partial", "milestones/.step_000008_ema.pt.1.partial"):
        (tmp_path / name).write_bytes(b"half")
    make_trainer(tmp_path, max_epochs=1)[0].run()
    assert not list(tmp_path.rglob("*.partial"))


def test_with_monais_loader_a_run_starts_from_what_that_loads(tmp_path):
    make_trainer(tmp_path, max_epochs=1)[0].run()
    start = make_tiny_codec(seed=5)
    torch.save({"model": start.state_dict()}, tmp_path / "start.pt")
    trainer, losses = make_trainer(tmp_path, start=tmp_path / "start.pt", max_epochs=1)
    trainer.run()
    assert list(losses) == [1, 2, 3, 4]


def test_ctrl_c_passes_through(tmp_path):
    trainer, _ = make_trainer(tmp_path)
    trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    finally:
        signal.signal(signal.SIGINT, before)
