"""The store is made once: whole, resumed or shared, it is the same; and it says whose it is."""

import functools
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny_codec, run_ranks
from monai.transforms import Compose
from PIL import Image

from common.data.datalists import assert_disjoint_patients
from common.data.latent_cache import LatentCache
from common.data.latent_store import ARRAYS, LatentDataset, LatentStore
from common.data.phantom import draw_chest_phantom
from common.data.readability import readable_radiographs
from common.data.transforms import LoadRadiographd, ResizeCenterCropd
from common.distributed import rank
from common.errors import DatasetError
from common.networks.dino import DinoEncoder

CPU = torch.device("cpu")
NUM_ROWS = 16  # 4 patients of 2 images, 2 views each
BATCH_SIZE = 3
TRANSFORM = Compose([LoadRadiographd(["image"]), ResizeCenterCropd(["image"], 32)])


class CountingEncoder(DinoEncoder):
    """Counts the images, and at a given call ends its process as kill -9 does."""

    def __init__(self, folder, kill_at_call=None, image_size=56):
        super().__init__(folder, image_size)
        self.num_images, self.calls, self.kill_at_call = 0, 0, kill_at_call

    def forward(self, image, with_grad=False):
        self.calls += 1
        if self.calls == self.kill_at_call:
            os.kill(os.getpid(), signal.SIGKILL)
        self.num_images += len(image)
        return super().forward(image, with_grad)


