"""Checks of a bundle's metadata, and of its properties and network as MONAI builds them from the configs."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai.bundle
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.scripts import _get_fake_spatial_shape

VERSION = re.compile(r"\d+(\.\d+){1,3}")
FIRST_NUMPY_WITHOUT_PYTHON_310 = (2, 3)  # the model zoo's checks run on Python 3.10

_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
_TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": _TEXT}
_TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
    "properties": {
        "type": _TEXT,
        "format": _TEXT,
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {"type": "array", "minItems": 1, "items": {"type": ["string", "integer"]}},
        "dtype": _TEXT,
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object"},
    },
}
_ARGUMENTS: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {"anyOf": [{"type": ["number", "string", "boolean"]}, _TENSOR]},
}
_NETWORK: dict[str, Any] = {
    "type": "object",
    "required": ["inputs", "outputs"],
    "properties": {"inputs": _ARGUMENTS, "outputs": _ARGUMENTS, "post_processed_outputs": _ARGUMENTS},
}
_VERIFIED_NETWORK: dict[str, Any] = {
    "properties": {
        "inputs": {"required": ["image"], "properties": {"image": _TENSOR}},
        "outputs": {"required": ["pred"], "properties": {"pred": _TENSOR}},
    }
}
_TEXT_KEYS = (
    *("schema", "name", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description"),
    *("authors", "copyright", "data_source", "data_type", "image_classes", "label_classes", "pred_classes"),
    "intended_use",
)
METADATA_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2019-09/schema",
    "type": "object",
    "required": [
        *("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"),
        *("required_packages_version", "task", "description", "authors", "copyright", "network_data_format"),
    ],
    "properties": {
        **dict.fromkeys(_TEXT_KEYS, _TEXT),
        "changelog": _TEXTS,
        "required_packages_version": _TEXTS,
        "eval_metrics": {"type": "object"},
        "supported_apps": {"type": "object"},
        "references": {"type": "array", "items": _TEXT},
        "network_data_format": _VERIFIED_NETWORK,
    },
    "patternProperties": {"^[_a-zA-Z0-9]+_data_format$": _NETWORK},
}
"""Our own writing of what the model zoo's meta_schema_20240725 asks for, and stricter: no empty text, a changelog, and
the `image` and `pred` that `verify_net_in_out` looks for. The official one needs a download, these checks none."""


def check_metadata(bundle_dir: Path) -> list[str]:
    """`metadata.json` follows the schema, and its versions make sense."""
    path = bundle_dir / "configs" / "metadata.json"
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        return [f"metadata.json: cannot be read: {error}"]
    problems = check_schema(metadata)
    return problems or check_versions(metadata)


def check_schema(metadata: Any) -> list[str]:
    """The metadata follow `METADATA_SCHEMA`."""
    import jsonschema  # a tool of developers, not of users

    errors = jsonschema.Draft201909Validator(METADATA_SCHEMA).iter_errors(metadata)
    return [f"metadata.json: {'/'.join(map(str, error.path)) or 'top level'}: {error.message}" for error in errors]


def check_versions(metadata: dict[str, Any]) -> list[str]:
    """The bundle's version heads its changelog; no package is newer than the one installed here."""
    problems = []
    version, changelog = metadata["version"], metadata["changelog"]
    bad = [v for v in (version, *changelog) if not VERSION.fullmatch(v)]
    problems += [f"metadata.json: '{v}' is no version" for v in bad]
    if version not in changelog:
        problems.append(f"metadata.json: version {version} is not in the changelog")
    elif not bad and version != max(changelog, key=_as_numbers):
        problems.append(f"metadata.json: version {version} is not the newest of the changelog")
    packages = {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    for package, wanted in {**packages, **metadata["required_packages_version"]}.items():
        problem = _version_problem(package, wanted)
        problems += [f"metadata.json: {package} {wanted}: {problem}"] if problem else []
    numpy = metadata["numpy_version"]
    if VERSION.fullmatch(numpy) and _as_numbers(numpy)[:2] >= FIRST_NUMPY_WITHOUT_PYTHON_310:
        problems.append(f"metadata.json: numpy {numpy} has no wheel for Python 3.10, which the model zoo checks with")
    return problems


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _version_problem(package: str, wanted: str) -> str | None:
    """What is wrong with one package version, or None."""
    if not VERSION.fullmatch(wanted):
        return "no version"
    try:
        installed = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed here; keys are the names that pip knows"
    match = VERSION.match(installed)
    if match and _as_numbers(wanted) > _as_numbers(match[0]):
        return f"newer than {installed}, which this was checked with"
    return None


def check_properties(
    files: Sequence[Path], workflow_type: str, overrides: dict[str, Any] | None = None, init_id: str = "initialize"
) -> list[str]:
    """MONAI finds all its standard properties, in the right places, in a workflow that is really built.

    It builds data sets and engines and runs neither; `overrides` must name existing data and an output folder.

    Args:
        files: config files to merge, the workflow's own first.
        workflow_type: `train` or `infer`.
        overrides: ids and values, as on the command line.
        init_id: what to run first; one that does not exist for nothing.
    """
    name = " + ".join(path.name for path in files)
    paths = [str(path) for path in files]
    try:
        workflow = ConfigWorkflow(
            paths, workflow_type=workflow_type, logging_file=False, init_id=init_id, **(overrides or {})
        )
        workflow.initialize()
        missing = workflow.check_properties() or []
    except (KeyError, ValueError, RuntimeError, OSError, ModuleNotFoundError) as error:
        return [f"{name}: cannot be built: {root_cause(error)}"]
    return [f"{name}: property '{prop}' is missing or not where MONAI looks for it" for prop in missing]


def root_cause(error: BaseException) -> str:
    """The innermost error; MONAI's own is only 'Failed to instantiate component'."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def check_network(files: Sequence[Path], n: int = 1, overrides: dict[str, Any] | None = None) -> list[str]:
    """`network_def` does what the metadata say, on the CPU: MONAI's own check, and the output's shape, which it skips.

    Args:
        files: config files to merge, metadata.json beside the first.
        n: what `n` stands for in a spatial shape such as `8*n`.
        overrides: ids and values, as on the command line.
    """
    name = " + ".join(path.name for path in files)
    meta_file = files[0].with_name("metadata.json")
    paths = [str(path) for path in files]
    try:
        declared = json.loads(meta_file.read_text(encoding="utf-8"))["network_data_format"]
        others = {key: _fake_input(value, n) for key, value in declared["inputs"].items() if key != "image"}
        monai.bundle.verify_net_in_out(
            "network_def",
            str(meta_file),
            paths,
            device="cpu",
            n=n,
            p=1,
            any=1,
            extra_forward_args=others,
            **(overrides or {}),
        )
        parser = ConfigParser()
        parser.read_config(paths)
        parser.update(overrides or {})
        network = parser.get_parsed_content("network_def").eval()
        with torch.no_grad():
            found = list(network(_fake_input(declared["inputs"]["image"], n), **others).shape)
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError, ModuleNotFoundError) as error:
        return [f"{name}: network_def does not fit metadata.json: {root_cause(error)}"]
    expected = list(_fake_input(declared["outputs"]["pred"], n).shape)
    if len(found) == 2:  # one number per class: no sides to compare, whatever is declared
        expected = expected[:2]
    return [] if found == expected else [f"{name}: network_def gives {found}, metadata.json says {expected}"]


def _fake_input(declared: Any, n: int) -> Any:
    """A value as declared for a batch of one; a tensor of type `timesteps` has one number per image and no channels."""
    if not isinstance(declared, dict):
        return declared
    if declared["type"] == "timesteps":
        return torch.zeros(1, dtype=getattr(torch, declared["dtype"]))
    return torch.rand(1, declared["num_channels"], *_get_fake_spatial_shape(declared["spatial_shape"], n=n))
