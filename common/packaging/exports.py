"""A bundle's networks as ONNX, checked by onnxruntime, and as TorchScript, with a table of the files."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from ..errors import UserError
from ..files import atomic_path
from ..fingerprint import file_sha256
from .export_parts import PARTS, DynamicAxes, Part
from .torchscript import bundle_on_path, find_config, load_bundle_network, read_metadata, trace_bundle

TOLERANCE = 1e-3
OPSET = 17
TABLE = "exports.json"
TORCHSCRIPT = "model.ts"
ONNX_PACKAGES = ("onnx", "onnxruntime")
NETWORKS = {"network_def": "model.pt", "codec_def": "autoencoder.pt"}
"""Ids in inference.yaml of the networks that are exported, and their weights; only the first must be there."""


class ExportError(UserError, RuntimeError):
    """Something could not be exported; says what, and what was."""


@dataclass(frozen=True)
class ExportedFile:
    """A row of the table.

    Attributes:
        name: of the file.
        inputs: shape by name; what may vary has a name in place of a number.
        outputs: likewise.
        dynamic_axes: of inputs and outputs: number of the axis to its name.
        max_difference: from the network, largest absolute one of all outputs compared.
        size_bytes: of the file.
        sha256: of the file.
    """

    name: str
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    dynamic_axes: DynamicAxes
    max_difference: float
    size_bytes: int
    sha256: str

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.name}: {_signature(self.inputs)} -> {_signature(self.outputs)}; differs by at most "
            f"{self.max_difference:.1e}; {self.size_bytes / 2**20:.1f} MiB; sha256 {self.sha256}"
        )


def export_bundle(
    bundle_root: str | Path,
    output_dir: str | Path,
    onnx: bool = True,
    torchscript: bool = True,
    opset: int = OPSET,
    tell: Callable[[ExportedFile], None] = lambda file: None,
) -> list[ExportedFile]:
    """Export a bundle's networks and write the table `exports.json` beside them.

    Args:
        bundle_root: of the repository or packaged.
        output_dir: folder to write to.
        onnx: a .onnx for each part of each network.
        torchscript: `model.ts`, see `trace_bundle`.
        opset: of ONNX.
        tell: called with each file as soon as it is written.

    Returns:
        What was written.

    Raises:
        ExportError: packages are missing; or, after all others are written, a file could not be exported, or differs
            from its network by more than `TOLERANCE`. Of such a file nothing is left, not even an older one.
        BundleNetworkError: config, metadata or weights do not give a network.
        MissingWeightsError: there are no weights.
    """
    if onnx:
        _require_packages()
    root, folder = Path(bundle_root), Path(output_dir)
    version = read_metadata(root).get("version")
    exported, failed = [], []
    with bundle_on_path(root):
        jobs = _onnx_jobs(root, opset) if onnx else {}
        if torchscript:
            jobs[TORCHSCRIPT] = partial(_export_torchscript, root)
        for name, job in jobs.items():
            try:
                exported.append(job(folder / name))
                tell(exported[-1])
            except Exception as error:  # whatever an exporter raises concerns this file alone
                (folder / name).unlink(missing_ok=True)
                failed.append(f"{name}: {type(error).__name__}: {error}")
    table = {"bundle": root.resolve().name, "version": version, "files": [asdict(file) for file in exported]}
    with atomic_path(folder / TABLE) as temporary:
        temporary.write_text(json.dumps(table, indent=4) + "\n", encoding="utf-8")
    if failed:
        raise ExportError(f"{len(failed)} of {len(jobs)} files could not be exported:\n" + "\n".join(failed))
    return exported


def export_part(part: Part, path: str | Path, opset: int = OPSET) -> ExportedFile:
    """Write a part as ONNX, after onnxruntime gave the same as torch on both examples.

    Raises:
        ExportError: it did not; nothing is written.
    """
    content = _onnx_bytes(part, opset)
    outputs = _outputs(part)
    difference = _largest_difference(part, content, outputs)
    if not difference <= TOLERANCE:
        raise ExportError(f"onnxruntime differs from the network by {difference:g}, expected at most {TOLERANCE:g}")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    tensors = dict(zip((*part.input_names, part.output_name), (*part.examples[0], outputs[0]), strict=True))
    shapes = {
        name: [part.dynamic_axes.get(name, {}).get(axis, size) for axis, size in enumerate(value.shape)]
        for name, value in tensors.items()
    }
    output = {part.output_name: shapes.pop(part.output_name)}
    return _row(Path(path), shapes, output, part.dynamic_axes, difference)


def _onnx_jobs(root: Path, opset: int) -> dict[str, Callable[[Path], ExportedFile]]:
    """What to call for each .onnx of a bundle."""
    config = ConfigParser.load_config_file(find_config(root, "inference"))
    jobs: dict[str, Callable[[Path], ExportedFile]] = {}
    for network_id, weights in NETWORKS.items():
        whole = network_id == "network_def"
        if not whole and network_id not in config:
            continue
        network = load_bundle_network(root, network_id=network_id, weights=weights)
        kind = type(network).__name__
        if kind in PARTS:
            for part in PARTS[kind](network, whole):
                jobs[f"{part.name}.onnx"] = partial(export_part, part, opset=opset)
        else:
            jobs[f"{network_id}.onnx"] = partial(_refuse, kind)
    return jobs


def _refuse(kind: str, path: Path) -> ExportedFile:
    known = ", ".join(PARTS)
    raise ExportError(f"found a {kind}, expected one of {known}: say its parts in common/sharing/export_parts.py")


def _onnx_bytes(part: Part, opset: int) -> bytes:
    buffer = io.BytesIO()
    names = [*part.input_names, part.output_name]
    with torch.no_grad(), _quiet():
        # The exporter that traces, though deprecated: sizes that the networks compute with (padding, attention) stay
        # symbols without being declared to be multiples of anything, and the graph is that of model.ts.
        torch.onnx.export(
            part.module,
            part.examples[0],
            buffer,  # type: ignore[arg-type]  # which the tracing exporter takes
            input_names=names[:-1],
            output_names=names[-1:],
            dynamic_axes=part.dynamic_axes,
            opset_version=opset,
            dynamo=False,
        )
    return buffer.getvalue()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of what the comparison decides anyway, and of the exporter's age."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", message="Constant folding")
        yield


def _outputs(part: Part) -> list[Tensor]:
    with torch.no_grad():
        return [part.module(*inputs) for inputs in part.examples]


def _largest_difference(part: Part, content: bytes, expected: list[Tensor]) -> float:
    """Of onnxruntime's outputs from torch's, on the CPU; NaN where either is.

    Raises:
        ExportError: a shape differs.
    """
    import onnx
    import onnxruntime

    onnx.checker.check_model(content)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    differences = []
    for inputs, wanted in zip(part.examples, expected, strict=True):
        feed = {name: value.numpy() for name, value in zip(part.input_names, inputs, strict=True)}
        found = torch.from_numpy(session.run([part.output_name], feed)[0])
        if found.shape != wanted.shape:
            raise ExportError(f"onnxruntime gives the shape {list(found.shape)}, the network {list(wanted.shape)}")
        differences.append((found - wanted).abs().max())
    return torch.stack(differences).max().item()


def _export_torchscript(root: Path, path: Path) -> ExportedFile:
    difference = trace_bundle(root, path)
    declared = read_metadata(root)["network_data_format"]
    inputs = {name: _declared_shape(value) for name, value in declared["inputs"].items()}
    outputs = {name: _declared_shape(value) for name, value in declared["outputs"].items()}
    axes = {
        name: {axis: size for axis, size in enumerate(shape) if isinstance(size, str)}
        for name, shape in (inputs | outputs).items()
    }
    return _row(path, inputs, outputs, axes, difference)


def _declared_shape(declared: dict[str, Any]) -> list[int | str]:
    if declared["type"] == "timesteps":
        return ["batch"]
    return ["batch", declared["num_channels"], *declared["spatial_shape"]]


def _row(path: Path, inputs: dict, outputs: dict, axes: DynamicAxes, difference: float) -> ExportedFile:
    return ExportedFile(path.name, inputs, outputs, axes, difference, path.stat().st_size, file_sha256(path))


def _signature(shapes: dict[str, list[int | str]]) -> str:
    return ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in shapes.items())


def _require_packages() -> None:
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"ONNX needs {' and '.join(missing)}, which is not installed: pip install '.[export]' in the repository, "
            "or --onnx False for TorchScript alone"
        )
