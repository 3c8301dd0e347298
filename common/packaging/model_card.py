"""A bundle's model card on the Hugging Face hub: its README, with front matter and links that work there."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError

PIPELINE_TAGS = (
    ("segmentation", "image-segmentation"),
    ("synthesis", "unconditional-image-generation"),
    ("generation", "unconditional-image-generation"),
    ("compression", "image-to-image"),
    ("reconstruction", "image-to-image"),
)
"""A word of the metadata's `task` and the hub's name for it; the first that fits counts."""

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
_IMAGE = re.compile(r"!\[(?P<text>[^\]]*)\]\((?P<target>[^()\s]+)(?P<title>\s+\"[^\"]*\")?\)")
_LINK = re.compile(
    r"(?<!!)\[(?P<text>(?:!\[[^\]]*\]\([^)]*\)|[^\[\]])*)\]\((?P<target>[^()\s]+)(?P<title>\s+\"[^\"]*\")?\)"
)
_TAGS = re.compile(r"\*\*Tags\*\*: *(.+)")


class ModelCardError(UserError, ValueError):
    """No card can be made of what the bundle says about itself."""


def make_model_card(bundle_dir: Path, repo: str) -> str:
    """Text of the README.md that stands at the top of the hub's repository.

    Args:
        bundle_dir: packaged, with LICENSE, docs/README.md, configs/metadata.json and perhaps docs/data_license.txt.
        repo: OWNER/NAME on the hub.
    """
    readme = _FRONT_MATTER.sub("", (bundle_dir / "docs" / "README.md").read_text(encoding="utf-8"))
    metadata = json.loads((bundle_dir / "configs" / "metadata.json").read_text(encoding="utf-8"))
    header = yaml.safe_dump(
        front_matter(bundle_dir, readme, metadata, repo), sort_keys=False, allow_unicode=True, width=1000
    )
    name = bundle_dir.resolve().name
    body = rewrite_links(readme, bundle_dir).replace(f"bundles/{name}", name)
    head, separator, rest = body.partition("\n## ")
    sections = [
        head.rstrip(),
        _other_pictures(bundle_dir, body),
        _loading(bundle_dir, metadata, repo),
        (separator + rest).strip(),
    ]
    sections += [_intended_use(metadata), _licence(bundle_dir)]
    return f"---\n{header}---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def front_matter(bundle_dir: Path, readme: str, metadata: dict[str, Any], repo: str) -> dict[str, Any]:
    """What the hub sorts models by; keys as in its specification (github.com/huggingface/hub-docs, modelcard.md).

    Weights whose data came with terms are not under the code's licence alone, and the hub is told so: `other`, with a
    link to the terms.
    """
    entries: dict[str, Any] = {"license": code_licence(bundle_dir)}
    if (bundle_dir / "docs" / "data_license.txt").is_file():
        entries["license_name"] = f"{entries['license']}-with-data-terms"
        entries["license"] = "other"
        entries["license_link"] = f"https://huggingface.co/{repo}/blob/main/docs/data_license.txt"
    entries["library_name"] = "monai"
    entries["tags"] = _tags(readme)
    task = pipeline_tag(metadata["task"])
    if task is not None:
        entries["pipeline_tag"] = task
    entries["version"] = metadata["version"]
    metrics = list(_numbers(metadata.get("eval_metrics", {})))
    if metrics:
        result = {
            "task": {"type": task or "other", "name": metadata["task"]},
            "dataset": {"type": "held-out-images", "name": "Held-out images, see the section on performance"},
            "metrics": [{"type": name, "value": value} for name, value in metrics],
        }
        entries["model-index"] = [{"name": metadata.get("name", repo), "results": [result]}]
    return entries


def code_licence(bundle_dir: Path) -> str:
    """The hub's identifier of the licence whose text is in LICENSE."""
    text = (bundle_dir / "LICENSE").read_text(encoding="utf-8")
    if "Apache License" in text and "Version 2.0" in text:
        return "apache-2.0"
    if "MIT License" in text or "Permission is hereby granted, free of charge" in text:
        return "mit"
    raise ModelCardError(
        f"{bundle_dir / 'LICENSE'}: found neither the Apache License 2.0 nor the MIT License; expected one of them"
    )


def pipeline_tag(task: str) -> str | None:
    """The hub's name for a task in the words of the metadata, or None."""
    return next((tag for word, tag in PIPELINE_TAGS if word in task.lower()), None)


