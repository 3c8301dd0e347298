"""All that the model zoo's CI and reviewers ask of a bundle, offline: one verdict for each question."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .bundle_contract import check_configs, check_keys, check_properties, check_run_ids, check_twins
from .bundle_files import (
    check_docs,
    check_files,
    check_hashes,
    check_large_files,
    check_leftovers,
    check_licences,
    check_metadata,
    check_name,
    check_packages,
    check_paths,
    check_python,
    check_sizes,
    check_style,
    check_version,
)
from .bundle_source import opened_bundle
from .isolation import IsolatedError, call_isolated


@dataclass(frozen=True)
class Question:
    """One thing asked.

    Attributes:
        name: one word.
        text: what should be so.
        required: whether the zoo refuses a bundle for it; otherwise it is advice.
    """

    name: str
    text: str
    required: bool = True


@dataclass(frozen=True)
class Verdict:
    """The answer to one question; no problems is yes."""

    question: Question
    problems: list[str]

    @property
    def failed(self) -> bool:
        """Whether the bundle cannot pass with it."""
        return bool(self.problems) and self.question.required

    def line(self) -> str:
        """For people: one line, further ones for further problems."""
        word = "FAIL" if self.failed else "warn" if self.problems else "ok"
        said = ("\n" + " " * 18).join(self.problems) if self.problems else self.question.text
        return f"{word:<5}{self.question.name + ':':<13}{said}"


FILE_QUESTIONS: tuple[tuple[Question, Callable[[Path], list[str]]], ...] = (
    (Question("files", "metadata, LICENSE, README, weights and an inference config are there"), check_files),
    (Question("name", "the folder is named as the zoo names bundles"), check_name),
    (Question("metadata", "follow the schema"), check_metadata),
    (Question("version", "is the newest of the changelog"), check_version),
    (Question("packages", "are pinned by the names that pip knows"), check_packages),
    (Question("configs", "can be read, and every reference leads somewhere"), check_configs),
    (Question("twins", "YAML and JSON of the same name say the same"), check_twins),
    (Question("run ids", "`run` is there for MONAI Label and the zoo"), check_run_ids),
    (Question("keys", "what reviewers look for is there"), check_keys),
    (Question("properties", "MONAI's properties are where it looks for them"), check_properties),
    (Question("licences", "a licence and whose the bundle is"), check_licences),
    (Question("paths", "nobody's folders are named"), check_paths),
    (Question("leftovers", "no caches or results"), check_leftovers),
    (Question("python", "all code parses"), check_python),
    (Question("large files", "are inside the bundle and have addresses"), check_large_files),
    (Question("hashes", "of the large files are told", required=False), check_hashes),
    (Question("sizes", "no file above 25 MiB", required=False), check_sizes),
    (Question("docs", "the README has the template's sections", required=False), check_docs),
    (Question("style", "JSON as the zoo's pre-commit would leave it", required=False), check_style),
)
CODE_QUESTIONS = (
    Question("targets", "every _target_ exists with only the bundle on the path"),
    Question("weights", "are tensors, and exactly those of network_def"),
    Question("network", "takes and gives what the metadata say"),
    Question("trace", "TorchScript by trace is saved, loaded and gives the same"),
    Question("torchscript", "models/model.ts, if any, gives what the network gives"),
)


def check_bundle(path: str | Path, run_code: bool = True) -> Iterator[Verdict]:
    """Ask everything of a bundle, a folder or a zip, one verdict after the other.

    Args:
        path: of it.
        run_code: also build and trace its network, in a process of its own. A bundle's configs can run any code: only
            for bundles that are trusted.

    Raises:
        NoBundleError: neither a folder nor a zip of one.
    """
    with opened_bundle(path) as bundle_dir:
        for question, check in FILE_QUESTIONS:
            yield Verdict(question, check(bundle_dir))
        if run_code:
            yield from _code_verdicts(bundle_dir)


def _code_verdicts(bundle_dir: Path) -> Iterator[Verdict]:
    try:
        found = call_isolated(".packaging.network_checks", "all_checks", bundle_dir)
    except IsolatedError as error:
        found = {question.name: [str(error)] for question in CODE_QUESTIONS}
    assert isinstance(found, dict)
    for question in CODE_QUESTIONS:
        yield Verdict(question, found[question.name])
