"""One version for the package and all bundles, and the change of all of them together."""

from __future__ import annotations

import difflib
import json
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import atomic_path

VERSION = r"(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)"
PACKAGE = "common/__init__.py"

_PACKAGE_VERSION = re.compile(r'^(__version__ = ")([^"]*)(")$', re.MULTILINE)
_METADATA_VERSION = re.compile(r'^( {4}"version": ")([^"]*)(",?)$', re.MULTILINE)
_CHANGELOG = re.compile(r'^ {4}"changelog": \{\n', re.MULTILINE)


class VersionError(UserError, ValueError):
    """The version cannot be set."""


@dataclass(frozen=True)
class VersionPlace:
    """A place that names the version: `start` and `end` bound it in the text of `file`."""

    file: Path
    start: int
    end: int
    version: str


def find_versions(repository: Path) -> list[VersionPlace]:
    """Every place of a repository that names the present version.

    The package, the metadata of each bundle, and each `NAME 1.2.3` or `NAME_v1.2.3` of a bundle's name in configs and
    READMEs. What an evaluation or a run has recorded is history and no such place.

    Raises:
        VersionError: a file that must name a version does not, or not in the layout that can be changed.
    """
    bundles = sorted(path.parents[1] for path in repository.glob("bundles/*/configs/metadata.json"))
    places = _matches(repository / PACKAGE, _PACKAGE_VERSION, needed='__version__ = "1.2.3"')
    for bundle in bundles:
        layout = 'one line of four spaces and "version": "1.2.3"'
        places += _matches(bundle / "configs" / "metadata.json", _METADATA_VERSION, needed=layout)
    if bundles:
        names = "|".join(re.escape(bundle.name) for bundle in bundles)
        mention = re.compile(rf"(\b(?:{names})(?: |_v))({VERSION})(?![\w-]|\.\d)")
        patterns = ("bundles/*/configs/*.yaml", "bundles/*/docs/README.md", "README.md")
        for file in sorted(file for pattern in patterns for file in repository.glob(pattern)):
            places += _matches(file, mention)
    return places


def check_agreement(repository: Path) -> str:
    """Return the version that all places name; the metadata's changelogs begin with it.

    Raises:
        VersionError: they name several; each is listed.
    """
    places = find_versions(repository)
    if len({place.version for place in places}) > 1:
        listed = "\n".join(f"  {place.version}  {place.file.relative_to(repository)}" for place in places)
        raise VersionError(f"found versions that do not agree; make them one, then try again:\n{listed}")
    version = places[0].version
    for path in sorted(repository.glob("bundles/*/configs/metadata.json")):
        first = next(iter(json.loads(path.read_text(encoding="utf-8"))["changelog"]), None)
        if first != version:
            raise VersionError(
                f"{path.relative_to(repository)}: found {first} at the top of the changelog; expected the version, "
                f"{version}"
            )
    return version


def plan_version(repository: Path, version: str, note: str) -> dict[Path, str]:
    """Return the new text of every file that changes; writes nothing.

    Args:
        repository: checkout.
        version: new one, three whole numbers, newer than the present one.
        note: what changed, for the changelogs; runs of white space become one space.

    Raises:
        VersionError: what `version` or `note` or the repository lack.
    """
    note = " ".join(note.split())
    if not re.fullmatch(VERSION, version):
        raise VersionError(f"found '{version}'; expected a version of three whole numbers, such as 0.2.0")
    if not note:
        raise VersionError("found no note; expected in a few words what changed: --note 'what changed'")
    present = check_agreement(repository)
    if _as_numbers(version) <= _as_numbers(present):
        raise VersionError(f"found {version}; expected a version newer than the present one, {present}")
    texts: dict[Path, str] = {}
    # From the back, so that the positions of the places before stay right.
    for place in sorted(find_versions(repository), key=lambda place: place.start, reverse=True):
        text = texts.get(place.file, place.file.read_text(encoding="utf-8"))
        texts[place.file] = text[: place.start] + version + text[place.end :]
    for path in texts:
        if path.name == "metadata.json":
            texts[path] = _with_changelog_entry(path, texts[path], version, note)
    return dict(sorted(texts.items()))


def write_texts(texts: dict[Path, str]) -> None:
    """Write all files beside their places, then rename each: what cannot be written leaves every file as it was."""
    with ExitStack() as stack:
        for path, text in texts.items():
            stack.enter_context(atomic_path(path)).write_text(text, encoding="utf-8")


def difference(texts: dict[Path, str], repository: Path) -> str:
    """What would change, as a unified diff."""
    lines: list[str] = []
    for path, text in texts.items():
        name = path.relative_to(repository).as_posix()
        before = path.read_text(encoding="utf-8").splitlines(keepends=True)
        lines += difflib.unified_diff(before, text.splitlines(keepends=True), f"a/{name}", f"b/{name}", n=1)
    return "".join(lines)


def _matches(file: Path, pattern: re.Pattern[str], needed: str | None = None) -> list[VersionPlace]:
    """Group 2 of each match; with `needed`, which says what was expected, there has to be exactly one."""
    if not file.is_file():
        raise VersionError(f"{file}: there is no such file; expected the repository of the bundles")
    found = list(pattern.finditer(file.read_text(encoding="utf-8")))
    if needed and len(found) != 1:
        raise VersionError(f"{file}: found {len(found)} places for a version; expected {needed}")
    return [VersionPlace(file, match.start(2), match.end(2), match[2]) for match in found]


def _with_changelog_entry(path: Path, text: str, version: str, note: str) -> str:
    """Put an entry on top of the changelog as text, which leaves the file's layout and escapes as they were."""
    before: dict[str, Any] = json.loads(text)
    if version in before["changelog"]:
        raise VersionError(f"{path}: found {version} in the changelog already; expected a version that was never given")
    quoted = json.dumps(note, ensure_ascii=text.isascii())
    changed = _CHANGELOG.sub(lambda match: f'{match[0]}{" " * 8}"{version}": {quoted},\n', text, count=1)
    expected = {**before, "changelog": {version: note, **before["changelog"]}}
    if json.dumps(json.loads(changed)) != json.dumps(expected):
        raise VersionError(
            f'{path}: expected JSON of indent 4 with "changelog": {{ on a line of its own, entries below it'
        )
    return changed


def _as_numbers(version: str) -> tuple[int, ...]:
    """For comparison; what a metadata file holds may have been anything."""
    if not re.fullmatch(VERSION, version):
        raise VersionError(f"found '{version}' as the present version; expected three whole numbers, such as 0.1.0")
    return tuple(int(part) for part in version.split("."))
