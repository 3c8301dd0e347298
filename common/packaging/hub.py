"""A packaged bundle on the Hugging Face hub, with a model card made of its README and metadata."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, EvalResult, HfApi, ModelCardData, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors.torch import save

from ..config_graph import iter_items
from ..errors import RunError, SettingsError
from .bundle import Bundle
from .torchscript import TORCHSCRIPT
from .vendoring import OWN_PACKAGE, VENDORED_PACKAGE
from .zoo_check import check_bundle

CARD = "README.md"
WEIGHTS, SAFE_WEIGHTS = "models/model.pt", "model.safetensors"  # the latter as the hub looks for it
LATEST = "latest_version"  # the tag that monai.bundle.download takes when it is told no version
TASKS = (
    ("segmentation", "image-segmentation"),
    ("synthesis|generation", "unconditional-image-generation"),
    ("compression|reconstruction", "image-to-image"),
)
"""Words of the metadata's `task` and the hub's name for it."""
LOADING = """## Get it from here

`pip install huggingface_hub {packages}`, or near those versions; then, in Python,

```python
import monai.bundle

monai.bundle.download(name="{name}", source="huggingface_hub", repo="{repo}", version="{version}", bundle_dir=".")
network = monai.bundle.load("{name}", workflow_type="inference", bundle_dir=".")
{traced}```

and, on the samples that come with it, `cd {name} && python -m monai.bundle run --config_file configs/inference.yaml`.
Scripts named below as `scripts/*.py` belong to the project's repository and do not come with the bundle."""


def publishable_files(folder: Path, repo: str) -> dict[str, Path | bytes]:
    """What the hub gets of a packaged bundle, by path there: every file; at the top the card and safe weights.

    Raises:
        SettingsError: `repo` is not OWNER/NAME as the hub allows it.
        RunError: the bundle does not run alone, or fails the model zoo's checks; everything is listed.
    """
    try:
        validate_repo_id(repo if "/" in repo else "")
    except HFValidationError as error:
        raise SettingsError(f"found {repo!r} as the repository; expected OWNER/NAME: {error}") from error
    bundle = Bundle(folder.resolve())
    problems = [verdict.line() for verdict in check_bundle(folder, run_code=False) if verdict.failed]
    problems += [f"{path.relative_to(bundle.root)} is a link" for path in bundle.root.rglob("*") if path.is_symlink()]
    code = bundle.root.joinpath(*VENDORED_PACKAGE.split("."), "__init__.py")
    listed = [bundle.root / path for path in bundle.large_files]  # the hub takes large files
    problems += [f"{path.relative_to(bundle.root)} is missing" for path in (code, *listed) if not path.is_file()]
    problems = problems or [
        f"configs/{name}: {item_id}: {value} is code that does not come with it"
        for name, tree in bundle.configs.items()
        for item_id, value in iter_items(tree)
        if item_id.endswith("_target_") and str(value).startswith(f"{OWN_PACKAGE}.")
    ]
    if problems:
        found = "\n".join(f"  {problem}" for problem in problems)
        raise RunError(f"{folder}: expected a packaged bundle (scripts/package_bundle.py makes one); found\n{found}")
    files: dict[str, Path | bytes] = {path.relative_to(bundle.root).as_posix(): path for path in bundle.files}
    state = torch.load(bundle.root / WEIGHTS, map_location="cpu", weights_only=True)
    weights = save({name: value.contiguous() for name, value in state.items()})
    return {**files, CARD: make_model_card(bundle, repo).encode(), SAFE_WEIGHTS: weights}


def publish(
    files: dict[str, Path | bytes], repo: str, version: str, token: str | None = None, private: bool = True
) -> str:
    """Send files (see `publishable_files`) to the hub in one commit and tag it; returns the address.

    The commit also removes what an older version left in their folders. A repository OWNER/NAME is made if there is
    none, private or not. The tag of the version comes last and says that all is there; `latest_version` moves to it,
    too. Without a token that of HF_TOKEN counts, or what `hf auth login` has stored.

    Raises:
        RunError: no token, no connection, no permission, or the version is there already.
    """
    api = HfApi(token=token or get_token())
    if not api.token:
        raise RunError(
            "found no token of the Hugging Face hub; give --token, set HF_TOKEN, or run `hf auth login` once"
        )
    folders = {path.split("/")[0] for path in files if "/" in path}
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        tags = {tag.name for tag in api.list_repo_refs(repo).tags}
        if version in tags:
            raise RunError(f"version {version} is on the hub already; expected a new one (scripts/set_version.py)")
        old = [path for path in api.list_repo_files(repo) if path not in files and path.split("/")[0] in folders]
        commit: list[Any] = [CommitOperationDelete(path) for path in old]
        commit += [CommitOperationAdd(path, file) for path, file in files.items()]
        api.create_commit(repo, commit, commit_message=f"Version {version}")
        if LATEST in tags:
            api.delete_tag(repo, tag=LATEST)
        for tag in (LATEST, version):
            api.create_tag(repo, tag=tag)
    except Exception as error:  # of requests, httpx or httpx2, as the version of huggingface_hub has it
        raise RunError(
            f"{repo}: not published: {type(error).__name__}: {str(error).strip()}\n"
            "Look at the network, the token and its right to write there. The same command again is safe."
        ) from error
    return f"https://huggingface.co/{repo}"


