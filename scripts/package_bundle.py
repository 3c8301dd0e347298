"""Package bundles so that they run where this repository is not installed: a folder and a zip each.

python scripts/package_bundle.py all --output_dir dist
"""

from __future__ import annotations

from pathlib import Path

from common.command_line import run_command
from common.errors import SettingsError
from common.fingerprint import file_sha256
from common.packaging.packaging import package_bundle
from common.progress import ProgressBar

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"


def package(
    name: str,
    output_dir: str = "dist",
    torchscript: bool = True,
    large_files_url: str | None = None,
    source_url: str = "",
    bundles_dir: str | None = None,
) -> None:
    """Write OUTPUT_DIR/NAME, OUTPUT_DIR/NAME_v<version>.zip and the zip's entry in OUTPUT_DIR/model_info.json.

    OUTPUT_DIR/zoo_ci is what a pull request to the model zoo adds in `ci`, beside the folder itself in `models`: a unit
    test, and names for the lists of bundle_custom_data.py.

    Args:
        name: of a bundle, or all.
        output_dir: made if need be; a bundle packaged there before is replaced.
        torchscript: trace the network to models/model.ts, which MONAI loads without any code of ours.
        large_files_url: where files above 25 MiB will lie on the net; the folder then lists them in large_files.yml,
            as the model zoo wants it. The zip holds them in any case.
        source_url: where the zips will lie on the net, for model_info.json.
        bundles_dir: folder of the bundles; None for this repository's.
    """
    chosen = chosen_bundles(name, BUNDLES if bundles_dir is None else Path(bundles_dir))
    for bundle_dir in ProgressBar(chosen, desc="packaging", unit="bundle"):
        archive = package_bundle(bundle_dir, Path(output_dir), torchscript, large_files_url, source_url)
        ProgressBar.write(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB, sha256 {file_sha256(archive)}")


def chosen_bundles(name: str, bundles: Path = BUNDLES) -> list[Path]:
    """The bundle of a name, or all."""
    known = sorted(path for path in bundles.iterdir() if (path / "configs" / "metadata.json").is_file())
    chosen = [path for path in known if name in ("all", path.name)]
    if not chosen:
        raise SettingsError(f"found {name!r}; expected all, {', '.join(path.name for path in known)}")
    return chosen


if __name__ == "__main__":
    run_command(package)
