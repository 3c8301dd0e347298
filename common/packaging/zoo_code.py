"""What a bundle's code and weights do; `zoo_check` runs it as `python -m common.packaging.zoo_code BUNDLE RESULT`.

In that process the package it is in cannot be imported by name: a bundle that needs it fails.
"""

from __future__ import annotations

import io
import json
import pydoc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monai.bundle
import torch
from monai.bundle import ComponentLocator, ConfigComponent
from torch import nn

from ..config_graph import iter_items
from .bundle import Bundle
from .torchscript import TOLERANCE, TORCHSCRIPT, fake_inputs, fake_shape, largest_difference

WEIGHTS = Path("models") / "model.pt"


def targets(bundle: Bundle) -> Iterator[str]:
    """Every `_target_` of every config exists and can be called."""
    locator = ComponentLocator()  # of MONAI's short names
    for name, tree in bundle.configs.items():
        for item_id, target in iter_items(tree):
            if item_id.endswith("_target_") and isinstance(target, str) and target[:1] not in "$@%":
                component = ConfigComponent({"_target_": target}, locator=locator)
                try:
                    found = pydoc.locate(str(component.resolve_module_name()))
                except (pydoc.ErrorDuringImport, AttributeError) as error:  # the latter where a package is kept out
                    found = error
                if not callable(found):
                    yield f"{name}: {item_id}: {target!r} does not exist or cannot be called; found {found}"


def weights(bundle: Bundle) -> Iterator[str]:
    """The weights are plain tensors, and exactly those of `network_def`."""
    if not (bundle.root / WEIGHTS).is_file():
        yield f"no {WEIGHTS} to load; download_large_files gets what large_files.yml lists"
    else:
        _loaded(bundle)


def network(bundle: Bundle, n: int = 1) -> Iterator[str]:
    """`network_def` takes and gives what the metadata say: MONAI's own check, and the output's shape, which it skips.

    Weights are not needed. `n` is what it stands for in a spatial shape such as `8*n`.
    """
    declared = bundle.metadata["network_data_format"]
    if "image" not in declared["inputs"] or "pred" not in declared["outputs"]:
        yield "metadata.json: no input `image` or no output `pred`, which MONAI's verify_net_in_out looks for"
        return
    module, configs = bundle.build(), bundle.root / "configs"
    inputs = fake_inputs(module, bundle.metadata, 1, (n, n))
    options: dict[str, Any] = {"device": "cpu", "n": n, "p": 1, "any": 1, "bundle_root": str(bundle.root)}
    monai.bundle.verify_net_in_out(
        *("network_def", str(configs / "metadata.json"), str(configs / (bundle.workflow("inference") or ""))),
        **options,
        extra_forward_args={name: value for name, value in inputs.items() if name != "image"},
    )
    with torch.no_grad():
        found = list(module(*inputs.values()).shape)
    expected = fake_shape(declared["outputs"]["pred"], 1, (n, n))[: None if len(found) > 2 else 2]  # scores of classes
    if found != expected:
        yield f"network_def gives {found}, metadata.json says {expected}"


def torchscript(bundle: Bundle) -> Iterator[str]:
    """`network_def` can be traced, saved and loaded, and gives the same then; models/model.ts, if any, does too."""
    module, buffer = _loaded(bundle), io.BytesIO()
    inputs = fake_inputs(module, bundle.metadata, 1, (1, 1))
    torch.jit.save(torch.jit.trace(module, tuple(inputs.values()), check_trace=False), buffer)
    buffer.seek(0)
    others = {"the traced network": torch.jit.load(buffer)}
    if (bundle.root / TORCHSCRIPT).is_file():
        others[TORCHSCRIPT.name] = torch.jit.load(bundle.root / TORCHSCRIPT, map_location="cpu")
    for name, other in others.items():
        difference = largest_difference(module, other, [inputs])
        if not difference <= TOLERANCE:
            yield f"{name} differs from network_def by {difference:.2g}"


def _loaded(bundle: Bundle) -> nn.Module:
    state = torch.load(bundle.root / WEIGHTS, map_location="cpu", weights_only=True)
    module = bundle.build()
    module.load_state_dict(state.get("model", state))
    return module


def answers(bundle: Bundle) -> dict[str, list[str]]:
    """By name of the question its problems, none when all is well; a check that breaks has found something, too."""
    found = {}
    for check in (targets, weights, network, torchscript):
        try:
            found[check.__name__] = list(check(bundle))
        except Exception as error:  # of anybody's code
            found[check.__name__] = [f"{type(error).__name__}: {error}"]
    return found


if __name__ == "__main__":
    root, result = map(Path, sys.argv[1:])
    package = __package__.split(".")[0]
    for loaded in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[loaded]
    sys.path[:] = [str(root), *sys.path[1:]]  # in place of the current directory
    if not (root / package).exists():
        sys.modules[package] = None  # type: ignore[assignment]
    result.write_text(json.dumps(answers(Bundle(root))), encoding="utf-8")
