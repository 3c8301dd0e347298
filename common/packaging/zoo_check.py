"""All that the model zoo's CI and reviewers ask of a bundle, offline: one verdict for each question.

What its code and weights do is asked in a process of its own, see `zoo_code`.
"""

from __future__ import annotations

import ast
import json
import logging
import mmap
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.bundle.utils import ID_SEP_KEY, MACRO_KEY
from monai.utils import BundleProperty, BundlePropertyConfig
from packaging.version import InvalidVersion, Version

from ..config_graph import iter_items, references, written_ids
from ..errors import RunError
from .bundle import SUFFIXES, Bundle, opened_bundle, read_text
from .vendoring import PACKAGE_DIR

TEXT_SUFFIXES = (*SUFFIXES, ".py", ".md", ".txt", ".conf", ".csv", ".sh", ".ipynb", "")
PERSONAL_PATH = re.compile(rb"/home/\w|/Users/\w|/root/\w|[A-Za-z]:\\\\?Users\\|/raid/\w|/mnt/\w|/scratch/\w")
CACHES = ("__pycache__", "eval", "outputs", ".ipynb_checkpoints", ".DS_Store", ".git", ".pytest_cache")
FILES = ("configs/metadata.json", "LICENSE", "docs/README.md", "models/model.pt")
SECTIONS = ("model", "data", "performance", "limit", "reference")  # of the zoo's docs/readme_template.md, by key word
LICENCE_PLACEHOLDER = re.compile("lorem ipsum|todo|select a license|placeholder|your name", re.IGNORECASE)
SHORTEST_LICENCE = 200  # characters
LARGEST_ADDED = 2**20  # bytes, of files outside models/ (check-added-large-files --maxkb=1024 of its pre-commit)
LARGE_BYTES = 25 * 2**20  # the model zoo takes no larger file in its repository
WORKFLOWS = {
    **dict.fromkeys(("inference", "evaluate"), "infer"),
    **dict.fromkeys(("train", "pretrain", "train_prior"), "train"),
}
REVIEWED_KEYS = {"inference": ("run",), "train": ("run", "train::dataset::data", "train::handlers")}
"""Beside what MONAI calls required properties; those in `train` where there is one (the zoo's CONTRIBUTING)."""
LIMIT_SECONDS = 1800
FORMATTERS = (  # of its runtests.sh and setup.cfg
    "black --check --skip-magic-trailing-comma --line-length 120",
    "isort --check-only --profile black --line-length 120",
    "flake8 --isolated --max-line-length 120 --select B,C,E,F,N,P,T4,W,B9 --per-file-ignores __init__.py:F401 "
    "--ignore E203,E501,E741,W503,W504,C408,N812,B023",
)

