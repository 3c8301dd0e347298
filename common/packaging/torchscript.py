"""A bundle's network as TorchScript, which runs without any code of ours, as bytes that depend on nothing but it."""

from __future__ import annotations

import inspect
import io
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle.scripts import _get_fake_spatial_shape
from monai.data import load_net_with_metadata, save_net_with_metadata
from torch import Tensor, nn

from ..errors import RunError
from ..files import atomic_path
from ..networks.weights import load_weights
from .bundle import Bundle

TORCHSCRIPT = Path("models") / "model.ts"
TOLERANCE = 1e-4
DROPPED = re.compile(r"\.debug_pkl$|^traced_inputs|^\.data/serialization_id$")
TEXTUAL = re.compile(r"^code/|\.pkl$")  # records that name classes; the others are numbers
MANGLED = re.compile(rb"___torch_mangle_(\d+)")
METHOD = re.compile(r"^  def \w+\(self: [\w.]+,\s+(?P<input>\w+): Tensor.*?(?=^  def |\Z)", re.DOTALL | re.MULTILINE)
PINNED = re.compile(r'torch\.device\("\w+(?::\d+)?"\)')

Inputs = dict[str, Tensor]
"""A batch: tensors by name, in the order in which a network takes them."""


def trace_bundle(bundle: Bundle, output_path: Path) -> float:
    """Write `network_def` with the weights of `models/model.pt` as TorchScript, the metadata inside.

    The file is what `monai.bundle.load(..., load_ts_module=True)` reads. Same bundle, same torch: same bytes. (MONAI's
    `ckpt_export` traces with one tensor as input, and writes the time and paths of this machine into the file.)

    Returns:
        The largest absolute difference from the network, on two batches of different number and size.

    Raises:
        RunError: config or metadata give no network; or the traced one differs by more than `TOLERANCE`, fails at
            another size or is bound to a device. Nothing is written then.
        WeightsError: there are no weights, or they are of another network.
    """
    network = load_weights(bundle.build().float(), bundle.root / "models" / "model.pt")
    one, other = (fake_inputs(network, bundle.metadata, *size) for size in ((2, (4, 6)), (1, (6, 5))))
    content = _traced(network, one, bundle.metadata)
    traced, _, _ = load_net_with_metadata(io.BytesIO(content), map_location=torch.device("cpu"))
    difference = largest_difference(network, traced, (one, other))
    if not difference <= TOLERANCE:
        raise RunError(
            f"{bundle.root}: the traced network differs by {difference:g}, expected at most {TOLERANCE:g}: its forward "
            "computes something in Python, outside of tensors, that depends on the input or its size"
        )
    with atomic_path(output_path) as temporary:
        temporary.write_bytes(content)
    return difference


def fake_inputs(network: nn.Module, metadata: Mapping[str, Any], batch: int, scale: tuple[int, int]) -> Inputs:
    """Draw inputs as `network_data_format` declares them: uniform in a value range, normal where there is none.

    The network's `forward` says their order; `image` is the first whatever it is called there. There are `batch` of
    them, and `scale` is what `n` stands for in H and in W, such as `8*n`; a third axis takes that of W.
    """
    declared = metadata.get("network_data_format", {}).get("inputs", {})
    names = ["image", *list(inspect.signature(network.forward).parameters)[1:]][: len(declared)]
    if set(names) != set(declared) or not all(isinstance(value, dict) for value in declared.values()):
        raise RunError(f"metadata.json: inputs: expected tensors {names}, which the network takes; found {declared}")
    generator, inputs = torch.Generator().manual_seed(batch), {}
    for name in names:
        shape, dtype = fake_shape(declared[name], batch, scale), getattr(torch, declared[name]["dtype"])
        if declared[name]["value_range"]:
            low, high = declared[name]["value_range"]
            inputs[name] = (low + (high - low) * torch.rand(shape, generator=generator)).to(dtype)
        else:
            inputs[name] = torch.randn(shape, generator=generator).to(dtype)
    return inputs


