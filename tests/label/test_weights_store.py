import json

import pytest

from common.errors import WeightsError
from common.label.weights_store import WeightsStore


@pytest.fixture
def store(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"shipped")
    return WeightsStore(tmp_path / "store", tmp_path / "model.pt")


def publish(store, tmp_path, content, **info):
    (tmp_path / "new.pt").write_bytes(content)
    return store.publish(tmp_path / "new.pt", info)


def test_the_shipped_weights_are_served_until_something_is_published(store, tmp_path):
    assert store.versions() == [0] and store.path(store.served()) == tmp_path / "model.pt" and store.info(0) == {}
    (tmp_path / "new.json").write_text('{"network": {}}')
    assert publish(store, tmp_path, b"one", dice=0.5) == 1
    assert store.path(1).read_bytes() == b"one" and store.path(1).with_suffix(".json").read_text() == '{"network": {}}'
    assert store.served() == 1 and store.info(1) == {"dice": 0.5, "parent": 0}
    assert (tmp_path / "model.pt").read_bytes() == b"shipped"


def test_any_version_can_be_served_again_and_none_is_lost(store, tmp_path):
    publish(store, tmp_path, b"one")
    publish(store, tmp_path, b"two")
    store.serve(0)
    assert store.path(store.served()).read_bytes() == b"shipped"
    assert publish(store, tmp_path, b"three") == 3
    assert store.versions() == [0, 1, 2, 3] and store.info(3)["parent"] == 0
    store.serve(2)
    assert store.path(store.served()).read_bytes() == b"two"


def test_what_0_1_0_noted_of_a_version_is_no_description_of_its_weights(store, tmp_path):
    publish(store, tmp_path, b"one")
    (tmp_path / "store" / "v0001.info.json").rename(tmp_path / "store" / "v0001.json")
    again = WeightsStore(store.folder, store.shipped)
    assert again.info(1) == {"parent": 0} and not again.path(1).with_suffix(".json").exists()


def test_a_version_that_is_not_there_and_a_damaged_file_are_refused(store, tmp_path):
    with pytest.raises(WeightsError):
        store.serve(4)
    assert store.served() == 0
    publish(store, tmp_path, b"one")
    for content in ("{", "[]", "{}", json.dumps({"version": 9})):
        (tmp_path / "store" / "served.json").write_text(content)
        with pytest.raises(WeightsError):
            store.served()


@pytest.mark.parametrize("step", ["v0002.info.json", "v0002.pt", "served.json"])
def test_stopped_while_publishing_the_old_weights_are_served(store, tmp_path, monkeypatch, step):
    import os

    publish(store, tmp_path, b"one")
    whole = os.replace

    def killed(source, target):
        if str(target).endswith(step):
            raise KeyboardInterrupt
        whole(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        publish(store, tmp_path, b"two")
    monkeypatch.undo()
    again = WeightsStore(store.folder, store.shipped)
    assert again.path(again.served()).read_bytes() == b"one"
    assert publish(again, tmp_path, b"three") > 1 and again.path(again.served()).read_bytes() == b"three"
