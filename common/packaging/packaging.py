"""A bundle as a folder and a zip that run where neither this repository nor its package is installed."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..errors import UserError
from ..files import atomic_path
from ..fingerprint import file_sha256
from .bundle_config import config_files
from .import_closure import needed_files
from .retargeting import OWN_PACKAGE, is_workflow, json_twin, own_targets, retarget_yaml

OMITTED = (
    *("outputs", "eval", "__pycache__", ".*", "*.pyc", "*.partial", "large_files.*", "Thumbs.db"),
    "rivals",  # weights that only experiments compare with
)
CODE_FOLDER = "scripts"
ON_PATH_NAME = "on_path.py"
TORCHSCRIPT = Path("models") / "model.ts"
LARGE_FILES_NAME = "large_files.yml"
MODEL_INFO_NAME = "model_info.json"
LARGE_BYTES = 25 * 2**20  # the model zoo takes no larger file in its repository
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say
OWN_NAME = re.compile(rf"{OWN_PACKAGE}(\.\w+)+")

Trace = Callable[[Path, Path], float]


class PackagingError(UserError, ValueError):
    """A bundle cannot be packaged as it is, or not to where it was asked to."""


@dataclass(frozen=True)
class Package:
    """What was made.

    Attributes:
        name: of the bundle.
        version: from its metadata.
        folder: for a pull request to the model zoo, or a model hub.
        archive: zip that holds everything, with the folder's name as its base.
        sha256: of the zip.
        sha1: of the zip, as the model zoo's list wants it.
    """

    name: str
    version: str
    folder: Path
    archive: Path
    sha256: str
    sha1: str

    @property
    def full_name(self) -> str:
        """As the model zoo names versions."""
        return f"{self.name}_v{self.version}"


def package_bundle(
    bundle_dir: Path,
    package_dir: Path,
    output_dir: Path,
    trace: Trace | None = None,
    large_files_url: str | None = None,
    source_url: str = "",
) -> Package:
    """Write `<output_dir>/<name>/` and `<output_dir>/<name>_v<version>.zip`; same input, byte-identical zip.

    Until both are complete whatever was there before stays.

    Args:
        bundle_dir: of the repository.
        package_dir: folder of the package whose code the configs use.
        output_dir: made if need be.
        trace: writes the TorchScript file of a bundle, see `torchscript.trace_bundle`; None leaves it out.
        large_files_url: where the files above `LARGE_BYTES` can be downloaded: the folder then lists them in
            large_files.yml instead of holding them. The zip always holds everything.
        source_url: folder of the zip on the net, for the entry in model_info.json.

    Raises:
        PackagingError: no bundle, or something else is where the result should go.
        RetargetingError: a config that cannot be rewritten.
    """
    metadata = _read_metadata(bundle_dir)
    name, version = bundle_dir.name, metadata["version"]
    folder, archive = output_dir / name, output_dir / f"{name}_v{version}.zip"
    _refuse_foreign(folder)
    output_dir.mkdir(parents=True, exist_ok=True)
    staging = output_dir / f".{name}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        shutil.copytree(bundle_dir, staging, ignore=shutil.ignore_patterns(*OMITTED))
        vendor(staging, package_dir)
        rewrite_configs(staging / "configs")
        if trace is not None:
            trace(bundle_dir, staging / TORCHSCRIPT)
        write_zip(staging, archive, name)
        if large_files_url is not None:
            list_large_files(staging, large_files_url)
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    sha1 = hashlib.sha1(archive.read_bytes(), usedforsecurity=False).hexdigest()
    package = Package(name, version, folder, archive, file_sha256(archive), sha1)
    add_to_model_info(output_dir / MODEL_INFO_NAME, package, source_url)
    return package


def _read_metadata(bundle_dir: Path) -> dict[str, str]:
    path = bundle_dir / "configs" / "metadata.json"
    if not path.is_file():
        raise PackagingError(f"{bundle_dir}: found no configs/metadata.json; expected the folder of a bundle")
    metadata = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(metadata.get("version"), str):
        raise PackagingError(f"{path}: found no version; expected one such as 0.1.0")
    return metadata


def _refuse_foreign(folder: Path) -> None:
    """Only what was packaged before is replaced."""
    if folder.exists() and not (folder / CODE_FOLDER / ON_PATH_NAME).is_file():
        raise PackagingError(f"{folder} exists and was not made by packaging; remove it, or give another output_dir")


def vendor(bundle_dir: Path, package_dir: Path) -> None:
    """Copy the part of the package that the bundle's configs need to `scripts/<package>`.

    Raises:
        PackagingError: the bundle has `scripts` of its own, or code that names the package by text.
        MissingModuleError: a `_target_` that is not there.
    """
    code = bundle_dir / CODE_FOLDER
    if code.exists():
        raise PackagingError(f"{code}: found code of the bundle's own; expected all of it in {package_dir.name}")
    configs = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in config_files(bundle_dir / "configs")]
    targets = {target for config in configs for target in own_targets(config)}
    for file in needed_files(package_dir, targets):
        _refuse_named_package(file)
        target = code / package_dir.name / file.relative_to(package_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    (code / "__init__.py").write_text('"""The code that this bundle brings along."""\n', encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name(ON_PATH_NAME), code / ON_PATH_NAME)


def _refuse_named_package(file: Path) -> None:
    """Code that hands a dotted name of the package to somebody would find nothing, or another version."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        named = isinstance(node, ast.Constant) and isinstance(node.value, str) and OWN_NAME.fullmatch(node.value)
        absolute = isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith(OWN_PACKAGE)
        imported = isinstance(node, ast.Import) and any(a.name.split(".")[0] == OWN_PACKAGE for a in node.names)
        if named or absolute or imported:
            line = getattr(node, "lineno", 0)
            raise PackagingError(f"{file}: line {line} names {OWN_PACKAGE}; expected relative imports only")


