"""What would go to the hub, what is refused before anything goes, what a hub receives; and the card there.

The hub is a stand-in on this machine; huggingface_hub and our code are the real ones.
"""

import base64
import hashlib
import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import REPOSITORY
from huggingface_hub import ModelCard
from safetensors.torch import load
from script_module import load_script
from stand_in import StandIn, served
from tiny_bundles import tensor

from common.command_line import run_command
from common.errors import RunError, SettingsError
from common.packaging import hub as module
from common.packaging.bundle import Bundle
from common.packaging.hub import make_model_card, publish, publishable_files

BUNDLES = sorted(path.parents[1] for path in REPOSITORY.glob("bundles/*/configs/metadata.json"))
TENSOR = tensor(1, ["8*n"], (0, 1))
METADATA = {
    **{"name": "Tiny segmenter", "schema": "https://example.org/s.json", "description": "tiny", "authors": "us"},
    **{"copyright": "(c) us", "version": "0.2.0", "changelog": {"0.2.0": "second", "0.1.0": "first"}},
    **{"monai_version": "1.6.1", "pytorch_version": "2.13.0", "numpy_version": "2.2.6"},
    **{"required_packages_version": {"einops": "0.8.1"}, "task": "Segmentation of tiny radiographs"},
    "intended_use": "Research. Not for diagnosis",
    "eval_metrics": {"dice": 0.75, "by_class": {"root": 0.9, "note": "text"}, "checked": True},
    "network_data_format": {"inputs": {"image": TENSOR}, "outputs": {"pred": TENSOR}},
}
README = """# Tiny

![A mask](quickstart.png) and [its file](../samples/a.png), [terms](data_license.txt#who), [below](#limits).

The [front page](../../../README.md), [`another` bundle](../../another/docs/README.md), [paper](https://arxiv.org/abs/1),
a [list](https://example.org/), [gone](gone.png), and so on.

**Authors**: us · **Tags**: dental radiograph, self-supervised

## Commands

```bash
python -m monai.bundle run --bundle_root bundles/tiny --x
```

## Model, data, performance, references

## Limits

Small.
"""
INFERENCE = {
    **{"bundle_root": ".", "device": "cpu", "network_def": {"_target_": "scripts.common.networks.tiny.Tiny"}},
    **{"inferer": {"_target_": "SimpleInferer"}, "evaluator": {"_target_": "SupervisedEvaluator"}},
    **{"dataset_dir": ".", "dataset": {"data": []}, "run": ["@evaluator"]},
}
OWN_CODE = {**INFERENCE, "network_def": {"_target_": "common.networks.x.X"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`tiny`, as scripts/package_bundle.py leaves it."""
    files = {
        "LICENSE": (REPOSITORY / "LICENSE").read_text(),
        "configs/metadata.json": json.dumps(METADATA),
        "configs/inference.json": json.dumps(INFERENCE),
        "docs/README.md": README,
        "docs/data_license.txt": "The images:\n  CC BY 4.0. Ask `them` first.\n",
        "docs/quickstart.png": "picture",
        "models/model.ts": "traced",
        "samples/a.png": "picture",
        "scripts/__init__.py": "",
        "scripts/common/__init__.py": '__version__ = "0.2.0"\n',
    }
    for name, text in files.items():
        (tmp_path / "tiny" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tiny" / name).write_text(text)
    torch.save({"a.weight": torch.arange(6.0).view(2, 3).T, "n": torch.tensor(3)}, tmp_path / "tiny/models/model.pt")
    return tmp_path / "tiny"


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("repo", ["me/tiny", "Some-Org/a_b.c-1", "0/9"])
def test_what_goes_is_the_folder_and_the_card(folder, repo):
    files = publishable_files(folder, repo)
    assert files.pop("README.md") == make_model_card(Bundle(folder), repo).encode()
    weights = load(files.pop("model.safetensors"))
    assert torch.equal(weights["a.weight"], torch.arange(6.0).view(2, 3).T) and weights["n"] == 3
    assert {name: path.read_bytes() for name, path in files.items()} == contents(folder)


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "me/", "/tiny", "me/a b", "me/a--b", "me/" + 97 * "a"])
def test_names_that_the_hub_does_not_allow_are_refused(folder, repo):
    with pytest.raises(SettingsError, match="OWNER/NAME"):
        publishable_files(folder, repo)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("LICENSE", None, "LICENSE"),
        ("docs/README.md", None, "docs/README.md"),
        ("configs/metadata.json", None, "metadata.json"),
        ("configs/metadata.json", "{", "metadata.json"),
        ("configs/metadata.json", json.dumps({**METADATA, "version": "0.3.0"}), "0.3.0 is not in the changelog"),
        ("configs/metadata.json", json.dumps({"version": "0.2.0"}), "changelog"),
        ("scripts/common/__init__.py", None, "scripts/common/__init__.py"),
        ("configs/inference.json", json.dumps(OWN_CODE), "common.networks.x.X"),
        ("large_files.yml", "large_files:\n- path: models/big.pt\n  url: https://u\n", "models/big.pt"),
        ("outputs/train/log.txt", "left over", "outputs"),
    ],
)
def test_a_folder_that_is_not_fit_is_refused(folder, name, text, told):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    with pytest.raises(RunError, match=told):
        publishable_files(folder, "me/tiny")


def test_everything_that_is_wrong_is_told_at_once(folder, tmp_path):
    (folder / "LICENSE").unlink()
    (folder / "docs" / "secret").symlink_to(tmp_path / "tiny" / "samples" / "a.png")
    with pytest.raises(RunError, match=r"(?s)LICENSE is missing.*docs/secret is a link"):
        publishable_files(folder, "me/tiny")


class Hub(StandIn):
    """As much of the hub's interface as a push of small files needs; keeps commits, files and tags in the server."""

    def do_GET(self):
        state = self.server.state
        state["requests"] += 1
        if not state["made"]:
            return self.answer(404, {"error": "Repository not found"}, **{"X-Error-Code": "RepoNotFound"})
        if self.path.endswith("/refs"):
            tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": at} for tag, at in state["tags"].items()]
            return self.answer(200, {"branches": [], "converts": [], "tags": tags})
        if "/tree/" in self.path:
            found = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in state["files"]]
            return self.answer(200, found)
        listed = [{"rfilename": name} for name in state["files"]]
        return self.answer(200, {"id": "me/tiny", "sha": "0", "private": True, "tags": [], "siblings": listed})

    def do_POST(self):
        state, body = self.server.state, self.body()
        state["requests"] += 1
        state["tokens"].add(self.headers["Authorization"])
        if self.path.endswith("/repos/create"):
            state["made"] = True
            return self.answer(200, {"url": "http://127.0.0.1/me/tiny"})
        if self.path.endswith("/validate-yaml"):
            return self.answer(200, {"warnings": [], "errors": []})
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self.answer(200, {"files": modes})
        if "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    state["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del state["files"][line["value"]["path"]]
            state["commits"].append(dict(state["files"]))
            number = str(len(state["commits"]))
            return self.answer(200, {"commitOid": number, "commitUrl": f"http://127.0.0.1/me/tiny/commit/{number}"})
        assert "/tag/" in self.path, self.path
        tag = json.loads(body)["tag"]
        if tag in state["tags"]:
            return self.answer(409, {"error": "exists"})
        state["tags"][tag] = str(len(state["commits"]))
        return self.answer(200, {})

    def do_DELETE(self):
        del self.server.state["tags"][self.path.rsplit("/", 1)[1]]
        self.answer(200, {})


@pytest.fixture
def hub(monkeypatch):
    """State of a hub that huggingface_hub is pointed to."""
    state = {"made": False, "files": {}, "commits": [], "tags": {}, "tokens": set(), "requests": 0}
    with served(Hub, state=state) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        yield state


def send(folder, version="0.2.0"):
    publish(publishable_files(folder, "me/tiny"), "me/tiny", version, token="hf_secret")


def test_the_hub_gets_the_folder_our_card_and_tags_that_point_to_both(hub, folder):
    before = contents(folder)
    send(folder)
    made = ("README.md", "model.safetensors")
    assert {name: content for name, content in hub["files"].items() if name not in made} == before
    assert len(load(hub["files"]["model.safetensors"])) == 2
    card = hub["files"]["README.md"].decode()
    assert ModelCard(card).data.pipeline_tag == "image-segmentation" and card.count("library_name: monai") == 1
    newest = str(len(hub["commits"]))
    assert hub["tags"] == {"latest_version": newest, "0.2.0": newest}
    assert hub["tokens"] == {"Bearer hf_secret"} and contents(folder) == before


def test_a_new_version_takes_over_latest_and_drops_files_that_are_gone(hub, folder):
    hub["files"]["HISTORY.md"] = b"somebody's"
    send(folder)
    first = hub["tags"]["0.2.0"]
    (folder / "samples" / "a.png").rename(folder / "samples" / "b.png")
    send(folder, "0.3.0")
    newest = str(len(hub["commits"]))
    assert hub["tags"] == {"0.2.0": first, "latest_version": newest, "0.3.0": newest} and first != newest
    assert {"samples/b.png", "HISTORY.md"} <= hub["files"].keys() and "samples/a.png" not in hub["files"]


def test_a_version_that_is_there_is_not_replaced_and_without_token_or_network_nothing_goes(hub, folder, monkeypatch):
    send(folder)
    commits = len(hub["commits"])
    with pytest.raises(RunError, match=r"0\.2\.0 is on the hub already"):
        send(folder)
    assert len(hub["commits"]) == commits
    asked = hub["requests"]
    monkeypatch.setattr(module, "get_token", lambda: None)
    with pytest.raises(RunError, match="found no token"):
        publish(publishable_files(folder, "me/tiny"), "me/tiny", "0.3.0")
    assert hub["requests"] == asked
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match="me/tiny: not published"):
        send(folder, "0.3.0")


