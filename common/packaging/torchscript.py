"""A bundle's network as TorchScript, which runs without any code of ours, as bytes that depend on nothing but it."""

from __future__ import annotations

import importlib
import inspect
import io
import json
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.bundle.scripts import _get_fake_spatial_shape
from monai.data import load_net_with_metadata, save_net_with_metadata
from torch import Tensor, nn

from ..errors import UserError
from ..files import atomic_path
from ..networks.weights import load_weights

TOLERANCE = 1e-4
CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
ARCHIVE = "model"  # folder within the zip; torch.jit.save would take the file's name
ALIGNMENT = 64  # bytes, of every record, as torch writes them
LOCAL_HEADER = 30  # bytes of a zip's header of a record, without its name and extra field
DROPPED = re.compile(r"\.debug_pkl$|^traced_inputs|^\.data/serialization_id$")
TEXTUAL = re.compile(r"^code/|\.pkl$")  # records that name classes; the others are numbers
MANGLED = re.compile(rb"___torch_mangle_(\d+)")
METHOD = re.compile(r"^  def \w+\(self: [\w.]+,\s+(?P<input>\w+): Tensor.*?(?=^  def |\Z)", re.DOTALL | re.MULTILINE)
PINNED = re.compile(r'torch\.device\("\w+(?::\d+)?"\)')


class BundleNetworkError(UserError, ValueError):
    """A bundle's files do not give a network."""


class TraceError(UserError, ValueError):
    """A network cannot be traced into something that does the same."""


def trace_bundle(bundle_root: str | Path, output_path: str | Path, config_name: str = "inference") -> float:
    """Write the bundle's `network_def` with the weights of `models/model.pt` as TorchScript, its metadata inside.

    The file is what `monai.bundle.load(..., load_ts_module=True)` reads. Same bundle, same torch: same bytes. It is
    written only after it was loaded and compared with the network on two batches of different number and size.

    Args:
        bundle_root: folder with `configs` and `models`, of the repository or packaged.
        output_path: file to write, `model.ts` by custom.
        config_name: of the config that says what `network_def` is, without its ending.

    Returns:
        The largest absolute difference of an output from the network's.

    Raises:
        BundleNetworkError: config, metadata or weights do not give a network.
        MissingWeightsError: there are no weights.
        TraceError: the traced network differs by more than `TOLERANCE`, fails at another size or is bound to a device.
    """
    root = Path(bundle_root)
    metadata = read_metadata(root)
    with bundle_on_path(root):
        network = load_bundle_network(root, config_name)
        traced_at = positional_inputs(network, fake_inputs(metadata, 2, (4, 6), seed=0))
        other = positional_inputs(network, fake_inputs(metadata, 1, (6, 5), seed=1))
        content = traced_bytes(network, traced_at, metadata)
        difference = _largest_difference(network, content, (traced_at, other))
    if not difference <= TOLERANCE:
        raise TraceError(
            f"{root}: the traced network differs from the network by {difference:g}, expected at most {TOLERANCE:g}: "
            "its forward computes something in Python, outside of tensors, that depends on the input or its size"
        )
    with atomic_path(output_path) as temporary:
        temporary.write_bytes(content)
    return difference


def read_metadata(bundle_root: Path) -> dict[str, Any]:
    """Read the bundle's metadata.json.

    Raises:
        BundleNetworkError: there is none, or no JSON in it.
    """
    path = bundle_root / "configs" / "metadata.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleNetworkError(f"{path}: expected the bundle's metadata as JSON: {error}") from error


@contextmanager
def bundle_on_path(bundle_root: Path) -> Iterator[None]:
    """Let `_target_: scripts.…` mean this bundle's code, whatever `scripts` was imported before, and undo it."""
    root = str(bundle_root.resolve())
    others = _forget_scripts()
    sys.path.insert(0, root)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(root)
        _forget_scripts()
        sys.modules.update(others)


