"""Convert a checkpoint written with monai-generative into weights for MONAI core's network of the same name.

python scripts/convert_checkpoint.py --kind autoencoder_kl --arguments legacy.json --checkpoint old.pt --output new.pt
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.command_line import run_command
from common.errors import WeightsError
from common.files import write_json
from common.networks.legacy import (
    KINDS,
    TOLERANCE,
    core_arguments,
    load_legacy_network,
    read_legacy_state,
    verify_against_generative,
)
from common.networks.weights import save_atomically


def convert_checkpoint(
    kind: str,
    arguments: str,
    checkpoint: str,
    output: str,
    entry: str | None = None,
    verify: bool | None = None,
    overwrite: bool = False,
) -> None:
    """Write the core network's state dict to `output` and, beside it, a .json from which MONAI can build the network.

    Args:
        kind: autoencoder_kl or diffusion_model_unet.
        arguments: JSON file with the constructor arguments of the old network; a `_target_` in it is ignored.
        checkpoint: old file: a state dict, or a training checkpoint that holds one.
        output: .pt to write.
        entry: key of the state dict in the checkpoint, where it holds several.
        verify: compare outputs with monai-generative's network before writing; by default when it is installed.
        overwrite: replace files that an earlier conversion wrote.
    """
    weights, description = _output_paths(output, (arguments, checkpoint), overwrite)
    legacy_arguments = _read_arguments(arguments)
    state = read_legacy_state(checkpoint, entry)
    network = load_legacy_network(kind, legacy_arguments, state)
    print(_verification(kind, legacy_arguments, state, network, verify))
    target = f"monai.networks.nets.{KINDS[kind].__name__}"
    write_json(description, {"_target_": target, **core_arguments(kind, legacy_arguments)})
    save_atomically(network.state_dict(), weights)
    count = sum(value.numel() for value in network.state_dict().values())
    print(f"{weights}: {count:,} weights, {weights.stat().st_size / 2**20:.1f} MiB; built from {description}")


def _output_paths(output: str, inputs: tuple[str, ...], overwrite: bool) -> tuple[Path, Path]:
    """Return the files to write, after making sure that neither destroys anything."""
    weights = Path(output)
    description = weights.with_suffix(".json")
    if weights == description:
        raise WeightsError(f"Found --output {output}; expected a file of weights such as new.pt")
    for path in (weights, description):
        if path.resolve() in {Path(item).resolve() for item in inputs}:
            raise WeightsError(f"{path} is an input and would be overwritten: give another --output")
        if path.exists() and not overwrite:
            raise WeightsError(f"{path} exists: give another --output, or --overwrite True to replace it")
    return weights, description


def _verification(
    kind: str, legacy_arguments: dict[str, Any], state: dict[str, Tensor], network: nn.Module, verify: bool | None
) -> str:
    """Verify as asked and say what came out; None is content without monai-generative, True is not."""
    if verify is False:
        return "not verified, as asked"
    try:
        difference = verify_against_generative(kind, legacy_arguments, state, network)
    except ImportError as error:
        if verify:
            raise WeightsError(f"--verify: {error}") from error
        return f"not verified: {error}"
    return f"verified: outputs differ by at most {difference:.1e} of their scale (accepted: {TOLERANCE:g})"


def _read_arguments(path: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: expected a JSON file of constructor arguments: {error}") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: found a JSON {type(found).__name__}; expected an object of arguments")
    return {name: value for name, value in found.items() if name != "_target_"}


if __name__ == "__main__":
    run_command(convert_checkpoint)
