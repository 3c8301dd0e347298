"""An evaluation of a tiny generator whose codec is exact: what must be equal is equal, and nothing is made twice."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import draw_radiographs, make_tiny_denoiser, run_ranks
from PIL import Image
from test_embedding_prior import correlated_tokens
from test_image_samplers import make_token_sampler

from common.diffusion.image_sampler import ImageSampler
from common.diffusion.noise_schedule import NoiseSchedule
from common.diffusion.samplers import Sampler
from common.errors import CheckpointMismatchError, RunError, SettingsError
from common.evaluation.generator_evaluation import GeneratorEvaluator, markdown
from common.evaluation.image_features import ClsToken, FeatureExtractor
from common.evaluation.image_quality import ImageQuality
from common.metrics import ms_ssim
from common.networks.dino import DinoEncoder
from common.networks.latent_codec import LatentCodec
from common.pipelines.inputs import read_generated
from common.pipelines.source_table import SourceTable

CPU = torch.device("cpu")
SIZE = 176  # the least that MS-SSIM takes
COUNT = 16
FIGURES = {"fd", "fd_without", "fd_infinity", "mmd", "precision", "recall", "density", "coverage"}


class ExactCodec(LatentCodec):
    """Loses nothing, and counts its images."""

    num_images = 0

    def forward(self, image):
        self.num_images += len(image)
        return image


class CountingSampler(ImageSampler):
    """Counts its images."""

    num_images = 0

    def sample(self, tokens, seeds, progress=False):
        self.num_images += len(seeds)
        return super().sample(tokens, seeds, progress)


class CountingFeatures(ClsToken):
    """Counts its images."""

    num_images = 0

    def forward(self, image):
        self.num_images += len(image)
        return super().forward(image)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real") / "images"
    draw_radiographs(folder, COUNT, SIZE)
    paths = [str(path) for path in sorted(folder.iterdir())]
    return SourceTable(paths, [f"P{n}" for n in range(COUNT)], [""] * COUNT, correlated_tokens(COUNT))


def make_sampler(image_size=SIZE, steps=2):
    torch.manual_seed(0)
    codec = ExactCodec(channels=[4, 4, 4, 4], num_res_blocks=1, latent_channels=2, norm_num_groups=2)
    codec.set_statistics(torch.zeros(2), torch.ones(2), 1)
    denoiser = make_tiny_denoiser()
    denoiser.context_encoder.scaler.fit(correlated_tokens(50))
    rule = Sampler(NoiseSchedule("rectified_flow", "flow"), "dpm_solver++_2m", steps, guidance_scale=1.0)
    return CountingSampler(denoiser.eval(), codec.eval(), rule, image_size, False, CPU)


def make_evaluator(table, tiny_dino, folder, sampler=None, num_diverse_sources=3, num_diverse=2):
    extractor = FeatureExtractor("dino", CountingFeatures(DinoEncoder(tiny_dino, 56)))
    return GeneratorEvaluator(
        sources=lambda: table,
        sampler=sampler or make_sampler(),
        token_sampler=make_token_sampler(),
        extractors=[None, extractor],
        quality=ImageQuality(num_resamples=3, nearest_k=3, num_left_out=2, progress=False),
        output_dir=str(folder),
        num_diverse_sources=num_diverse_sources,
        num_diverse=num_diverse,
        batch_size=4,
        seed=0,
        device=CPU,
    )


@pytest.fixture(scope="module")
def evaluated(table, tiny_dino, tmp_path_factory):
    """A folder, its report, and the evaluator that made it; do not write into it."""
    folder = tmp_path_factory.mktemp("evaluation")
    evaluator = make_evaluator(table, tiny_dino, folder)
    return folder, evaluator.run(), evaluator


def test_the_report_has_the_rows_that_it_says(evaluated):
    folder, report, _ = evaluated
    assert json.loads((folder / "metrics.json").read_text()) == report
    sampler = {"method": "dpm_solver++_2m", "num_inference_steps": 2, "guidance_scale": 1.0, "seed": 0}
    assert report["num_real"] == COUNT and report["sampler"] == sampler
    assert len(report["weights_sha256"]) == len(report["prior_sha256"]) == 64
    assert report["provenance"]["device"] == "cpu"
    rows = report["features"]["dino"]
    assert list(rows) == ["real", "reconstruction", "variation", "prior"]
    for name, row in rows.items():
        assert row["halves"].keys() >= FIGURES
        if name != "real":
            assert row["all"].keys() >= FIGURES
            assert all(row["all"][name][0] <= row["all"][name][1] for name in ("fd_ci", "mmd_ci"))
            assert row["fd_over_floor"] == pytest.approx(row["halves"]["fd"] / rows["real"]["halves"]["fd"])
    exact = rows["reconstruction"]
    assert exact["fd_over_floor"] == pytest.approx(1.0, rel=1e-3)
    assert exact["all"]["fd"] < 0.01 * rows["real"]["halves"]["fd"]
    assert exact["all"]["precision"] == exact["all"]["recall"] == exact["all"]["coverage"] == 1.0
    for name in ("variation", "prior"):  # of an untrained generator
        assert rows[name]["all"]["fd"] > 100 * exact["all"]["fd"] and rows[name]["fd_over_floor"] > 2


def test_diversity_is_that_of_the_right_pairs(evaluated, table):
    folder, report, _ = evaluated
    similarity = report["ms_ssim"]
    assert (similarity["num_sources"], similarity["num_variations"]) == (3, 2)
    assert similarity["reconstruction_to_its_source"] == pytest.approx({"mean": 1.0, "sd": 0.0, "n": 3}, abs=1e-6)
    pictures = sorted((folder / "diversity" / "images").iterdir())
    samples = torch.stack([read_generated(path) for path in pictures])
    sources = torch.stack([read_generated(table.paths[n]) for n in (0, 5, 10)])
    for name, values in [
        ("between_variations_of_one_source", ms_ssim(samples[0::2], samples[1::2])),
        ("variation_to_its_source", ms_ssim(samples, sources.repeat_interleave(2, 0))),
        ("between_different_real_images", ms_ssim(sources, sources[[2, 0, 1]])),
    ]:
        assert similarity[name]["mean"] == pytest.approx(float(values.mean()), rel=1e-4)
        assert similarity[name]["sd"] == pytest.approx(float(values.std()), rel=1e-3, abs=1e-6)
        assert similarity[name]["mean"] < 0.99
    listed = (folder / "diversity" / "manifest.csv").read_text().splitlines()[1:]
    # Spread over the list, each as often as said.
    assert [[table.paths[n] in line for n in (0, 5, 10)] for line in listed] == [
        [source == row // 2 for source in range(3)] for row in range(6)
    ]


def test_images_tables_and_sheet_are_there(evaluated, table):
    folder, report, _ = evaluated
    assert {path.name: len(list(path.rglob("*.png"))) for path in folder.iterdir() if path.is_dir()} == {
        "reconstruction": COUNT,
        "variation": COUNT + 1,  # and its contact sheet
        "prior": COUNT + 1,
        "diversity": 6 + 1,
        "features": 0,
    }
    made = np.asarray(Image.open(folder / "reconstruction" / "000009.png"))
    assert np.array_equal(made, np.asarray(Image.open(table.paths[9])))
    text = (folder / "table.md").read_text()
    assert text == markdown(report)
    said, first, second = (part.splitlines() for part in text.strip().split("\n\n"))
    assert len(said) == 1 and {line.count("|") for line in first} == {13}
    assert [line.split("|")[2].strip() for line in first[2:]] == [
        *("real (8)", "reconstruction (16)", "variation (16)", "prior (16)")
    ]
    assert [cell.strip() for line in first[2:4] for cell in line.split("|")[3:5]] == ["1.00"] * 4
    assert "| reconstruction to its source | 1.000 ± 0.000 |" in second
    width, height = Image.open(folder / "contact_sheet.png").size
    assert width == 4 + 4 * (SIZE + 4) and height == 24 + 8 * (SIZE + 24)


@pytest.fixture
def copied(evaluated, tmp_path):
    shutil.copytree(evaluated[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "reconstruction" / "000013.png").unlink()
    return tmp_path


def test_a_second_run_makes_nothing_again(evaluated, copied, table, tiny_dino):
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*0*.png")}
    evaluator = make_evaluator(table, tiny_dino, copied)
    report = evaluator.run()
    assert evaluator.sampler.num_images == 0 and evaluator.extractors[1].network.num_images == 0
    assert evaluator.sampler.codec.num_images == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert all(report[part] == evaluated[1][part] for part in ("features", "ms_ssim"))


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_work_and_find_what_one_does(evaluated, table, tiny_dino, tmp_path, count):
    def evaluate(rank):
        evaluator = make_evaluator(table, tiny_dino, tmp_path / "made")
        assert bool(evaluator.run()) == (rank == 0)
        parts = evaluator.sampler, evaluator.sampler.codec, evaluator.extractors[1].network
        (tmp_path / f"{rank}.json").write_text(json.dumps([part.num_images for part in parts]))

    run_ranks(evaluate, count, tmp_path / "ranks")
    report = json.loads((tmp_path / "made" / "metrics.json").read_text())
    assert all(report[part] == evaluated[1][part] for part in ("features", "ms_ssim"))
    alone = evaluated[2].sampler, evaluated[2].sampler.codec, evaluated[2].extractors[1].network
    shares = zip(*[json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(count)], strict=True)
    for part, share in zip(alone, shares, strict=True):
        assert sum(share) == part.num_images and min(share) > 0


def test_the_evaluation_of_another_sampler_is_refused_before_anything_is_written(copied, table, tiny_dino):
    with pytest.raises(CheckpointMismatchError):
        make_evaluator(table, tiny_dino, copied, make_sampler(steps=3)).run()
    assert not (copied / "reconstruction" / "000013.png").exists()


def test_a_generator_that_makes_one_grey_is_told_so(copied, table, tiny_dino):
    Image.new("L", (SIZE, SIZE), 0).save(copied / "prior" / "images" / "prior_000005.png")
    with pytest.raises(RunError):
        make_evaluator(table, tiny_dino, copied).run()


def test_what_could_not_be_measured_is_refused_at_once(table, tiny_dino, tmp_path):
    with pytest.raises(SettingsError):
        make_evaluator(table, tiny_dino, tmp_path, make_sampler(image_size=160))
    for knobs in ({"num_diverse": 1}, {"num_diverse_sources": 1}):
        with pytest.raises(SettingsError):
            make_evaluator(table, tiny_dino, tmp_path, **knobs)
    with pytest.raises(SettingsError):
        make_evaluator(table.subset([0]), tiny_dino, tmp_path).run()  # a single image of the validation split
    assert not list(tmp_path.rglob("*.png"))
