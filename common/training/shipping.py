"""Trained weights into a bundle: checked half precision, a loss curve, and the defaults of its configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from ruamel.yaml import YAML
from torch import Tensor, nn

from ..data.phantom import draw_chest_phantom
from ..errors import RunError
from ..files import atomic_path
from ..fingerprint import file_sha256
from ..networks.diffusion_segmenter import DiffusionSegmenter
from ..networks.embedding_prior import EmbeddingPrior
from ..networks.latent_codec import LatentCodec
from ..networks.latent_denoiser import LatentDenoiser
from ..networks.pixel_denoiser import PixelDenoiser
from ..networks.weights import half_precision, load_weights, other_parts, save_weights

PARTS_ID = "train::trainer::parts"
NETWORK_IDS = ("prior_def", "denoiser_def", "network_def")
TIMESTEPS = (100.0, 500.0, 900.0)
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
    network_id = next(each for each in NETWORK_IDS if each in parser)
    network: nn.Module = load_weights(parser.get_parsed_content(network_id), weights)
    output, limit, what = _probe(network)
    with torch.inference_mode():
        full = output()
        halved = half_precision(network.state_dict())
        network.load_state_dict(halved, strict=True)
        change = (output() - full).abs().max().item()
    if not change <= limit:
        raise RunError(f"{weights}: half precision changes {what} by {change:.4f}; expected at most {limit:.4f}")
    parts = parser.get_parsed_content(PARTS_ID) if PARTS_ID in parser else {}
    save_weights(network, target, {**parts, **other_parts(weights)}, half=True)
    size = target.stat().st_size / 2**20
    return {"sha256": file_sha256(target), "mebibytes": round(size, 1), "change_by_rounding": change}


def _probe(network: nn.Module) -> tuple[Callable[[], Tensor], float, str]:
    """What the network makes of a fixed input, how far rounded weights may change it, and what it is."""
    generator = torch.Generator().manual_seed(0)
    timesteps = torch.tensor(TIMESTEPS)
    if isinstance(network, LatentCodec):
        _require(network.latents_num_images, "latent")
        image = draw_chest_phantom(256, 256, seed=0)[None]
        return lambda: network(image), 1 / 255, "a pixel in [0, 1]"
    if isinstance(network, LatentDenoiser):
        _require(network.context_encoder.scaler.tokens_num_images, "token")
        scaler = network.context_encoder.scaler
        noisy = torch.randn(len(timesteps), network.latent_channels, 32, 32, generator=generator)
        tokens = scaler.unscale(torch.randn(len(timesteps), *scaler.tokens_mean.shape, generator=generator))
        return lambda: network(noisy, timesteps, network.encode_tokens(tokens)), 0.05, "an output of unit variance"
    if isinstance(network, EmbeddingPrior):
        _require(network.components.scaler.tokens_num_images, "token")
        components = torch.randn(len(timesteps), network.num_components, generator=generator)
        context = network.null_context.expand(len(timesteps), -1, -1)
        return lambda: network(components, timesteps, context), 0.05, "an output of unit variance"
    if isinstance(network, PixelDenoiser):
        side = 4 * network.downsampling_factor
        noisy = torch.randn(len(timesteps), 1, side, side, generator=generator)
        return lambda: network(noisy, timesteps), 0.05, "an output of unit variance"
    if isinstance(network, DiffusionSegmenter):
        image = draw_chest_phantom(144, 192, seed=0)[None]
        return lambda: network(image).softmax(1), 0.02, "a probability"
    raise RunError(f"found a {type(network).__name__}; expected an autoencoder, a denoiser, a prior or a segmenter")


def _require(num_images: Tensor, kind: str) -> None:
    if num_images.item() == 0:
        raise RunError(f"found no {kind} statistics in the weights; expected those of a finished training")


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

    steps = [line for line in lines if "seconds" in line]
    names = [name for name in (steps[0] if steps else {}) if name not in ("step", "seconds", "learning_rate")]
    names = [name for name in names if "norm" not in name]
    metrics = [name for line in lines for name in line.get("validation", {})]
    panels = [*names, *dict.fromkeys(metrics)]
    figure = Figure(figsize=(3.6 * max(1, len(panels)), 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        if name in names:
            points = [(line["step"], line[name]) for line in steps if name in line]
            kernel = min(SMOOTHED_LINES, len(points))
            values = torch.tensor([value for _, value in points]).unfold(0, kernel, 1).mean(1)
            axes.plot([step for step, _ in points][kernel - 1 :], values.tolist())
        else:
            found = [(line["step"], line["validation"][name]) for line in lines if name in line.get("validation", {})]
            axes.plot(*zip(*found, strict=True), "o-", color="tab:red", markersize=3)
        axes.set_title(f"{title}: {name}", fontsize=9)
        axes.set_xlabel("optimiser steps")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)
