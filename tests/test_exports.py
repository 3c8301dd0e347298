"""ONNX of bundles: the same as the network at any size, or no file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from tiny_bundles import bundle_of_code, codec_bundle, diffusion_bundle, measured_codec, segmenter_bundle
from torch import nn

from common.fingerprint import file_sha256
from common.networks.weights import load_weights
from common.packaging.export_parts import Part
from common.packaging.exports import TABLE, ExportError, export_bundle, export_part
from common.packaging.torchscript import load_bundle_network


def run(path: Path, **inputs: torch.Tensor) -> torch.Tensor:
    """The one output of an ONNX file."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


def agree(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.fixture
def onnx_files():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")


@torch.no_grad()
def test_latent_diffusion_becomes_denoiser_encoder_and_decoder(onnx_files, tmp_path):
    root, folder = diffusion_bundle(tmp_path / "bundle"), tmp_path / "out"
    told = []
    exported = export_bundle(root, folder, tell=told.append)
    names = ["denoiser.onnx", "encoder.onnx", "decoder.onnx", "model.ts"]
    assert [file.name for file in exported] == names
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, TABLE])
    denoiser, codec = load_bundle_network(root), load_weights(measured_codec(seed=1), root / "models/autoencoder.pt")
    for batch, height, width in ((1, 4, 8), (3, 6, 4)):
        image = torch.rand(batch, 1, 8 * height, 8 * width)
        latents, timesteps, context = codec.encode(image), torch.full((batch,), 700.0), torch.randn(batch, 2, 8)
        agree(run(folder / "encoder.onnx", image=image), latents)
        agree(run(folder / "decoder.onnx", latents=latents), codec.decode(latents))
        expected = denoiser(latents, timesteps, context)
        agree(run(folder / "denoiser.onnx", image=latents, timesteps=timesteps, context=context), expected)
    lines = [str(file) for file in told]
    assert [line.split(":")[0] for line in lines] == names
    assert "latents [batch, 2, latent_height, latent_width]" in lines[1]
    for file in json.loads((folder / TABLE).read_text())["files"]:
        path = folder / file["name"]
        assert (file["sha256"], file["size_bytes"]) == (file_sha256(path), path.stat().st_size)
        assert file["max_difference"] <= 1e-4
        assert file["dynamic_axes"][next(iter(file["inputs"]))]["0"] == "batch"
        for place in (str(REPOSITORY), str(tmp_path), "site-packages"):
            assert place.encode() not in path.read_bytes()


@torch.no_grad()
def test_segmenter_takes_sizes_that_it_pads(onnx_files, tmp_path):
    root = segmenter_bundle(tmp_path / "bundle")
    export_bundle(root, tmp_path, torchscript=False)
    for image in (torch.rand(3, 1, 9, 14), torch.rand(1, 1, 8, 8)):
        agree(run(tmp_path / "network.onnx", image=image), load_bundle_network(root)(image))


def test_a_file_that_fails_is_missing_and_the_others_are_there(onnx_files, tmp_path):
    codec = measured_codec()
    codec.latents_num_images.zero_()  # so that it refuses to scale latents
    root, folder = codec_bundle(tmp_path / "bundle", codec), tmp_path / "out"
    folder.mkdir()
    (folder / "encoder.onnx").write_bytes(b"of an older export")
    with pytest.raises(ExportError, match=r"(?s)2 of 4 files.*encoder.onnx.*no latent statistics.*decoder.onnx"):
        export_bundle(root, folder)
    assert sorted(path.name for path in folder.iterdir()) == [TABLE, "model.ts", "network.onnx"]
    assert [file["name"] for file in json.loads((folder / TABLE).read_text())["files"]] == ["network.onnx", "model.ts"]


class OfSize(nn.Module):
    """Depends on the size in Python, so that a trace keeps the size it saw."""

    def forward(self, image):
        return image * float(image.shape[-1])


class Cut(nn.Module):
    """A size in Python again: the output's shape is baked in."""

    def forward(self, image):
        return image[..., : int(image.shape[-1]) - 1]


class Undefined(nn.Module):
    """Gives NaN, which no comparison calls different."""

    def forward(self, image):
        return image * float("nan")


@pytest.mark.parametrize(
    ("module", "message"), [(OfSize(), "differs from the network by"), (Cut(), "shape"), (Undefined(), "by nan")]
)
def test_refuses_what_differs(onnx_files, module, message, tmp_path):
    axes = {"image": {0: "batch", 3: "width"}, "pred": {0: "batch", 3: "width"}}
    examples = (torch.rand(2, 1, 4, 4),), (torch.rand(1, 1, 4, 6),)
    with pytest.raises(ExportError, match=message):
        export_part(Part("network", module, examples, ("image",), "pred", axes), tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


def test_an_unknown_network_has_torchscript_alone(onnx_files, tmp_path):
    root, folder = bundle_of_code(tmp_path / "bundle", "self.weight * image"), tmp_path / "out"
    with pytest.raises(ExportError, match=r"1 of 2 files.*\n.*found a Net, expected one of LatentCodec, "):
        export_bundle(root, folder)
    assert sorted(path.name for path in folder.iterdir()) == [TABLE, "model.ts"]


def test_says_which_packages_are_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"onnxruntime.*pip install '\.\[export\]'.*--onnx False"):
        export_bundle(tmp_path, tmp_path / "out")
