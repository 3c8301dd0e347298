import json
import pickle

import numpy as np
import pytest
import torch
from conftest import make_tiny_store
from torch.utils.data import DataLoader

from common.data.dataset import StepBatchSampler
from common.data.latent_store import ARRAYS, LatentDataset, LatentStore
from common.errors import DatasetError

SHAPES = {"latents_mean": (2, 4, 4), "latents_std": (2, 4, 4)}
SHAPES |= {"cls_token": (6,), "register_tokens": (0, 6), "patch_grid": (3, 3, 6)}
SPLITS = ["train", "val", "train", "train"]
ITEMS = [{"image": f"/data/deep/bild_ä_{n}.png", "split": split, "label": ""} for n, split in enumerate(SPLITS)]
MADE_WITH = {"image_size": 32, "dataset_dir": "/data"}


def allocate(folder, num_views=2, items=ITEMS):
    LatentStore.allocate(folder, MADE_WITH, items, num_views, SHAPES)


def values(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, *shape, generator=generator) * 10 for name, shape in SHAPES.items()}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rows_and_tokens_come_back_as_float16_holds_them(tmp_path):
    allocate(tmp_path)
    rows, written = [(2, 0), (0, 1), (3, 0)], values(3)
    LatentStore(tmp_path, writable=True).write(rows, written)
    store = LatentStore(tmp_path)
    for number, row in enumerate(rows):
        for name in ARRAYS:
            assert torch.equal(torch.from_numpy(np.array(store.arrays[name][row])), written[name][number].half())
    assert store.done.tolist() == [[0, 1], [0, 0], [1, 0], [1, 0]]
    assert store.num_views == 2 and not store.is_complete
    assert list(store.items) == ITEMS and store.made_with == MADE_WITH
    assert all(not store.arrays["cls_token"][row].any() for row in [(0, 0), (1, 0), (1, 1), (2, 1), (3, 1)])
    tokens = store.tokens([3, 2])
    assert tokens.keys() == {"cls_token", "register_tokens", "patch_grid"}
    for name, value in tokens.items():
        assert value.dtype == torch.float32 and torch.equal(value, written[name][[2, 0]].half().float())


@pytest.mark.parametrize("kill_at", ARRAYS)
def test_a_kill_within_a_row_leaves_it_to_be_done(tmp_path, kill_at):
    allocate(tmp_path / "killed")
    allocate(tmp_path / "whole")
    store = LatentStore(tmp_path / "killed", writable=True)
    with pytest.raises(KeyError):  # stands for the kill
        store.write([(0, 0)], {name: value for name, value in values(1, seed=1).items() if name != kill_at})
    assert not store.done.any()
    for name in ("killed", "whole"):
        LatentStore(tmp_path / name, writable=True).write([(0, 0)], values(1))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_kill_before_the_description_leaves_no_store(tmp_path):
    with pytest.raises(TypeError):
        LatentStore.allocate(tmp_path, {**MADE_WITH, "seed": object()}, ITEMS, 2, SHAPES)
    assert (tmp_path / "done.npy").is_file() and not LatentStore.exists(tmp_path)
    np.load(tmp_path / "done.npy", mmap_mode="r+")[:] = 1
    np.load(tmp_path / "rows.npy", mmap_mode="r+")["cls_token"][:] = 1
    allocate(tmp_path)
    store = LatentStore(tmp_path)
    assert not store.done.any() and not store.arrays["cls_token"].any()


@pytest.mark.parametrize("number", [1e6, float("nan")])
def test_numbers_that_float16_cannot_hold_are_refused_by_the_name_of_their_image(tmp_path, number):
    allocate(tmp_path)
    store, written = LatentStore(tmp_path, writable=True), values(3)
    written["cls_token"][1, 2] = number
    with pytest.raises(DatasetError, match=r"cls_token.*bild_ä_2\.png"):
        store.write([(0, 0), (2, 0), (3, 0)], written)
    assert not store.done.any()


def test_a_store_that_the_disk_cannot_hold_is_refused_before_it_is_begun(tmp_path):
    with pytest.raises(DatasetError, match="GB"):
        allocate(tmp_path, num_views=10**13)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("store.json", c) for c in (None, b'{"version": 1, "items": [', b"\xff\xfe\x00", b'{"version": 99}')),
        *(("rows.npy", None), ("rows.npy", 100), ("done.npy", b""), ("ends.npy", b"")),
    ],
)
def test_what_is_no_store_is_named(tmp_path, name, content):
    file = make_tiny_store(tmp_path / "store").folder / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-content] if isinstance(content, int) else content)
    with pytest.raises(DatasetError, match="store"):
        LatentStore(tmp_path / "store")


def test_a_folder_of_one_store_stands_for_it_and_one_of_several_does_not(tmp_path):
    made = make_tiny_store(tmp_path / "one")
    assert LatentStore(tmp_path).folder == made.folder
    make_tiny_store(tmp_path / "other")
    with pytest.raises(DatasetError, match="one, other"):
        LatentStore(tmp_path)


