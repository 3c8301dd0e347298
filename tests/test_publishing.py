"""What would go to the hub, what is refused before anything goes, and what a hub receives.

The hub is a stand-in on this machine; huggingface_hub, MONAI and our code are the real ones.
"""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
from conftest import REPOSITORY
from huggingface_hub import ModelCard
from packaged import METADATA, make_packaged
from script_module import load_script

from common.command_line import run_command
from common.fingerprint import file_sha256
from common.packaging.model_card import make_model_card
from common.packaging.publishing import HubError, PublishError, check_packaged, check_repo, list_files, publish, stage


@pytest.fixture
def folder(tmp_path):
    return make_packaged(tmp_path)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("repo", ["me/tiny", "Some-Org/a_b.c-1", "0/9"])
def test_names_that_the_hub_allows(repo):
    check_repo(repo)


@pytest.mark.parametrize(
    "repo",
    ["tiny", "a/b/c", "me/", "/tiny", "me/a b", "me/a--b", "me/a..b", "me/tiny.git", "me/tiny-", "me/" + 97 * "a"],
)
def test_names_that_it_does_not(repo):
    with pytest.raises(PublishError, match="expected OWNER/NAME"):
        check_repo(repo)


def test_a_packaged_folder_is_taken(folder):
    assert check_packaged(folder) == METADATA


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("LICENSE", None, "LICENSE is missing"),
        ("docs/README.md", None, "docs/README.md is missing"),
        ("configs/metadata.json", None, "configs/metadata.json is missing"),
        ("configs/metadata.json", "{", "is no JSON"),
        ("configs/metadata.json", json.dumps({**METADATA, "version": "0.3.0"}), "0.3.0 is not in the changelog"),
        ("configs/metadata.json", json.dumps({"version": "0.2.0"}), "has no changelog"),
        ("scripts/common/__init__.py", None, "scripts/common/__init__.py is missing"),
        ("configs/inference.yaml", "net:\n  - _target_: common.networks.x.X\n", "configs/inference.yaml needs"),
        ("configs/inference.json", '{"net": {"_target_": "common.networks.x.X"}}', "configs/inference.json needs"),
        ("large_files.yml", "large_files:\n- path: models/big.pt\n  url: u\n", "models/big.pt of large_files.yml"),
    ],
)
def test_a_folder_that_is_not_packaged_is_refused(folder, name, text, told):
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    with pytest.raises(PublishError, match=told):
        check_packaged(folder)


def test_everything_that_is_wrong_is_told_at_once(folder, tmp_path):
    (folder / "LICENSE").unlink()
    (folder / "docs" / "secret").symlink_to(tmp_path)
    with pytest.raises(PublishError, match=r"(?s)LICENSE is missing.*docs/secret is a link"):
        check_packaged(folder)


def test_a_bundle_of_this_repository_is_not_packaged():
    with pytest.raises(PublishError, match="needs the package `common`"):
        check_packaged(REPOSITORY / "bundles" / "cxr_autoencoder")


def test_what_would_go_is_the_folder_and_the_card_without_leftovers(folder, tmp_path):
    for leftover in ("scripts/__pycache__/on_path.pyc", "outputs/train/model.pt", ".git/config"):
        (folder / leftover).parent.mkdir(parents=True)
        (folder / leftover).write_text("leftover")
    before = contents(folder)
    staged = stage(folder, "me/tiny", tmp_path / "elsewhere")
    files = {file.path: file for file in list_files(staged)}
    wanted = {name for name, content in before.items() if content != b"leftover"}
    assert set(files) == wanted | {"README.md"}
    assert all(files[name].sha256 == file_sha256(folder / name) for name in wanted)
    assert files["README.md"].size == len(make_model_card(folder, "me/tiny").encode())
    assert contents(folder) == before


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a push of small files needs; keeps commits, files and tags in the server."""

    def do_GET(self):
        state = self.server.state
        state["requests"] += 1
        if not state["made"]:
            return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if self.path.endswith("/refs"):
            tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": at} for tag, at in state["tags"].items()]
            return self.answer({"branches": [], "converts": [], "tags": tags})
        if "/tree/" in self.path:
            return self.answer([{"type": "file", "path": name, "size": 1, "oid": "0"} for name in state["files"]])
        listed = [{"rfilename": name} for name in state["files"]]
        return self.answer({"id": "me/tiny", "sha": "0", "private": True, "tags": [], "siblings": listed})

    def do_POST(self):
        state = self.server.state
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        state["requests"] += 1
        state["tokens"].add(self.headers["Authorization"])
        if self.path.endswith("/repos/create"):
            state["made"] = True
            return self.answer({"url": "http://127.0.0.1/me/tiny"})
        if self.path.endswith("/validate-yaml"):
            return self.answer({"warnings": [], "errors": []})
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self.answer({"files": modes})
        if "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    state["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del state["files"][line["value"]["path"]]
            state["commits"].append(dict(state["files"]))
            number = str(len(state["commits"]))
            return self.answer({"commitOid": number, "commitUrl": f"http://127.0.0.1/me/tiny/commit/{number}"})
        assert "/tag/" in self.path, self.path
        tag = json.loads(body)["tag"]
        if tag in state["tags"]:
            return self.answer({"error": "exists"}, 409)
        state["tags"][tag] = str(len(state["commits"]))
        return self.answer({})

    def do_DELETE(self):
        del self.server.state["tags"][self.path.rsplit("/", 1)[1]]
        self.answer({})

    def answer(self, content, status=200, headers=None):
        body = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": len(body), **(headers or {})}.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    """State of a hub that huggingface_hub is pointed to."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.state = {"made": False, "files": {}, "commits": [], "tags": {}, "tokens": set(), "requests": 0}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server.state
    server.shutdown()
    server.server_close()


