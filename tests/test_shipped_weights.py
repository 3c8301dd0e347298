"""The weights in the repository are the trained ones: they reconstruct, carry their statistics and export."""

import subprocess
import sys

import pytest
import torch

from common.data.datalists import radiograph_items
from common.data.transforms import load_square
from common.metrics import psnr
from common.networks.latent_codec import LatentCodec
from common.pipelines import RadiographAutoencoder

BUNDLE = "bundles/cxr_autoencoder"


@pytest.fixture(scope="module")
def codec(request):
    return RadiographAutoencoder.from_bundle(request.config.rootpath / BUNDLE, "cpu").network


def load(items):
    return torch.stack([load_square(item["image"], 256) for item in items])


def test_phantoms_come_back(codec, repository):
    images = load(radiograph_items(repository / BUNDLE / "samples", "all", 0.0, 0))
    with torch.inference_mode():
        assert psnr(codec(images), images).min() > 30


def test_latents_are_standardised_on_pictures_never_seen(codec, repository):
    assert isinstance(codec, LatentCodec) and codec.latents_num_images > 1000
    images = load(radiograph_items(repository / BUNDLE / "samples", "all", 0.0, 0))
    with torch.inference_mode():
        latents = codec.encode(images)
        torch.testing.assert_close(codec.decode(latents), codec(images))
    assert latents.mean().abs() < 1.0
    assert 0.3 < latents.std() < 3.0


@pytest.mark.shared
def test_held_out_radiographs_come_back_as_reported(codec, shared_data):
    items = radiograph_items(shared_data / "cxr", "val", 0.0, 0, where={"quality": "A"})[::25]
    images = load(items)
    with torch.inference_mode():
        assert psnr(codec(images), images).mean() > 31


@pytest.mark.slow
def test_export_by_trace_runs_without_our_code(codec, repository, tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "ckpt_export", "network_def"]
    command += ["--filepath", str(tmp_path / "model.ts"), "--ckpt_file", f"{BUNDLE}/models/model.pt"]
    command += ["--meta_file", f"{BUNDLE}/configs/metadata.json", "--config_file", f"{BUNDLE}/configs/inference.yaml"]
    command += ["--use_trace", "True", "--input_shape", "[1,1,64,64]", "--bundle_root", BUNDLE]
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    image = torch.rand(2, 1, 128, 96)
    torch.save(image, tmp_path / "image.pt")
    program = (
        "import sys, torch; folder = sys.argv[1]; image = torch.load(folder + '/image.pt');"
        "torch.save(torch.jit.load(folder + '/model.ts').eval()(image).detach(), folder + '/pred.pt');"
        "assert not any(name.startswith(('common', 'monai')) for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=tmp_path, check=True)
    with torch.inference_mode():
        expected = codec(image)
    torch.testing.assert_close(torch.load(tmp_path / "pred.pt"), expected, atol=1e-4, rtol=0)
