"""Pairs share a label and no patient, and tokens lie between those of the pair."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from test_source_table import make_table
from test_strategies import LABELS, PATIENTS, SCALER, TABLE, angle, interpolation

from common.errors import SettingsError
from common.pipelines.interpolation import slerp
from common.pipelines.strategies import SampleRequest


def test_pairs_share_a_label_and_never_a_patient():
    requests = interpolation(num_samples=200).requests()
    for request in requests:
        first, second = request.sources
        assert PATIENTS[first] != PATIENTS[second]
        assert set(LABELS[first].split("|")) & set(LABELS[second].split("|"))
    pairs = {frozenset(request.sources) for request in requests}
    assert pairs == {frozenset(pair) for pair in [(0, 2), (1, 2), (1, 3), (2, 3), (4, 6), (5, 6)]}


def test_a_label_is_kept_only_where_both_ends_agree():
    labels = {frozenset(r.sources): r.label for r in interpolation(num_samples=60).requests()}
    assert labels[frozenset((1, 2))] in ("a|b", "b|a")  # the same two, in another order
    assert {labels[frozenset(pair)] for pair in [(0, 2), (1, 3), (2, 3), (4, 6), (5, 6)]} == {""}
    same = make_table(["P", "Q"], ["a", "a"])
    assert {request.label for request in interpolation(same).requests()} == {"a"}


def test_no_pair_comes_again_before_all_have_come():
    # Of unequal groups: the two of "b" run out of partners long before the others.
    table = make_table([f"P{n}" for n in range(10)], ["a"] * 8 + ["b"] * 2)
    number_of_pairs = 28 + 1
    pairs = [frozenset(request.sources) for request in interpolation(table, 3 * number_of_pairs).requests()]
    for number in (0, 1, 2):
        assert len(set(pairs[number * number_of_pairs : (number + 1) * number_of_pairs])) == number_of_pairs
    many = interpolation(make_table([str(n) for n in range(50)]), 50).requests()
    assert Counter(request.sources[0] for request in many) == dict.fromkeys(range(50), 1)
    assert len({(request.sources[1] - request.sources[0]) % 50 for request in many}) > 20


def test_mixes_fill_their_range():
    for low, high in [(0.25, 0.75), (0.0, 1.0), (0.1234567, 0.1234568), (0.5, 0.5)]:
        mixes = [request.mix for request in interpolation(num_samples=400, mix_range=(low, high)).requests()]
        assert low <= min(mixes) and max(mixes) <= high
        if high - low > 0.1:
            assert min(mixes) < low + 0.02 * (high - low) and max(mixes) > high - 0.02 * (high - low)


@pytest.mark.parametrize("mode", ["lerp", "slerp"])
def test_the_ends_of_an_interpolation_are_its_sources(mode):
    ends = [SampleRequest("x", 0, (1, 2), mix) for mix in (0.0, 1.0)]
    torch.testing.assert_close(interpolation(mode=mode).tokens(ends), TABLE.tokens[[1, 2]], atol=1e-4, rtol=1e-4)


def test_lerp_is_the_mean_and_slerp_has_its_angles_in_standardised_tokens():
    requests = [SampleRequest("x", 0, (1, 2), 0.5), SampleRequest("y", 1, (3, 6), 0.25)]
    between = interpolation(mode="lerp").tokens(requests)
    torch.testing.assert_close(between[0], TABLE.tokens[[1, 2]].mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(between[1], 0.75 * TABLE.tokens[3] + 0.25 * TABLE.tokens[6], atol=1e-4, rtol=1e-4)
    first, middle, second = (
        SCALER.scale(tokens)
        for tokens in (TABLE.tokens[1], interpolation(mode="slerp").tokens(requests)[0], TABLE.tokens[2])
    )
    assert torch.cosine_similarity(first, middle, dim=-1) == pytest.approx(
        torch.cosine_similarity(middle, second, dim=-1), abs=1e-4
    )
    assert middle.norm(dim=-1) == pytest.approx((first.norm(dim=-1) + second.norm(dim=-1)) / 2, rel=1e-4)


def test_sources_that_do_not_pair_are_refused():
    for table in (make_table(["P", "P"], ["a", "a"]), make_table(["P", "Q"], ["a", "b"]), make_table(["P"])):
        with pytest.raises(SettingsError):
            interpolation(table).requests()


# ---- slerp ----------------------------------------------------------------------------------------------------------


def unit(count, seed, size=384):
    vectors = torch.randn(count, 3, size, generator=torch.Generator().manual_seed(seed))
    return vectors / vectors.norm(dim=-1, keepdim=True)


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
