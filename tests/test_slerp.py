from itertools import pairwise

import pytest
import torch

from common.pipelines.slerp import slerp


def unit(count, seed, size=384):
    vectors = torch.randn(count, 3, size, generator=torch.Generator().manual_seed(seed))
    return vectors / vectors.norm(dim=-1, keepdim=True)


def angle(first, second):
    return torch.cosine_similarity(first.double(), second.double(), dim=-1).acos()


def test_slerp_turns_evenly_at_constant_norm_along_the_great_circle():
    first, second = unit(5, 0), unit(5, 1)
    steps = [slerp(first, second, torch.tensor(mix)) for mix in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    torch.testing.assert_close(steps[0], first, atol=1e-6, rtol=0)
    torch.testing.assert_close(steps[-1], second, atol=1e-6, rtol=0)
    for here, there in pairwise(steps):
        assert angle(here, there) == pytest.approx(angle(first, second) / 5, rel=1e-3)
        assert there.norm(dim=-1) == pytest.approx(torch.ones(5, 3), rel=1e-5)
    middle = slerp(first, second, torch.tensor(0.5))
    assert angle(first, middle) == pytest.approx(angle(middle, second), rel=1e-4)


def test_slerp_interpolates_norms_and_takes_a_mix_for_each_of_a_batch():
    first, second = 2.0 * unit(4, 0), 6.0 * unit(4, 1)
    mix = torch.tensor([0.0, 0.25, 0.5, 1.0])
    turned = slerp(first, second, mix.view(-1, 1, 1))
    assert turned.norm(dim=-1) == pytest.approx((2.0 + 4.0 * mix)[:, None].expand(4, 3), rel=1e-5)
    for number in range(4):
        torch.testing.assert_close(slerp(first[number], second[number], mix[number]), turned[number])


def test_slerp_is_the_straight_line_where_there_is_no_great_circle():
    first, mix = unit(2, 0), torch.tensor(0.25)
    torch.testing.assert_close(slerp(first, 3.0 * first, mix), 1.5 * first)
    torch.testing.assert_close(slerp(first, -first, mix), 0.5 * first, atol=1e-5, rtol=0)
    torch.testing.assert_close(slerp(first, torch.zeros_like(first), mix), 0.75 * first)
    half = pytest.approx(torch.full((2, 3), 0.5), abs=0.01)
    assert slerp(first, -first + 1e-6 * unit(2, 1), mix).norm(dim=-1) == half
    for almost in (first + 1e-3 * unit(2, 1), -first + 1e-3 * unit(2, 1)):
        almost = almost / almost.norm(dim=-1, keepdim=True)
        assert slerp(first, almost, mix).norm(dim=-1) == pytest.approx(torch.ones(2, 3), abs=0.01)
