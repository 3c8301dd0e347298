import csv
import io
import json
import math
import statistics

import monai
import numpy as np
import pytest
import torch
from conftest import run_ranks
from monai.data import Dataset, MetaTensor
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from common import metrics
from common.evaluation.codec_baselines import bicubic_down_up, jpeg_at_bytes
from common.evaluation.reconstruction_evaluation import ReconstructionEvaluator
from common.networks.dino import DinoEncoder
from common.networks.lpips import LPIPS

SOURCES = ["b", "a", "a", "b", "a"]
QUALITIES = ["A", "A", "B", "A", "A"]


class Blur(nn.Module):
    """A network with a parameter, whose output depends on its mode."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 1, 3, 3), 1 / 9))

    def forward(self, image):
        blurred = F.conv2d(image, self.weight, padding=1).clamp(0, 1)
        return blurred * 0 if self.training else blurred


def images(count=5, size=64):
    """Smooth images with ever more noise, so that the later ones are the harder ones."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1, size // 16, size // 16, generator=generator)
    noise = torch.randn(count, 1, size, size, generator=generator) * torch.linspace(0, 0.1, count).view(-1, 1, 1, 1)
    return (F.interpolate(coarse, size=(size, size), mode="bilinear") * 0.6 + 0.2 + noise).clamp(0, 1)


def items(image=None):
    image = images() if image is None else image
    columns = [{"image_path": f"images/{i}.png", "source": SOURCES[i], "quality": QUALITIES[i]} for i in range(5)]
    return [{"image": single, **own} for single, own in zip(image, columns, strict=False)]


def evaluator(tmp_path, network=None, data=None, **options):
    loader = DataLoader(items() if data is None else data, batch_size=2)
    return ReconstructionEvaluator(network or Blur(), loader, "cpu", str(tmp_path), **{"latent_channels": 4, **options})