def load_bundle_network(
    bundle_root: Path, config_name: str = "inference", network_id: str = "network_def", weights: str = "model.pt"
) -> nn.Module:
    """Build a network of the bundle, in eval mode on the CPU, in float32; needs `bundle_on_path` where it is packaged.

    Raises:
        BundleNetworkError: no config, no such id, a network that cannot be built, or weights of another network.
        MissingWeightsError: there are no weights.
    """
    path = find_config(bundle_root, config_name)
    parser = ConfigParser()
    parser.read_config(str(path))
    parser["bundle_root"] = str(bundle_root)
    try:
        network = parser.get_parsed_content(network_id)
    except (KeyError, ValueError, RuntimeError, TypeError, ModuleNotFoundError) as error:
        raise BundleNetworkError(f"{path}: cannot build '{network_id}': {error.__cause__ or error}") from error
    if not isinstance(network, nn.Module):
        raise BundleNetworkError(f"{path}: expected a network as '{network_id}', found {type(network).__name__}")
    file = bundle_root / "models" / weights
    try:
        return load_weights(network.float(), file)
    except RuntimeError as error:
        raise BundleNetworkError(f"{file}: not the weights of '{network_id}' in {path.name}: {error}") from error


def find_config(bundle_root: Path, config_name: str) -> Path:
    """The bundle's config of that name, YAML before its JSON twin.

    Raises:
        BundleNetworkError: there is none.
    """
    files = [bundle_root / "configs" / f"{config_name}{suffix}" for suffix in CONFIG_SUFFIXES]
    found = [path for path in files if path.is_file()]
    if not found:
        raise BundleNetworkError(f"{files[0]}: no such config; expected a bundle's folder, such as bundles/NAME")
    return found[0]


def fake_inputs(metadata: Mapping[str, Any], batch: int, scale: tuple[int, int], seed: int) -> dict[str, Tensor]:
    """Draw inputs as `network_data_format` declares them: uniform in a value range, normal where there is none.

    Args:
        metadata: of the bundle.
        batch: B.
        scale: what `n` stands for in H and in W, such as `8*n`; a third axis takes that of W.
        seed: of the numbers.

    Raises:
        BundleNetworkError: nothing, or something else than tensors, is declared.
    """
    declared = metadata.get("network_data_format", {}).get("inputs", {})
    if "image" not in declared or not all(isinstance(value, dict) for value in declared.values()):
        raise BundleNetworkError(
            f"metadata.json: network_data_format/inputs: expected tensors, 'image' among them, found {declared}"
        )
    generator = torch.Generator().manual_seed(seed)
    return {name: _fake_tensor(value, batch, scale, generator) for name, value in declared.items()}


def traced_bytes(network: nn.Module, inputs: tuple[Tensor, ...], metadata: Mapping[str, Any]) -> bytes:
    """Trace a network; return a TorchScript file without paths, times or anything else of this machine and process.

    Args:
        network: in eval mode.
        inputs: positional, to trace with.
        metadata: to keep in the file, where MONAI looks for it.

    Raises:
        TraceError: it cannot be traced, or is bound to the device that it is traced on.
    """
    buffer = io.BytesIO()
    try:
        # A trace notes these settings for good; another part of this process may have changed them.
        settings = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=True)
        with settings, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # the comparison at another size tells for sure
            # Classes are named after ours, with a number where a name is taken. After a first time all names are.
            for _ in range(2):
                traced = torch.jit.trace(network, inputs, check_trace=False)
            # With MONAI's and torch's versions comes a time stamp; the bundle's metadata have versions.
            save_net_with_metadata(traced, buffer, include_config_vals=False, meta_values=metadata)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TraceError(f"{type(network).__name__}: cannot be traced: {error}") from error
    return _canonical_archive(buffer.getvalue())


def _canonical_archive(saved: bytes) -> bytes:
    """The zip of torch.jit.save without source paths and example inputs, with class numbers from 0, in sorted order."""
    with zipfile.ZipFile(io.BytesIO(saved)) as archive:
        records = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    records = {name: data for name, data in records.items() if not DROPPED.search(name)}
    text = b"\n".join(data for name, data in records.items() if TEXTUAL.search(name))
    numbers = sorted({int(number) for number in MANGLED.findall(text)})
    order = {number: position for position, number in enumerate(numbers)}

    def renumbered(content: bytes) -> bytes:
        return MANGLED.sub(lambda match: b"___torch_mangle_%d" % order[int(match[1])], content)

    clean = {}
    for name, data in records.items():
        data = renumbered(data) if TEXTUAL.search(name) else data
        data = _on_device_of_input(data.decode()).encode() if name.startswith("code/") else data
        clean[renumbered(name.encode()).decode()] = data
    return _aligned_zip(clean)


