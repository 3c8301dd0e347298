"""The autoencoder and the generator as a user imports them; the segmenter has a file of its own."""

import csv
import shutil

import pytest
import torch
from conftest import draw_radiographs
from PIL import Image
from tiny_bundles import generator_models, measured_codec

from common.data.dataset import RadiographDataset
from common.data.transforms import load_square
from common.errors import SettingsError, WeightsError
from common.io import UnreadableRadiographError
from common.metrics import psnr
from common.networks.weights import save_weights
from common.pipelines import DinoDiffusion, RadiographAutoencoder
from common.pipelines.autoencoder import FolderReconstruction
from common.pipelines.diffusion import choose_strategy
from common.pipelines.inputs import read_generated
from common.seeding import sample_seed

QUICK = {"num_inference_steps": 2, "prior_steps": 3, "amp": False, "batch_size": 3}
NO_DATA = RadiographDataset([], None)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "in"
    draw_radiographs(folder, 4, 40)
    return sorted(folder.iterdir())


# ---- autoencoder ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    root = tmp_path_factory.mktemp("autoencoder")
    (root / "models").mkdir()
    save_weights(measured_codec(), root / "models" / "model.pt", {"image_size": 32})
    return RadiographAutoencoder.from_bundle(root, "cpu")


def test_latents_decode_to_what_reconstruct_gives(autoencoder, images):
    latents = autoencoder.encode(images[:2])
    assert latents.shape == (2, 2, 4, 4) and latents.dtype == torch.float32
    pixels = autoencoder.prepare(images[:2])
    assert torch.equal(pixels, torch.stack([load_square(path, 32) for path in images[:2]]))
    assert torch.equal(autoencoder.encode(pixels), latents)  # a batch of tensors
    decoded = autoencoder.decode(latents)
    assert decoded.shape == (2, 1, 32, 32) and decoded.min() >= 0 and decoded.max() <= 1
    torch.testing.assert_close(autoencoder.reconstruct(images[:2]), decoded)
    torch.testing.assert_close(autoencoder.decode(latents[0]), decoded[:1], atol=1e-5, rtol=1e-5)
    with pytest.raises(UnreadableRadiographError):
        autoencoder.encode(images[0].parent / "none.png")


def folder_job(autoencoder, paths, out, **settings):
    dataset = RadiographDataset([{"image": str(path)} for path in paths], None)
    chosen = {"batch_size": 2, "sheet_rows": 2, **settings}
    return FolderReconstruction(autoencoder, dataset, str(paths[0].parent), str(out), **chosen)


def test_a_folder_gives_pngs_a_table_and_a_sheet(autoencoder, images, tmp_path):
    folder_job(autoencoder, images, tmp_path).run()
    with (tmp_path / "reconstructions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == [str(path) for path in images]
    for row, path in zip(rows, images, strict=True):
        written = read_generated(tmp_path / f"{row['image']}_reconstruction.png")
        expected = autoencoder.reconstruct(path)
        torch.testing.assert_close(written[None], expected, atol=0.6 / 255, rtol=0)
        assert float(row["psnr_db"]) == pytest.approx(psnr(expected, autoencoder.prepare(path)).item(), abs=0.01)
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.height > 2 * 32 and sheet.width > 3 * 32


# ---- generator -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, tiny_dino):
    return generator_models(tmp_path_factory.mktemp("generator") / "bundle", tiny_dino)


@pytest.fixture(scope="module")
def pipe(bundle):
    return DinoDiffusion.from_bundle(bundle, "cpu", **QUICK)


def test_samples_depend_on_seed_and_label_not_on_the_batch(pipe, bundle):
    images = pipe.sample(4, seed=1)
    assert images.shape == (4, 1, 32, 32) and images.min() >= 0 and images.max() <= 1
    one_by_one = DinoDiffusion.from_bundle(bundle, "cpu", **{**QUICK, "batch_size": 1}).sample(4, seed=1)
    torch.testing.assert_close(one_by_one, images, atol=1e-4, rtol=1e-4)
    assert (pipe.sample(4, seed=2) - images).abs().mean() > 1e-3
    assert not torch.equal(pipe.sample(4, seed=1, label="a"), images)  # an untrained prior heeds it little
    with pytest.raises(SettingsError):
        pipe.sample(label="unknown")
    with pytest.raises(SettingsError):
        pipe.sample(0)


def test_a_zip_gives_what_its_folder_gives(pipe, bundle, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "bundle"), "zip", bundle.parent, bundle.name)
    assert torch.equal(DinoDiffusion.from_bundle(archive, "cpu", **QUICK).sample(2), pipe.sample(2))


