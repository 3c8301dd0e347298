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
from conftest import make_tiny_codec, make_tiny_denoiser, run_ranks
from PIL import Image

from common.data import open_store
from common.data.latent_store import ARRAYS, LatentDataset, LatentStore
from common.data.open_store import LatentCache
from common.data.phantom import draw_chest_phantom
from common.data.transforms import load_square
from common.distributed import rank
from common.errors import DatasetError, RunError, SettingsError
from common.files import locked_folder
from common.networks.dino import DinoEncoder
from common.networks.weights import save_weights

NUM_ROWS = 16  # 4 patients of 2 images, 2 views each
BATCH_SIZE = 3


class CountingEncoder(DinoEncoder):
    """Counts the images, and at a given call ends its process as kill -9 does."""

    def __init__(self, folder, kill_at_call=None, image_size=56):
        super().__init__(folder, image_size)
        self.num_images, self.calls, self.kill_at_call = 0, 0, kill_at_call

    def forward(self, image):
        self.calls += 1
        if self.calls == self.kill_at_call:
            os.kill(os.getpid(), signal.SIGKILL)
        self.num_images += len(image)
        return super().forward(image)


class LateStore(LatentStore):
    """The second process looks at what is done when the first, if that did not wait, has rows done."""

    def __init__(self, folder, writable=False, dataset_dir=None):
        super().__init__(folder, writable, dataset_dir)
        done, started = self.done.sum(), time.monotonic()
        while rank() == 1 and not writable and self.done.sum() == done and time.monotonic() - started < 1.0:
            time.sleep(0.01)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two of each of four patients; the last two are the same."""
    folder = tmp_path_factory.mktemp("data") / "images"
    folder.mkdir()
    for number in range(8):
        pixels = (draw_chest_phantom(40, 36, seed=min(number, 6))[0] * 255).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"p{number // 2}_{number % 2}.png")
    return folder


def make_codec(seed=0, mean=0.5):
    codec = make_tiny_codec(seed)
    codec.set_statistics(torch.tensor([mean, -1.0]), torch.tensor([2.0, 0.5]), 8)
    return codec.eval()


def make_cache(folder, images, encoder, codec=None, **settings):
    fixed = {"val_fraction": 0.3, "patient_id_pattern": r"(p\d)_", "batch_size": BATCH_SIZE, "num_workers": 0}
    settings = {**fixed, "amp": False, "image_size": 32, "patch_grid": 2, "num_views": 2, **settings}
    return LatentCache(str(folder), str(images), codec or make_codec(), encoder, **settings)


def contents(folder):
    """Bytes of the files of the one store in a folder."""
    return {path.name: path.read_bytes() for path in LatentStore(folder).folder.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory, images, tiny_dino):
    """A store made in one go; do not write to it."""
    folder = tmp_path_factory.mktemp("made")
    encoder = CountingEncoder(tiny_dino)
    store = make_cache(folder, images, encoder).run()
    assert encoder.num_images == NUM_ROWS + 1  # one tells the shapes
    return store


def plain_image(item):
    return load_square(item["image"], 32)[None]


def row(store, name, image, view):
    return torch.from_numpy(np.array(store.arrays[name][image, view])).float()


def test_rows_hold_what_codec_and_encoder_make_of_the_plain_image(made, tiny_dino):
    codec, encoder = make_codec(), DinoEncoder(tiny_dino, 56)
    close = {"atol": 1e-3, "rtol": 2e-3}  # of float16
    m, s = torch.tensor([0.5, -1.0]).view(2, 1, 1), torch.tensor([2.0, 0.5]).view(2, 1, 1)
    for number in (0, 7):
        with torch.no_grad():
            mean, std = codec.posterior(plain_image(made.items[number]))
            tokens = encoder(plain_image(made.items[number]))
        expected = {"latents_mean": (mean[0] - m) / s, "latents_std": std[0] / s}
        expected |= {"cls_token": tokens.cls_token[0], "register_tokens": tokens.register_tokens[0]}
        for name, value in expected.items():
            torch.testing.assert_close(row(made, name, number, 0), value, **close)
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
    if rows_done is not None:
        assert LatentStore(tmp_path).done.sum() == rows_done
    encoder = CountingEncoder(tiny_dino)
    store = make_cache(tmp_path, images, encoder).run()
    assert store.is_complete
    assert encoder.num_images == (NUM_ROWS + 1 if rows_done is None else NUM_ROWS - rows_done)
    assert contents(tmp_path) == contents(made.folder.parent)


@pytest.mark.parametrize("is_begun", [False, True])
def test_two_processes_share_the_work_and_make_the_same_store(made, images, tiny_dino, tmp_path, is_begun, monkeypatch):
    folder = tmp_path / "store"
    if is_begun:
        shutil.copytree(made.folder.parent, folder)
        lost = LatentStore(folder, writable=True)
        lost.done[1:6] = 0
        lost.arrays["cls_token"][1:6] = 0

    def run(rank):
        monkeypatch.setattr(open_store, "LatentStore", LateStore)
        encoder = CountingEncoder(tiny_dino)
        assert make_cache(folder, images, encoder).run().is_complete
        (tmp_path / f"count_{rank}").write_text(str(encoder.num_images))

    run_ranks(run, 2, tmp_path)
    counts = [int((tmp_path / f"count_{rank}").read_text()) for rank in range(2)]
    assert counts == ([5, 5] if is_begun else [NUM_ROWS // 2 + 1, NUM_ROWS // 2])
    store = LatentStore(folder)
    assert list(store.items) == list(made.items) and store.made_with == made.made_with
    for name in ARRAYS:  # other batches, so the last bit may differ
        np.testing.assert_allclose(store.arrays[name], made.arrays[name], atol=1e-3, rtol=2e-3)


def test_a_finished_store_needs_neither_images_nor_encoder(made, images, tiny_dino, tmp_path):
    before = contents(made.folder.parent)
    encoder = CountingEncoder(tiny_dino, kill_at_call=1)
    store = make_cache(made.folder.parent, tmp_path / "gone", encoder).run()  # listing the images would fail too
    assert encoder.calls == 0
    assert (len(LatentDataset(store, "train")), len(LatentDataset(store, "val"))) == (6, 2)
    assert contents(made.folder.parent) == before


def test_without_images_no_store_is_guessed(made, images, tiny_dino, tmp_path):
    shutil.copytree(made.folder, tmp_path / "one")
    description = json.loads((made.folder / "store.json").read_text())
    description["made_with"]["data_list_sha256"] = "of other images"
    del description["digest"]
    shutil.copytree(made.folder, tmp_path / "two")
    (tmp_path / "two" / "store.json").write_text(json.dumps(description))
    with pytest.raises(DatasetError, match=r"one.*two"):
        make_cache(tmp_path, tmp_path / "gone", CountingEncoder(tiny_dino)).run()
    assert make_cache(tmp_path, images, CountingEncoder(tiny_dino)).run().folder.name == "one"


def another_encoder(folder):
    encoder = CountingEncoder(folder)
    encoder.model.layernorm.weight.data[0] += 0.1
    return encoder


@pytest.mark.parametrize(
    "change",
    [
        {"codec": lambda: make_codec(seed=1)},
        {"codec": lambda: make_codec(mean=0.0)},
        {"encoder": another_encoder},
        {"encoder": functools.partial(CountingEncoder, image_size=28)},
        {"image_size": 64},
        {"limit": 4},
        {"num_views": 1},
        {"patch_grid": 4},
        {"images": "other"},
    ],
)
def test_each_data_list_and_settings_have_a_store_of_their_own(made, images, tiny_dino, tmp_path, change):
    """So that a trial leaves the real run's store alone, and the real run finds it again."""
    shutil.copytree(made.folder.parent, tmp_path / "stores")
    before = contents(made.folder.parent)
    settings, place = dict(change), images
    if settings.pop("images", None):
        place = shutil.copytree(images, tmp_path / "images")
        (place / "p3_1.png").rename(place / "p3_2.png")
    encoder = settings.pop("encoder", CountingEncoder)(tiny_dino)
    codec = settings.pop("codec", make_codec)()
    store = make_cache(tmp_path / "stores", place, encoder, codec, **settings).run()
    assert encoder.num_images > 0 and store.is_complete
    assert store.folder != tmp_path / "stores" / made.folder.name
    assert {path.name: path.read_bytes() for path in (tmp_path / "stores" / made.folder.name).iterdir()} == before
    again = make_cache(tmp_path / "stores", images, CountingEncoder(tiny_dino, kill_at_call=1)).run()
    assert again.folder.name == made.folder.name


