"""What the model zoo's checks and reviewers ask of a bundle's files; nothing of the bundle is run here.

Each check takes the bundle's folder and returns its problems as text, an empty list when all is well.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from .bundle_metadata import METADATA_SCHEMA, VERSION
from .packaging import LARGE_BYTES, files_below

CONFIG_SUFFIXES = (".json", ".yaml", ".yml")
TEXT_SUFFIXES = (*CONFIG_SUFFIXES, ".py", ".md", ".txt", ".conf", ".csv", ".sh", ".ipynb", "")
NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")  # the zoo's vista3d is one word
PACKAGE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
PERSONAL_PATH = re.compile(rb"/home/\w|/Users/\w|/root/\w|[A-Za-z]:\\\\?Users\\|/raid/\w|/mnt/\w|/scratch/\w")
CACHES = ("__pycache__", "eval", "outputs", ".ipynb_checkpoints", ".DS_Store", ".git", ".pytest_cache")
ZOO_SCHEMA: dict[str, Any] = {
    **METADATA_SCHEMA,
    "properties": {
        **METADATA_SCHEMA["properties"],
        "network_data_format": {"properties": {"inputs": {"minProperties": 1}, "outputs": {"minProperties": 1}}},
    },
}
"""Ours, but with inputs and outputs of any name, as in the zoo's generators; `image` and `pred` are for the network."""
FIRST_SCHEMA = "20240725"  # the one that says required_packages_version; before it was optional_packages_version
SECTIONS = ("model", "data", "performance", "limit", "reference")  # of the zoo's docs/readme_template.md, by key word
PLACEHOLDERS = ("lorem ipsum", "todo", "select a license", "placeholder", "your name")
SHORTEST_LICENSE = 200  # characters


