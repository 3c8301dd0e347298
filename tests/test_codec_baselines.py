import io

import numpy as np
import pytest
import torch
from PIL import Image

from common.evaluation.codec_baselines import bicubic_down_up, jpeg_at_bytes


def radiograph_like(height=96, width=64, batch=1):
    """Smooth shapes, ribs and a little noise."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    image = 0.5 + 0.3 * torch.cos(3 * x) * torch.cos(2 * y) + 0.1 * torch.sin(25 * y)
    noise = torch.randn(batch, 1, height, width, generator=torch.Generator().manual_seed(0))
    return (image + 0.02 * noise).clamp(0, 1)


def all_files(image):
    pixels = Image.fromarray((image[0, 0] * 255).round().byte().numpy())
    files = []
    for quality in range(1, 101):
        buffer = io.BytesIO()
        pixels.save(buffer, format="JPEG", quality=quality, optimize=True)
        files.append(buffer.getvalue())
    return files


@pytest.mark.parametrize("max_bytes", [10, 450, 700, 1200, 2500, 100_000])
def test_jpeg_is_the_best_within_the_budget_or_that_of_quality_one(max_bytes):
    image = radiograph_like()
    files = all_files(image)
    best = [file for file in files[1:] if len(file) <= max_bytes][-1:] or files[:1]
    decoded, sizes = jpeg_at_bytes(image, max_bytes)
    assert sizes.tolist() == [len(best[0])]
    expected = np.asarray(Image.open(io.BytesIO(best[0]))).astype(np.float32) / 255
    np.testing.assert_allclose(decoded[0, 0].numpy(), expected, atol=1e-7)


def test_jpeg_budget_is_for_each_image():
    images = torch.cat([radiograph_like(), torch.full((1, 1, 96, 64), 0.5)])
    decoded, sizes = jpeg_at_bytes(images, 900)
    assert decoded.shape == images.shape and decoded.dtype == torch.float32
    assert sizes[0] > sizes[1] and (sizes <= 900).all()
    torch.testing.assert_close(decoded[1], torch.full((1, 96, 64), 128 / 255))


def test_bicubic_keeps_what_is_coarse_and_loses_what_is_fine():
    coarse = torch.linspace(0.2, 0.8, 128).expand(1, 1, 64, 128)
    torch.testing.assert_close(bicubic_down_up(coarse)[..., 16:-16], coarse[..., 16:-16], atol=2e-3, rtol=0)
    fine = coarse + 0.1 * ((torch.arange(128) % 3) - 1)
    torch.testing.assert_close(bicubic_down_up(fine)[..., 16:-16], coarse[..., 16:-16], atol=5e-3, rtol=0)


def test_bicubic_factor_and_range():
    torch.manual_seed(0)
    image = (torch.rand(2, 1, 32, 48) > 0.5).float()
    weak, strong = bicubic_down_up(image, 2), bicubic_down_up(image, 16)
    assert weak.shape == image.shape
    assert weak.min() >= 0 and weak.max() <= 1 and weak.max() == 1.0  # it would overshoot without the clamp
    assert (weak - image).abs().mean() < (strong - image).abs().mean()


@pytest.mark.parametrize(
    ("encode", "image"),
    [
        (lambda image: jpeg_at_bytes(image, 1000), torch.full((1, 1, 16, 16), torch.nan)),
        (lambda image: jpeg_at_bytes(image, 0), torch.zeros(1, 1, 16, 16)),
        (lambda image: jpeg_at_bytes(image, 100), torch.zeros(1, 3, 16, 16)),
        (bicubic_down_up, torch.zeros(1, 1, 60, 64)),
    ],
)
def test_what_cannot_be_encoded_is_refused(encode, image):
    with pytest.raises(ValueError):
        encode(image)
