"""Stores in eight bits a number, and back."""

import numpy as np
import pytest
import torch
from conftest import make_tiny_store

from common.data.latent_store import LatentDataset, LatentStore
from common.data.packed_data import PackedData, PackedSplit, eight_bits, rounded_store, write_pack
from common.errors import DatasetError

CPU = torch.device("cpu")


def packed(store, path, patch_grid=2):
    arrays, lost = rounded_store(store, patch_grid)
    write_pack(path, arrays, store.items, {"lost": lost})
    return PackedData(path)


def test_packed_latents_and_tokens_are_close_to_those_of_the_store(tmp_path):
    store = make_tiny_store(tmp_path / "store")
    data = packed(store, tmp_path / "packed.npz")
    for split in ("train", "val"):
        there, here = LatentDataset(store, split), PackedSplit(data, split, CPU)
        assert here.rows == list(there.rows) and len(here) == len(there)
        for name in ("latents_mean", "cls_token", "register_tokens", "patch_grid"):
            expected = torch.stack([item[name] for item in there])
            assert here.tensors[name].dtype == torch.float32
            torch.testing.assert_close(here.tensors[name], expected, atol=0.02, rtol=0)
            assert not torch.equal(here.tensors[name], expected)
    assert all(0 < share < 0.02 for share in data.about["lost"].values())


def test_the_std_is_the_root_mean_square_of_each_channel_and_a_coarser_grid_the_average_of_the_finer(tmp_path):
    store = make_tiny_store(tmp_path / "store")
    data = packed(store, tmp_path / "packed.npz", patch_grid=1)
    found = PackedSplit(data, "train", CPU).tensors["latents_std"]
    expected = np.sqrt(np.square(store.arrays["latents_std"].astype(np.float64)).mean((0, 1, 3, 4)))
    assert found.shape == (7, 2, 1, 1)
    assert found[3].flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-3)
    average = LatentDataset(store, "val")[1]["patch_grid"].mean((0, 1))
    assert (PackedSplit(data, "val", CPU).tensors["patch_grid"][1, 0, 0] - average).abs().max() < 0.02
    with pytest.raises(DatasetError):
        rounded_store(store, 3)


def test_each_channel_has_a_scale_of_its_own():
    values = np.random.default_rng(0).normal(size=(50, 3, 4)) * np.array([1e-3, 1.0, 1e3])[:, None]
    integers, scale = eight_bits(values, 1)
    assert integers.dtype == np.int8 and np.abs(integers).max() == 127
    errors = np.abs(integers * scale - values).max((0, 2)) / np.abs(values).max((0, 2))
    assert (errors <= 0.5 / 127 + 1e-6).all()


def test_names_of_files_and_patients_do_not_travel_but_labels_do(tmp_path):
    arrays = {"image": (np.zeros((2, 1, 4, 4), np.uint8), np.ones(1, np.float32))}
    items = [{"image": "secret.png", "patient_id": "Doe", "split": "train", "label": "normal"}, {"split": "val"}]
    write_pack(tmp_path / "packed.npz", arrays, items, {})
    assert PackedData(tmp_path / "packed.npz").items == [
        {"split": "train", "label": "normal"},
        {"split": "val", "label": ""},
    ]


def test_a_limit_takes_the_first_of_a_split_and_an_empty_split_is_refused(tmp_path):
    data = packed(make_tiny_store(tmp_path / "store"), tmp_path / "packed.npz")
    assert PackedSplit(data, "val", CPU, limit=2).rows == [7, 8]
    with pytest.raises(DatasetError, match="test"):
        PackedSplit(data, "test", CPU)


def test_damaged_missing_and_unfinished_ones_are_refused(tmp_path):
    store = make_tiny_store(tmp_path / "store")
    packed(store, tmp_path / "packed.npz")
    content = bytearray((tmp_path / "packed.npz").read_bytes())
    for name, damaged in {"cut.npz": content[: len(content) // 2], "other.npz": b"text", "empty.npz": b""}.items():
        (tmp_path / name).write_bytes(damaged)
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(content)
    for name in ("cut.npz", "other.npz", "empty.npz", "flipped.npz", "missing.npz"):
        with pytest.raises(DatasetError, match=name):
            PackedData(tmp_path / name)
    store = LatentStore(tmp_path / "store", writable=True)
    store.done[0, 0] = 0
    with pytest.raises(DatasetError, match="missing"):
        rounded_store(store, 2)