def fake_shape(declared: Mapping[str, Any], batch: int, scale: tuple[int, int]) -> list[int]:
    """Shape of a tensor that the metadata declare; one of type `timesteps` has one number per image, no channels."""
    if declared["type"] == "timesteps":
        return [batch]
    axes = zip(declared["spatial_shape"], (*scale, scale[-1]), strict=False)
    return [batch, declared["num_channels"], *(_get_fake_spatial_shape([axis], n=n, any=16 * n)[0] for axis, n in axes)]


@torch.no_grad()
def largest_difference(network: nn.Module, other: Callable[..., Tensor], batches: Sequence[Inputs]) -> float:
    """Largest absolute difference of `other`'s outputs from the network's; NaN where either is.

    Raises:
        RunError: one of them does not run, or gives something else than a tensor, or one of another shape.
    """
    differences = []
    for inputs in batches:
        try:
            expected, found = network(*inputs.values()), other(*inputs.values())
            if not isinstance(expected, Tensor) or found.shape != expected.shape:
                raise ValueError(
                    f"{getattr(found, 'shape', found)}; the network gives {getattr(expected, 'shape', expected)}"
                )
        except (RuntimeError, ValueError) as error:
            shapes = {name: list(value.shape) for name, value in inputs.items()}
            raise RunError(f"for {shapes} expected one tensor as from the network, found {error}") from error
        differences.append((found - expected).abs().max())
    return torch.stack(differences).max().item()


def _traced(network: nn.Module, inputs: Inputs, metadata: Mapping[str, Any]) -> bytes:
    """A TorchScript file of a network, without anything of this machine and process."""
    buffer = io.BytesIO()
    try:
        # A trace notes these settings for good; another part of this process may have changed them.
        settings = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=True)
        with settings, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # the comparison at another size tells for sure
            # Classes are named after ours, with a number where a name is taken. After a first time all names are.
            for _ in range(2):
                traced = torch.jit.trace(network, tuple(inputs.values()), check_trace=False)
            # With MONAI's and torch's versions comes a time stamp; the bundle's metadata have versions.
            save_net_with_metadata(traced, buffer, include_config_vals=False, meta_values=metadata)
    except (RuntimeError, TypeError, ValueError) as error:
        raise RunError(f"{type(network).__name__}: cannot be traced: {error}") from error
    return _canonical(buffer.getvalue())


def _canonical(saved: bytes) -> bytes:
    """The zip of torch.jit.save without source paths and example inputs, with class numbers from 0, in sorted order."""
    with zipfile.ZipFile(io.BytesIO(saved)) as archive:
        records = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    records = {name: data for name, data in records.items() if not DROPPED.search(name)}
    text = b"\n".join(data for name, data in records.items() if TEXTUAL.search(name))
    numbers = sorted({int(number) for number in MANGLED.findall(text)})

    def renumbered(content: bytes) -> bytes:
        return MANGLED.sub(lambda match: b"___torch_mangle_%d" % numbers.index(int(match[1])), content)

    clean = {}
    for name, data in records.items():
        data = renumbered(data) if TEXTUAL.search(name) else data
        data = _on_device_of_input(data.decode()).encode() if name.startswith("code/") else data
        clean[renumbered(name.encode()).decode()] = data
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(clean):  # all of 1 January 1980, in a folder that torch would name after the file
            archive.writestr(zipfile.ZipInfo(f"model/{name}"), clean[name])
    return buffer.getvalue()


def _on_device_of_input(code: str) -> str:
    """Code of a traced class that makes its tensors where its input is; a trace notes the device it ran on instead."""
    code = METHOD.sub(lambda match: PINNED.sub(f"ops.prim.device({match['input']})", match[0]), code)
    if PINNED.search(code):
        raise RunError(f"the traced network makes tensors on a fixed device, none of its inputs':\n{code}")
    return code
