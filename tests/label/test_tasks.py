"""Scoring, what a training holds out, and the versions of the weights, without a server."""

import json
import math
import os

import pytest
import torch

from common.errors import WeightsError
from common.io.segmentation_classes import GROUPED
from common.label.active_learning import (
    ScoringParameters,
    predictive_entropy,
    sample_probabilities,
    sample_with_dropout,
    sample_with_flips,
)
from common.label.bundle import Bundle, ServedModel
from common.label.train_task import hold_out
from common.label.weights_store import WeightsStore


@pytest.fixture
def segmenter(tiny_bundle):
    bundle = Bundle(tiny_bundle)
    return bundle.segmenter(bundle.shipped_weights, torch.device("cpu"))


def test_entropy_is_zero_where_sure_ln_k_where_nothing_is_known_and_ln_2_where_two_disagree():
    sure = torch.zeros(3, 4, 2, 2)
    sure[:, 1] = 1
    assert predictive_entropy(sure) == 0
    assert predictive_entropy(torch.full((3, 4, 2, 2), 0.25)) == pytest.approx(math.log(4))
    samples = torch.zeros(2, 2, 1, 1)
    samples[0, 0] = samples[1, 1] = 1
    assert predictive_entropy(samples) == pytest.approx(math.log(2))


@torch.no_grad()
def test_dropout_drops_repeatably_and_is_off_afterwards(segmenter):
    image, network = torch.rand(1, 1, 48, 64), segmenter.network
    before = network(image)
    one = sample_with_dropout(image, network, 3, seed=1)
    torch.manual_seed(5)
    assert torch.equal(one, sample_with_dropout(image, network, 3, seed=1)) and not one.requires_grad
    assert not torch.equal(one, sample_with_dropout(image, network, 3, seed=2))
    assert not torch.equal(one[0], one[1])
    assert torch.equal(network(image), before) and not any(m.training for m in network.modules())


def test_flips_are_turned_back(segmenter):
    image = torch.rand(1, 1, 48, 64)
    straight, mirrored = sample_with_flips(image, segmenter.network, GROUPED)
    again, other = sample_with_flips(image.flip(-1), segmenter.network, GROUPED)
    torch.testing.assert_close(straight, other.flip(-1))
    torch.testing.assert_close(mirrored, again.flip(-1))


@pytest.mark.parametrize("uncertainty", ["dropout", "flips"])
def test_scores_are_of_the_picture_not_of_its_padding(segmenter, studies, uncertainty):
    chosen = ScoringParameters(samples=2, uncertainty=uncertainty)
    probabilities = sample_probabilities(segmenter, studies / "tooth_0.png", chosen)
    assert torch.equal(probabilities, sample_probabilities(segmenter, studies / "tooth_0.png", chosen))
    assert probabilities.shape == (2, 6, 47, 64)  # 45 × 61 made to fit 48 × 64
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2, 47, 64))


def test_the_model_is_built_anew_for_other_weights_or_switches_only(tiny_bundle, tmp_path):
    bundle = Bundle(tiny_bundle)
    model = ServedModel(bundle, WeightsStore(tmp_path / "store", bundle.shipped_weights))

    def built(**switches):
        with model.segmenter("cpu", **switches) as found:
            return found

    plain = built()
    assert built() == plain and built(flips=True)[0] is not plain[0]
    assert built(**bundle.switches)[0] is plain[0]  # as viewers send them all
    model.store.publish(bundle.shipped_weights, {})
    assert built()[1] == 1 and plain[1] == 0


# ---- held out --------------------------------------------------------------------------------------------------------


def test_what_was_held_out_stays_so_and_what_was_trained_on_too(tmp_path):
    first_train, first_held = hold_out([f"n{n}" for n in range(5)], 0.2, 0, tmp_path)
    assert len(first_held) == 1 and len(first_train) == 4
    for seed in (0, 1):
        train, held = hold_out([f"n{n}" for n in range(20)], 0.2, seed, tmp_path)
        assert len(held) == 4 and set(first_held) <= set(held) and set(first_train) <= set(train)
        assert sorted(train + held) == sorted(f"n{n}" for n in range(20))


def test_few_labels_are_all_trained_on_and_never_held_out_later(tmp_path):
    assert hold_out(["b", "a"], 0.2, 0, tmp_path) == (["a", "b"], [])
    assert hold_out(["a", "b", "c"], 0.5, 0, tmp_path) == (["a", "b"], ["c"])


def test_the_split_depends_on_the_seed_alone(tmp_path):
    names = [f"n{n}" for n in range(10)]
    one = hold_out(names, 0.3, 0, tmp_path / "one")
    assert one == hold_out(names[::-1], 0.3, 0, tmp_path / "two")
    assert one != hold_out(names, 0.3, 1, tmp_path / "three")


# ---- versions of the weights -----------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"shipped")
    return WeightsStore(tmp_path / "store", tmp_path / "model.pt")


def publish(store, content, **info):
    new = store.shipped.with_name("new.pt")
    new.write_bytes(content)
    return store.publish(new, info)


def test_the_shipped_weights_are_served_until_something_is_published(store, tmp_path):
    assert store.versions() == [0] and store.path(store.served()) == tmp_path / "model.pt" and store.info(0) == {}
    (tmp_path / "new.json").write_text('{"network": {}}')
    assert publish(store, b"one", dice=0.5) == 1
    assert store.path(1).read_bytes() == b"one" and store.path(1).with_suffix(".json").read_text() == '{"network": {}}'
    assert store.served() == 1 and store.info(1) == {"dice": 0.5, "parent": 0}
    assert (tmp_path / "model.pt").read_bytes() == b"shipped"


def test_any_version_can_be_served_again_and_none_is_lost(store):
    publish(store, b"one")
    publish(store, b"two")
    store.serve(0)
    assert store.path(store.served()).read_bytes() == b"shipped"
    assert publish(store, b"three") == 3
    assert store.versions() == [0, 1, 2, 3] and store.info(3)["parent"] == 0
    store.serve(2)
    assert store.path(store.served()).read_bytes() == b"two"


def test_what_0_1_0_noted_of_a_version_is_no_description_of_its_weights(store):
    publish(store, b"one")
    (store.folder / "v0001.info.json").rename(store.folder / "v0001.json")
    again = WeightsStore(store.folder, store.shipped)
    assert again.info(1) == {"parent": 0} and not again.path(1).with_suffix(".json").exists()


def test_a_version_that_is_not_there_and_a_damaged_file_are_refused(store):
    with pytest.raises(WeightsError):
        store.serve(4)
    assert store.served() == 0
    publish(store, b"one")
    for content in ("{", "[]", "{}", json.dumps({"version": 9})):
        (store.folder / "served.json").write_text(content)
        with pytest.raises(WeightsError):
            store.served()


@pytest.mark.parametrize("step", ["v0002.info.json", "v0002.pt", "served.json"])
def test_stopped_while_publishing_the_old_weights_are_served(store, monkeypatch, step):
    publish(store, b"one")
    whole = os.replace

    def killed(source, target):
        if str(target).endswith(step):
            raise KeyboardInterrupt
        whole(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        publish(store, b"two")
    monkeypatch.undo()
    again = WeightsStore(store.folder, store.shipped)
    assert again.path(again.served()).read_bytes() == b"one"
    assert publish(again, b"three") > 1 and again.path(again.served()).read_bytes() == b"three"
