"""The command that converts checkpoints of monai-generative."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import fire
import pytest
import torch
from monai.bundle import ConfigParser
from script_module import load_script
from test_legacy import AUTOENCODER, difference, legacy_arguments, monai_loaded, old_network
from torch import nn

from common.errors import WeightsError

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore:.*autocast")]


@pytest.fixture
def script() -> ModuleType:
    return load_script("convert_checkpoint")


@pytest.fixture
def convert(script) -> Callable[..., None]:
    """The command line, in this process: it takes the words after `python scripts/convert_checkpoint.py`."""
    return lambda *words: fire.Fire(script.convert_checkpoint, command=[str(word) for word in words])


@pytest.fixture
def old_files(tmp_path) -> tuple[list[str], nn.Module, dict[str, Any]]:
    """Words that name an old checkpoint with attention and where to put the new one; the old network; its arguments."""
    arguments = legacy_arguments(AUTOENCODER, {})
    old = old_network(AUTOENCODER, arguments)
    torch.save({"epoch": 1, "state_dict": old.state_dict()}, tmp_path / "old.pt")
    block = {"_target_": "generative.networks.nets.AutoencoderKL", **arguments}
    (tmp_path / "legacy.json").write_text(json.dumps(block))
    files = {"arguments": "legacy.json", "checkpoint": "old.pt", "output": "converted/new.pt"}
    words = [word for name, file in files.items() for word in (f"--{name}", str(tmp_path / file))]
    return ["--kind", AUTOENCODER, *words], old, arguments


def test_command_line_round_trip(convert, old_files, tmp_path, capsys):
    words, old, arguments = old_files
    convert(*words, "--verify", True)
    assert "verified: outputs differ by at most" in capsys.readouterr().out
    folder = tmp_path / "converted"
    assert sorted(path.name for path in folder.iterdir()) == ["new.json", "new.pt"]
    description = json.loads((folder / "new.json").read_text())
    assert description["_target_"] == "monai.networks.nets.AutoencoderKL"
    rebuilt = ConfigParser({"network_def": description}).get_parsed_content("network_def")
    rebuilt.load_state_dict(torch.load(folder / "new.pt", weights_only=True), strict=True)
    assert difference(rebuilt.eval(), old, arguments) < 1e-5


def test_command_line_replaces_a_conversion_only_when_told_and_an_input_never(convert, old_files, tmp_path):
    words, _, _ = old_files
    new = tmp_path / "converted" / "new.pt"
    new.parent.mkdir()
    new.write_bytes(b"precious")
    with pytest.raises(WeightsError):
        convert(*words)
    assert new.read_bytes() == b"precious"
    convert(*words, "--overwrite", True)
    assert new.read_bytes() != b"precious"
    for file in ("old.pt", "legacy.pt"):  # legacy.pt would put its description over legacy.json
        with pytest.raises(WeightsError):
            convert(*words[:-1], tmp_path / file, "--overwrite", True)
    with pytest.raises(WeightsError):
        convert(*words[:-1], tmp_path / "new.json")


def test_command_line_says_when_it_did_not_verify(convert, old_files, monkeypatch, capsys):
    words, _, _ = old_files
    convert(*words, "--verify", False)
    monkeypatch.setitem(sys.modules, "generative.networks.nets", None)
    convert(*words, "--overwrite", True)
    with pytest.raises(WeightsError):
        convert(*words, "--overwrite", True, "--verify", True)
    lines = [line for line in capsys.readouterr().out.splitlines() if "verified" in line]
    assert lines[0] == "not verified, as asked" and "no working monai-generative" in lines[1] and len(lines) == 2


def test_command_line_writes_nothing_when_verification_fails(convert, script, old_files, monkeypatch, tmp_path):
    words, _, _ = old_files
    monkeypatch.setattr(script, "load_legacy_network", monai_loaded)
    with pytest.raises(WeightsError):
        convert(*words)
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("content", ["[1]", "no json", None])
def test_command_line_refuses_arguments_that_are_no_json_object(convert, old_files, tmp_path, content):
    words, _, _ = old_files
    file = tmp_path / "legacy.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(WeightsError):
        convert(*words)
