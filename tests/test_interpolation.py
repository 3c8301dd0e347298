"""Pairs share a label and no patient, and tokens lie between those of the pair."""

from collections import Counter

import pytest
import torch
from test_embedding_strategies import LABELS, PATIENTS, SCALER, TABLE, interpolation
from test_source_table import make_table

from common.pipelines.sample_request import SampleRequest, StrategyError


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
        with pytest.raises(StrategyError, match=f"among {len(table)} sources no two of different patients share"):
            interpolation(table).requests()