def rewrite_configs(folder: Path) -> None:
    """Point the configs to the code beside them, and give each workflow its JSON twin."""
    for path in config_files(folder):
        text = retarget_yaml(path.read_text(encoding="utf-8"), path.name)
        path.write_text(text, encoding="utf-8")
        if is_workflow(path):
            path.with_suffix(".json").write_text(json_twin(text, path.name), encoding="utf-8")


def write_zip(folder: Path, archive: Path, base: str) -> None:
    """Zip a folder: sorted, without times, so that the same files give the same bytes."""
    with atomic_path(archive) as temporary, zipfile.ZipFile(temporary, "w") as content:
        for file in files_below(folder):
            entry = zipfile.ZipInfo(f"{base}/{file.relative_to(folder).as_posix()}", ZIP_TIME)
            entry.external_attr = 0o644 << 16
            # Weights hardly get smaller.
            entry.compress_type = zipfile.ZIP_STORED if file.stat().st_size > 2**20 else zipfile.ZIP_DEFLATED
            content.writestr(entry, file.read_bytes())


def files_below(folder: Path) -> Iterator[Path]:
    """All files of a folder and its folders, sorted by path."""
    return iter(sorted(path for path in folder.rglob("*") if path.is_file()))


def list_large_files(folder: Path, url: str) -> None:
    """Replace files above `LARGE_BYTES` by entries in large_files.yml, which MONAI downloads by."""
    large = [file for file in files_below(folder) if file.stat().st_size > LARGE_BYTES]
    if not large:
        return
    entries = []
    for file in large:
        path = file.relative_to(folder).as_posix()
        entry = {"path": path, "url": f"{url.rstrip('/')}/{path}", "hash_val": file_sha256(file), "hash_type": "sha256"}
        entries.append(entry)
        file.unlink()
    text = yaml.safe_dump({"large_files": entries}, sort_keys=False)
    (folder / LARGE_FILES_NAME).write_text(text, encoding="utf-8")


def add_to_model_info(path: Path, package: Package, source_url: str) -> None:
    """Put the package's entry into a list in the form of the model zoo's model_info.json."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    source = f"{source_url.rstrip('/')}/{package.archive.name}" if source_url else ""
    known[package.full_name] = {"checksum": package.sha1, "source": source}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(dict(sorted(known.items())), indent=4) + "\n", encoding="utf-8")
