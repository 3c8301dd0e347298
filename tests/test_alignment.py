"""Correlation after aligning: the box that a crop was cut from is found again, and other people stay unlike."""

from __future__ import annotations

import pytest
import torch

from common.data.alignment import aligned_correlation, zoomed
from common.data.phantom import draw_chest_phantom

WHOLE = torch.tensor([[1.0, 1.0, 0.0, 0.0]])


def phantom(seed: int) -> torch.Tensor:
    return draw_chest_phantom(64, 64, seed)[None]


@pytest.mark.parametrize("box", [[1.0, 1.0, 0.0, 0.0], [0.95, 0.9, 0.04, -0.06], [0.9, 1.0, -0.05, 0.0]])
def test_the_box_of_a_crop_is_found(box):
    wanted = torch.tensor([box])
    crop = zoomed(phantom(0), wanted) * 0.5 + 0.2
    correlation, found = aligned_correlation(crop, phantom(0), WHOLE, detail=1 / 16, num_iterations=12)
    assert correlation.item() > 0.98
    torch.testing.assert_close(found, wanted, atol=0.01, rtol=0)


def test_a_start_nearby_is_improved_and_never_made_worse():
    target = zoomed(phantom(1), torch.tensor([[0.8, 0.8, 0.03, 0.0]]))
    start = torch.tensor([[0.85, 0.85, 0.0, 0.0]])
    before, unmoved = aligned_correlation(target, phantom(1), start, 1 / 16, num_iterations=0)
    after, _ = aligned_correlation(target, phantom(1), start, 1 / 16, num_iterations=8)
    assert torch.equal(unmoved, start)
    assert after.item() > 0.95 > before.item()


def test_another_person_an_inverted_picture_and_what_hardly_overlaps_are_unlike():
    others = torch.cat([phantom(1), 1 - phantom(0)])
    correlation, _ = aligned_correlation(phantom(0).expand(2, 1, 64, 64), others, WHOLE.expand(2, 4), 1 / 32, 8)
    assert correlation[0] < 0.8 and correlation[1] < 0
    correlation, _ = aligned_correlation(phantom(0), phantom(0), torch.tensor([[1.0, 1.0, 1.5, 0.0]]), 1 / 16, 0)
    assert correlation.item() == -1
