"""Export a bundle's networks for use without this repository: ONNX, checked by onnxruntime, and TorchScript.

python scripts/export_bundle.py bundles/cxr_autoencoder --output_dir exported
"""

from __future__ import annotations

from pathlib import Path

from common.command_line import run_command
from common.packaging import exports
from common.packaging.bundle import Bundle


def export_bundle(
    bundle: str, output_dir: str | None = None, onnx: bool = True, torchscript: bool = True, opset: int = exports.OPSET
) -> None:
    """Write a .onnx for each part of each network, model.ts and the table exports.json; print a line for each file.

    Ends with an error, after all others are written, when a file could not be made or differs from its network.

    Args:
        bundle: folder of a bundle with weights, of the repository or packaged.
        output_dir: folder to write to; outputs/export in the bundle by default.
        onnx: write ONNX; needs pip install -e '.[export]' -c scripts/constraints.txt.
        torchscript: write TorchScript, which monai.bundle.load reads.
        opset: version of ONNX's operators.
    """
    folder = Path(output_dir) if output_dir else Path(bundle) / "outputs" / "export"
    for row in exports.export_bundle(Bundle(Path(bundle)), folder, onnx, torchscript, opset):
        print(exports.as_line(row), flush=True)
    print(f"all of it in {folder.resolve()}; the table is {exports.TABLE}")


if __name__ == "__main__":
    run_command(export_bundle)