def _on_device_of_input(code: str) -> str:
    """Code of a traced class that makes its tensors where its input is; a trace notes the device it ran on instead.

    Raises:
        TraceError: a method without a tensor makes one.
    """

    def moved(match: re.Match[str]) -> str:
        return PINNED.sub(f"ops.prim.device({match['input']})", match[0])

    code = METHOD.sub(moved, code)
    if PINNED.search(code):
        raise TraceError(f"the traced network makes tensors on a fixed device, none of its inputs':\n{code}")
    return code


def _aligned_zip(records: Mapping[str, bytes]) -> bytes:
    """A zip of stored records, sorted, all of 1980, each starting at a multiple of `ALIGNMENT` as torch wants it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(records):
            entry = zipfile.ZipInfo(f"{ARCHIVE}/{name}")  # of 1 January 1980
            header = buffer.tell() + LOCAL_HEADER + len(entry.filename.encode()) + 4
            padding = -header % ALIGNMENT
            entry.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding  # torch's own field
            archive.writestr(entry, records[name])
    return buffer.getvalue()


def _largest_difference(network: nn.Module, content: bytes, batches: tuple[tuple[Tensor, ...], ...]) -> float:
    """Of the TorchScript in `content` from the network; NaN where either is.

    Raises:
        TraceError: it does not run, or gives another shape.
    """
    traced, _, _ = load_net_with_metadata(io.BytesIO(content), map_location=torch.device("cpu"))
    differences = []
    for inputs in batches:
        with torch.no_grad():
            expected = _output(network, inputs, "the network")
            found = _output(traced, inputs, "the traced network")
        if found.shape != expected.shape:
            raise TraceError(
                f"for inputs of shapes {_shapes(inputs)} the traced network gives {list(found.shape)}, the network "
                f"{list(expected.shape)}: it computes a size outside of tensors"
            )
        differences.append((found - expected).abs().max())
    return torch.stack(differences).max().item()


def positional_inputs(network: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Inputs in the order of `forward`, `image` first whatever it is called there."""
    names = ["image", *list(inspect.signature(network.forward).parameters)[1:]][: len(inputs)]
    if set(names) != set(inputs):
        raise BundleNetworkError(
            f"metadata.json declares the inputs {list(inputs)}; {type(network).__name__} takes first {names}"
        )
    return tuple(inputs[name] for name in names)


def _fake_tensor(declared: Mapping[str, Any], batch: int, scale: tuple[int, int], generator: torch.Generator) -> Tensor:
    shape = [batch]
    if declared["type"] != "timesteps":  # one number per image, no channels
        axes = declared["spatial_shape"]
        scales = (*scale, scale[-1])[: len(axes)]
        sides = [_get_fake_spatial_shape([axis], n=n, any=16 * n)[0] for axis, n in zip(axes, scales, strict=True)]
        shape += [declared["num_channels"], *sides]
    dtype = getattr(torch, declared["dtype"])
    if not declared["value_range"]:
        return torch.randn(shape, generator=generator).to(dtype)
    low, high = declared["value_range"]
    return (low + (high - low) * torch.rand(shape, generator=generator)).to(dtype)


def _forget_scripts() -> dict[str, Any]:
    names = [name for name in sys.modules if name == "scripts" or name.startswith("scripts.")]
    return {name: sys.modules.pop(name) for name in names}


def _output(network: nn.Module, inputs: tuple[Tensor, ...], name: str) -> Tensor:
    try:
        output = network(*inputs)
    except (RuntimeError, ValueError) as error:
        raise TraceError(f"{name} does not take inputs of shapes {_shapes(inputs)}: {error}") from error
    if not isinstance(output, Tensor):
        raise TraceError(f"{name} gives a {type(output).__name__}; expected one tensor")
    return output


def _shapes(inputs: tuple[Tensor, ...]) -> str:
    return ", ".join(str(list(value.shape)) for value in inputs)
