"""A generated folder is a function of its settings, whatever interrupts the run that makes it."""

import json
import shutil

import numpy as np
import pydicom
import pytest
import torch
from conftest import make_tiny_codec, make_tiny_denoiser, run_ranks
from PIL import Image
from test_embedding_prior import correlated_tokens
from test_image_samplers import make_token_sampler
from test_source_table import draw
from trainings import Killed

from common.data.datalists import radiograph_items
from common.diffusion.image_sampler import ImageSampler
from common.diffusion.noise_schedule import NoiseSchedule
from common.diffusion.samplers import Sampler
from common.errors import CheckpointMismatchError, SettingsError
from common.files import JOB_RECORD
from common.io import read_radiograph
from common.pipelines.folder_generation import FolderGeneration
from common.pipelines.folder_job import SHEET_NAME
from common.pipelines.interpolation import Interpolation
from common.pipelines.job_log import LOG_NAME
from common.pipelines.manifest import revise_generation, several
from common.pipelines.source_table import SourceTable
from common.pipelines.strategies import Neighbourhood, Prior, Variation

CPU = torch.device("cpu")
SIZE = 32
PATIENTS = ["P", "Q", "R"]
LABELS = ["normal", "normal", ""]


class DyingVariation(Variation):
    """Is killed at its third batch."""

    calls = 0

    def tokens(self, requests):
        self.calls += 1
        if self.calls == 3:
            raise Killed
        return super().tokens(requests)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    paths = [folder / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        draw(path, number)
    return SourceTable([str(path) for path in paths], PATIENTS, LABELS, correlated_tokens(3))


def make_sampler(steps=2, guidance_scale=1.5, kind=ImageSampler, image_size=SIZE, seed=0):
    codec = make_tiny_codec(seed)
    codec.set_statistics(torch.zeros(2), torch.ones(2), 1)
    denoiser = make_tiny_denoiser()
    denoiser.context_encoder.scaler.fit(correlated_tokens(50))
    rule = Sampler(NoiseSchedule("rectified_flow", "flow"), "dpm_solver++_2m", steps, guidance_scale=guidance_scale)
    return kind(denoiser.eval(), codec.eval(), rule, image_size, False, CPU)


def make(strategy, folder, sampler=None, **settings):
    settings = {"batch_size": 2, "model_name": "tiny", **settings}
    return FolderGeneration(strategy, sampler or make_sampler(), str(folder), **settings)


def variation(table, num_per_source=2, seed=0):
    return Variation(table, num_per_source, seed)


def interpolation(table, num_samples=3, mode="slerp"):
    scaler = make_sampler().denoiser.context_encoder.scaler
    return Interpolation(table, num_samples, mode, (0.25, 0.75), scaler, 0)


def prior(table, num_samples=5):
    return Prior(make_token_sampler(), num_samples, "a", 0)


def neighbourhood(table):
    return Neighbourhood(table, 2, 1, 0.5, make_sampler().denoiser.context_encoder.scaler, 0)


def contents(folder):
    """All files but those that tell when a run was."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (JOB_RECORD, LOG_NAME, ".lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def pixels_of(folder):
    return torch.stack([read_radiograph(path).pixels for path in sorted((folder / "images").iterdir())])


# ---- the same again ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    make(variation(table), folder, dicom=True).run()
    return folder


def test_two_runs_give_the_same_bytes(table, uninterrupted, tmp_path):
    torch.manual_seed(999)  # the global generator must not matter
    make(variation(table), tmp_path, dicom=True).run()
    files = contents(tmp_path)
    assert files == contents(uninterrupted)
    kinds = [name.partition("/")[0] for name in files]
    assert sorted(kinds) == sorted(["contact_sheet.png", "manifest.csv", *["images"] * 6, *["dicom"] * 6])
    assert len({data for name, data in files.items() if name.startswith("images/")}) == 6


@pytest.mark.parametrize("make_strategy", [variation, interpolation, neighbourhood, prior])
def test_batches_of_one_and_of_three_give_the_same_images(table, tmp_path, make_strategy):
    for batch_size in (1, 3):
        make(make_strategy(table), tmp_path / str(batch_size), batch_size=batch_size).run()
    alone, together = (pixels_of(tmp_path / name) for name in ("1", "3"))
    torch.testing.assert_close(alone, together, atol=1.01 / 255, rtol=0)
    assert together.flatten(1).unique(dim=0).shape[0] == len(together)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_batches_and_make_the_same_files(table, uninterrupted, tmp_path, count):
    run_ranks(lambda rank: make(variation(table), tmp_path / "made", dicom=True).run(), count, tmp_path / "ranks")
    assert contents(tmp_path / "made") == contents(uninterrupted)
    record = json.loads((tmp_path / "made" / JOB_RECORD).read_text())
    assert len(record["runs"]) == 1 and record["runs"][0]["done"] == 6
    assert len((tmp_path / "made" / LOG_NAME).read_text().splitlines()) == 6


def test_what_another_process_noted_before_a_kill_counts(table, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "made")
    log = tmp_path / "made" / LOG_NAME
    first, *others = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(first)
    (tmp_path / "made" / "job_items_1.jsonl").write_bytes(b"".join(others)[:-10])  # the last line is not whole
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "made" / "images").iterdir()}
    make(variation(table), tmp_path / "made", dicom=True).run()
    assert contents(tmp_path / "made") == contents(uninterrupted)
    assert sum(path.stat().st_mtime_ns != time for path, time in before.items()) == 1


def test_another_seed_gives_other_images(table, uninterrupted, tmp_path):
    make(variation(table, seed=1), tmp_path).run()
    assert (pixels_of(tmp_path) - pixels_of(uninterrupted)).abs().amax((1, 2, 3)).min() > 0.05


# ---- killed and resumed --------------------------------------------------------------------------------------------


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "images").iterdir()}


def test_a_run_killed_between_batches_goes_on_where_it_was(table, uninterrupted, tmp_path):
    with pytest.raises(Killed):
        make(DyingVariation(table, 2, 0), tmp_path, dicom=True).run()
    done = stamps(tmp_path)
    assert len(done) == 4 and not (tmp_path / SHEET_NAME).exists()
    resumed = DyingVariation(table, 2, 0)
    make(resumed, tmp_path, dicom=True).run()
    assert resumed.calls == 1  # only the last batch
    assert {path: stamp for path, stamp in stamps(tmp_path).items() if path in done} == done
    assert contents(tmp_path) == contents(uninterrupted)


def test_dropped_images_stay_dropped(table, tmp_path):
    rows = make(variation(table), tmp_path).run()
    revise_generation(tmp_path, {}, [row["image"] for row in rows[1:3]])
    again = DyingVariation(table, 2, 0)
    make(again, tmp_path).run()
    assert again.calls == 0 and len(stamps(tmp_path)) == 4
    assert len((tmp_path / "manifest.csv").read_text().splitlines()) == 5


def test_a_folder_can_be_given_more_images(table, tmp_path):
    make(prior(table, 3), tmp_path / "grown").run()
    make(prior(table, 7), tmp_path / "grown").run()
    make(prior(table, 7), tmp_path / "at_once").run()
    assert contents(tmp_path / "grown").keys() == contents(tmp_path / "at_once").keys()
    torch.testing.assert_close(pixels_of(tmp_path / "grown"), pixels_of(tmp_path / "at_once"), atol=1.01 / 255, rtol=0)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"strategy": neighbourhood}, "strategy: variation there, neighbourhood now"),
        ({"strategy": lambda table: variation(table, 3)}, "num_per_source: 2 there, 3 now"),
        ({"strategy": lambda table: variation(table.subset([0, 1]))}, "sources: "),
        ({"strategy": lambda table: variation(table, seed=1)}, "seed: 0 there, 1 now"),
        ({"sampler": {"steps": 3}}, "num_inference_steps: 2 there, 3 now"),
        ({"sampler": {"guidance_scale": 2.0}}, "guidance_scale: 1.5 there, 2.0 now"),
        ({"sampler": {"seed": 1}}, "codec_sha256: "),
        ({"sampler": {"image_size": 64}}, "image_size: 32 there, 64 now"),
        ({"bits": 16}, "bits: 8 there, 16 now"),
        ({"dicom": True}, "dicom: False there, True now"),
        ({"split": "val"}, "split: None there, val now"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(table, tmp_path, change, name):
    make(variation(table), tmp_path).run()
    before = contents(tmp_path)
    strategy = change.pop("strategy", variation)(table)
    with pytest.raises(CheckpointMismatchError, match=name):
        make(strategy, tmp_path, make_sampler(**change.pop("sampler", {})), **change).run()
    assert contents(tmp_path) == before


def test_a_manifest_of_somebody_else_is_left_alone(table, tmp_path):
    (tmp_path / "manifest.csv").write_text("image,label\na.png,normal\n")
    with pytest.raises(CheckpointMismatchError):
        make(variation(table), tmp_path).run()
    assert (tmp_path / "manifest.csv").read_text() == "image,label\na.png,normal\n"
    assert not (tmp_path / JOB_RECORD).exists()


def test_settings_that_make_no_sense_leave_no_folder_behind(table, tmp_path):
    for settings in ({"bits": 12}, {"batch_size": 0}, {"split": "training"}):
        with pytest.raises(SettingsError):
            make(variation(table), tmp_path / "new", **settings)
    with pytest.raises(SettingsError):
        make(interpolation(table.subset([0, 2])), tmp_path / "new").run()
    assert not (tmp_path / "new").exists()


# ---- what is written -----------------------------------------------------------------------------------------------


def test_the_folder_is_a_data_set(table, tmp_path):
    make(variation(table), tmp_path / "plain").run()
    items = radiograph_items(tmp_path / "plain", "all", 0.0, seed=0)
    assert [item["patient_id"] for item in items] == ["P", "P", "Q", "Q", "R", "R"]
    assert [item["label"] for item in items] == ["normal"] * 4 + [""] * 2
    assert all(read_radiograph(item["image"]).pixels.shape == (1, SIZE, SIZE) for item in items)
    make(variation(table), tmp_path / "split", split="train").run()
    assert {item["split"] for item in radiograph_items(tmp_path / "split", "train", 0.5, seed=0)} == {"train"}


def test_each_image_can_be_made_again_from_its_row(table, tmp_path):
    strategy = interpolation(table)
    generation = make(strategy, tmp_path)
    for row, request in zip(generation.run(), strategy.requests(), strict=True):
        assert row["image"] == f"images/{request.name}.png"
        said = (row["seed"], row["mix"], row["strategy"], row["label"])
        assert said == (request.seed, request.mix, "interpolation", "normal")
        assert several(row["sources"]) == tuple(table.paths[source] for source in request.sources)
        assert several(row["source_patient_ids"]) == tuple(PATIENTS[source] for source in request.sources)
        assert (row["num_inference_steps"], row["guidance_scale"], row["method"]) == (2, 1.5, "dpm_solver++_2m")
        assert row["weights_sha256"] == generation.weights_sha256
        image = make_sampler().sample(strategy.tokens([request]), [row["seed"]])
        torch.testing.assert_close(image[0], read_radiograph(tmp_path / row["image"]).pixels, atol=1.01 / 255, rtol=0)
    assert json.loads((tmp_path / JOB_RECORD).read_text())["settings"]["strategy"] == "interpolation"


@pytest.mark.parametrize("bits", [8, 16])
def test_dicom_reads_back_and_says_that_it_is_synthetic(table, tmp_path, bits):
    make(prior(table, 3), tmp_path, dicom=True, bits=bits).run()
    for number in range(3):
        path = tmp_path / "dicom" / f"prior_{number:06d}.dcm"
        header = pydicom.dcmread(path)
        assert header[0x0008001C].value == "YES" and header.ConversionType == "SYN"
        assert "SYNTHETIC" in str(header.PatientName) and "prior" in header.SeriesDescription
        assert f"seed: {prior(table).requests()[number].seed}" in header.ImageComments
        stored = np.asarray(Image.open(tmp_path / "images" / f"prior_{number:06d}.png"))
        assert np.array_equal(header.pixel_array, stored)
        expected = torch.from_numpy(stored.astype(np.float32)) / (2**bits - 1)
        torch.testing.assert_close(read_radiograph(path).pixels[0], expected, atol=1e-3, rtol=0)


def test_different_images_have_different_uids(table, tmp_path):
    """The same numbers of two runs, whose weights and seed are the same."""
    make(variation(table), tmp_path / "a", dicom=True).run()
    make(variation(table.subset([1, 2])), tmp_path / "b", dicom=True).run()
    make(variation(table), tmp_path / "c", make_sampler(steps=3), dicom=True).run()
    files = list(tmp_path.glob("*/dicom/*.dcm"))
    assert len({pydicom.dcmread(path).SOPInstanceUID for path in files}) == len(files) == 16


# ---- contact sheet -------------------------------------------------------------------------------------------------


def cells(folder, rows, columns):
    """The pictures of a sheet [rows, columns, H, W]."""
    sheet = np.asarray(Image.open(folder / SHEET_NAME))
    pitch = SIZE + 4 + 20
    assert sheet.shape == (4 + rows * pitch, 4 + columns * (SIZE + 4))
    grid = [
        [
            sheet[4 + 20 + r * pitch : 4 + 20 + r * pitch + SIZE, 4 + c * (SIZE + 4) : 4 + c * (SIZE + 4) + SIZE]
            for c in range(columns)
        ]
        for r in range(rows)
    ]
    return np.array(grid)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_sheet_shows_sources_beside_their_samples(table, tmp_path, bits):
    make(variation(table), tmp_path, bits=bits).run()
    shown = cells(tmp_path, rows=3, columns=3)
    for r in range(3):
        assert np.abs(shown[r, 0] - resized(table.paths[r])).max() <= 1
        for c in range(2):
            stored = np.asarray(Image.open(tmp_path / "images" / f"variation_{2 * r + c:06d}.png"), dtype=float)
            assert np.abs(shown[r, 1 + c] - stored / (2**bits - 1) * 255).max() <= 0.51


def resized(path):
    """A square picture at the size of the images."""
    pixels = read_radiograph(path).pixels[None]
    small = torch.nn.functional.interpolate(pixels, size=(SIZE, SIZE), mode="bilinear", antialias=True)
    return (small[0, 0] * 255).numpy()


@pytest.mark.parametrize(
    ("make_strategy", "rows", "columns"), [(interpolation, 1, 5), (neighbourhood, 3, 3), (prior, 2, 4)]
)  # there is one pair, which is taken three times
def test_there_is_a_sheet_for_every_strategy(table, tmp_path, make_strategy, rows, columns):
    make(make_strategy(table), tmp_path).run()
    assert cells(tmp_path, rows, columns).std() > 0


def test_the_sheet_has_no_more_images_than_it_should(table, tmp_path):
    make(prior(table, 10), tmp_path / "six", sheet_images=6).run()
    shown = cells(tmp_path / "six", rows=2, columns=4)
    assert (shown[1, :2].reshape(2, -1).std(1) > 0).all() and (shown[1, 2:] == 255).all()
    make(prior(table, 2), tmp_path / "none", sheet_images=0).run()
    assert not (tmp_path / "none" / SHEET_NAME).exists()
