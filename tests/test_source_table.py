"""Sources are encoded once, and again when they or what sees them changed."""

import os

import pytest
import torch
from conftest import run_ranks
from PIL import Image

from common.data.dataset import RadiographDataset
from common.data.transforms import LoadSquared
from common.networks.conditioning import TokenSelection, named_tokens
from common.networks.dino import DinoEncoder
from common.pipelines.source_table import SourceTable, encode_sources

CPU = torch.device("cpu")
TRANSFORM = LoadSquared(["image"], 32)
SELECTION = TokenSelection(use_registers=True, patch_grid=2)


class CountingEncoder(DinoEncoder):
    """Counts the images that it encodes."""

    def __init__(self, folder, image_size=56):
        super().__init__(folder, image_size)
        self.num_images = 0

    def forward(self, image):
        self.num_images += len(image)
        return super().forward(image)


def make_table(patients, labels=None, tokens=None, num_tokens=2, token_dim=6):
    """A table of random tokens, one source per given patient."""
    count = len(patients)
    if tokens is None:
        tokens = 5 + 3 * torch.randn(count, num_tokens, token_dim, generator=torch.Generator().manual_seed(1))
    return SourceTable([f"{n}.png" for n in range(count)], patients, labels or [""] * count, tokens)


def draw(path, number):
    """A picture of 40 px that no other number has, in a file as long as theirs."""
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    Image.fromarray(((rows * (number + 1) + columns * 3) % 251).to(torch.uint8).numpy()).save(path)
    path.write_bytes(path.read_bytes().ljust(4000, b"\0"))


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        draw(folder / f"picture_{number}.png", number)
    return folder


@pytest.fixture
def encoder(tiny_dino):
    return CountingEncoder(tiny_dino)


def listed(folder):
    """As a manifest may list them: one has a mask, two have a label."""
    items = [{"image": str(path), "patient_id": path.stem} for path in sorted(folder.glob("*.png"))]
    items[0]["mask"] = items[0]["image"]
    return [*({**item, "label": "normal"} for item in items[:2]), *items[2:]]


def encode(folder, encoder, cache_dir, selection=SELECTION, batch_size=2, patch_grid=4):
    dataset = RadiographDataset(listed(folder), TRANSFORM)
    return encode_sources(dataset, encoder, selection, patch_grid, batch_size, CPU, cache_dir)


def test_the_rows_are_the_items_and_their_tokens(images, encoder):
    table = encode(images, encoder, None)
    items = listed(images)
    assert table.paths == [item["image"] for item in items]
    assert table.patient_ids == [f"picture_{n}" for n in range(5)]
    assert table.labels == ["normal", "normal", "", "", ""]
    assert len(table) == 5 and table.tokens.shape == (5, 1 + 2 + 4, 16)
    for row, item in enumerate(items):
        seen = encoder(TRANSFORM(item)["image"][None])
        expected = [seen.cls_token[:, None], seen.register_tokens]
        grid = seen.patch_tokens.view(2, 2, 2, 2, 16).mean((1, 3)).view(1, 4, 16)  # 56 px are 4×4 patches
        torch.testing.assert_close(table.tokens[row : row + 1], torch.cat([*expected, grid], 1), atol=1e-4, rtol=1e-4)


def test_only_the_selected_tokens_are_taken(images, encoder):
    assert encode(images, encoder, None, TokenSelection(False, 0)).tokens.shape == (5, 1, 16)
    assert encode(images, encoder, None, TokenSelection(False, 3), patch_grid=3).tokens.shape == (5, 10, 16)