def test_a_data_set_that_was_moved_finds_its_store_again_and_the_decoder_is_not_part_of_it(
    made, images, tiny_dino, tmp_path
):
    shutil.copytree(images, tmp_path / "moved")
    encoder, codec = CountingEncoder(tiny_dino, kill_at_call=1), make_codec()
    torch.nn.init.ones_(codec.autoencoder.post_quant_conv.conv.weight)
    store = make_cache(made.folder.parent, tmp_path / "moved", encoder, codec).run()
    assert store.folder == made.folder
    assert {Path(item["image"]).parent for item in store.items} == {tmp_path / "moved"}
    assert {Path(item["image"]).parent for item in made.items} == {images}


def test_stores_of_version_1_are_found_where_their_images_were(made, images, tiny_dino, tmp_path):
    """An array per file, directly in the cache's folder, knowing its place alone."""
    folder = tmp_path / "stores"
    folder.mkdir()
    for name, array in {**made.arrays, "done": made.done}.items():
        np.save(folder / f"{name}.npy", array)
    made_with = {name: value for name, value in made.made_with.items() if name != "data_list_sha256"}
    (folder / "store.json").write_text(json.dumps({"version": 1, "made_with": made_with, "items": list(made.items)}))
    assert make_cache(folder, images, CountingEncoder(tiny_dino, kill_at_call=1)).run().folder == folder
    shutil.copytree(images, tmp_path / "moved")
    encoder = CountingEncoder(tiny_dino)
    assert make_cache(folder, tmp_path / "moved", encoder).run().folder.parent == folder
    assert encoder.num_images > 0


