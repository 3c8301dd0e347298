"""ONNX of bundles: the same as the network at any size, or no file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from tiny_bundles import bundle_of_code, codec_bundle, diffusion_bundle, measured_codec, segmenter_bundle
from torch import nn

from common.errors import RunError
from common.fingerprint import file_sha256
from common.networks.weights import load_weights
from common.packaging.bundle import Bundle
from common.packaging.exports import TABLE, Part, as_line, export_bundle, write_onnx
from common.packaging.torchscript import trace_bundle


def run(path: Path, **inputs: torch.Tensor) -> torch.Tensor:
    """The one output of an ONNX file."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


def agree(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def loaded(root: Path) -> nn.Module:
    return load_weights(Bundle(root).build(), root / "models" / "model.pt")


@pytest.fixture
def onnx_files():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")


@torch.no_grad()
def test_latent_diffusion_becomes_denoiser_encoder_and_decoder(onnx_files, tmp_path):
    root, folder = diffusion_bundle(tmp_path / "bundle"), tmp_path / "out"
    rows = list(export_bundle(Bundle(root), folder))
    names = ["denoiser.onnx", "encoder.onnx", "decoder.onnx", "model.ts"]
    assert [row["name"] for row in rows] == names
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, TABLE])
    denoiser, codec = loaded(root), load_weights(measured_codec(seed=1), root / "models" / "autoencoder.pt")
    for batch, height, width in ((1, 4, 8), (3, 6, 4)):
        image = torch.rand(batch, 1, 8 * height, 8 * width)
        latents, timesteps, context = codec.encode(image), torch.full((batch,), 700.0), torch.randn(batch, 2, 8)
        agree(run(folder / "encoder.onnx", image=image), latents)
        agree(run(folder / "decoder.onnx", latents=latents), codec.decode(latents))
        expected = denoiser(latents, timesteps, context)
        agree(run(folder / "denoiser.onnx", image=latents, timesteps=timesteps, context=context), expected)
    assert "-> latents [batch, 2, latents_height, latents_width]; differs by" in as_line(rows[1])
    assert json.loads((folder / TABLE).read_text())["files"] == rows
    for row in rows:
        path = folder / row["name"]
        assert (row["sha256"], row["size_bytes"]) == (file_sha256(path), path.stat().st_size)
        assert row["max_difference"] <= 1e-4 and next(iter(row["inputs"].values()))[0] == "batch"
        for place in (str(REPOSITORY), str(tmp_path), "site-packages"):
            assert place.encode() not in path.read_bytes()


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "names", "sizes"),
    [
        (codec_bundle, ["network.onnx", "encoder.onnx", "decoder.onnx"], [(2, 24, 16)]),
        (segmenter_bundle, ["network.onnx"], [(3, 9, 14), (1, 8, 8)]),  # which it pads
        (lambda root: bundle_of_code(root, "self.weight * image"), ["network.onnx"], [(1, 3, 5)]),  # of anybody
    ],
)
def test_a_network_from_image_to_image_is_exported(onnx_files, tmp_path, make, names, sizes):
    root = make(tmp_path / "bundle")
    assert [row["name"] for row in export_bundle(Bundle(root), tmp_path, torchscript=False)] == names
    for batch, height, width in sizes:
        image = torch.rand(batch, 1, height, width)
        agree(run(tmp_path / "network.onnx", image=image), loaded(root)(image))


def test_a_file_that_fails_is_missing_and_the_others_are_there(onnx_files, tmp_path):
    codec = measured_codec()
    codec.latents_num_images.zero_()  # so that it refuses to scale latents
    root, folder = codec_bundle(tmp_path / "bundle", codec), tmp_path / "out"
    folder.mkdir()
    (folder / "encoder.onnx").write_bytes(b"of an older export")
    with pytest.raises(RunError, match=r"(?s)2 of 4 files.*encoder.onnx.*decoder.onnx"):
        list(export_bundle(Bundle(root), folder))
    assert sorted(path.name for path in folder.iterdir()) == [TABLE, "model.ts", "network.onnx"]
    assert [file["name"] for file in json.loads((folder / TABLE).read_text())["files"]] == ["network.onnx", "model.ts"]


class Computed(nn.Module):
    """A network that is a function of the image."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, image):
        return self.function(image)


@pytest.mark.parametrize(
    "function",
    [
        lambda image: image * float(image.shape[-1]),  # a trace keeps the size it saw
        lambda image: image[..., : int(image.shape[-1]) - 1],  # and the shape of the output
        lambda image: image * float("nan"),  # which no comparison calls different
    ],
)
def test_refuses_what_differs(onnx_files, function, tmp_path):
    batches = {"image": torch.rand(2, 1, 4, 4)}, {"image": torch.rand(1, 1, 4, 6)}
    with pytest.raises(RunError):
        write_onnx(Part("network", Computed(function), "pred", batches), tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


def test_without_the_packages_there_is_torchscript_and_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    root = codec_bundle(tmp_path / "bundle")
    with pytest.raises(RunError, match=r"(?s)onnxruntime.*\[export\].*--onnx False"):
        list(export_bundle(Bundle(root), tmp_path / "out"))
    assert (tmp_path / "out" / "model.ts").is_file()


def command(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command as a user gives it, from a folder that is not the repository."""
    script = str(REPOSITORY / "scripts" / "export_bundle.py")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, script, *words], capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )


def test_the_command_writes_into_the_bundle_what_any_process_writes(tmp_path):
    root = codec_bundle(tmp_path / "bundle")
    done = command(tmp_path, "bundle", "--onnx", "False")
    assert done.returncode == 0, done.stderr
    model, folder = done.stdout.splitlines()
    assert model.startswith("model.ts") and str(root / "outputs" / "export") in folder
    trace_bundle(Bundle(root), tmp_path / "here.ts")
    assert (root / "outputs" / "export" / "model.ts").read_bytes() == (tmp_path / "here.ts").read_bytes()