def test_the_hub_gets_the_folder_our_card_and_tags_that_point_to_both(hub, folder):
    before = contents(folder)
    publish(folder, "me/tiny", "0.2.0", token="hf_secret")
    assert {name: content for name, content in hub["files"].items() if name != "README.md"} == before
    card = hub["files"]["README.md"].decode()
    assert ModelCard(card).data.pipeline_tag == "image-segmentation" and card.count("library_name: monai") == 1
    newest = str(len(hub["commits"]))
    assert hub["tags"] == {"latest_version": newest, "0.2.0": newest}
    assert hub["tokens"] == {"Bearer hf_secret"} and contents(folder) == before


def test_a_new_version_takes_over_latest_and_drops_files_that_are_gone(hub, folder):
    hub["files"]["HISTORY.md"] = b"somebody's"
    publish(folder, "me/tiny", "0.2.0", token="t")
    first = hub["tags"]["0.2.0"]
    (folder / "docs" / "second_figure.png").unlink()
    publish(folder, "me/tiny", "0.3.0", token="t")
    newest = str(len(hub["commits"]))
    assert hub["tags"] == {"0.2.0": first, "latest_version": newest, "0.3.0": newest} and first != newest
    assert "docs/second_figure.png" not in hub["files"] and "HISTORY.md" in hub["files"]


def test_a_version_that_is_there_is_not_replaced(hub, folder):
    publish(folder, "me/tiny", "0.2.0", token="t")
    commits = len(hub["commits"])
    with pytest.raises(HubError, match=r"0\.2\.0 is on the hub already"):
        publish(folder, "me/tiny", "0.2.0", token="t")
    assert len(hub["commits"]) == commits


def test_without_a_token_nothing_is_tried(hub, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(HubError, match="found no token"):
        publish(folder, "me/tiny", "0.2.0")
    assert hub["requests"] == 0


@pytest.fixture(scope="module")
def script():
    return load_script("publish_bundle")


def run(script, *words):
    run_command(script.publish_bundle, [str(word) for word in words])


def test_a_dry_run_shows_all_and_contacts_nothing(hub, script, folder, capsys):
    run(script, folder, "--repo", "me/tiny", "--private", "false", "--dry_run")
    shown = capsys.readouterr().out
    assert f"{file_sha256(folder / 'models' / 'model.pt')}            7  models/model.pt\n" in shown
    total = sum(map(len, contents(folder).values())) + len(make_model_card(folder, "me/tiny").encode())
    assert f"14 files, {total:,} bytes\nto me/tiny, public if it is new; tags: 0.2.0, latest_version\n" in shown
    assert "  pipeline_tag: image-segmentation\n" in shown
    assert hub["requests"] == 0


def test_what_is_refused_is_refused_before_the_hub_is_asked(hub, script, folder):
    with pytest.raises(PublishError, match="expected OWNER/NAME"):
        run(script, folder, "--repo", "tiny", "--token", "t")
    (folder / "LICENSE").unlink()
    with pytest.raises(PublishError, match="LICENSE is missing"):
        run(script, folder, "--repo", "me/tiny", "--token", "t")
    assert hub["requests"] == 0


def test_no_network_is_told_at_once(script, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    before = time.process_time()
    with pytest.raises(HubError, match=r"me/tiny: the hub could not be reached, or refused: ConnectError"):
        run(script, folder, "--repo", "me/tiny", "--token", "t")
    assert time.process_time() - before < 10