def test_variations_are_of_the_images_own_tokens(pipe, images):
    varied = pipe.vary(images[0], 3, seed=5)
    assert varied.shape == (3, 1, 32, 32)
    tokens = pipe.encode(images[0])
    assert tokens.shape == (1, 2, 16)
    expected = pipe.image_sampler.sample(tokens.repeat(3, 1, 1), [sample_seed(5, number) for number in range(3)])
    torch.testing.assert_close(varied, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(pipe.vary(load_square(str(images[0]), 32), 1), pipe.vary(images[0], 1))


@pytest.mark.parametrize("mode", ["slerp", "lerp"])
def test_a_strip_goes_from_one_image_to_the_other_in_one_noise(pipe, images, mode):
    strip = pipe.interpolate(images[0], images[1], 5, seed=3, mode=mode)
    assert strip.shape == (5, 1, 32, 32)
    for end, path in ((0, images[0]), (4, images[1])):
        torch.testing.assert_close(strip[end], pipe.vary(path, 1, seed=3)[0], atol=1e-3, rtol=1e-3)
    with pytest.raises(SettingsError):
        pipe.interpolate(images[0], images[1], mode="nearest")
    with pytest.raises(SettingsError):
        pipe.interpolate(images[0], images[1], 0)


def test_parts_are_loaded_where_they_are_needed(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "models" / "prior.pt").unlink()
    shutil.rmtree(tmp_path / "bundle" / "models" / "dinov2_vits14")
    pipe = DinoDiffusion.from_bundle(tmp_path / "bundle", "cpu", **QUICK)
    with pytest.raises(WeightsError, match="prior"):
        pipe.sample()
    (tmp_path / "bundle" / "models" / "model.pt").unlink()
    with pytest.raises(WeightsError, match="model"):
        DinoDiffusion.from_bundle(tmp_path / "bundle", "cpu")


# ---- strategies of inference.yaml ----------------------------------------------------------------------------------


def choose(pipe, name, dataset=NO_DATA, **settings):
    chosen = {"num_samples": 5, "num_per_source": 2, "label": None, "interpolation_mode": "slerp", "noise_scale": 0.5}
    chosen |= {"mix_range": (0.25, 0.75), "num_neighbours": 2, **settings}
    return choose_strategy(pipe, name, dataset, None, 0, **chosen)


def test_each_strategy_gets_its_settings_and_takes_only_what_it_needs(pipe, images):
    items = [{"image": str(path), "patient_id": path.stem, "label": "x"} for path in images]
    sources = RadiographDataset(items, lambda item: {**item, "image": load_square(item["image"], 32)})
    for name, number in [("variation", 8), ("interpolation", 5), ("neighbourhood", 8)]:
        strategy = choose(pipe, name, sources)
        assert strategy.name == name and len(strategy.table) == 4 and len(strategy.requests()) == number
        torch.testing.assert_close(strategy.table.tokens, pipe.encode(images), atol=1e-5, rtol=1e-5)
    mixed = choose(pipe, "interpolation", sources, interpolation_mode="lerp", mix_range=[0.5, 0.5])
    assert mixed.requests()[0].mix == 0.5
    assert choose(pipe, "neighbourhood", sources, noise_scale=0.7).settings["noise_scale"] == 0.7
    strategy = choose(pipe, "prior", label="a")
    assert strategy.name == "prior" and len(strategy.requests()) == 5 and strategy.label == "a"


@pytest.mark.parametrize(("name", "settings"), [("mixup", {}), ("variation", {"label": "a"})])
def test_unknown_strategies_and_labels_of_others_are_refused(pipe, name, settings):
    with pytest.raises(SettingsError, match=name):
        choose(pipe, name, **settings)
