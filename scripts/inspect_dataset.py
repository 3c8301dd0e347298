"""Look through a folder of radiographs before anything is trained on it; nothing in it is changed.

python scripts/inspect_dataset.py DIR --output_dir OUT
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from train_all import REPOSITORY, plan

from common.command_line import run_command
from common.data.datalist_sources import MANIFEST_NAME, listed_images, name_in
from common.data.datalists import with_patients
from common.data.duplicates import SIMILAR, Pair, find_duplicates
from common.data.inspection import Look, likely_chain, look_at, oddities
from common.data.one_side import DUPLICATES_NAME, SHEET_NAME, one_side, thumbnail, write_duplicates
from common.data.typical_images import load_typical
from common.errors import SettingsError, UserError, counted
from common.files import write_json
from common.io.contact_sheet import save_contact_sheet
from common.networks.weights import described
from common.progress import ProgressBar

WEIGHTS = {  # of each chain: what its training images were like lies beside them
    "cxr": REPOSITORY / "bundles" / "cxr_dino_latent_diffusion" / "models" / "model.pt",
    "dental": REPOSITORY / "bundles" / "dental_radiograph_segmentation" / "models" / "model.pt",
}
SUGGESTIONS = {
    "unreadable": "repair or remove them; every workflow leaves them out and lists them in skipped.csv",
    "polarity": "look at them: correct PhotometricInterpretation, or store the pictures inverted",
    "range": "export them again with their full range of grey values",
    "size": "find the originals: small ones are enlarged, and of elongated ones a part is cut off or little is seen",
    "text": "blank it: it may name a patient, and a generator learns it",
    "duplicate": "scripts/split_dataset.py keeps each picture on one side of the split; duplicates.png shows them",
    "two splits": f"give all images of a patient one split in {MANIFEST_NAME}; until then no workflow takes the folder",
}
REPORT_NAME, CONTACT_SHEET_NAME = "inspection.json", "inspection.png"
Item = dict[str, str]
NUM_SHOWN = 6  # files of each kind, on the sheet and in the text


def inspect_dataset(
    dataset_dir: str,
    *,
    output_dir: str = "outputs/inspection",
    chain: str | None = None,
    patient_id_pattern: str | None = None,
) -> None:
    """Print what was found; write inspection.json, inspection.png and, where there are any, duplicates.csv and .png.

    These name and show patients: keep them where the patients' data are kept.

    Args:
        dataset_dir: folder of radiographs, or of a manifest.csv.
        output_dir: made when missing.
        chain: cxr or dental; None for the one whose training images these are like.
        patient_id_pattern: regular expression with one group, finds the patient in a file name.
    """
    if chain not in (None, *WEIGHTS):
        raise SettingsError(f"chain: found {chain}; expected one of {', '.join(WEIGHTS)}")
    root, output = Path(os.path.abspath(Path(dataset_dir).expanduser())), Path(output_dir)
    items = with_patients(listed_images(root), root, patient_id_pattern)
    looks = look_at_all(items)
    readable = [number for number, look in enumerate(looks) if not look.problem]
    if chain is None and readable:
        chain = likely_chain([looks[number] for number in readable])
    chain = chain or next(iter(WEIGHTS))
    findings = of_files(items, looks, chain)
    written = [REPORT_NAME]
    if readable:
        usable = [items[number] for number in readable]
        found = find_duplicates(usable)
        write_duplicates(found, usable, [], output)
        findings += of_pairs(root, usable, found.pairs)
        draw(root, usable, findings, output / CONTACT_SHEET_NAME)
        written += [CONTACT_SHEET_NAME, DUPLICATES_NAME, *([SHEET_NAME] if found.pairs else [])]
    report = {
        **{"dataset_dir": str(root), "chain": chain, **summary(root, items, looks)},
        **{"findings": [{**each, "name": name_in(root, each["image"])} for each in findings]},
        **{"plan": planned(root, output, chain), "files": [asdict(look) for look in looks]},
    }
    write_json(output / REPORT_NAME, report)
    print(text(report))
    print(f"written to {output}: {', '.join(written)}")


def look_at_all(items: Sequence[Item]) -> list[Look]:
    """Look at every file once."""
    typical = {name: found for name, path in WEIGHTS.items() if (found := load_typical(path)) is not None}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looks = pool.map(lambda item: look_at(item, typical), items)
        return list(ProgressBar(looks, desc="looking", total=len(items), unit="file"))


def of_files(items: Sequence[Item], looks: Sequence[Look], chain: str) -> list[Item]:
    """What is odd about single files, and patients on two sides of a split that the manifest brings."""
    seen = described(WEIGHTS[chain], "image_size")
    size = (seen, seen) if isinstance(seen, int) else (seen[0], seen[1])
    odd = [(kind, look.image, what) for look in looks for kind, what in oddities(look, size, chest="cxr").items()]
    odd += [("two splits", move.image, f"{move.before}; {move.why}") for move in one_side(items, [])[1]]
    return [{"kind": kind, "image": image, "what": what} for kind, image, what in odd]


def of_pairs(root: Path, items: Sequence[Item], pairs: Sequence[Pair]) -> list[Item]:
    """Pictures that are there twice; those that are only alike stand in duplicates.csv."""
    findings = []
    for pair in pairs:
        one, other = items[pair.first], items[pair.second]
        splits = f"; {one['split']} and {other['split']}" if "split" in one else ""
        what = f"of {name_in(root, one['image'])}: {pair.kind}, correlation {pair.correlation:.2f}{splits}"
        if pair.kind != SIMILAR:
            findings.append({"kind": "duplicate", "image": other["image"], "what": what})
    return findings


def summary(root: Path, items: Sequence[Item], looks: Sequence[Look]) -> dict[str, Any]:
    """Counts of a data set; `other_files` are those of the folder that are not listed, by suffix."""
    listed = {item[key] for item in items for key in ("image", "mask") if key in item} | {str(root / MANIFEST_NAME)}
    others = (path for path in root.rglob("*") if path.is_file() and str(path) not in listed)
    sizes = np.array([look.size for look in looks if not look.problem] or [(0, 0)])
    return {
        "images": len(items),
        "patients": len({item["patient_id"] for item in items}),
        "splits": dict(Counter(item["split"] for item in items if "split" in item)),
        "masks": sum("mask" in item for item in items),
        "formats": dict(Counter(look.kind for look in looks if not look.problem).most_common()),
        "rows_and_columns": {
            name: [int(value) for value in of(sizes, axis=0)]
            for name, of in (("least", np.min), ("median", np.median), ("most", np.max))
        },
        "other_files": dict(Counter(path.suffix.lower() or "without suffix" for path in others).most_common()),
    }


def planned(root: Path, output: Path, chain: str) -> str:
    """What `train_all.py plan` prints, without measuring, or why it refuses."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            plan(str(root), work_dir=str(output / "training"), chain=chain, measure=False)
    except UserError as error:
        return f"refused: {error}"
    return printed.getvalue().rstrip()


