"""What a bundle's code and weights do; to be called where only the bundle is on the path, see `isolation`."""

from __future__ import annotations

import io
import json
import pydoc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from ..config_graph import iter_items
from ..config_values import locate_target
from .bundle_contract import readable_trees
from .bundle_files import workflow_file
from .bundle_metadata import check_network, root_cause
from .packaging import TORCHSCRIPT
from .torchscript import fake_inputs, positional_inputs

TRACE_TOLERANCE = 1.0e-4
BROKEN = (KeyError, ValueError, RuntimeError, TypeError, AttributeError, ImportError, OSError, EOFError)
WEIGHTS = Path("models") / "model.pt"


def all_checks(bundle_dir: str) -> dict[str, list[str]]:
    """By name of the check its problems, none when all is well."""
    warnings.simplefilter("ignore")
    checks: dict[str, Callable[[Path], list[str]]] = {
        "targets": check_targets,
        "weights": check_weights,
        "network": check_format,
        "trace": check_trace,
        "torchscript": check_torchscript,
    }
    return {name: _guarded(check, Path(bundle_dir)) for name, check in checks.items()}


def _guarded(check: Callable[[Path], list[str]], bundle_dir: Path) -> list[str]:
    """A check that breaks has found something, too."""
    try:
        return check(bundle_dir)
    except Exception as error:  # of anybody's code
        return [root_cause(error)]


def check_targets(bundle_dir: Path) -> list[str]:
    """Every `_target_` of every config exists."""
    found: dict[str, str] = {}
    for path, tree in readable_trees(bundle_dir):
        for item_id, value in iter_items(tree):
            if item_id.endswith("_target_") and isinstance(value, str) and value[:1] not in "$@%":
                found.setdefault(value, f"{path.name}: {item_id}")
    problems = []
    for target, where in found.items():
        try:
            located = locate_target(target)
        except pydoc.ErrorDuringImport as error:
            problems.append(f"{where}: '{target}' fails to import: {error.value}")
            continue
        if not callable(located):
            problems.append(f"{where}: '{target}' " + ("does not exist" if located is None else "cannot be called"))
    return problems


def check_weights(bundle_dir: Path) -> list[str]:
    """The weights are plain tensors, and exactly those of `network_def`."""
    if not (bundle_dir / WEIGHTS).is_file():
        return ["no models/model.pt to load; download_large_files gets what large_files.yml lists"]
    try:
        state = torch.load(bundle_dir / WEIGHTS, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever pickle and zip do
        return [f"models/model.pt cannot be read: {str(error).splitlines()[0]}"]
    state = state.get("model", state) if isinstance(state, dict) else state
    try:
        _network(bundle_dir).load_state_dict(state, strict=True)
    except BROKEN as error:
        return [f"models/model.pt does not fit network_def: {root_cause(error)[:300]}"]
    return []


def check_format(bundle_dir: Path) -> list[str]:
    """`network_def` takes and gives what the metadata say, at the sizes the zoo's check takes."""
    declared = _metadata(bundle_dir)["network_data_format"]
    if "image" not in declared["inputs"] or "pred" not in declared["outputs"]:
        return ["metadata.json: no input `image` or no output `pred`, which MONAI's verify_net_in_out looks for"]
    return check_network([_inference(bundle_dir)], overrides={"bundle_root": str(bundle_dir)})


def check_trace(bundle_dir: Path) -> list[str]:
    """`network_def` can be traced, saved and loaded, and then gives the same."""
    network = _loaded(bundle_dir)
    inputs = _inputs(network, bundle_dir)
    with torch.no_grad():
        traced = torch.jit.trace(network, inputs, check_trace=False)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer)
        buffer.seek(0)
        return _compare(torch.jit.load(buffer), network, inputs, "the traced network")


def check_torchscript(bundle_dir: Path) -> list[str]:
    """models/model.ts, if there is one, gives what the network gives."""
    path = bundle_dir / TORCHSCRIPT
    if not path.is_file():
        return []
    network = _loaded(bundle_dir)
    inputs = _inputs(network, bundle_dir)
    with torch.no_grad():
        return _compare(torch.jit.load(str(path), map_location="cpu"), network, inputs, TORCHSCRIPT.name)


def _inputs(network: nn.Module, bundle_dir: Path) -> tuple[torch.Tensor, ...]:
    return positional_inputs(network, fake_inputs(_metadata(bundle_dir), batch=1, scale=(1, 1), seed=0))


def _compare(found: Any, network: nn.Module, inputs: tuple[Any, ...], name: str) -> list[str]:
    difference = (found(*inputs) - network(*inputs)).abs().max().item()
    return [] if difference <= TRACE_TOLERANCE else [f"{name} differs from network_def by {difference:.2g}"]


def _inference(bundle_dir: Path) -> Path:
    path = workflow_file(bundle_dir, "inference")
    if path is None:
        raise FileNotFoundError("no inference config")
    return path


def _metadata(bundle_dir: Path) -> dict[str, Any]:
    return json.loads((bundle_dir / "configs" / "metadata.json").read_text(encoding="utf-8"))


def _network(bundle_dir: Path) -> nn.Module:
    """`network_def` of the inference config on the CPU, for use."""
    parser = ConfigParser()
    parser.read_config(str(_inference(bundle_dir)))
    parser.read_meta(str(bundle_dir / "configs" / "metadata.json"))
    parser.update({"bundle_root": str(bundle_dir), "device": "$torch.device('cpu')"})
    return parser.get_parsed_content("network_def").eval()


def _loaded(bundle_dir: Path) -> nn.Module:
    network = _network(bundle_dir)
    state = torch.load(bundle_dir / WEIGHTS, map_location="cpu", weights_only=True)
    network.load_state_dict(state.get("model", state))
    return network
