"""The drawn chest: reproducible, in range, anatomically the right way round."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from common.data.body_canvas import BodyCanvas, smooth_curve
from common.data.phantom import draw_chest_phantom, draw_lung_mask
from common.io import read_radiograph

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "bundles" / "cxr_autoencoder" / "samples"


@pytest.mark.parametrize("shape", [(96, 96), (120, 80), (64, 100), (16, 17)])
def test_shape_type_and_range(shape):
    image, mask = draw_chest_phantom(*shape, seed=1), draw_lung_mask(*shape, seed=1)
    assert image.shape == mask.shape == (1, *shape)
    assert image.dtype == torch.float32 and mask.dtype == torch.bool
    assert 0 <= image.min() < 0.1 and 0.85 < image.max() <= 1


def test_the_seed_alone_decides_the_picture_and_is_one_person_at_every_size():
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    small, other = draw_chest_phantom(64, 64, 3), draw_chest_phantom(64, 64, 4)
    assert (np.random.get_state()[1] == state).all()
    np.random.seed(7)
    assert torch.equal(small, draw_chest_phantom(64, 64, 3))
    assert (small - other).abs().mean() > 0.01
    assert not torch.equal(draw_lung_mask(64, 64, 3), draw_lung_mask(64, 64, 4))
    shrunk = torch.nn.functional.avg_pool2d(draw_chest_phantom(256, 256, 3), 4)
    assert (small - shrunk).abs().mean() < 0.4 * (small - other).abs().mean()
    larger = torch.nn.functional.avg_pool2d(draw_lung_mask(256, 256, 3).float(), 4)
    assert (larger - draw_lung_mask(64, 64, 3).float()).abs().mean() < 0.02


def test_lungs_are_dark_the_heart_lies_to_the_images_right_and_the_right_dome_is_higher():
    drops = []
    for seed in range(8):
        image, mask = draw_chest_phantom(128, 128, seed)[0], draw_lung_mask(128, 128, seed)[0]
        left, right = mask[:, :64], mask[:, 64:]
        assert 0.15 < mask.float().mean() < 0.5 and left.float().mean() > right.float().mean() > 0.1
        assert image[mask].mean() + 0.25 < image[40:90, 56:72].mean()  # spine and mediastinum
        lowest = [int(half.any(1).nonzero().max()) for half in (left, right)]
        drops.append(lowest[1] - lowest[0])
    assert np.median(drops) > 0  # single persons may be tilted the other way


def test_unusable_arguments_are_explained():
    for size, seed in (((8, 100), 0), ((64, 64), -1)):
        with pytest.raises(ValueError):
            draw_chest_phantom(*size, seed)


@pytest.mark.slow
def test_sample_script_writes_the_same_bytes_twice(tmp_path):
    found = []
    for name in ("a", "b"):
        options = ["--output_dir", str(tmp_path / name), "--count", "2", "--size", "64", "--seed", "3"]
        subprocess.run([sys.executable, "-m", "scripts.draw_samples", *options], cwd=ROOT, check=True)
        found.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.name != "SOURCE.md"})
    assert found[0] == found[1] and len(found[0]) == 4
    assert "--count 2 --size 64 --seed 3" in (tmp_path / "a" / "SOURCE.md").read_text()


def test_shipped_samples_are_small_synthetic_and_readable():
    images = [path for path in sorted(SAMPLES.iterdir()) if path.suffix in (".png", ".dcm")]
    assert len(images) == 8 and sum(path.stat().st_size for path in SAMPLES.iterdir()) < 1_000_000
    for path in images:
        pixels = read_radiograph(path).pixels
        assert pixels.shape[0] == 1 and 0 <= pixels.min() < pixels.max() <= 1
    header = pydicom.dcmread(SAMPLES / "phantom_07_cr.dcm")
    assert header.PhotometricInterpretation == "MONOCHROME1" and header.Rows != header.Columns
    assert "Synthetic" in str(header.PatientName) and "no patient" in header.ImageComments
    assert Image.open(SAMPLES / "phantom_06_16bit.png").mode.startswith("I")


def test_shipped_samples_are_what_the_code_draws_and_the_dicom_one_is_shown_bone_bright():
    stored = np.asarray(Image.open(SAMPLES / "phantom_00.png")).astype(int)
    drawn = np.round(draw_chest_phantom(256, 256, 0)[0].numpy() * 255).astype(int)
    assert np.abs(stored - drawn).max() <= 1
    pixels = read_radiograph(SAMPLES / "phantom_07_cr.dcm").pixels[0]
    drawn = draw_chest_phantom(480, 400, 7)[0]
    correlation = torch.corrcoef(torch.stack([torch.as_tensor(pixels).flatten(), drawn.flatten()]))[0, 1]
    assert correlation > 0.95


def centre_of(image, canvas):
    """Centre of mass in the picture's own coordinates, (x, y)."""
    return [float((image * frame).sum() / image.sum()) for frame in (canvas.frame_x, canvas.frame_y)]


def test_the_shorter_side_spans_two_units_and_pixels_are_square():
    canvas = BodyCanvas(40, 60)
    assert canvas.x[0, -1] - canvas.x[0, 0] == pytest.approx(59 * canvas.pixel) and canvas.pixel == 2 / 40
    assert canvas.y[-1, 0] == pytest.approx(1 - canvas.pixel / 2)


def test_what_is_drawn_moves_grows_and_turns_with_the_body():
    plain = BodyCanvas(128, 128)
    moved = BodyCanvas(128, 128, shift=(0.25, -0.125), scale=1.5)
    dot, other = (canvas.ellipse((0.0, 0.0), (0.2, 0.2)) for canvas in (plain, moved))
    assert centre_of(other, moved) == pytest.approx([0.25, -0.125], abs=0.01)
    assert (other > 0).sum() == pytest.approx(1.5**2 * (dot > 0).sum(), rel=0.05)
    turned = BodyCanvas(128, 128, tilt=np.pi / 2)
    assert centre_of(turned.ellipse((0.5, 0.0), (0.1, 0.1)), turned) == pytest.approx([0.0, 0.5], abs=0.01)


def test_an_ellipsoid_is_thickest_in_the_middle_and_a_tube_has_its_radius():
    canvas = BodyCanvas(200, 200)
    ball = canvas.ellipse((0.0, 0.0), (0.5, 0.5))
    np.testing.assert_allclose(ball[100, 100:150], np.sqrt(1 - (canvas.x[100, 100:150] / 0.5) ** 2), atol=0.02)
    line = np.stack([np.linspace(-0.5, 0.5, 400), np.zeros(400)], axis=1)
    tube, hollow = (canvas.tube(line, np.full(400, 0.2), share) for share in (0.0, 0.5))
    assert tube[100, 100] == pytest.approx(0.2, abs=0.01) and tube[0, 0] == 0 and tube[100, 190] == 0
    assert hollow[100, 100] < tube[100, 100] and hollow[82, 100] == tube[82, 100] > 0


def test_a_curve_goes_through_its_points_without_overshooting():
    curve = smooth_curve([(0.0, 0.0), (1.0, 1.0), (2.0, 1.0)], 201)
    assert curve.shape == (201, 2) and curve[0].tolist() == [0, 0] and curve[100].tolist() == [1, 1]
    assert curve[:, 1].max() <= 1.0