def rewrite_links(text: str, bundle_dir: Path) -> str:
    """Make the relative links of docs/README.md right for a README.md one folder above; leave code alone.

    A link that leaves the bundle, or to what is not in it, becomes its text; anchors and addresses stay.
    """
    root = bundle_dir.resolve()

    def rewrite(match: re.Match[str]) -> str:
        target, title = match["target"], match["title"] or ""
        if target.startswith(("#", "//")) or re.match(r"[A-Za-z][\w+.-]*:", target):
            return match[0]
        path, hash_sign, anchor = target.partition("#")
        file = (root / "docs" / path).resolve()
        if not (file.is_relative_to(root) and file.exists()):
            return match["text"]
        if file == root / "docs" / "README.md":
            return f"[{match['text']}](#{anchor}{title})" if anchor else match["text"]
        mark = "!" if match[0].startswith("!") else ""
        return f"{mark}[{match['text']}]({file.relative_to(root).as_posix()}{hash_sign}{anchor}{title})"

    # Code is put aside, not cut out: a link's text may hold some. Pictures first: one may be the text of a link.
    code = _CODE.findall(text)
    marked = _CODE.sub("\0", text)
    rewritten = _LINK.sub(rewrite, _IMAGE.sub(rewrite, marked))
    pieces = rewritten.split("\0")
    return "".join(itertools.chain.from_iterable(itertools.zip_longest(pieces, code, fillvalue="")))


def _tags(readme: str) -> list[str]:
    """MONAI's two, radiograph, and those of the README's line `**Tags**: ...`, in the hub's spelling."""
    line = _TAGS.search(readme)
    own = [re.sub(r"[^a-z0-9]+", "-", tag.lower()).strip("-") for tag in line[1].split(",")] if line else []
    return list(dict.fromkeys(["monai", "medical", "radiograph", *filter(None, own)]))


def _numbers(metrics: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Every number of nested metrics with the keys that lead to it, joined by underscores."""
    found: list[tuple[str, float]] = []
    for key, value in metrics.items():
        if isinstance(value, dict):
            found += _numbers(value, f"{prefix}{key}_")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((f"{prefix}{key}", value))
    return found


def _other_pictures(bundle_dir: Path, body: str) -> str:
    """Pictures that lie beside the README and that it does not show."""
    names = sorted(path.name for path in bundle_dir.glob("docs/*.png"))
    shown = [f"![{Path(name).stem.replace('_', ' ')}](docs/{name})" for name in names if f"(docs/{name}" not in body]
    return "\n\n".join(shown)


def _loading(bundle_dir: Path, metadata: dict[str, Any], repo: str) -> str:
    """How to get and run the bundle; only what its files allow."""
    name = bundle_dir.resolve().name
    packages = {
        "torch": metadata["pytorch_version"],
        "monai": metadata["monai_version"],
        "numpy": metadata["numpy_version"],
        **metadata["required_packages_version"],
    }
    python = [
        "import monai.bundle",
        "",
        f'monai.bundle.download(name="{name}", source="huggingface_hub", repo="{repo}", '
        f'version="{metadata["version"]}", bundle_dir=".")',
    ]
    if (bundle_dir / "configs" / "inference.json").is_file():
        python.append(f'network = monai.bundle.load("{name}", workflow_type="inference", bundle_dir=".")')
    if (bundle_dir / "models" / "model.ts").is_file():
        python.append(f'traced, metadata, _ = monai.bundle.load("{name}", load_ts_module=True, bundle_dir=".")')
    lines = [
        "## Get it from here",
        "",
        f"`pip install huggingface_hub {' '.join(f'{package}=={version}' for package, version in packages.items())}`, "
        "or near those versions; then, in Python,",
        "",
        "```python",
        *python,
        "```",
    ]
    configs = [bundle_dir / "configs" / f"inference{suffix}" for suffix in (".json", ".yaml")]
    config = next((path.name for path in configs if path.is_file()), None)
    if config:
        lines += ["", "and, with what was downloaded, on the samples that come with it:", "", "```bash"]
        lines += [f"python -m monai.bundle run --bundle_root {name} --config_file {name}/configs/{config}", "```"]
    lines += [
        "",
        f"Below, `{name}` in a command is the folder that was downloaded. Scripts named there as `scripts/*.py` belong "
        "to the project's repository and do not come with the bundle.",
    ]
    return "\n".join(lines)


def _intended_use(metadata: dict[str, Any]) -> str:
    text = metadata.get("intended_use")
    return f"## Intended use\n\n{text.rstrip('.')}." if text else ""


def _licence(bundle_dir: Path) -> str:
    """The licence of the code, and word for word the terms of the data."""
    names = {"apache-2.0": "Apache License 2.0", "mit": "MIT License"}
    text = f"## Licence\n\nCode: {names[code_licence(bundle_dir)]}, see [LICENSE](LICENSE)."
    terms = bundle_dir / "docs" / "data_license.txt"
    if terms.is_file():
        quoted = terms.read_text(encoding="utf-8").rstrip()
        text += f" Data and weights ([docs/data_license.txt](docs/data_license.txt)):\n\n```text\n{quoted}\n```"
    return text