def test_items_are_read_one_by_one_and_follow_a_data_set_that_was_moved(tmp_path):
    """870,000 dicts would be a gigabyte in every process."""
    items = [*ITEMS, {"image": "/data/a.png", "split": "val", "mask": "/elsewhere/a.png"}]
    allocate(tmp_path, items=items)
    store = LatentStore(tmp_path)
    assert isinstance(store.items.text, np.memmap) and isinstance(store.splits, np.memmap)
    assert list(store.items) == items and store.items[-1] == items[4]
    with pytest.raises(IndexError):
        store.items[5]
    with pytest.raises(ValueError, match="read-only"):
        store.done[:] = 0
    moved = LatentStore(tmp_path, dataset_dir="/new").items[4]
    assert moved == {"image": "/new/a.png", "split": "val", "mask": "/elsewhere/a.png"}


def test_a_process_that_is_started_opens_the_files_instead_of_getting_their_contents(tmp_path):
    store = make_tiny_store(tmp_path)
    sent = pickle.dumps(LatentDataset(store, "train"))
    assert len(sent) < 1500
    received, expected = pickle.loads(sent)[3], LatentDataset(store, "train")[3]
    assert all(torch.equal(torch.as_tensor(received[name]), torch.as_tensor(expected[name])) for name in expected)


def test_items_alone_are_sent_as_a_place_too(tmp_path):
    allocate(tmp_path, items=ITEMS * 100)
    items = LatentStore(tmp_path).items
    sent = pickle.dumps(items)
    assert len(sent) < 500 and list(pickle.loads(sent)) == list(items)


def test_stores_of_version_1_are_read_and_go_on(tmp_path):
    """One file per array, the items in store.json."""
    for name, shape in SHAPES.items():
        np.save(tmp_path / f"{name}.npy", np.zeros((4, 2, *shape), np.float16))
    np.save(tmp_path / "done.npy", np.zeros((4, 2), np.uint8))
    (tmp_path / "store.json").write_text(json.dumps({"version": 1, "made_with": MADE_WITH, "items": ITEMS}))
    written = values(8)
    store = LatentStore(tmp_path, writable=True)
    store.write([(image, view) for image in range(4) for view in range(2)], written)
    store.flush()
    store = LatentStore(tmp_path)
    assert store.items == ITEMS and store.indices("train").tolist() == [0, 2, 3]
    item = LatentDataset(store, "train")[1, 3]
    assert torch.equal(item["patch_grid"], written["patch_grid"][5].half().float())


def test_a_split_holds_its_images_and_no_others_once_the_store_is_finished(tmp_path):
    allocate(tmp_path, num_views=1)
    store, written = LatentStore(tmp_path, writable=True), values(4)
    store.write([(image, 0) for image in range(3)], {name: value[:3] for name, value in written.items()})
    with pytest.raises(DatasetError, match="1 of 4"):
        LatentDataset(LatentStore(tmp_path), "train")
    store.write([(3, 0)], {name: value[3:] for name, value in written.items()})
    store = LatentStore(tmp_path)
    train, val = LatentDataset(store, "train"), LatentDataset(store, "val")
    assert len(train) == 3 and len(val) == 1
    for image, item in ((0, train[0]), (2, train[1]), (3, train[2]), (1, val[0])):
        assert item["draw"] == 0 and item["index"] == {0: 0, 2: 1, 3: 2, 1: 0}[image]
        for name in ARRAYS:
            assert item[name].dtype == torch.float32
            assert torch.equal(item[name], written[name][image].half().float())
    assert torch.equal(train.all_tokens()["patch_grid"], written["patch_grid"][[0, 2, 3]].half().float())
    with pytest.raises(DatasetError, match="test"):
        LatentDataset(store, "test")


def test_training_goes_through_the_views_pass_by_pass_and_validation_takes_the_plain_ones(tmp_path):
    store = make_tiny_store(tmp_path, num_train=3, num_val=1, num_views=2)
    dataset = LatentDataset(store, "train")
    loader = iter(DataLoader(dataset, batch_sampler=StepBatchSampler(3, batch_size=2, seed=0)))
    batches = [next(loader) for _ in range(6)]  # four passes over three images
    draws, tokens, indices = (torch.cat([batch[name] for batch in batches]) for name in ("draw", "cls_token", "index"))
    assert draws.tolist() == list(range(12)) and indices.view(4, 3).sort().values.tolist() == [[0, 1, 2]] * 4
    there = torch.from_numpy(store.arrays["cls_token"].astype(np.float32))
    assert torch.equal(tokens, there[indices, draws // 3 % 2])
    assert torch.equal(LatentDataset(store, "val")[0]["cls_token"], there[3, 0])


@pytest.mark.parametrize("name", ["rows.npy", "crc32.npy", "items.jsonl", "ends.npy", "splits.npy", "store.json"])
def test_a_flipped_bit_is_told_or_changes_nothing(tmp_path, name):
    store = make_tiny_store(tmp_path)
    expected, told = [LatentDataset(store, "train")[index] for index in range(7)], 0
    whole = (tmp_path / name).read_bytes()
    for at in np.linspace(0, len(whole) - 1, 60).astype(int).tolist():
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        (tmp_path / name).write_bytes(damaged)
        try:
            dataset = LatentDataset(LatentStore(tmp_path), "train")
            found = [dataset[index] for index in range(7)]
            assert dataset.all_tokens()["cls_token"].shape == (7, 6)
        except DatasetError:
            told += 1
            continue
        for one, other in zip(found, expected, strict=True):
            assert all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in other), at
    assert told > (0 if name == "store.json" else 25)
