"""A diffusion stage on packed data in the memory of a device, as the stage's config describes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import Tensor, nn

from ..config_graph import network_id
from ..data.dataset import TensorBatches
from ..data.packed_data import PackedData, PackedSplit
from ..errors import SettingsError
from .denoising_step import MeanError
from .lr_schedule import TimedLength
from .prior_step import TokenDataset
from .step_log import StepLog

LONG_DECAY = 0.9998  # of the second average, where the config has none
TOLD_STEPS = 200


def configure(
    parser: ConfigParser, overrides: Mapping[str, Any], data: PackedData, device: torch.device, limit: int | None
) -> dict[str, Any]:
    """Put overrides, device and packed data into a config.

    Returns:
        The overrides, and what the network takes from the data: number and dimension of the tokens.

    Raises:
        SettingsError: it has no such key.
    """
    for key, value in overrides.items():
        if key.split("#")[0] not in parser:
            raise SettingsError(f"--{key}: no such key in the config; expected one of {sorted(parser.get())}")
        parser[key] = value
    sizes, network = {}, network_id(parser)
    if network != "denoiser_def":
        num_registers, token_dim = data.arrays["register_tokens"].shape[-2:]
        num_tokens = parser.get_parsed_content("selection").num_tokens(num_registers)
        sizes = {f"{network}#num_tokens": num_tokens, f"{network}#token_dim": token_dim}
        parser["store"] = SimpleNamespace(token_dim=token_dim)
    long_decay = parser["train#ema"].get("long_decay", LONG_DECAY)
    for key, value in {**sizes, "device": device, "train#ema#long_decay": long_decay}.items():
        parser[key] = value
    if device.type == "cuda":
        if network != "prior_def":
            parser[f"{network}#use_flash_attention"] = overrides.get(f"{network}#use_flash_attention", True)
        torch.backends.cudnn.benchmark = True  # all batches have one shape
        torch.set_float32_matmul_precision("high")
    train_split, val_split = (PackedSplit(data, split, device, limit) for split in ("train", "val"))
    if "latents" in parser:  # the prior has its data set of tokens over this
        parser["latents"] = {"train": train_split, "val": val_split}
    else:
        parser["train#dataset"], parser["validate#dataset"] = train_split, val_split
    return {**overrides, **sizes}


def tensors_of(dataset: PackedSplit | TokenDataset) -> dict[str, Tensor]:
    """What a data set in memory holds, by the names of its items."""
    if isinstance(dataset, TokenDataset):
        return {"tokens": dataset.tokens, "label": dataset.labels}
    return dataset.tensors


class PackedRun:
    """A stage as its config describes it, on tensors in memory.

    Args:
        parser: of the config, given its data by `configure`.
        device: of network and data.
    """

    def __init__(self, parser: ConfigParser, device: torch.device) -> None:
        torch.manual_seed(parser["seed"])
        get = parser.get_parsed_content
        self.ema = get("train#ema")
        self.step = get("train#step")
        self.step.noise_device = device
        self.validation = get("validate#step")
        held_out = tensors_of(get("validate#dataset"))
        numbers = [(number, number) for number in range(len(next(iter(held_out.values()))))]
        size = parser["validate#dataloader#batch_size"]
        chunks = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        self.held_out = list(TensorBatches(held_out, chunks))
        self.batch_size = parser["batch_size"]
        self.batches = TensorBatches(tensors_of(get("train#dataset")), get("train#sampler"))
        self.device = device
        self.is_compiled = bool(parser.get("train#denoising_pass#is_compiled", False))
        self.engine_parts = {"network": get("train#network"), "optimizer": get("train#optimizer")}

    def averages(self) -> dict[str, nn.Module]:
        """Both, by name."""
        return {"ema": self.ema.network, "long_ema": self.ema.long_network}

    def evaluator(self, network: nn.Module) -> SupervisedEvaluator:
        """Of the validation split: the mean over all levels of noise, of the least and of the most."""
        last = self.validation.num_levels - 1
        return SupervisedEvaluator(
            device=self.device,
            val_data_loader=self.held_out,
            network=network,
            iteration_update=self.validation,
            key_val_metric={"val_loss": MeanError()},
            additional_metrics={"val_loss_least_noise": MeanError(0), "val_loss_most_noise": MeanError(last)},
            decollate=False,
        )

    def validate(self, network: nn.Module) -> dict[str, float]:
        """The metrics of a network."""
        evaluator = self.evaluator(network)
        evaluator.run()
        return {name: float(value) for name, value in evaluator.state.metrics.items()}

    def train(self, length: TimedLength, folder: Path, val_every_steps: int) -> BaseException | None:
        """Train to the end of the time, log into the folder; return the error that ended it before, if one did."""
        self.trainer = SupervisedTrainer(
            device=self.device,
            max_epochs=1,
            train_data_loader=self.batches,
            epoch_length=length.max_steps,
            loss_function=nn.MSELoss(),
            iteration_update=self._update,
            decollate=False,
            **self.engine_parts,
        )
        evaluator = self.evaluator(self.ema.network)
        StepLog(folder).attach(self.trainer, evaluator)
        step = Events.ITERATION_COMPLETED
        self.trainer.add_event_handler(step(every=val_every_steps), lambda: evaluator.run())
        self.trainer.add_event_handler(step(every=TOLD_STEPS), self._tell, length)
        length.attach(self.trainer)
        try:
            self.trainer.run()
        except (Exception, KeyboardInterrupt) as error:  # told by the caller, once the weights are written
            return error
        return None

    def progress(self, length: TimedLength) -> dict[str, Any]:
        """How far it came, in plain numbers."""
        steps, size = self.trainer.state.iteration, self.batch_size
        planned = {"planned_steps": length.schedule.total_steps, "seconds_per_step": length.seconds_per_step}
        return {"steps": steps, **planned, "batch_size": size, "images_seen": steps * size}

    def _update(self, engine: Any, batch: dict[str, Any]) -> dict[str, float]:
        """One step; a network that cannot be compiled goes on as it is."""
        try:
            return self.step(engine, batch)
        except Exception as error:
            if not self.is_compiled or engine.state.iteration > 1:
                raise
            print(f"goes on without compilation, which failed: {str(error)[:500]}", flush=True)
            torch.compiler.set_stance("force_eager")
            return self.step(engine, batch)

    def _tell(self, length: TimedLength) -> None:
        state, seconds = self.trainer.state, length.seconds_per_step
        planned = "?" if seconds is None else length.schedule.total_steps
        print(f"step {state.iteration} of {planned}, {seconds or 0:.4f} s a step, {state.output}", flush=True)