def draw(root: Path, items: Sequence[Item], findings: Sequence[Item], path: Path) -> None:
    """The sheet: some of the readable files, evenly spaced, then some of each kind of finding."""
    readable = [item["image"] for item in items]
    spaced = np.unique(np.linspace(0, len(items) - 1, NUM_SHOWN).round().astype(int))
    known, images = set(readable), {f"{len(spaced)} of {len(items)} images": [readable[number] for number in spaced]}
    for kind in SUGGESTIONS:
        named = [each["image"] for each in findings if each["kind"] == kind and each["image"] in known][:NUM_SHOWN]
        if named:
            images[f"{kind}: {', '.join(name_in(root, image) for image in named)}"] = named
    save_contact_sheet([list(map(thumbnail, some)) for some in images.values()], path, None, list(images))


def text(report: dict[str, Any]) -> str:
    """The report for a terminal."""
    sizes = ", ".join(f"{name} {rows} × {columns}" for name, (rows, columns) in report["rows_and_columns"].items())
    size = f"{counted(report['images'], 'image')} of {counted(report['patients'], 'patient')}"
    lines = [
        f"{size}, {report['masks']} with a mask; most like those of the chain {report['chain']}",
        f"formats: {_counts(report['formats'])}",
        f"rows × columns: {sizes}",
        f"splits: {_counts(report['splits'])}",
        f"other files, left alone: {_counts(report['other_files'])}",
    ]
    for kind, suggestion in SUGGESTIONS.items():
        found = [each for each in report["findings"] if each["kind"] == kind]
        if found:
            lines += [f"{kind}: {len(found)}", *(f"  {each['name']}: {each['what']}" for each in found[:NUM_SHOWN])]
            lines += [f"  … all in {REPORT_NAME}"] * (len(found) > NUM_SHOWN) + [f"  -> {suggestion}"]
    if not report["findings"]:
        lines.append("nothing to mend was found")
    indented = report["plan"].replace("\n", "\n  ")
    return "\n".join([*lines, f"train_all.py plan --chain {report['chain']}, not measured:", f"  {indented}"])


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


if __name__ == "__main__":
    run_command(inspect_dataset)
