import json

import pytest
from ignite.engine import Engine, Events

from common.training.step_log import LOG_NAME, StepLog, read_log, seconds_per_step


def run(folder, epochs, log=None, start=0):
    """An engine of five steps an epoch whose loss is the step, validated after each epoch."""
    trainer = Engine(lambda engine, batch: {"loss": float(engine.state.iteration), "image": None})
    validator = Engine(lambda engine, batch: None)
    log = log or StepLog(folder, every_steps=4)
    if start:
        trainer.state.iteration, trainer.state.epoch = start, start // 5
        trainer.state.max_epochs, trainer.state.epoch_length = epochs, 5
    log.attach(trainer, validator)
    validator.state.metrics = {"val_loss": 1}
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: validator.run([0]))
    trainer.run([0] * 5, max_epochs=epochs, epoch_length=5)
    return log


def test_lines_hold_means_and_validations_in_order(tmp_path):
    run(tmp_path, 2)
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines] == [4, 5, 8, 10]
    assert [line["loss"] for line in lines if "loss" in line] == [2.5, 6.5]
    assert lines[1]["validation"] == {"val_loss": 1.0}


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    run(tmp_path, 1)
    path = tmp_path / LOG_NAME
    path.write_text(path.read_text() + '{"step": 8, "lo')
    assert [line["step"] for line in read_log(tmp_path)] == [4, 5]


def test_what_lies_beyond_the_checkpoint_is_taken_back(tmp_path):
    log = StepLog(tmp_path, every_steps=4)
    beyond = [{"step": step, "seconds": 1.0, "loss": 0.0} for step in (4, 8, 12)]
    (tmp_path / LOG_NAME).write_text("".join(json.dumps(line) + "\n" for line in beyond))
    log.load_state_dict({"steps": 1.0, "seconds": 1.0, "loss": 5.0})
    run(tmp_path, 2, log, start=5)
    assert [(line["step"], line.get("loss")) for line in read_log(tmp_path)] == [(4, 0.0), (8, 6.5), (10, None)]


def test_seconds_per_step_are_those_of_the_last_lines():
    lines = [{"step": 20, "seconds": 100.0}, {"step": 20, "validation": {}}, {"step": 40, "seconds": 40.0}]
    assert seconds_per_step(lines) == pytest.approx(3.5)
    assert seconds_per_step(lines, last=1) == pytest.approx(2.0)
    assert seconds_per_step([]) is None