class LateCache(LatentCache):
    """The second process comes to its share when the first, if that did not wait, has rows done."""

    def _refuse_others(self, store):
        done = store.done.sum()
        started = time.monotonic()
        while rank() == 1 and store.done.sum() == done and time.monotonic() - started < 1.0:
            time.sleep(0.01)
        super()._refuse_others(store)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two of each of four patients; the last two are the same."""
    folder = tmp_path_factory.mktemp("data") / "images"
    folder.mkdir()
    for number in range(8):
        pixels = (draw_chest_phantom(40, 36, seed=min(number, 6))[0] * 255).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"p{number // 2}_{number % 2}.png")
    return folder


def make_codec(seed=0):
    codec = make_tiny_codec(seed)
    codec.set_statistics(torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.5]), 8)
    return codec.eval()


def make_cache(folder, images, encoder, codec=None, kind=LatentCache, patch_grid=2, num_views=2, **settings):
    settings = {"image_size": 32, **settings}
    listed = functools.partial(
        readable_radiographs,
        images,
        val_fraction=0.3,
        seed=0,
        patient_id_pattern=r"(p\d)_",
        report_dir=folder,
        max_unreadable_share=0.0,
    )
    return kind(
        cache_dir=str(folder),
        items=listed,
        dataset_dir=str(images),
        transform=TRANSFORM,
        codec=codec or make_codec(),
        encoder=encoder,
        patch_grid=patch_grid,
        num_views=num_views,
        settings=settings,
        seed=0,
        batch_size=BATCH_SIZE,
        num_workers=0,
        amp=False,
        device=CPU,
    )


def contents(folder):
    names = [*(f"{name}.npy" for name in (*ARRAYS, "done")), "store.json"]
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def made(tmp_path_factory, images, tiny_dino):
    """A store made in one go; do not write to it."""
    folder = tmp_path_factory.mktemp("made")
    encoder = CountingEncoder(tiny_dino)
    store = make_cache(folder, images, encoder).run()
    assert encoder.num_images == NUM_ROWS + 1  # one tells the shapes
    return store


def plain_image(item):
    return TRANSFORM(dict(item))["image"][None]


def row(store, name, image, view):
    return torch.from_numpy(np.array(store.arrays[name][image, view])).float()


def test_rows_hold_what_codec_and_encoder_make_of_the_plain_image(made, tiny_dino):
    codec, encoder = make_codec(), DinoEncoder(tiny_dino, 56)
    close = {"atol": 1e-3, "rtol": 2e-3}  # of float16
    for number in (0, 7):
        with torch.no_grad():
            mean, std = codec.posterior(plain_image(made.items[number]))
            tokens = encoder(plain_image(made.items[number]))
        m, s = torch.tensor([0.5, -1.0]).view(2, 1, 1), torch.tensor([2.0, 0.5]).view(2, 1, 1)
        torch.testing.assert_close(row(made, "latents_mean", number, 0), (mean[0] - m) / s, **close)
        torch.testing.assert_close(row(made, "latents_std", number, 0), std[0] / s, **close)
        torch.testing.assert_close(row(made, "cls_token", number, 0), tokens.cls_token[0], **close)
        torch.testing.assert_close(row(made, "register_tokens", number, 0), tokens.register_tokens[0], **close)
        top_left = tokens.patch_tokens[0, [0, 1, 4, 5]].mean(0)  # 4 × 4 patches
        torch.testing.assert_close(row(made, "patch_grid", number, 0)[0, 0], top_left, **close)


def test_the_second_view_of_an_image_is_another_one(made):
    for number in range(len(made.items)):
        plain, other = (row(made, "latents_mean", number, view) for view in (0, 1))
        assert (plain - other).abs().mean() > 0.01
    same = [index for index, item in enumerate(made.items) if item["patient_id"] == "p3"]
    plain, other = (made.arrays["latents_mean"][same, view].astype(np.float32) for view in (0, 1))
    assert np.array_equal(plain[0], plain[1])
    assert np.abs(other[0] - other[1]).mean() > 0.01  # each image is moved in its own way


def test_no_patient_is_in_both_splits(made):
    by_split = {split: [made.items[index] for index in made.indices(split)] for split in ("train", "val")}
    assert_disjoint_patients(**by_split)
    assert sorted(len({item["patient_id"] for item in items}) for items in by_split.values()) == [1, 3]
    assert sum(map(len, by_split.values())) == 8
    assert len(LatentDataset(made, "val")) == 2


@pytest.mark.parametrize(("kill_at_call", "rows_done"), [(1, None), (2, 0), (4, 2 * BATCH_SIZE)])
def test_killed_and_run_again_it_does_the_rest_and_is_the_same_store(
    made, images, tiny_dino, tmp_path, kill_at_call, rows_done
):
    def run():
        torch.set_num_threads(1)
        make_cache(tmp_path, images, CountingEncoder(tiny_dino, kill_at_call)).run()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert LatentStore.exists(tmp_path) == (rows_done is not None)
    if rows_done is not None:
        assert LatentStore(tmp_path).done.sum() == rows_done
    encoder = CountingEncoder(tiny_dino)
    store = make_cache(tmp_path, images, encoder).run()
    assert store.is_complete
    assert encoder.num_images == (NUM_ROWS + 1 if rows_done is None else NUM_ROWS - rows_done)
    assert contents(tmp_path) == contents(made.folder)


@pytest.mark.parametrize("is_begun", [False, True])
def test_two_processes_share_the_work_and_make_the_same_store(made, images, tiny_dino, tmp_path, is_begun):
    folder = tmp_path / "store"
    if is_begun:
        shutil.copytree(made.folder, folder)
        lost = LatentStore(folder, writable=True)
        lost.done[1:6] = 0
        lost.arrays["cls_token"][1:6] = 0

    def run(rank):
        encoder = CountingEncoder(tiny_dino)
        assert make_cache(folder, images, encoder, kind=LateCache).run().is_complete
        (tmp_path / f"count_{rank}").write_text(str(encoder.num_images))

    run_ranks(run, 2, tmp_path)
    counts = [int((tmp_path / f"count_{rank}").read_text()) for rank in range(2)]
    assert counts == ([5, 5] if is_begun else [NUM_ROWS // 2 + 1, NUM_ROWS // 2])
    store = LatentStore(folder)
    assert store.items == made.items and store.made_with == made.made_with
    for name in ARRAYS:  # other batches, so the last bit may differ
        np.testing.assert_allclose(store.arrays[name], made.arrays[name], atol=1e-3, rtol=2e-3)


def test_a_finished_store_needs_neither_images_nor_encoder(made, images, tiny_dino, tmp_path):
    gone = tmp_path / "images"
    shutil.copytree(images, gone)
    encoder = CountingEncoder(tiny_dino)
    make_cache(tmp_path / "store", gone, encoder).run()
    shutil.rmtree(gone)
    before = contents(tmp_path / "store")
    encoder = CountingEncoder(tiny_dino, kill_at_call=1)
    store = make_cache(tmp_path / "store", gone, encoder).run()  # listing the images would fail too
    assert encoder.calls == 0
    assert len(LatentDataset(store, "train")) == 6
    assert contents(tmp_path / "store") == before


def another_encoder(folder):
    encoder = CountingEncoder(folder, kill_at_call=1)
    encoder.model.layernorm.weight.data[0] += 0.1
    return encoder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codec": lambda: make_codec(seed=1)}, "codec_sha256: "),
        ({"encoder": another_encoder}, "encoder_sha256: "),
        ({"encoder": functools.partial(CountingEncoder, image_size=28)}, "encoder_image_size: 56 there, 28 now"),
        ({"images": Path("/elsewhere")}, "dataset_dir: .*/images there, /elsewhere now"),
        ({"image_size": 64}, "image_size: 32 there, 64 now"),
        ({"limit": 4}, "limit: None there, 4 now"),
        ({"num_views": 1}, "num_views: 2 there, 1 now"),
        ({"patch_grid": 4}, "patch_grid: 2 there, 4 now"),
    ],
)
def test_a_store_of_something_else_is_refused_and_left_alone(made, images, tiny_dino, change, message):
    change = dict(change)
    encoder = change.pop("encoder", CountingEncoder)(tiny_dino)
    codec = change.pop("codec", make_codec)()
    before = contents(made.folder)
    cache = make_cache(made.folder, change.pop("images", images), encoder, codec, **change)
    with pytest.raises(DatasetError, match=rf"store of something else \({message}[^;]*\)\. Give another --cache_dir"):
        cache.run()
    assert contents(made.folder) == before


def test_statistics_of_the_codec_count_too(made, images, tiny_dino):
    codec = make_codec()
    codec.set_statistics(torch.zeros(2), torch.ones(2), 8)
    with pytest.raises(DatasetError, match="codec_sha256"):
        make_cache(made.folder, images, CountingEncoder(tiny_dino), codec).run()


def test_an_exact_encoder_size_is_pooled_rows_first_and_recognised_again(images, tiny_dino, tmp_path):
    for _ in range(2):  # a pair comes back from the description as a list
        encoder = CountingEncoder(tiny_dino, image_size=(28, 56))
        store = make_cache(tmp_path, images, encoder, num_views=1).run()
    assert encoder.num_images == 0
    assert store.made_with["encoder_image_size"] == [28, 56]
    top_right = encoder(plain_image(store.items[0])).patch_tokens[0, [2, 3]].mean(0)  # 2 rows of 4 patches
    torch.testing.assert_close(row(store, "patch_grid", 0, 0)[0, 1], top_right, atol=1e-3, rtol=2e-3)


def test_a_damaged_description_is_not_overwritten(made, images, tiny_dino, tmp_path):
    shutil.copytree(made.folder, tmp_path / "store")
    (tmp_path / "store" / "store.json").write_text(json.dumps({"version": 1})[:-3])
    with pytest.raises(DatasetError, match="is damaged"):
        make_cache(tmp_path / "store", images, CountingEncoder(tiny_dino)).run()


def test_no_views_are_refused(images, tiny_dino, tmp_path):
    with pytest.raises(DatasetError, match="num_views: expected at least 1, found 0"):
        make_cache(tmp_path, images, CountingEncoder(tiny_dino), num_views=0)