def run(*words):
    run_command(load_script("publish_bundle").publish_bundle, [str(word) for word in words])


def test_a_dry_run_shows_all_and_contacts_nothing(hub, folder, capsys):
    run(folder, "--repo", "me/tiny", "--private", "false", "--dry_run")
    shown = capsys.readouterr().out
    weights = (folder / "models" / "model.pt").read_bytes()
    assert f"{hashlib.sha256(weights).hexdigest()}  {len(weights):>11,}  models/model.pt\n" in shown
    made = [file for file in publishable_files(folder, "me/tiny").values() if isinstance(file, bytes)]
    total = sum(map(len, [*contents(folder).values(), *made]))
    assert f"13 files, {total:,} bytes\nto me/tiny, public if it is new; tags: 0.2.0, latest_version\n" in shown
    assert "  pipeline_tag: image-segmentation\n" in shown
    assert hub["requests"] == 0


def test_the_command_refuses_before_the_hub_is_asked_and_sends_when_all_is_well(hub, folder, capsys):
    with pytest.raises(SettingsError):
        run(folder, "--repo", "tiny", "--token", "t")
    licence = (folder / "LICENSE").rename(folder.parent / "LICENSE")
    with pytest.raises(RunError, match="LICENSE is missing"):
        run(folder, "--repo", "me/tiny", "--token", "t")
    assert hub["requests"] == 0
    licence.rename(folder / "LICENSE")
    run(folder, "--repo", "me/tiny", "--token", "t")
    assert "0.2.0" in hub["tags"] and "https://huggingface.co/me/tiny\n" in capsys.readouterr().out


