"""A bundle as a folder and a zip that run where neither this repository nor its package is installed."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from ..errors import RunError
from ..files import atomic_path, locked_folder, read_json, write_json
from ..fingerprint import file_sha256
from .bundle import Bundle
from .torchscript import TORCHSCRIPT, trace_bundle
from .vendoring import CODE_FOLDER, ON_PATH_FILE, rewrite_configs, vendor
from .zoo_check import LARGE_BYTES

OMITTED = (
    *("outputs", "eval", "__pycache__", ".*", "*.pyc", "*.partial", "large_files.*", "Thumbs.db"),
    "rivals",  # weights that only experiments compare with
)
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say
ZOO_TEST = """# Unit test of {name} in the form of the model zoo's ci/unit_tests; the images are the bundle's samples.

import os
import tempfile
import unittest

from monai.bundle import ConfigWorkflow
from parameterized import parameterized
from utils import check_workflow

BUNDLE_ROOT = "models/{name}"
OVERRIDES = {overrides}


class TestConfigs(unittest.TestCase):
    @parameterized.expand([("train", ["train", "smoke"]), ("infer", ["inference"])])
    def test_workflow(self, workflow_type, names):
        with tempfile.TemporaryDirectory() as output_dir:
            workflow = ConfigWorkflow(
                config_file=[os.path.join(BUNDLE_ROOT, f"configs/{{name}}.yaml") for name in names],
                workflow_type=workflow_type,
                logging_file=os.path.join(BUNDLE_ROOT, "configs/logging.conf"),
                meta_file=os.path.join(BUNDLE_ROOT, "configs/metadata.json"),
                bundle_root=BUNDLE_ROOT,
                output_dir=output_dir,
                **OVERRIDES.get(workflow_type, {{}}),
            )
            check_workflow(workflow, check_properties=True)


if __name__ == "__main__":
    unittest.main()
"""
ZOO_OVERRIDES = {"cxr_dino_latent_diffusion": {"infer": {"strategy": "prior", "num_samples": 1, "prior_steps": 2}}}
"""What makes a workflow short enough for the zoo's unit test, beside smoke.yaml."""


def package_bundle(
    bundle_dir: Path,
    output_dir: Path,
    torchscript: bool = False,
    large_files_url: str | None = None,
    source_url: str = "",
) -> Path:
    """Write `<output_dir>/<name>/` and `<output_dir>/<name>_v<version>.zip`, and return the zip.

    Same input, byte-identical zip. Until both are complete what was there stays, also when the process is killed. With
    `torchscript` the network is traced to models/model.ts. `large_files_url` is where the files above `LARGE_BYTES` can
    be downloaded: the folder then lists them in large_files.yml instead of holding them; the zip always holds
    everything. `source_url` is the folder of the zip on the net, for the entry in model_info.json. In `zoo_ci` is what
    a pull request to the model zoo adds in its folder `ci`: a unit test, and entries for bundle_custom_data.py.

    Raises:
        RunError: no bundle, a config that cannot be rewritten, something else where the result should go, or another
            process that packages there.
    """
    name, version = bundle_dir.name, Bundle(bundle_dir).metadata.get("version")
    if not isinstance(version, str):
        raise RunError(f"{bundle_dir}: found no version in configs/metadata.json; expected one such as 0.1.0")
    folder, archive = output_dir / name, output_dir / f"{name}_v{version}.zip"
    with locked_folder(output_dir):
        with _replacing(folder) as staging:
            shutil.copytree(bundle_dir, staging, ignore=shutil.ignore_patterns(*OMITTED))
            vendor(staging)
            rewrite_configs(staging / "configs")
            if torchscript:
                trace_bundle(Bundle(bundle_dir), staging / TORCHSCRIPT)
            _write_zip(staging, archive, name)
            if large_files_url is not None:
                _list_large_files(staging, large_files_url)
        _add_to_model_info(output_dir / "model_info.json", archive, source_url)
        _add_to_zoo_kit(output_dir / "zoo_ci", Bundle(folder))
    return archive


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Give a path beside `folder` to make a folder at; put it in its place by renaming, if nothing fails.

    A kill leaves the old one or the new one: between the two renames the old one is beside its place, and the next
    call, which removes what an earlier one has left, puts it back.
    """
    staging, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    if folder.exists() and not (folder / CODE_FOLDER / ON_PATH_FILE.name).is_file():
        raise RunError(f"{folder} exists and was not made by packaging; remove it, or give another output_dir")
    for leftover in (staging, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        yield staging
        if folder.exists():
            folder.rename(old)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _write_zip(folder: Path, archive: Path, base: str) -> None:
    """Zip a folder: sorted, without times, so that the same files give the same bytes."""
    with atomic_path(archive) as temporary, zipfile.ZipFile(temporary, "w") as content:
        for file in Bundle(folder).files:
            entry = zipfile.ZipInfo(f"{base}/{file.relative_to(folder).as_posix()}", ZIP_TIME)
            entry.external_attr = 0o644 << 16
            # Weights hardly get smaller.
            entry.compress_type = zipfile.ZIP_STORED if file.stat().st_size > 2**20 else zipfile.ZIP_DEFLATED
            content.writestr(entry, file.read_bytes())


def _list_large_files(folder: Path, url: str) -> None:
    """Replace files above `LARGE_BYTES` by entries in large_files.yml, which MONAI downloads by."""
    entries = []
    for file in Bundle(folder).files:
        if file.stat().st_size > LARGE_BYTES:
            path = file.relative_to(folder).as_posix()
            address = {"path": path, "url": f"{url.rstrip('/')}/{path}"}
            entries.append({**address, "hash_val": file_sha256(file), "hash_type": "sha256"})
            file.unlink()
    if entries:
        text = yaml.safe_dump({"large_files": entries}, sort_keys=False)
        (folder / "large_files.yml").write_text(text, encoding="utf-8")


def _add_to_model_info(path: Path, archive: Path, source_url: str) -> None:
    """Put the zip's entry into a list in the form of the model zoo's model_info.json."""
    known = read_json(path) if path.is_file() else {}
    checksum = hashlib.sha1(archive.read_bytes(), usedforsecurity=False).hexdigest()
    source = f"{source_url.rstrip('/')}/{archive.name}" if source_url else ""
    known[archive.stem] = {"checksum": checksum, "source": source}
    write_json(path, dict(sorted(known.items())))


def _add_to_zoo_kit(folder: Path, bundle: Bundle) -> None:
    """Write the bundle's unit test, and put it on the lists of the zoo's checks that cannot be asked of it."""
    name = bundle.root.name
    test = folder / "unit_tests" / f"test_{name}.py"
    test.parent.mkdir(parents=True, exist_ok=True)
    overrides = repr(ZOO_OVERRIDES.get(name, {}))
    test.write_text(ZOO_TEST.format(name=name, overrides=overrides), encoding="utf-8")
    path = folder / "bundle_custom_data.json"
    lists = read_json(path) if path.is_file() else {}
    # Its shape check gives a network one tensor; its TorchScript is by script, which knows none of MONAI's attention.
    takes_more = len(bundle.metadata["network_data_format"]["inputs"]) > 1
    wanted = {"exclude_verify_shape_list": takes_more, "exclude_verify_torchscript_list": True}
    for key, is_on in wanted.items():
        lists[key] = sorted({*lists.get(key, [])} - {name} | ({name} if is_on else set()))
    write_json(path, lists)