def read_metadata(bundle_dir: Path) -> dict[str, Any]:
    """The metadata, or nothing where they cannot be read: `check_metadata` says so."""
    try:
        found = json.loads((bundle_dir / "configs" / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def config_paths(bundle_dir: Path) -> list[Path]:
    """All configs but the metadata."""
    found = sorted(path for path in (bundle_dir / "configs").glob("*") if path.suffix in CONFIG_SUFFIXES)
    return [path for path in found if path.stem != "metadata"]


def workflow_file(bundle_dir: Path, stem: str) -> Path | None:
    """A workflow's config; JSON before YAML, as MONAI's own tools choose."""
    candidates = (bundle_dir / "configs" / f"{stem}{suffix}" for suffix in CONFIG_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def listed_large_files(bundle_dir: Path) -> list[dict[str, Any]]:
    """Entries of large_files.yml, if there is one."""
    for path in sorted(bundle_dir.glob("large_files.*")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and isinstance(content.get("large_files"), list):
            return content["large_files"]
    return []


def check_files(bundle_dir: Path) -> list[str]:
    """The files that every bundle has, weights on the list of large files included."""
    listed = {entry.get("path") for entry in listed_large_files(bundle_dir)}
    wanted = ("configs/metadata.json", "LICENSE", "docs/README.md", "models/model.pt")
    problems = [f"{path} is missing" for path in wanted if path not in listed and not (bundle_dir / path).is_file()]
    return problems + ([] if workflow_file(bundle_dir, "inference") else ["configs/inference.json is missing"])


def check_name(bundle_dir: Path) -> list[str]:
    """The folder is named in lower-case words, and the metadata bring a name for people."""
    problems = []
    if not NAME.fullmatch(bundle_dir.name):
        problems.append(f"folder {bundle_dir.name!r}: expected lower-case words joined by _")
    if not read_metadata(bundle_dir).get("name"):
        problems.append("metadata.json: no name")
    return problems


def check_metadata(bundle_dir: Path) -> list[str]:
    """The metadata follow the schema; those of an older one may use its key for packages."""
    import jsonschema  # a tool of developers, not of users

    metadata = read_metadata(bundle_dir)
    if not metadata:
        return ["metadata.json cannot be read"]
    declared = re.search(r"meta_schema_(?:[a-z_]+_)?(\d{8})", str(metadata.get("schema")))
    if declared and declared[1] < FIRST_SCHEMA and "optional_packages_version" in metadata:
        metadata = {**metadata, "required_packages_version": metadata["optional_packages_version"]}
    errors = jsonschema.Draft201909Validator(ZOO_SCHEMA).iter_errors(metadata)
    return [f"metadata.json: {'/'.join(map(str, error.path)) or 'top level'}: {error.message}" for error in errors]


def check_version(bundle_dir: Path) -> list[str]:
    """The version is one, and the newest of the changelog."""
    metadata = read_metadata(bundle_dir)
    version, changelog = metadata.get("version"), metadata.get("changelog")
    if not isinstance(version, str) or not VERSION.fullmatch(version):
        return [f"version: found {version!r}; expected one such as 0.1.0"]
    if not isinstance(changelog, dict) or version not in changelog:
        return [f"version {version} is not in the changelog"]
    newer = [other for other in changelog if VERSION.fullmatch(other) and _numbers(other) > _numbers(version)]
    return [f"version {version} is older than {newer[0]} of the changelog"] if newer else []


def check_packages(bundle_dir: Path) -> list[str]:
    """The packages are pinned under names that pip knows the form of."""
    metadata = read_metadata(bundle_dir)
    listed = metadata.get("required_packages_version") or metadata.get("optional_packages_version") or {}
    pins = {**listed, **{key: metadata.get(f"{key}_version") for key in ("monai", "pytorch", "numpy")}}
    problems = [f"{name!r} is no name of a package" for name in pins if not PACKAGE_NAME.fullmatch(name)]
    return problems + [
        f"{name}: found {version!r}; expected a version"
        for name, version in pins.items()
        if not isinstance(version, str) or not VERSION.match(version)
    ]


def check_paths(bundle_dir: Path) -> list[str]:
    """No file, weights included, names a folder of somebody's machine."""
    problems = []
    for path in files_below(bundle_dir):
        if found := PERSONAL_PATH.search(path.read_bytes()) if _may_name_paths(path) else None:
            problems.append(f"{path.relative_to(bundle_dir)}: names {found[0].decode(errors='replace')}…")
    return problems


def _may_name_paths(path: Path) -> bool:
    """Text, and TorchScript, which keeps the paths of the code that it was made from; numbers may spell anything."""
    return path.suffix in (*TEXT_SUFFIXES, ".ts")


def check_sizes(bundle_dir: Path) -> list[str]:
    """No file above what the model zoo takes in its repository, but those that are fetched from elsewhere."""
    listed = {bundle_dir / str(entry.get("path")) for entry in listed_large_files(bundle_dir)}
    return [
        f"{path.relative_to(bundle_dir)}: {path.stat().st_size / 2**20:.0f} MiB, at most {LARGE_BYTES / 2**20:.0f} fit "
        "into the zoo's repository; list it in large_files.yml"
        for path in files_below(bundle_dir)
        if path.stat().st_size > LARGE_BYTES and path not in listed
    ]


def check_large_files(bundle_dir: Path) -> list[str]:
    """Each entry has a path inside the bundle and an address."""
    problems = []
    for number, entry in enumerate(listed_large_files(bundle_dir)):
        path = PurePosixPath(str(entry.get("path", "")))
        if not path.parts or path.is_absolute() or ".." in path.parts:
            problems.append(f"entry {number}: found path {str(path)!r}; expected one inside the bundle")
        if not re.match(r"(https?|file)://", str(entry.get("url", ""))):
            problems.append(f"{path}: found url {entry.get('url')!r}; expected an address")
    return problems


def check_hashes(bundle_dir: Path) -> list[str]:
    """Each large file has a hash; the zoo leaves it to the author."""
    return [
        f"{entry.get('path')}: no hash_val of a known hash_type, so that nobody notices a wrong file"
        for entry in listed_large_files(bundle_dir)
        if not entry.get("hash_val") or entry.get("hash_type") not in ("md5", "sha1", "sha256", "sha512")
    ]


def check_licences(bundle_dir: Path) -> list[str]:
    """A real licence, and whose the bundle is."""
    path = bundle_dir / "LICENSE"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    problems = []
    if len(text) < SHORTEST_LICENSE or any(word in text.lower() for word in PLACEHOLDERS):
        problems.append("LICENSE: found no text of a licence")
    if not read_metadata(bundle_dir).get("copyright"):
        problems.append("metadata.json: no copyright")
    return problems


def check_leftovers(bundle_dir: Path) -> list[str]:
    """No caches or results."""
    found = sorted(path for name in CACHES for path in bundle_dir.rglob(name))
    return [f"{path.relative_to(bundle_dir)}: left over" for path in found]


def check_python(bundle_dir: Path) -> list[str]:
    """All Python files are Python."""
    problems = []
    for path in sorted(bundle_dir.rglob("*.py")):
        try:
            ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError) as error:
            problems.append(f"{path.relative_to(bundle_dir)}: {error}")
    return problems


def check_docs(bundle_dir: Path) -> list[str]:
    """The README has the sections of the zoo's template, by their key words; terms of the data are said."""
    path = bundle_dir / "docs" / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    titles = " ".join(re.findall(r"^#+\s+(.*)$", text, re.MULTILINE)).lower()
    problems = [f"docs/README.md: no section about {word}" for word in SECTIONS if word not in titles]
    terms = any((bundle_dir / place / "data_license.txt").is_file() for place in ("docs", "."))
    return problems + ([] if terms else ["docs/data_license.txt is missing: fine only if the data have no terms"])


def check_style(bundle_dir: Path) -> list[str]:
    """What the zoo's pre-commit would change: JSON with an indent of 4, one newline at the end."""
    problems = []
    for path in sorted((bundle_dir / "configs").glob("*.json")):
        text = path.read_text(encoding="utf-8")
        try:
            forms = [json.dumps(json.loads(text), indent=4, ensure_ascii=ascii_) + "\n" for ascii_ in (True, False)]
        except ValueError:
            continue  # check_configs says so
        if text not in forms:
            problems.append(f"{path.name}: other layout than an indent of 4")
    return problems


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
