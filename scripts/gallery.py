"""The pictures of a folder of results as one HTML file that needs nothing else, to be looked at or sent.

python scripts/gallery.py OUT
"""

from __future__ import annotations

import base64
import csv
import io
from html import escape
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from common.command_line import run_command
from common.errors import DatasetError
from common.files import atomic_path

STYLE = """
:root { color-scheme: dark }
body { margin: auto; max-width: 1500px; padding: 24px; background: #0d1013; color: #e8edf0;
  font: 14px/1.45 system-ui, sans-serif }
h1 { font-size: 20px }
h2, small { color: #9dabb5; font-weight: 400 }
h2 { font-size: 15px; border-bottom: 1px solid #2a3239; padding: 16px 0 6px }
div { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr)) }
figure { margin: 0; min-width: 0 }
.wide { grid-column: 1 / -1 }
img { width: 100%; border-radius: 8px; background: #000; display: block }
.wide img { width: auto; max-width: 100% }
figcaption { overflow-wrap: anywhere; padding-top: 6px }
small { display: block }
"""
SUFFIXES = (".png", ".jpg", ".jpeg")
SHOWN = ("strategy", "seed", "label", "mix", "psnr_db", "unlikeness", "source_unlikeness", "flagged")  # and areas


def gallery(folder: str, *, output: str | None = None, longest: int = 1024, limit: int = 500) -> None:
    """Write OUT/gallery.html of all PNG and JPEG files below a folder, with what its tables say of them.

    Args:
        folder: of any results.
        output: another place for the file.
        longest: px, longer side of a picture at most; larger ones are reduced.
        limit: pictures at most.
    """
    root = Path(str(folder)).expanduser()
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; expected one of results")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise DatasetError(f"{root}: found no PNG or JPEG below it; expected a folder of results")
    rows = table_rows(root)
    parts = [f"<h1>{escape(root.resolve().name)}</h1>"]
    files.sort(key=lambda path: path.parent)
    for parent, group in groupby(files[:limit], key=lambda path: path.parent):
        parts.append(f"<h2>{escape(str(parent.relative_to(root)))}</h2><div>")
        parts += [
            figure(path, rows.get(path.relative_to(root).as_posix(), rows.get(path.stem, "")), longest)
            for path in group
        ]
        parts.append("</div>")
    if len(files) > limit:
        parts.append(f"<p>The first {limit} of {len(files)} pictures; --limit shows more.</p>")
    head = "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    head += f"<title>{escape(root.resolve().name)}</title><style>{STYLE}</style>"
    target = root / "gallery.html" if output is None else Path(str(output)).expanduser()
    with atomic_path(target) as temporary:
        temporary.write_text("\n".join([head, *parts]), encoding="utf-8")
    print(f"{target}: {min(limit, len(files))} of {len(files)} pictures, {target.stat().st_size / 2**20:.1f} MiB")


def table_rows(root: Path) -> dict[str, str]:
    """What the tables at the top of a folder say of each image, by their column `image`."""
    found: dict[str, str] = {}
    for path in sorted(root.glob("*.csv")):
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                shown = {key: row[key] for key in row if key in SHOWN or (key or "").endswith(("_px", "_mm2"))}
                text = ", ".join(f"{key} {value}" for key, value in shown.items() if value not in ("", None))
                found |= {f"{row.get('image')}{end}": text for end in ("", "_overlay", "_reconstruction")}
    return found


def figure(path: Path, about: str, longest: int) -> str:
    """A picture with its caption; contact sheets and plots take the whole width."""
    with Image.open(path) as picture:
        is_wide = picture.width > 1.9 * picture.height or "sheet" in path.stem
        content, kind = path.read_bytes(), picture.format or "PNG"
        if max(picture.size) > longest:
            grey = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)) if picture.mode[0] == "I" else picture
            reduced, buffer = grey.convert("RGB" if picture.mode in ("RGB", "RGBA", "P") else "L"), io.BytesIO()
            reduced.thumbnail((longest, longest))
            reduced.save(buffer, format="PNG")
            content, kind = buffer.getvalue(), "PNG"
    uri = f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
    kind = " class=wide" if is_wide else ""
    caption = f"<figcaption>{escape(path.name)}<small>{escape(about)}</small></figcaption>"
    return f"<figure{kind}><img src='{uri}' alt='{escape(path.stem)}'>{caption}</figure>"


if __name__ == "__main__":
    run_command(gallery)
