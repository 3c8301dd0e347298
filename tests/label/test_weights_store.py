import pytest

from common.errors import UserError
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
    assert publish(store, tmp_path, b"one", dice=0.5) == 1
    assert store.path(store.served()).read_bytes() == b"one"
    assert store.info(1) == {"dice": 0.5, "parent": 0}
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


def test_a_version_that_is_not_there_is_refused(store):
    with pytest.raises(UserError, match="found version 4; expected one of 0"):
        store.serve(4)
    assert store.served() == 0


def test_a_damaged_file_says_what_to_do(store, tmp_path):
    publish(store, tmp_path, b"one")
    (tmp_path / "store" / "served.json").write_text("{")
    with pytest.raises(UserError, match="Remove the file to serve the shipped weights"):
        store.served()


@pytest.mark.parametrize("step", ["json", "pt", "served"])
def test_stopped_while_publishing_the_old_weights_are_served(store, tmp_path, monkeypatch, step):
    import common.label.weights_store as module

    publish(store, tmp_path, b"one")
    whole = module.atomic_path
    endings = {"json": "v0002.json", "pt": "v0002.pt", "served": "served.json"}

    def killed(path):
        if str(path).endswith(endings[step]):
            raise KeyboardInterrupt
        return whole(path)

    monkeypatch.setattr(module, "atomic_path", killed)
    with pytest.raises(KeyboardInterrupt):
        publish(store, tmp_path, b"two")
    monkeypatch.undo()
    again = WeightsStore(store.folder, store.shipped)
    assert again.path(again.served()).read_bytes() == b"one"
    assert publish(again, tmp_path, b"three") > 1 and again.path(again.served()).read_bytes() == b"three"