def test_an_exact_encoder_size_is_pooled_rows_first_and_recognised_again(images, tiny_dino, tmp_path):
    for _ in range(2):  # a pair comes back from the description as a list
        encoder = CountingEncoder(tiny_dino, image_size=(28, 56))
        store = make_cache(tmp_path, images, encoder, num_views=1).run()
    assert encoder.num_images == 0
    assert store.made_with["encoder_image_size"] == [28, 56]
    top_right = encoder(plain_image(store.items[0])).patch_tokens[0, [2, 3]].mean(0)  # 2 rows of 4 patches
    torch.testing.assert_close(row(store, "patch_grid", 0, 0)[0, 1], top_right, atol=1e-3, rtol=2e-3)


def test_two_processes_that_know_nothing_of_each_other_do_not_make_one_store(images, tiny_dino, tmp_path):
    cache = make_cache(tmp_path, images, CountingEncoder(tiny_dino))
    with locked_folder(cache._folder()), pytest.raises(RunError):
        cache.run()
    assert cache.run().is_complete
    with locked_folder(cache._folder()):  # whoever only reads needs no lock
        assert cache.run().is_complete


def test_sizes_and_numbers_that_cannot_be_are_refused_before_a_store_is_made(images, tiny_dino, tmp_path):
    for wrong in ({"num_views": 0}, {"image_size": 30}):
        with pytest.raises(SettingsError):
            make_cache(tmp_path / "cache", images, CountingEncoder(tiny_dino), **wrong)
    codec = make_tiny_codec()
    save_weights(codec, tmp_path / "codec.pt")
    places = str(tmp_path / "cache"), str(tmp_path), str(tmp_path / "codec.pt"), "no folder"
    for network, sides in ((None, 4.5), (make_tiny_denoiser(), 7)):
        with pytest.raises(SettingsError, match="image_size"):
            open_store.open_store(*places, image_size=int(codec.downsampling_factor * sides), denoiser=network)
    assert not (tmp_path / "cache").exists()
