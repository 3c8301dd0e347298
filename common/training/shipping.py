"""Trained weights into a bundle: checked half precision, a loss curve, and the defaults of its configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from ruamel.yaml import YAML
from torch import Tensor, nn

from ..config_graph import network_id
from ..data.phantom import draw_chest_phantom
from ..errors import RunError
from ..files import atomic_path
from ..fingerprint import file_sha256
from ..networks.diffusion_segmenter import DiffusionSegmenter
from ..networks.embedding_prior import EmbeddingPrior
from ..networks.latent_codec import LatentCodec
from ..networks.pixel_denoiser import PixelDenoiser
from ..networks.weights import half_precision, load_weights, other_parts, save_weights

PARTS_ID = "train::trainer::parts"
TIMESTEPS = torch.tensor([100.0, 500.0, 900.0])
SMOOTHED_LINES = 10


def ship_weights(weights: Path, configs: Sequence[Path], target: Path) -> dict[str, Any]:
    """Write `target` in half precision; return its sha256, its size in MiB, and what rounding changed.

    Args:
        weights: what a finished training wrote, with its statistics.
        configs: YAML files of the training, later ones override; the network is built from them, and what weights of
            a training that was begun before 1.0 do not say of themselves.
        target: file to write.

    Raises:
        RunError: statistics are missing, or half precision changes the output too much.
    """
    parser = ConfigParser()
    parser.read_config([str(path) for path in configs])
    parser["bundle_root"] = str(configs[0].resolve().parents[1])
    network: nn.Module = load_weights(parser.get_parsed_content(network_id(parser)), weights)
    output, limit, what = _probe(network)
    with torch.inference_mode():
        full = output()
        network.load_state_dict(half_precision(network.state_dict()), strict=True)
        change = (output() - full).abs().max().item()
    if not change <= limit:
        raise RunError(f"{weights}: half precision changes {what} by {change:.4f}; expected at most {limit:.4f}")
    parts = parser.get_parsed_content(PARTS_ID) if PARTS_ID in parser else {}
    save_weights(network, target, {**parts, **other_parts(weights)}, half=True)
    size = target.stat().st_size / 2**20
    return {"sha256": file_sha256(target), "mebibytes": round(size, 1), "change_by_rounding": change}


def _probe(network: nn.Module) -> tuple[Callable[[], Tensor], float, str]:
    """What the network makes of a fixed input, how far rounded weights may change it, and what it is."""
    for name, buffer in network.named_buffers():
        if name.endswith("_num_images") and buffer.item() == 0:
            kind = name.split(".")[-1].removesuffix("_num_images")
            raise RunError(f"found no statistics of {kind} in the weights; expected those of a finished training")
    generator, count = torch.Generator().manual_seed(0), len(TIMESTEPS)
    if isinstance(network, LatentCodec):
        image = draw_chest_phantom(256, 256, seed=0)[None]
        return lambda: network(image), 1 / 255, "a pixel in [0, 1]"
    if isinstance(network, DiffusionSegmenter):
        image = draw_chest_phantom(144, 192, seed=0)[None]
        return lambda: network(image).softmax(1), 0.02, "a probability"
    denoiser: Any = network
    if hasattr(network, "context_encoder"):  # of any latent denoiser
        scaler = denoiser.context_encoder.scaler
        noisy = torch.randn(count, denoiser.latent_channels, 32, 32, generator=generator)
        tokens = scaler.unscale(torch.randn(count, *scaler.tokens_mean.shape, generator=generator))
        return lambda: denoiser(noisy, TIMESTEPS, denoiser.encode_tokens(tokens)), 0.05, "an output of unit variance"
    if isinstance(network, EmbeddingPrior):
        noisy = torch.randn(count, network.num_components, generator=generator)
        context = network.null_context.expand(count, -1, -1)
        return lambda: denoiser(noisy, TIMESTEPS, context), 0.05, "an output of unit variance"
    if isinstance(network, PixelDenoiser):
        noisy = torch.randn(count, 1, *[4 * network.downsampling_factor] * 2, generator=generator)
        return lambda: denoiser(noisy, TIMESTEPS), 0.05, "an output of unit variance"
    raise RunError(f"found a {type(network).__name__}; expected an autoencoder, a denoiser, a prior or a segmenter")


def set_defaults(bundle: Path, values: Mapping[str, Any]) -> list[str]:
    """Make values the defaults of all configs of a bundle that have these keys; comments stay. Returns the files.

    Args:
        bundle: its folder.
        values: by key; a path such as network_def#patch_size names a value inside, which is added where it is missing.
    """
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 120, True
    changed = []
    for path in sorted((bundle / "configs").glob("*.yaml")):
        content = yaml.load(path.read_text(encoding="utf-8"))
        before = repr(content)
        for key, value in values.items():
            *outer, last = key.split("#")
            place = content
            for name in outer:
                place = place.get(name) if isinstance(place, dict) else None
            if isinstance(place, dict) and (outer or last in place):
                place[last] = value
        if repr(content) != before:
            with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
                yaml.dump(content, stream)
            changed.append(path.name)
    return changed


def loss_curve(lines: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw the losses of a log, smoothed over ten lines, and its validations, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second that other commands do not pay
    from matplotlib.figure import Figure

    losses: dict[str, list[tuple[int, float]]] = {}
    metrics: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "seconds", "learning_rate", "validation") and "norm" not in name:
                losses.setdefault(name, []).append((line["step"], value))
        for name, value in line.get("validation", {}).items():
            metrics.setdefault(name, []).append((line["step"], value))
    count = len(losses) + len(metrics)
    figure = Figure(figsize=(3.6 * max(1, count), 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (name, points) in enumerate([*losses.items(), *metrics.items()]):
        axes = figure.add_subplot(1, count, number + 1)
        steps, values = zip(*points, strict=True)
        if number < len(losses):
            kernel = min(SMOOTHED_LINES, len(values))
            axes.plot(steps[kernel - 1 :], torch.tensor(values).unfold(0, kernel, 1).mean(1).tolist())
        else:
            axes.plot(steps, values, "o-", color="tab:red", markersize=3)
        axes.set_title(f"{title}: {name}", fontsize=9)
        axes.set_xlabel("optimiser steps")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)
