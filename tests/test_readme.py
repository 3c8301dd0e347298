"""What the READMEs tell people to type exists: files, scripts and config keys."""

import json
import re
from pathlib import Path

import pytest

from common.config_graph import load_file
from common.evaluation.evaluation_report import markdown_table
from common.evaluation.generator_evaluation import markdown
from common.evaluation.privacy_summary import markdown as privacy_tables
from common.evaluation.segmentation_report import markdown_table as segmentation_table
from common.experiments.benefit_regimes import REAL_REGIMES, SYNTHETIC_REGIMES
from common.experiments.benefit_regimes import grid as synthetic_benefit_grid
from common.experiments.benefit_report import markdown as synthetic_benefit_tables
from common.experiments.knobs import read_grids
from common.experiments.label_efficiency import grid as label_efficiency_grid
from common.experiments.label_efficiency_report import markdown as label_efficiency_tables
from common.experiments.label_fidelity_report import markdown as label_fidelity_tables
from common.experiments.lung_report import markdown as zero_shot_lungs_tables
from common.experiments.token_ablation_report import markdown as token_ablation_tables

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    REPOSITORY / "README.md",
    *sorted(REPOSITORY.glob("bundles/*/docs/README.md")),
    REPOSITORY / "bundles" / "dental_radiograph_segmentation" / "docs" / "monai_label.md",
]
REGIMES = (*REAL_REGIMES, *SYNTHETIC_REGIMES)
RUN_ARGUMENTS = {"config_file", "bundle_root", "meta_file", "args_file"}
OWN_PATHS = re.compile(r"(?:bundles|scripts|tests|common)/[\w./-]+")


def commands(document):
    """Every line of the document's shell blocks, continuation lines joined."""
    blocks = re.findall(r"```(?:bash|sh|shell)\n(.*?)```", document.read_text(), flags=re.DOTALL)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_document_has_commands_whose_files_exist(document):
    lines = commands(document)
    assert lines
    for line in lines:
        for path in OWN_PATHS.findall(line.split("#")[0]):
            if "outputs/" not in path and "--output" not in line.split(path)[0][-15:]:
                assert (REPOSITORY / path).exists(), f"{path} in: {line}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_override_is_a_key_of_its_config(document):
    for line in commands(document):
        if "monai.bundle run" not in line:
            continue
        files = re.findall(r"bundles/[\w/]+\.yaml", line)
        assert files, f"no config file in: {line}"
        keys = {key.split("#")[0].split("::")[0] for file in files for key in load_file(REPOSITORY / file)}
        given = {key.split("#")[0] for key in re.findall(r"--([\w#]+)", line.split("monai.bundle run", 1)[1])}
        assert given <= keys | RUN_ARGUMENTS, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_to_a_file_leads_to_one(document):
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:|#", link)]
    assert links
    for link in links:
        assert (document.parent / link.split("#")[0]).exists(), link


def test_the_tables_are_those_of_the_evaluation_that_ships():
    docs = REPOSITORY / "bundles" / "cxr_autoencoder" / "docs"
    table = markdown_table(json.loads((docs / "evaluation.json").read_text()))
    assert table.strip() in (docs / "README.md").read_text()
    front_page = (REPOSITORY / "README.md").read_text()
    overall = [line for line in table.splitlines() if line.startswith("| overall |")]
    assert len(overall) == 3
    assert all(line in front_page for line in overall)


def test_the_tables_of_the_generator_are_those_of_its_evaluation():
    docs = REPOSITORY / "bundles" / "cxr_dino_latent_diffusion" / "docs"
    table = markdown(json.loads((docs / "evaluation.json").read_text()))
    assert table.strip() in (docs / "README.md").read_text()
    front_page = (REPOSITORY / "README.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith(("| dino |", "| inception |"))]
    assert len(rows) == 8
    assert all(line in front_page for line in rows)


def test_the_tables_of_the_segmenter_are_those_of_its_evaluation_and_experiment():
    docs = REPOSITORY / "bundles" / "dental_radiograph_segmentation" / "docs"
    text = (docs / "README.md").read_text()
    table = segmentation_table(json.loads((docs / "evaluation.json").read_text())).strip()
    assert table in text and table in (REPOSITORY / "README.md").read_text()
    report = json.loads((docs / "label_efficiency" / "label_efficiency.json").read_text())
    experiment = (docs / "label_efficiency" / "label_efficiency.md").read_text()
    assert experiment == label_efficiency_tables(report) and experiment.strip() in text


def test_the_tables_of_the_privacy_check_are_those_of_its_json():
    docs = REPOSITORY / "bundles" / "cxr_dino_latent_diffusion" / "docs"
    text = (docs / "privacy" / "privacy_summary.md").read_text()
    assert text == privacy_tables(json.loads((docs / "privacy" / "privacy_summary.json").read_text()))
    assert text.strip() in (docs / "README.md").read_text()


@pytest.mark.parametrize(
    ("stem", "tables", "quoted"),
    [
        ("zero_shot_lungs", zero_shot_lungs_tables, True),
        ("synthetic_benefit", synthetic_benefit_tables, True),
        ("label_fidelity", label_fidelity_tables, True),
        ("token_ablation", token_ablation_tables, False),  # the README has some of its columns
    ],
)
def test_the_tables_of_the_generators_experiments_are_those_of_their_json(stem, tables, quoted):
    docs = REPOSITORY / "bundles" / "cxr_dino_latent_diffusion" / "docs"
    report = json.loads((docs / stem / f"{stem}.json").read_text())
    text = (docs / stem / f"{stem}.md").read_text()
    assert text == tables(report) and not report["settings"]["quick"]
    if quoted:
        readme = (docs / "README.md").read_text()
        assert [line for line in text.splitlines() if line.startswith("| ") and line not in readme] == []


@pytest.mark.parametrize(
    ("folder", "grid", "knobs"),
    [
        (
            "cxr_dino_latent_diffusion/docs/synthetic_benefit",
            synthetic_benefit_grid,
            {"classifiers": (), "strategies": (), "ratios": (), "sizes": (), "regimes": REGIMES, "seeds": range(5)},
        ),
        (
            "dental_radiograph_segmentation/docs/label_efficiency",
            label_efficiency_grid,
            {"methods": (), "budgets": (), "timesteps": (1,), "seeds": range(3)},
        ),
    ],
)
def test_the_grids_that_ship_are_the_cells_that_ship(folder, grid, knobs):
    folder = REPOSITORY / "bundles" / folder
    wanted = {cell.name for lists in read_grids(folder / "grids.yaml", knobs) for cell in grid(**lists)}
    assert wanted == {path.stem for path in (folder / "cells").glob("*.json")}


def test_shipped_texts_name_no_path_of_one_machine():
    texts = [path for pattern in ("*.md", "*.json", "*.yaml") for path in (REPOSITORY / "bundles").rglob(pattern)]
    assert texts
    for path in texts:
        if "outputs" not in path.parts:
            assert not re.search(r"(?:^|[\s\"'=])/(?:work|root|home|tmp|Users)/", path.read_text()), path
