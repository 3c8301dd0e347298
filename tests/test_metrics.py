import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch import nn

from common import metrics


def scipy_ssim(x, y):
    """SSIM and its contrast-structure term in float64 (Wang et al. 2004, Eq. 13), written independently."""
    positions = np.arange(-5, 6)
    window = np.exp(-(positions**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(z):
        return correlate1d(correlate1d(z, window, 0), window, 1)[5:-5, 5:-5]

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    cs = (2 * cov + 0.03**2) / (vx + vy + 0.03**2)
    return float((cs * (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)).mean()), float(cs.mean())


def scipy_ms_ssim(x, y):
    value = 1.0
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    for scale, weight in enumerate(weights):
        full, cs = scipy_ssim(x, y)
        value *= (full if scale == 4 else cs) ** weight
        h, w = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
        x, y = (z[:h, :w].reshape(h // 2, 2, w // 2, 2).mean((1, 3)) for z in (x, y))
    return value


def pair(height, width, batch=2):
    """Blobs and a noisy copy, the noise growing along the batch."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(batch, 1, height // 8, width // 8, generator=generator)
    image = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    noise = torch.randn(image.shape, generator=generator) * torch.linspace(0.02, 0.1, batch).view(-1, 1, 1, 1)
    return image, (image + noise).clamp(0, 1)


def test_psnr_by_hand():
    reference = torch.zeros(3, 1, 4, 6)
    image = torch.stack([torch.full((1, 4, 6), v) for v in (0.0, 0.1, 1.0)])
    torch.testing.assert_close(metrics.psnr(image, reference), torch.tensor([100.0, 20.0, 0.0]))


def test_ssim_equals_an_independent_one():
    image, reference = pair(40, 64)
    expected = [scipy_ssim(*(z[i, 0].double().numpy() for z in (image, reference)))[0] for i in range(2)]
    np.testing.assert_allclose(metrics.ssim(image, reference).numpy(), expected, atol=1e-4)
    assert expected[0] - expected[1] > 0.1


def test_ms_ssim_equals_an_independent_one():
    image, reference = pair(176, 184)
    expected = [scipy_ms_ssim(*(z[i, 0].double().numpy() for z in (image, reference))) for i in range(2)]
    np.testing.assert_allclose(metrics.ms_ssim(image, reference).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["psnr", "ssim", "ms_ssim"])
def test_one_value_an_image_and_no_mixing(name):
    metric = getattr(metrics, name)
    image, reference = pair(176, 176, batch=3)
    together = metric(image, reference)
    assert together.shape == (3,) and together.dtype == torch.float32
    alone = torch.cat([metric(image[i : i + 1], reference[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)
    spoilt = image.clone()
    spoilt[1] = torch.nan
    values = metric(spoilt, reference)
    assert torch.isnan(values).tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["ssim", "ms_ssim"])
def test_structural_metrics_ignore_autocast(name):
    metric = getattr(metrics, name)
    image, reference = pair(176, 176)
    with torch.autocast("cpu", torch.bfloat16):
        value = metric(image, reference)
    torch.testing.assert_close(value, metric(image, reference), atol=0, rtol=0)
    torch.testing.assert_close(metric(image, image), torch.ones(2))


def test_least_sizes():
    small = torch.rand(1, 1, 10, 64)
    with pytest.raises(ValueError, match="at least 11"):
        metrics.ssim(small, small)
    medium = torch.rand(1, 1, 200, 175)
    with pytest.raises(ValueError, match=r"200×175.*at least 176"):
        metrics.ms_ssim(medium, medium)


@pytest.mark.parametrize("name", ["psnr", "ssim", "ms_ssim"])
def test_shapes_are_checked(name):
    with pytest.raises(ValueError, match="same shape"):
        getattr(metrics, name)(torch.rand(2, 1, 176, 176), torch.rand(1, 1, 176, 176))
