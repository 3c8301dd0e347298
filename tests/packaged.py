"""A bundle as scripts/package_bundle.py leaves it, in miniature."""

import json
from pathlib import Path

from conftest import REPOSITORY

METADATA = {
    "name": "Tiny segmenter",
    "version": "0.2.0",
    "changelog": {"0.2.0": "second", "0.1.0": "first"},
    "monai_version": "1.6.1",
    "pytorch_version": "2.13.0",
    "numpy_version": "2.2.6",
    "required_packages_version": {"einops": "0.8.1"},
    "task": "Segmentation of tiny radiographs",
    "intended_use": "Research. Not for diagnosis",
    "eval_metrics": {"dice": 0.75, "by_class": {"root": 0.9, "note": "text"}, "checked": True},
}
README = """# Tiny

![A mask](quickstart.png "A title") and [its file](../samples/a.png), [terms](data_license.txt#who), [below](#limits).

The [front page](../../../README.md), [`another` bundle](../../another/docs/README.md), [paper](https://arxiv.org/abs/1),
a [![badge](quickstart.png)](https://example.org/), [gone](gone.png), `[code](../../other.md)`.

**Authors**: us · **Tags**: dental radiograph, self-supervised

## Commands

```bash
python -m monai.bundle run --bundle_root bundles/tiny # [text](../../x.md)
```

## Limits

Small.
"""


def make_packaged(parent: Path) -> Path:
    """Write `tiny`, a folder that may be published; its weights are no weights."""
    folder = parent / "tiny"
    files = {
        "LICENSE": (REPOSITORY / "LICENSE").read_text(),
        "configs/metadata.json": json.dumps(METADATA),
        "configs/inference.json": json.dumps({"network_def": {"_target_": "scripts.common.networks.tiny.Tiny"}}),
        "configs/inference.yaml": "network_def:\n  _target_: scripts.common.networks.tiny.Tiny\n",
        "docs/README.md": README,
        "docs/data_license.txt": "The images:\n  CC BY 4.0. Ask `them` first.\n",
        "docs/quickstart.png": "picture",
        "docs/second_figure.png": "picture",
        "models/model.pt": "weights",
        "models/model.ts": "traced",
        "samples/a.png": "picture",
        "scripts/__init__.py": "",
        "scripts/common/__init__.py": '__version__ = "0.2.0"\n',
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder
