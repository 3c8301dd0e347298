"""A bundle's networks as ONNX, checked by onnxruntime, and as TorchScript, with a table of the files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RunError
from ..files import atomic_path, write_json
from ..fingerprint import file_sha256
from ..networks.weights import described, load_weights
from ..progress import ProgressBar
from .bundle import Bundle
from .torchscript import Inputs, fake_inputs, largest_difference, trace_bundle

TOLERANCE = 1e-3
OPSET = 17
TABLE = "exports.json"


class Method(nn.Module):
    """A method of a network, such as `encode`, as a network from one tensor to one."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, value: Tensor) -> Tensor:
        """Call it."""
        return getattr(self.network, self.name)(value)


@dataclass(frozen=True)
class Part:
    """A network that becomes a file of its own: its output's name, and batches that differ along all axes that may."""

    name: str
    network: nn.Module
    output: str
    batches: tuple[Inputs, Inputs]

    @torch.no_grad()
    def shapes(self) -> dict[str, list[int | str]]:
        """Shapes of the inputs, then of the output; what may vary, B, H and W, has a name in place of a number."""
        axes = ("batch", "{}_channels", "{}_height", "{}_width")
        one, other = ({**batch, self.output: self.network(*batch.values())} for batch in self.batches)
        return {
            name: [
                size if size == other[name].shape[axis] else axes[axis].format(name)
                for axis, size in enumerate(value.shape)
            ]
            for name, value in one.items()
        }


def export_bundle(
    bundle: Bundle, folder: Path, onnx: bool = True, torchscript: bool = True, opset: int = OPSET
) -> Iterator[dict[str, Any]]:
    """Export a bundle's networks one after the other, and write the table `exports.json` beside them at the end.

    ONNX is written for `network_def`, and for encoder and decoder of a codec, be it that or `autoencoder.pt`;
    TorchScript is `model.ts`, see `trace_bundle`.

    Yields:
        Of each file: name, inputs and outputs (see `Part.shapes`), max_difference from the network, size_bytes, sha256.

    Raises:
        RunError: the bundle gives no network; or, at the end, a file could not be exported, or differs by more than
            `TOLERANCE`. Of such a file nothing is left, not even an older one.
        WeightsError: there are no weights, or they are of another network.
    """
    parts, rows, failed = list(_parts(bundle)), [], []
    jobs = [(f"{part.name}.onnx", part, partial(write_onnx, part, opset=opset)) for part in parts if onnx]
    jobs += [("model.ts", parts[0], partial(trace_bundle, bundle))] if torchscript else []
    for name, part, write in ProgressBar(jobs, desc="export"):
        path = folder / name
        try:
            shapes, difference = part.shapes(), write(path)
        except Exception as error:  # whatever an exporter raises concerns this file alone
            path.unlink(missing_ok=True)
            failed.append(f"{name}: {type(error).__name__}: {error}")
            continue
        row = {"name": name, "outputs": {part.output: shapes.pop(part.output)}, "inputs": shapes}
        measured = {"max_difference": difference, "size_bytes": path.stat().st_size, "sha256": file_sha256(path)}
        rows.append({**row, **measured})
        yield rows[-1]
    table = {"bundle": bundle.root.resolve().name, "version": bundle.metadata.get("version"), "files": rows}
    write_json(folder / TABLE, table)
    if failed:
        install = "pip install -e '.[export]' -c scripts/constraints.txt"
        hint = f"\nONNX needs {install}; --onnx False goes without" if onnx else ""
        raise RunError(f"{len(failed)} of {len(jobs)} files could not be exported:\n" + "\n".join(failed) + hint)


def as_line(row: dict[str, Any]) -> str:
    """A row of the table for people."""
    inputs, outputs = (", ".join(f"{name} {row[key][name]}" for name in row[key]) for key in ("inputs", "outputs"))
    return (
        f"{row['name']}: {inputs} -> {outputs}; differs by at most {row['max_difference']:.1e}; "
        f"{row['size_bytes'] / 2**20:.1f} MiB; sha256 {row['sha256']}".replace("'", "")
    )


def _parts(bundle: Bundle) -> Iterator[Part]:
    network = load_weights(bundle.build().float(), bundle.root / "models" / "model.pt")
    one, other = (fake_inputs(network, bundle.metadata, *size) for size in ((2, (2, 3)), (1, (3, 2))))
    yield Part("denoiser" if "timesteps" in one else "network", network, "pred", (one, other))
    codec: Any = network
    if (codec_path := bundle.root / "models" / "autoencoder.pt").is_file():
        codec = load_weights(described(codec_path).float(), codec_path)
    if hasattr(codec, "decode"):
        factor, channels = codec.downsampling_factor, codec.latent_channels
        images = [{"image": torch.rand(b, 1, h * factor, w * factor)} for b, h, w in ((2, 4, 6), (1, 6, 5))]
        latents = [{"latents": torch.randn(b, channels, h, w)} for b, h, w in ((2, 4, 6), (1, 6, 5))]
        yield Part("encoder", Method(codec, "encode"), "latents", (images[0], images[1]))
        yield Part("decoder", Method(codec, "decode"), "image", (latents[0], latents[1]))


def write_onnx(part: Part, path: Path, opset: int = OPSET) -> float:
    """Write a network as ONNX and return the difference, after onnxruntime gave the same as torch on both batches.

    Raises:
        RunError: it did not; nothing is written.
    """
    import onnx
    import onnxruntime

    buffer, first = io.BytesIO(), part.batches[0]
    axes = {name: {i: s for i, s in enumerate(shape) if isinstance(s, str)} for name, shape in part.shapes().items()}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the comparison decides anyway, and of the exporter's age
        # The exporter that traces, though deprecated: sizes that the networks compute with (padding, attention) stay
        # symbols without being declared to be multiples of anything, and the graph is that of model.ts.
        options: dict[str, Any] = {"dynamic_axes": axes, "opset_version": opset, "dynamo": False}
        names = {"input_names": list(first), "output_names": [part.output]}
        torch.onnx.export(part.network.eval(), tuple(first.values()), buffer, **names, **options)  # type: ignore[arg-type]
    content = buffer.getvalue()
    onnx.checker.check_model(content)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        feed = {name: value.numpy() for name, value in zip(first, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    difference = largest_difference(part.network, run, part.batches)
    if not difference <= TOLERANCE:
        raise RunError(f"onnxruntime differs from the network by {difference:g}, expected at most {TOLERANCE:g}")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return difference