def read_csv(folder):
    with (folder / "per_image.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_holds_the_metrics_of_each_image_and_method(tmp_path):
    network = Blur().eval()
    evaluator(tmp_path, network).run()
    rows = read_csv(tmp_path)
    assert len(rows) == 5 * 3
    with torch.no_grad():
        outputs = {"autoencoder": network(images()), "bicubic": bicubic_down_up(images(), 8)}
        outputs["jpeg"], sizes = jpeg_at_bytes(images(), 512)
    for method, output in outputs.items():
        of_method = [row for row in rows if row["method"] == method]
        assert [row["path"] for row in of_method] == [f"images/{i}.png" for i in range(5)]
        assert [row["source"] for row in of_method] == SOURCES
        for name in ("psnr", "ssim"):
            expected = getattr(metrics, name)(output, images())
            torch.testing.assert_close(torch.tensor([float(row[name]) for row in of_method]), expected)
    assert [int(row["bytes"]) for row in rows if row["method"] == "jpeg"] == sizes.tolist()
    assert {row["bytes"] for row in rows if row["method"] == "autoencoder"} == {"512"}


def test_headline_and_groups_partition_the_images(tmp_path):
    report = evaluator(tmp_path, headline_filter={"quality": "A"}).run()
    rows = [row for row in read_csv(tmp_path) if row["method"] == "autoencoder"]

    def expected(keep):
        values = [float(row["psnr"]) for row in rows if keep(row)]
        sd = statistics.stdev(values) if len(values) > 1 else None
        return {"mean": statistics.fmean(values), "sd": sd, "n": len(values), "non_finite": 0}

    cases = {
        ("headline", "overall"): lambda row: row["quality"] == "A",
        ("headline", "a"): lambda row: row["quality"] == "A" and row["source"] == "a",
        ("headline", "b"): lambda row: row["quality"] == "A" and row["source"] == "b",
        ("outside_headline", "overall"): lambda row: row["quality"] == "B",
        ("outside_headline", "a"): lambda row: row["quality"] == "B",
    }
    for (section, group), keep in cases.items():
        summary = report[section]["overall"] if group == "overall" else report[section]["groups"][group]
        assert summary["methods"]["autoencoder"]["psnr"] == pytest.approx(expected(keep)), (section, group)
    assert set(report["outside_headline"]["groups"]) == {"a"}
    assert [row["headline"] for row in rows] == ["True", "True", "False", "True", "True"]


def test_files_agree_and_are_whole(tmp_path):
    report = evaluator(tmp_path, headline_filter={"quality": "A"}).run()
    assert {p.name for p in tmp_path.iterdir()} == {"per_image.csv", "metrics.json", "table.md", "contact_sheet.png"}
    assert json.loads((tmp_path / "metrics.json").read_text()) == report
    table = (tmp_path / "table.md").read_text()
    overall = report["headline"]["overall"]["methods"]["jpeg"]["psnr"]
    assert f"| overall | 4 | JPEG ≤ 512 B | {overall['mean']:.2f} ± {overall['sd']:.2f} |" in table
    assert "| a (not quality = A) | 1 | autoencoder |" in table
    assert report["provenance"]["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_batches_and_write_what_one_does(tmp_path, count):
    evaluator(tmp_path / "one").run()
    run_ranks(lambda rank: evaluator(tmp_path / "made").run(), count, tmp_path / "ranks")
    for name in ("per_image.csv", "table.md", "contact_sheet.png"):
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_lpips_dino_and_ms_ssim_are_those_of_the_metrics(tmp_path, tiny_dino):
    torch.manual_seed(0)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    state = {f"features.{i}.weight": torch.randn(s) * (s[1] * s[2] ** 2) ** -0.5 for i, s in shapes.items()}
    state |= {f"features.{i}.bias": torch.zeros(s[0]) for i, s in shapes.items()}
    state |= {f"lin{k}.model.1.weight": torch.rand(1, s[0], 1, 1) for k, s in enumerate(shapes.values())}
    torch.save(state, tmp_path / "lpips.pt")
    lpips, dino = LPIPS(tmp_path / "lpips.pt"), DinoEncoder(tiny_dino, image_size=28)
    image, network = images(2, 176), Blur().eval()
    report = evaluator(tmp_path / "out", network, items(image), lpips=lpips, dino=dino).run()
    found = report["headline"]["overall"]["methods"]["autoencoder"]
    with torch.no_grad():
        output = network(image)
        cosine = torch.cosine_similarity(dino(output).cls_token, dino(image).cls_token)
        expected = {"lpips": lpips(output, image), "dino_cosine": cosine, "ms_ssim": metrics.ms_ssim(output, image)}
    for name, values in expected.items():
        assert found[name]["mean"] == pytest.approx(float(values.mean()), abs=1e-5)


def test_identity_scores_best_and_metrics_that_were_not_computed_are_absent(tmp_path):
    methods = evaluator(tmp_path, network=lambda image: image).run()["headline"]["overall"]["methods"]
    assert methods["autoencoder"]["psnr"]["mean"] == pytest.approx(100.0)
    assert methods["autoencoder"]["ssim"]["mean"] == pytest.approx(1.0, abs=1e-5)
    assert methods["bicubic"]["psnr"]["mean"] < 60 and set(methods["bicubic"]) == {"psnr", "ssim"}  # 64 px, no LPIPS
    assert "LPIPS" not in (tmp_path / "table.md").read_text()


def test_non_finite_images_are_reported_and_left_out(tmp_path, caplog):
    def network(image):
        output = image * 0.9
        output[image.flatten(1).std(dim=1) == spoilt.std()] = torch.nan
        return output

    image = images()
    spoilt = image[3].flatten()
    image[1, 0, 5, 5] = torch.nan  # which spoils all methods
    report = evaluator(tmp_path, network=network, data=items(image)).run()
    found = report["headline"]["overall"]["methods"]["autoencoder"]["psnr"]
    assert (found["n"], found["non_finite"]) == (3, 2) and math.isfinite(found["mean"])
    assert {(e["path"], e["method"], e["metric"]) for e in report["non_finite"]} == {
        *(("images/3.png", "autoencoder", metric) for metric in ("psnr", "ssim")),
        *(("images/1.png", name, each) for name in ("autoencoder", "bicubic", "jpeg") for each in ("psnr", "ssim")),
    }
    assert "images/3.png" in caplog.text and "(2 non-finite)" in (tmp_path / "table.md").read_text()
    assert report["headline"]["overall"]["methods"]["jpeg"]["psnr"]["n"] == 4


def test_network_stays_trainable_and_gets_its_mode_back(tmp_path):
    seen = []

    class Watched(Dataset):
        def __getitem__(self, index):
            seen.append(torch.is_inference_mode_enabled())
            return super().__getitem__(index)

    network, cached = Blur().train(), items()
    report = evaluator(tmp_path, network, Watched(cached)).run()
    assert report["headline"]["overall"]["methods"]["autoencoder"]["psnr"]["mean"] > 15  # it ran in evaluation mode
    assert network.training and seen and not any(seen)
    F.conv2d(cached[0]["image"][None], network.weight).sum().backward()
    assert network.weight.grad is not None


def test_latents_at_half_precision_give_the_budget_and_images_above_it_are_named(tmp_path):
    found = evaluator(tmp_path, latent_channels=4, factor=8).run()["jpeg"]
    assert found["budget_bytes"] == {"min": 2 * 4 * 8 * 8, "max": 2 * 4 * 8 * 8} and found["over_budget"] == []
    found = evaluator(tmp_path, latent_channels=2, factor=32).run()["jpeg"]
    assert found["budget_bytes"]["max"] == 16 and found["over_budget"] == [f"images/{i}.png" for i in range(5)]


def test_batches_and_columns_of_monai_are_taken(tmp_path):
    data = [{**item, "image": MetaTensor(item["image"]), "label": i} for i, item in enumerate(items())]
    loader = monai.data.DataLoader(Dataset(data), batch_size=2)
    ReconstructionEvaluator(nn.Identity(), loader, torch.device("cpu"), str(tmp_path), latent_channels=4).run()
    assert [row["label"] for row in read_csv(tmp_path) if row["method"] == "jpeg"] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(("headline", "shown"), [(None, range(5)), ({"source": "b"}, (0, 3))])
def test_sheet_shows_the_hardest_image_of_the_headline_first(tmp_path, headline, shown):
    evaluator(tmp_path, num_examples=1, headline_filter=headline).run()
    rows = [row for row in read_csv(tmp_path) if row["method"] == "autoencoder"]
    worst = min(shown, key=lambda i: float(rows[i]["psnr"]))
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        pixels = torch.tensor(list(sheet.crop((4, 44, 68, 108)).tobytes())).view(64, 64)
    assert torch.equal(pixels, (images()[worst, 0] * 255).round().long())


@pytest.mark.parametrize(
    "options",
    [
        {"network": lambda x: x * 2 - 1},
        {"network": lambda x: x * 255},
        {"network": lambda x: x[..., ::2]},
        {"group_by": "hospital"},
        {"data": [{"image": images()[0], "source": "a"}]},
        {"data": []},
    ],
    ids=["signed", "bytes", "shape", "column", "path", "no batch"],
)
def test_other_ranges_shapes_and_columns_are_refused(tmp_path, options):
    with pytest.raises(ValueError):
        evaluator(tmp_path, **options).run()


def test_a_filter_that_matches_nothing_keeps_the_csv(tmp_path):
    with pytest.raises(ValueError):
        evaluator(tmp_path, headline_filter={"quality": "C"}).run()
    assert len(read_csv(tmp_path)) == 15


# ---- the codecs that it is compared with -----------------------------------------------------------------------------


def radiograph_like(height=96, width=64, batch=1):
    """Smooth shapes, ribs and a little noise."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    image = 0.5 + 0.3 * torch.cos(3 * x) * torch.cos(2 * y) + 0.1 * torch.sin(25 * y)
    noise = torch.randn(batch, 1, height, width, generator=torch.Generator().manual_seed(0))
    return (image + 0.02 * noise).clamp(0, 1)


def all_files(image):
    pixels = Image.fromarray((image[0, 0] * 255).round().byte().numpy())
    files = []
    for quality in range(1, 101):
        buffer = io.BytesIO()
        pixels.save(buffer, format="JPEG", quality=quality, optimize=True)
        files.append(buffer.getvalue())
    return files


@pytest.mark.parametrize("max_bytes", [10, 450, 700, 1200, 2500, 100_000])
def test_jpeg_is_the_best_within_the_budget_or_that_of_quality_one(max_bytes):
    image = radiograph_like()
    files = all_files(image)
    best = [file for file in files[1:] if len(file) <= max_bytes][-1:] or files[:1]
    decoded, sizes = jpeg_at_bytes(image, max_bytes)
    assert sizes.tolist() == [len(best[0])]
    expected = np.asarray(Image.open(io.BytesIO(best[0]))).astype(np.float32) / 255
    np.testing.assert_allclose(decoded[0, 0].numpy(), expected, atol=1e-7)


def test_jpeg_budget_is_for_each_image():
    images = torch.cat([radiograph_like(), torch.full((1, 1, 96, 64), 0.5)])
    decoded, sizes = jpeg_at_bytes(images, 900)
    assert decoded.shape == images.shape and decoded.dtype == torch.float32
    assert sizes[0] > sizes[1] and (sizes <= 900).all()
    torch.testing.assert_close(decoded[1], torch.full((1, 96, 64), 128 / 255))


def test_bicubic_keeps_what_is_coarse_and_loses_what_is_fine():
    coarse = torch.linspace(0.2, 0.8, 128).expand(1, 1, 64, 128)
    torch.testing.assert_close(bicubic_down_up(coarse)[..., 16:-16], coarse[..., 16:-16], atol=2e-3, rtol=0)
    fine = coarse + 0.1 * ((torch.arange(128) % 3) - 1)
    torch.testing.assert_close(bicubic_down_up(fine)[..., 16:-16], coarse[..., 16:-16], atol=5e-3, rtol=0)


def test_bicubic_factor_and_range():
    torch.manual_seed(0)
    image = (torch.rand(2, 1, 32, 48) > 0.5).float()
    weak, strong = bicubic_down_up(image, 2), bicubic_down_up(image, 16)
    assert weak.shape == image.shape
    assert weak.min() >= 0 and weak.max() <= 1 and weak.max() == 1.0  # it would overshoot without the clamp
    assert (weak - image).abs().mean() < (strong - image).abs().mean()


@pytest.mark.parametrize(
    ("encode", "image"),
    [
        (lambda image: jpeg_at_bytes(image, 1000), torch.full((1, 1, 16, 16), torch.nan)),
        (lambda image: jpeg_at_bytes(image, 0), torch.zeros(1, 1, 16, 16)),
        (lambda image: jpeg_at_bytes(image, 100), torch.zeros(1, 3, 16, 16)),
        (bicubic_down_up, torch.zeros(1, 1, 60, 64)),
    ],
)
def test_what_cannot_be_encoded_is_refused(encode, image):
    with pytest.raises(ValueError):
        encode(image)