def test_tokens_are_those_that_a_store_would_have(images, encoder):
    """Also where the patches do not divide evenly: four of them pooled to three, and these to one."""
    image = TRANSFORM(listed(images)[0])["image"][None]
    selection = TokenSelection(False, 1)
    expected = selection.select(named_tokens(encoder, image, 3))
    found = encode(images, encoder, None, selection, batch_size=1, patch_grid=3).tokens[:1]
    torch.testing.assert_close(found, expected)
    direct = selection.select(named_tokens(encoder, image, 1))
    assert not torch.allclose(found, direct, atol=1e-4)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_batches_and_have_what_one_has(images, encoder, tmp_path, count):
    alone = encode(images, encoder, None)

    def encode_share(rank):
        before = encoder.num_images
        table = encode(images, encoder, tmp_path / "run")
        assert torch.equal(table.tokens, alone.tokens) and encoder.num_images - before < 5

    run_ranks(encode_share, count, tmp_path / "ranks")
    again = encode(images, encoder, tmp_path / "run")
    assert torch.equal(again.tokens, alone.tokens) and encoder.num_images == 5


def test_nothing_is_encoded_twice(images, encoder, tiny_dino, tmp_path):
    first = encode(images, encoder, tmp_path / "run")
    assert encoder.num_images == 5
    again = encode(images, encoder, tmp_path / "run", batch_size=5)
    other = CountingEncoder(tiny_dino)
    encode(images, other, tmp_path / "run")
    assert encoder.num_images == 5 and other.num_images == 0
    assert torch.equal(first.tokens, again.tokens)
    assert (again.paths, again.patient_ids, again.labels) == (first.paths, first.patient_ids, first.labels)
    assert first.digest() == again.digest()


def test_a_changed_file_is_encoded_again(images, encoder, tmp_path):
    before = encode(images, encoder, tmp_path / "run")
    draw(images / "picture_3.png", 9)
    os.utime(images / "picture_3.png", ns=(1, 1))
    after = encode(images, encoder, tmp_path / "run")
    assert encoder.num_images == 10
    changed = (before.tokens != after.tokens).flatten(1).any(1)
    assert changed.tolist() == [False, False, False, True, False]
    encode(images, encoder, tmp_path / "run")
    assert encoder.num_images == 10


@pytest.mark.parametrize("change", ["file removed", "weights", "image size", "selection"])
def test_other_files_or_another_view_of_them_are_encoded_again(images, encoder, tiny_dino, tmp_path, change):
    encode(images, encoder, tmp_path / "run")
    selection = SELECTION
    if change == "file removed":
        (images / "picture_4.png").unlink()
    elif change == "weights":
        encoder.model.layernorm.weight += 0.1
    elif change == "image size":
        encoder = CountingEncoder(tiny_dino, image_size=28)
    else:
        selection = TokenSelection(use_registers=True, patch_grid=1)
    encoder.num_images = 0
    encode(images, encoder, tmp_path / "run", selection)
    assert encoder.num_images == len(list(images.iterdir()))


# ---- table ---------------------------------------------------------------------------------------------------------


def test_a_subset_is_of_the_given_rows_in_the_given_order():
    table = make_table(["P", "Q", "R", "S"], ["a", "b", "", "c"])
    subset = table.subset([3, 1])
    assert (subset.paths, subset.patient_ids, subset.labels) == (["3.png", "1.png"], ["S", "Q"], ["c", "b"])
    assert torch.equal(subset.tokens, table.tokens[[3, 1]])
    assert len(table.subset(range(2))) == 2


def test_the_digest_changes_with_anything():
    table = make_table(["P", "Q", "R"], ["a", "b", ""])
    others = [
        table.subset([0, 2, 1]),
        table.subset([0, 1]),
        SourceTable(["0.png", "1.png", "x.png"], table.patient_ids, table.labels, table.tokens),
        SourceTable(table.paths, ["P", "Q", "S"], table.labels, table.tokens),
        SourceTable(table.paths, table.patient_ids, ["a", "b", "b"], table.tokens),
        SourceTable(table.paths, table.patient_ids, table.labels, table.tokens + 1e-3),
    ]
    assert len({each.digest() for each in [table, *others]}) == 7
    assert table.subset([0, 1, 2]).digest() == table.digest()