def make_model_card(bundle: Bundle, repo: str) -> str:
    """The bundle's README with the hub's front matter, how to load it, its intended use and its licences."""
    root, metadata = bundle.root.resolve(), bundle.metadata
    readme = (root / "docs" / CARD).read_text(encoding="utf-8")
    head, separator, rest = _from_top(readme, root).replace(f"bundles/{root.name}", root.name).partition("\n## ")
    packages = {"torch": metadata["pytorch_version"], "monai": metadata["monai_version"]}
    packages |= {"numpy": metadata["numpy_version"], **metadata["required_packages_version"]}
    pins = " ".join(f"{package}=={version}" for package, version in packages.items())
    traced = f'traced, _, _ = monai.bundle.load("{root.name}", load_ts_module=True, bundle_dir=".")\n'
    traced = traced if (root / TORCHSCRIPT).is_file() else ""
    loading = LOADING.format(traced=traced, name=root.name, repo=repo, version=metadata["version"], packages=pins)
    parts = [head.rstrip(), loading, (separator + rest).strip(), f"## Intended use\n\n{metadata.get('intended_use')}."]
    terms = root / "docs" / "data_license.txt"
    parts.append("## Licence\n\nOf the code: [LICENSE](LICENSE).")
    if terms.is_file():
        parts.append(f"Of data and weights:\n\n```text\n{terms.read_text(encoding='utf-8').rstrip()}\n```")
    header = _front_matter(metadata, readme, repo, terms.is_file()).to_yaml()
    return f"---\n{header}\n---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(metadata: dict[str, Any], readme: str, repo: str, terms: bool) -> ModelCardData:
    """What the hub sorts models by. Data that came with terms make the licence of the weights `other`, with a link."""
    tags = re.search(r"\*\*Tags\*\*: *(.+)", readme)
    own = [re.sub(r"[^a-z0-9]+", "-", tag.lower()).strip("-") for tag in tags[1].split(",")] if tags else []
    task = next((name for words, name in TASKS if re.search(words, metadata["task"], re.IGNORECASE)), None)
    results = [
        EvalResult(
            **{"task_type": task or "other", "task_name": metadata["task"], "dataset_type": "held-out-images"},
            dataset_name="Held-out images, see the section on performance",
            metric_type=name.replace("::", "_"),
            metric_value=value,
        )
        for name, value in iter_items(metadata.get("eval_metrics", {}))
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    return ModelCardData(
        license="other" if terms else "apache-2.0",
        license_name="apache-2.0-with-data-terms" if terms else None,
        license_link=f"https://huggingface.co/{repo}/blob/main/docs/data_license.txt" if terms else None,
        library_name="monai",
        tags=list(dict.fromkeys(["monai", "medical", "radiograph", *own])),
        pipeline_tag=task,
        model_name=metadata["name"],
        eval_results=results or None,
        version=metadata["version"],
    )


def _from_top(text: str, root: Path) -> str:
    """The text of docs/README.md with links that are right for a README.md one folder above.

    A link that leaves the bundle, or to what is not in it, becomes its text; anchors and addresses stay.
    """

    def rewrite(match: re.Match[str]) -> str:
        path, _, anchor = match["target"].partition("#")
        file = (root / "docs" / path).resolve()
        if not path or ":" in path:
            return match[0]
        if not (file.is_relative_to(root) and file.exists()):
            return match["text"]
        return f"{match['mark']}[{match['text']}]({file.relative_to(root).as_posix()}{'#' * bool(anchor)}{anchor})"

    return re.sub(r"(?P<mark>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)", rewrite, text)