TEXT = {"type": "string", "minLength": 1}
VERSION = {"type": "string", "pattern": r"^\d+(\.\d+)+"}
TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
    "properties": {
        **dict.fromkeys(("type", "format", "dtype"), TEXT),
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {"type": "array", "minItems": 1, "items": {"type": ["string", "integer"]}},
        "value_range": {"type": "array", "items": {"type": "number"}},
    },
}
ARGUMENTS: dict[str, Any] = {
    "minProperties": 1,
    "additionalProperties": {"anyOf": [{"type": ["number", "string", "boolean"]}, TENSOR]},
}
SCHEMA: dict[str, Any] = {
    "required": [
        *("schema", "name", "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "task"),
        *("required_packages_version", "description", "authors", "copyright", "network_data_format"),
    ],
    "properties": {
        **dict.fromkeys(("schema", "name", "task", "description", "authors", "copyright", "intended_use"), TEXT),
        **dict.fromkeys(("version", "monai_version", "pytorch_version", "numpy_version"), VERSION),
        "required_packages_version": {
            "additionalProperties": VERSION,
            "propertyNames": {"pattern": "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"},  # as pip wants them
        },
        "changelog": {"propertyNames": VERSION, "additionalProperties": TEXT},
        "references": {"type": "array", "items": TEXT},
    },
    "patternProperties": {
        "_data_format$": {
            "required": ["inputs", "outputs"],
            "properties": {"inputs": ARGUMENTS, "outputs": ARGUMENTS, "post_processed_outputs": ARGUMENTS},
        }
    },
}
"""What the model zoo's meta_schema_20240725 asks for, and stricter: no empty text, a name, a changelog, versions. The
official one needs a download, as does MONAI's `verify_metadata`, which tells the first error only."""
FIRST_SCHEMA = "20240725"  # the one that says required_packages_version; before it was optional_packages_version


@dataclass(frozen=True)
class Verdict:
    """The answer to one question: what should be so, and the problems found; required is what the zoo refuses for."""

    name: str
    text: str
    problems: list[str]
    required: bool = True

    @property
    def failed(self) -> bool:
        """Whether the bundle cannot pass with it."""
        return bool(self.problems) and self.required

    def line(self) -> str:
        """For people: one line, further ones for further problems."""
        word = "FAIL" if self.failed else "warn" if self.problems else "ok"
        said = ("\n" + " " * 18).join(self.problems) if self.problems else self.text
        return f"{word:<5}{self.name + ':':<13}{said}"


def check_bundle(path: str | Path, run_code: bool = True, formatters: bool = False) -> Iterator[Verdict]:
    """Ask everything of a bundle, a folder or a zip, one verdict after the other.

    Args:
        path: of it.
        run_code: also build and trace its network, in a process of its own. A bundle's configs can run any code: only
            for bundles that are trusted.
        formatters: also ask black, isort and flake8, with the zoo's settings, about its code.

    Raises:
        RunError: see `bundle.opened_bundle`; or a formatter is not installed.
    """
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it would tell that it skips logging.conf
    with opened_bundle(path) as bundle:
        for name, text, check, required in FILE_QUESTIONS:
            problems: list[str] = []
            try:
                problems.extend(check(bundle))
            except Exception as error:  # of what anybody wrote
                problems.append(f"{type(error).__name__}: {error}")
            yield Verdict(name, text, problems, required)
        if formatters:
            yield Verdict("format", "black, isort and flake8 find nothing", list(_format(bundle)), required=False)
        if run_code:
            yield from _code_verdicts(bundle.root)


def _files(bundle: Bundle) -> Iterator[str]:
    there = {*bundle.large_files, *(path for path in FILES if (bundle.root / path).is_file())}
    yield from (f"{path} is missing" for path in FILES if path not in there)
    if bundle.workflow("inference") is None:
        yield "configs/inference.json is missing"
    licence = read_text(bundle.root / "LICENSE") if (bundle.root / "LICENSE").is_file() else ""
    if len(licence) < SHORTEST_LICENCE or LICENCE_PLACEHOLDER.search(licence):
        yield "LICENSE: found no text of a licence"


def _name(bundle: Bundle) -> Iterator[str]:
    if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", bundle.root.name):  # the zoo's vista3d is one word
        yield f"folder {bundle.root.name!r}: expected lower-case words joined by _"


def _metadata(bundle: Bundle) -> Iterator[str]:
    import jsonschema  # not in the environment of MONAI Label

    metadata = dict(bundle.metadata)
    declared = re.search(r"meta_schema_(?:[a-z_]+_)?(\d{8})", str(metadata.get("schema")))
    if declared and declared[1] < FIRST_SCHEMA and "optional_packages_version" in metadata:
        metadata["required_packages_version"] = metadata["optional_packages_version"]
    for error in jsonschema.Draft201909Validator(SCHEMA).iter_errors(metadata):
        yield f"metadata.json: {'/'.join(map(str, error.path)) or 'top level'}: {error.message}"


def _version(bundle: Bundle) -> Iterator[str]:
    version, changelog = str(bundle.metadata.get("version")), bundle.metadata.get("changelog") or {}
    if version not in changelog:
        yield f"version {version} is not in the changelog"
    try:
        newer = [other for other in changelog if Version(other) > Version(version)]
    except InvalidVersion as error:
        newer = [str(error)]
    yield from (f"version {version} is older than {other} of the changelog" for other in newer)


def _configs(bundle: Bundle) -> Iterator[str]:
    ids = {name: _ids(tree) for name, tree in bundle.configs.items()}
    for name, tree in bundle.configs.items():
        # A workflow without `bundle_root` is run on top of others, as multi_gpu_train.json on train.json.
        known = ids[name] if "bundle_root" in tree else {"bundle_root"}.union(*ids.values())
        for item_id, value in iter_items(tree) if "run" in tree else ():
            for target in references(value):
                if target not in known and not target.startswith(("_meta_", ID_SEP_KEY)):
                    yield f"{name}: {item_id}: refers to {target!r}, which does not exist"
        if bundle.configs.get(f"{Path(name).stem}.json", tree) != tree:
            yield f"{name} and its JSON differ; MONAI Label and `load` read the JSON"


def _ids(tree: dict[str, Any]) -> set[str]:
    return {*written_ids(tree), *(item_id for item_id, _ in iter_items(tree))}


def _keys(bundle: Bundle) -> Iterator[str]:
    for stem, workflow_type in WORKFLOWS.items():
        name = bundle.workflow(stem)
        if name is None:
            continue
        tree = bundle.configs[name]
        if stem not in REVIEWED_KEYS and "bundle_root" not in tree:  # an evaluation that is run on top of train.json
            continue
        there = _ids(tree)
        has_train = any(config_id.startswith(f"train{ID_SEP_KEY}") for config_id in there)
        asked = [key for key in REVIEWED_KEYS.get(stem, ("run",)) if ID_SEP_KEY not in key or has_train]
        yield from (f"{name}: no key {key.replace(ID_SEP_KEY, '#')}" for key in asked if key not in there)
        if any(re.match(rf"{MACRO_KEY}.*\.(json|ya?ml)", str(value)) for _, value in iter_items(tree)):
            yield f"{name}: found a macro of another file, which MONAI opens relative to the current directory"
            continue
        path = str(bundle.root / "configs" / name)
        workflow = ConfigWorkflow(path, workflow_type=workflow_type, logging_file=False)
        workflow.parser.resolve_macro_and_relative_ids()  # MONAI compares `@train#dataset` only as `@train::dataset`
        for wanted, rule in workflow.properties.items():
            config_id = rule[BundlePropertyConfig.ID]
            if rule[BundleProperty.REQUIRED] and config_id not in workflow.parser:
                yield f"{name}: required property {wanted} is not at {config_id}"
            # MONAI's rule has no public name, and `check_properties` ends at the first that is missing.
            if not rule[BundleProperty.REQUIRED] and not workflow._check_optional_id(name=wanted, property=rule):
                yield f"{name}: property {wanted} is used, but not at {config_id}"


def _contents(bundle: Bundle) -> Iterator[str]:
    for path in bundle.files:
        name = path.relative_to(bundle.root)
        if set(name.parts) & set(CACHES):
            yield f"{name}: left over"
        # Text, and TorchScript, which keeps the paths of the code that it was made from; numbers may spell anything.
        if path.suffix in (*TEXT_SUFFIXES, ".ts") and path.stat().st_size:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if found := PERSONAL_PATH.search(content):
                    yield f"{name}: names {found[0].decode(errors='replace')}…"
        if path.suffix == ".py":
            try:
                ast.parse(read_text(path))
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                yield f"{name}: {error}"


def _large_files(bundle: Bundle) -> Iterator[str]:
    for name, entry in bundle.large_files.items():
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts:
            yield f"large_files.yml: found path {str(path)!r}; expected one inside the bundle"
        if not re.match(r"(https?|file)://", str(entry.get("url", ""))):
            yield f"{path}: found url {entry.get('url')!r}; expected an address"


def _sizes(bundle: Bundle) -> Iterator[str]:
    unsure = [path for path, entry in bundle.large_files.items() if not entry.get("hash_val")]
    yield from (f"{path}: no hash_val, so that nobody notices a wrong file" for path in unsure)
    for path in bundle.files:
        name = path.relative_to(bundle.root).as_posix()
        if path.stat().st_size > LARGE_BYTES and name not in bundle.large_files:
            yield f"{name}: above {LARGE_BYTES / 2**20:.0f} MiB; list it in large_files.yml for the zoo's repository"


def _pre_commit(bundle: Bundle) -> Iterator[str]:
    for path in bundle.files:
        name, is_large = path.relative_to(bundle.root).as_posix(), path.stat().st_size > LARGEST_ADDED
        if is_large and not name.startswith("models/") and name not in bundle.large_files:
            yield f"{name}: above {LARGEST_ADDED / 2**20:.0f} MiB"
        if path.suffix in TEXT_SUFFIXES and not is_large:
            content = path.read_bytes()
            if content and (not content.endswith(b"\n") or content.endswith(b"\n\n")):
                yield f"{name}: expected one line break at its end"
            if re.search(rb"[ \t]\r?$", content, re.MULTILINE):
                yield f"{name}: white space at the end of a line"
            if b"PRIVATE KEY-----" in content:
                yield f"{name}: a private key"
            if path.suffix == ".json" and not content.isascii():
                yield f"{name}: expected ASCII, other characters as \\uXXXX"


def _docs(bundle: Bundle) -> Iterator[str]:
    titles = " ".join(re.findall(r"^#+\s+(.*)$", read_text(bundle.root / "docs" / "README.md"), re.MULTILINE)).lower()
    yield from (f"docs/README.md: no section about {word}" for word in SECTIONS if word not in titles)
    if not (bundle.root / "docs" / "data_license.txt").is_file():
        yield "docs/data_license.txt is missing: fine only if the data have no terms"


def _format(bundle: Bundle) -> Iterator[str]:
    for tool, *words in map(str.split, FORMATTERS):
        if find_spec(tool) is None:
            raise RunError(f"found no {tool}; expected it: pip install black isort flake8-bugbear pep8-naming")
        command = [sys.executable, "-I", "-m", tool, *words, str(bundle.root)]  # isolated: no module out of the bundle
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stdout + done.stderr).replace(f"{bundle.root}/", "").splitlines()
            told = [line for line in said if ".py" in line] or said or [f"ended with code {done.returncode}"]
            yield from (f"{tool}: {line}" for line in told)


FILE_QUESTIONS: tuple[tuple[str, str, Callable[[Bundle], Iterable[str]], bool], ...] = (
    ("files", "metadata, LICENSE, README, weights and an inference config are there", _files, True),
    ("name", "the folder is named as the zoo names bundles", _name, True),
    ("metadata", "follow the schema, and packages are pinned by the names that pip knows", _metadata, True),
    ("version", "is the newest of the changelog", _version, True),
    ("configs", "can be read, every reference leads somewhere, YAML and JSON of a name say the same", _configs, True),
    ("keys", "what MONAI, MONAI Label and reviewers look for is where they look", _keys, True),
    ("contents", "nobody's folders are named, no caches or results, all code parses", _contents, True),
    ("large files", "are inside the bundle and have addresses", _large_files, True),
    ("sizes", "no file above 25 MiB that is not listed, with its hash", _sizes, False),
    ("pre-commit", "ends of lines and files, sizes and JSON are as the zoo's hooks leave them", _pre_commit, False),
    ("docs", "the README has the template's sections, and the terms of the data are told", _docs, False),
)
CODE_QUESTIONS = {
    "targets": "every _target_ exists with only the bundle on the path",
    "weights": "are tensors, and exactly those of network_def",
    "network": "takes and gives what the metadata say",
    "torchscript": "by trace is saved, loaded and gives the same, as does models/model.ts, if any",
}


def _code_verdicts(root: Path) -> Iterator[Verdict]:
    """Ask `zoo_code` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_DIR.parent)}
    with tempfile.TemporaryDirectory() as elsewhere:
        result = Path(elsewhere) / "result.json"
        command = [sys.executable, "-W", "ignore", "-m", f"{__package__}.zoo_code", str(root), str(result)]
        done = subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
        found = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
    said = "\n".join(["the process that looks at the code ended with", *done.stderr.splitlines()[-15:]])
    yield from (Verdict(name, text, found.get(name, [said])) for name, text in CODE_QUESTIONS.items())