def card_of(folder):
    return ModelCard(make_model_card(Bundle(folder), "me/tiny"))


def change_metadata(folder, **changes):
    (folder / "configs" / "metadata.json").write_text(json.dumps({**METADATA, **changes}))


def test_the_hub_reads_our_front_matter(folder):
    data = card_of(folder).data
    assert (data.library_name, data.pipeline_tag, data.to_dict()["version"]) == ("monai", "image-segmentation", "0.2.0")
    assert data.tags == ["monai", "medical", "radiograph", "dental-radiograph", "self-supervised"]
    metrics = {result.metric_type: result.metric_value for result in data.eval_results}
    assert metrics == {"dice": 0.75, "by_class_root": 0.9}
    assert data.model_name == "Tiny segmenter"
    change_metadata(folder, eval_metrics={})
    assert card_of(folder).data.eval_results is None


def test_terms_of_the_data_make_the_licence_another(folder):
    data = card_of(folder).data
    assert (data.license, data.license_name) == ("other", "apache-2.0-with-data-terms")
    assert data.license_link == "https://huggingface.co/me/tiny/blob/main/docs/data_license.txt"
    assert "The images:\n  CC BY 4.0. Ask `them` first." in card_of(folder).text
    (folder / "docs" / "data_license.txt").unlink()
    alone = card_of(folder)
    assert alone.data.license == "apache-2.0" and alone.data.license_name is None
    assert "data_license" not in alone.text


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("Segmentation of teeth", "image-segmentation"),
        ("Chest radiograph synthesis from embeddings", "unconditional-image-generation"),
        ("Radiograph compression to latents", "image-to-image"),
        ("Something else", None),
    ],
)
def test_the_task_is_named_as_the_hub_names_it(folder, task, expected):
    change_metadata(folder, task=task)
    assert card_of(folder).data.pipeline_tag == expected


def test_links_work_one_folder_up_and_none_leaves_the_bundle(folder):
    text = card_of(folder).text
    assert "![A mask](docs/quickstart.png) and [its file](samples/a.png)" in text
    assert "[terms](docs/data_license.txt#who), [below](#limits)" in text
    assert "The front page, `another` bundle, [paper](https://arxiv.org/abs/1)" in text and ", gone," in text


def test_the_card_says_how_to_load_what_is_there(folder):
    text = card_of(folder).text
    places = [text.index(title) for title in ("# Tiny", "## Get it from here", "## Commands", "## Limits")]
    assert places == sorted(places)
    assert 'source="huggingface_hub", repo="me/tiny", version="0.2.0"' in text
    assert 'load("tiny", workflow_type="inference"' in text and "load_ts_module=True" in text
    assert "monai==1.6.1 numpy==2.2.6 einops==0.8.1" in text and "--bundle_root tiny " in text
    assert "## Intended use\n\nResearch. Not for diagnosis." in text
    (folder / "models" / "model.ts").unlink()
    assert "load_ts_module" not in card_of(folder).text


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_cards_of_our_bundles(bundle):
    card = ModelCard(make_model_card(Bundle(bundle), f"me/{bundle.name}"))
    assert card.data.to_dict()["version"] == Bundle(bundle).metadata["version"]
    assert card.data.pipeline_tag is not None and len(card.data.tags) > 3
    assert "\n## Limits" in card.text and f"bundles/{bundle.name}" not in card.text and "](../" not in card.text
    assert "](docs/quickstart.png)" in card.text
