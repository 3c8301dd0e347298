import math

import pytest
import torch

from common.spectrum import OCTAVES, band_power, line_power


def test_white_noise_has_its_variance_in_every_band():
    noise = 0.3 * torch.randn(16, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    assert band_power(noise).mean(0).tolist() == pytest.approx([0.09] * 4, rel=0.15)


@pytest.mark.parametrize("band", range(4))
def test_a_wave_is_in_its_octave_and_in_no_other(band):
    frequency = math.sqrt(OCTAVES[band] * OCTAVES[band + 1])
    wave = torch.sin(2 * math.pi * frequency * torch.arange(128.0)).expand(1, 1, 64, 128)
    power = band_power(wave)[0]
    assert power[band] > 100 * (power.sum() - power[band])


def test_blur_takes_power_from_the_high_bands_first():
    noise = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)
    ratios = (band_power(blurred).mean(0) / band_power(noise).mean(0)).tolist()
    assert ratios[0] > 0.9 and ratios == sorted(ratios, reverse=True) and ratios[3] < 0.2


@pytest.mark.parametrize("period", [3, 8])
def test_a_grid_is_seen_and_noise_is_none(period):
    noise = torch.randn(8, 1, 96, 144, generator=torch.Generator().manual_seed(0))
    lines = (torch.arange(144) % period == 0).float()
    assert line_power(noise, period) < 2
    assert line_power(noise + 2 * lines, period) > 5
