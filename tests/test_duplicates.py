"""Planted copies of drawn radiographs are found, other people are not; then who changes sides, and the report of it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from common.data.alignment import aligned_correlation, zoomed
from common.data.datalist_sources import write_manifest
from common.data.datalists import radiograph_items
from common.data.duplicates import NUM_NEIGHBOURS, Duplicates, Pair, find_duplicates, nearest_pairs, perceptual_hashes
from common.data.one_side import one_side, write_duplicates
from common.data.phantom import draw_chest_phantom
from common.errors import DatasetError

SIDE = 128
NUM_PEOPLE = 10
Grey = NDArray[np.float32]


def resized(pixels: Grey, height: int, width: int) -> Grey:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)


COPIES: dict[str, tuple[str, Callable[[Grey], Grey]]] = {
    "same.png": ("identical", lambda pixels: pixels),
    "stored_again.jpg": ("copy", lambda pixels: pixels),
    "smaller.png": ("copy", lambda pixels: resized(pixels, 80, 80)),
    "brighter.png": ("copy", lambda pixels: (pixels**0.6 * 0.8 + 0.1).astype(np.float32)),
    "inverted.png": ("inverted copy", lambda pixels: 1 - pixels),
    "cropped.png": ("copy", lambda pixels: pixels[4:-6, 5:-3]),
    "framed.png": ("copy", lambda pixels: np.pad(pixels, 6)),
    "squashed.png": ("copy", lambda pixels: resized(pixels[:, 16:-16], SIDE, SIDE)),
}


def write(path: Path, pixels: Grey) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 255).round().astype(np.uint8)).save(
        path, **{"quality": 40} if path.suffix == ".jpg" else {}
    )


def same_pictures(found: Duplicates) -> list[Pair]:
    """Without the alike ones, which some phantoms are: all have one way of standing."""
    return [pair for pair in found.pairs if pair.kind != "alike"]


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """A folder of different phantoms, and one of copies: the first copies person 0, the second person 1, ..."""
    folder = tmp_path_factory.mktemp("people")
    phantoms = [draw_chest_phantom(SIDE, SIDE, seed)[0].numpy() for seed in range(NUM_PEOPLE)]
    for number, pixels in enumerate(phantoms):
        write(folder / "originals" / f"{number}.png", pixels)
    for pixels, (name, (_, change)) in zip(phantoms, COPIES.items(), strict=False):
        write(folder / "copies" / name, change(pixels))
    return folder


def test_copies_of_all_kinds_are_found_across_patients_and_nothing_else(people):
    items = radiograph_items(people, "all", 0.2, 0)
    found = find_duplicates(items)
    names = [Path(item["image"]).name for item in items]
    kinds = {frozenset((names[pair.first], names[pair.second])): pair.kind for pair in same_pictures(found)}
    assert kinds == {frozenset((f"{n}.png", name)): kind for n, (name, (kind, _)) in enumerate(COPIES.items())}
    assert all(items[pair.first]["patient_id"] != items[pair.second]["patient_id"] for pair in same_pictures(found))
    assert sorted(len(group) for group in found.groups()) == [2] * len(COPIES)


def test_embeddings_propose_what_the_hash_does_not_and_decide_nothing(tmp_path):
    large = draw_chest_phantom(160, 160, 0)[0].numpy()
    pictures = [large, large[4:140, 20:156], *(draw_chest_phantom(SIDE, SIDE, seed)[0].numpy() for seed in range(1, 9))]
    for number, pixels in enumerate(pictures):
        write(tmp_path / f"{number}.png", pixels)
    items = radiograph_items(tmp_path, "all", 0.2, 0)
    assert same_pictures(find_duplicates(items)) == []
    embeddings = np.random.default_rng(0).standard_normal((len(items), 16))
    embeddings[1] = embeddings[0]
    embeddings[3] = embeddings[2]  # other people
    (pair,) = same_pictures(find_duplicates(items, embeddings=embeddings))
    assert (pair.first, pair.second, pair.kind) == (0, 1, "copy")
    for unusable, given in ((items, embeddings[1:]), ([], None)):
        with pytest.raises(DatasetError):
            find_duplicates(unusable, embeddings=given)


def test_pairs_grow_with_images_not_with_their_square():
    generator = np.random.default_rng(0)
    hashes = np.where(generator.random((600, 1, 143)) < 0.05, -1, 1).astype(np.int8)  # all within 36 bits
    pairs = nearest_pairs(hashes, NUM_NEIGHBOURS, least=0.5)
    assert 600 <= len(pairs) <= NUM_NEIGHBOURS * 600 < 600 * 599 / 2
    assert [len(group) for group in Duplicates([Pair(*pair, "copy", 0, 1.0) for pair in pairs], 600).groups()] == [600]


def test_nearest_pairs_are_those_of_comparing_all_with_all():
    generator = np.random.default_rng(1)
    hashes = np.where(generator.random((1100, 2, 20)) < 0.5, -1, 1).astype(np.int8)  # more than one block
    similarity = np.abs(np.einsum("nvd,md->nvm", hashes.astype(int), hashes[:, 0].astype(int))).max(1) / 20
    wanted = {tuple(sorted(pair)) for pair in np.argwhere(similarity >= 0.9).tolist() if pair[0] != pair[1]}
    assert {tuple(pair) for pair in nearest_pairs(hashes, 1099, least=0.9).tolist()} == wanted != set()


def test_an_inverted_picture_has_the_inverted_hash():
    pictures = np.random.default_rng(0).standard_normal((3, 64, 64)).astype(np.float16)
    assert np.array_equal(perceptual_hashes(-pictures), -perceptual_hashes(pictures))


def test_groups_reach_through_pairs_and_leave_alike_ones_out():
    pairs = [Pair(0, 1, "copy", 0, 0.95), Pair(1, 4, "inverted copy", 0, 0.9), Pair(2, 3, "alike", 9, 0.8)]
    found = Duplicates(pairs, 6)
    assert found.groups() == [[0, 1, 4]] and found.groups(with_alike=True) == [[0, 1, 4], [2, 3]]


@pytest.mark.shared
@pytest.mark.slow
def test_the_four_known_copies_are_found_and_patients_seen_again_are_none(shared_data):
    known = ("0cd9fcb6", "6646071b", "b0500187", "ce09cfab")
    items = radiograph_items(shared_data / "cxr", "all", 0.1, 0)
    some = [item for item in items if item["source"] in ("covid_chestxray", "hannover_covid", "montgomery")]
    names = [Path(item["image"]).stem for item in some]
    pairs = same_pictures(find_duplicates(some))
    found = {(names[pair.first], names[pair.second]) for pair in pairs}
    assert {(f"covid_chestxray__{name}", f"hannover_covid__{name}") for name in known} <= found
    assert all(one.split("__")[1] == other.split("__")[1] for one, other in found)  # both sources use one name


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


# ---- one side of a split ---------------------------------------------------------------------------------------------


def items_of(*rows: tuple[str, str, str]) -> list[dict[str, str]]:
    return [{"image": image, "patient_id": patient, "split": split} for image, patient, split in rows]


def splits(items) -> list[str]:
    return [item["split"] for item in items]


def test_a_copy_of_a_training_image_leaves_validation_and_its_patient_with_it():
    items = items_of(("a", "P", "train"), ("b", "Q", "val"), ("c", "Q", "val"), ("d", "R", "val"), ("e", "S", "test"))
    placed, moves = one_side(items, [[0, 1]])
    assert splits(placed) == ["train", "train", "train", "val", "test"]
    assert [(move.image, move.before, move.after) for move in moves] == [("b", "val", "train"), ("c", "val", "train")]
    assert all("a" in move.why for move in moves)
    assert splits(items)[1] == "val"  # the given ones stay as they are
    placed, moves = one_side(items, [[1, 3]])  # on one side
    assert placed == items and moves == []
    with pytest.raises(DatasetError):
        one_side([*items, {"image": "f", "patient_id": "T"}], [])


def test_links_reach_through_patients_and_groups():
    items = items_of(("a", "P", "train"), ("b", "P", "train"), ("c", "Q", "val"), ("d", "Q", "val"), ("e", "R", "test"))
    placed, _ = one_side(items, [[1, 2], [3, 4]])
    assert splits(placed) == ["train"] * 5
    for item in items:
        item["group"] = "" if item["image"] == "a" else item["image"].replace("e", "d")
    placed, moves = one_side(items, [])
    assert splits(placed) == ["train"] * 5 and len(moves) == 3


def test_without_a_split_patients_stay_where_the_data_list_puts_them_and_copies_join(tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02d}.png").touch()
    items = radiograph_items(tmp_path, "all", 0.3, 0)
    listed = {item["image"]: split for split in ("train", "val") for item in radiograph_items(tmp_path, split, 0.3, 0)}
    placed, moves = one_side(items, [], 0.3)
    assert {item["image"]: item["split"] for item in placed} == listed and moves == []
    groups = [[0, 39], [39, 5, 6], [10, 11], [20, 21], [30, 31]]
    placed, _ = one_side(items, groups, 0.3)
    assert set(splits(placed)) == {"train", "val"}
    assert all(len({placed[index]["split"] for index in group}) == 1 for group in groups)
    assert sum(item["split"] != listed[item["image"]] for item in placed) <= 6  # only those that were joined


def test_from_a_folder_to_a_clean_manifest_and_its_report(tmp_path):
    data, work = tmp_path / "data", tmp_path / "work"
    for name, seed in {"a": 0, "b": 1, "c": 2, "d": 0}.items():
        pixels = draw_chest_phantom(96, 96, seed)[0].numpy()
        write(data / f"{name}.png", 1 - pixels if name == "d" else pixels)
    (data / "manifest.csv").write_text(
        "image,patient_id,split,label\na.png,P,train,x\nb.png,Q,train,\nc.png,R,val,y\nd.png,S,val,z\n"
    )
    before = {path: path.read_bytes() for path in data.iterdir()}
    items = radiograph_items(data, "all", 0.2, 0)
    found = find_duplicates(items)
    placed, moves = one_side(items, found.groups())
    write_duplicates(found, items, moves, work)
    write_manifest(placed, work / "manifest.csv")
    (row,) = csv.DictReader((work / "duplicates.csv").read_text().splitlines())
    expected = {
        "image": str(data / "a.png"),
        "other": str(data / "d.png"),
        "kind": "inverted copy",
        "hash_distance": "0",
    }
    expected |= {"patient_id": "P", "other_patient_id": "S", "split": "train", "other_split": "val"}
    assert row == {**expected, "correlation": row["correlation"], "action": "moved to train"}
    assert float(row["correlation"]) > 0.98
    (row,) = csv.DictReader((work / "moved.csv").read_text().splitlines())
    assert (row["image"], row["before"], row["after"]) == (str(data / "d.png"), "val", "train")
    with Image.open(work / "duplicates.png") as sheet:
        assert sheet.width > 2 * 192
    assert [item["label"] for item in radiograph_items(work, "train", 0.2, 0)] == ["x", "", "z"]
    assert [item["image"] for item in radiograph_items(work, "val", 0.2, 0)] == [str(data / "c.png")]
    assert {path: path.read_bytes() for path in data.iterdir()} == before


def test_no_duplicates_leave_empty_tables_and_no_sheet(tmp_path):
    write(tmp_path / "a.png", draw_chest_phantom(96, 96, 0)[0].numpy())
    items = radiograph_items(tmp_path, "all", 0, 0)
    work = tmp_path / "work"
    write_duplicates(find_duplicates(items), items, [], work)
    assert sorted(path.name for path in work.iterdir()) == ["duplicates.csv", "moved.csv"]
    assert len((work / "duplicates.csv").read_text().splitlines()) == 1
