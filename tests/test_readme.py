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
from common.experiments import (
    benefit_regimes,
    benefit_report,
    label_efficiency,
    label_efficiency_report,
    label_fidelity,
    label_fidelity_report,
    lung_report,
)
from common.experiments.trials import choose_trials, read_trials

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "docs" / "training.md",
    *sorted(REPOSITORY.glob("bundles/*/docs/README.md")),
    REPOSITORY / "bundles" / "dental_radiograph_segmentation" / "docs" / "monai_label.md",
]
DENTAL_DOCS = REPOSITORY / "bundles" / "dental_radiograph_segmentation" / "docs"
CHEST_DOCS = REPOSITORY / "bundles" / "cxr_dino_latent_diffusion" / "docs"
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


def test_the_tables_of_the_segmenter_are_those_of_its_evaluation():
    table = segmentation_table(json.loads((DENTAL_DOCS / "evaluation.json").read_text())).strip()
    assert table in (DENTAL_DOCS / "README.md").read_text() and table in (REPOSITORY / "README.md").read_text()


def test_the_tables_of_the_privacy_check_are_those_of_its_json():
    docs = REPOSITORY / "bundles" / "cxr_dino_latent_diffusion" / "docs"
    text = (docs / "privacy" / "privacy_summary.md").read_text()
    assert text == privacy_tables(json.loads((docs / "privacy" / "privacy_summary.json").read_text()))
    assert text.strip() in (docs / "README.md").read_text()


@pytest.mark.parametrize(
    ("docs", "report_of"),
    [
        (CHEST_DOCS, benefit_report),
        (CHEST_DOCS, label_fidelity_report),
        (CHEST_DOCS, lung_report),
        (DENTAL_DOCS, label_efficiency_report),
    ],
    ids=lambda found: getattr(found, "STEM", ""),
)
def test_the_tables_of_the_experiments_are_those_of_their_json(docs, report_of):
    folder = docs / report_of.STEM
    report = json.loads((folder / f"{report_of.STEM}.json").read_text())
    text = (folder / f"{report_of.STEM}.md").read_text()
    assert text == report_of.markdown(report) and not report["settings"]["quick"]
    readme = (docs / "README.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("| ") and line not in readme] == []
    assert report["settings"] == json.loads((folder / "settings.json").read_text())


@pytest.mark.parametrize(
    ("docs", "trial", "report_of"),
    [
        (CHEST_DOCS, benefit_regimes.Trial, benefit_report),
        (CHEST_DOCS, label_fidelity.Judge, label_fidelity_report),
        (DENTAL_DOCS, label_efficiency.Trial, label_efficiency_report),
    ],
    ids=lambda found: getattr(found, "STEM", ""),
)
def test_the_json_of_the_experiments_is_that_of_the_trials_that_ship(docs, trial, report_of):
    trials = read_trials(docs / report_of.STEM / f"{report_of.STEM}.csv", trial)
    assert len(dict(trials)) == len(trials) and all(row["commit"] and row["date"] for _, row in trials)
    report = json.loads((docs / report_of.STEM / f"{report_of.STEM}.json").read_text())
    assert report["rows"] == report_of.rows([each for each in trials if getattr(each[0], "timestep", 1) == 1])
    if "timesteps" in report:
        assert report["timesteps"] == report_of.timestep_rows(trials)


@pytest.mark.parametrize(
    ("folder", "experiment", "lists"),
    [
        (
            CHEST_DOCS / "synthetic_benefit",
            benefit_regimes,
            {
                **{"classifiers": (), "strategies": (), "ratios": (), "sizes": ()},
                **{"regimes": benefit_regimes.REGIMES, "seeds": range(5)},
            },
        ),
        (
            DENTAL_DOCS / "label_efficiency",
            label_efficiency,
            {"methods": (), "budgets": (), "timesteps": (1,), "seeds": range(3)},
        ),
    ],
)
def test_the_grids_that_ship_are_the_trials_that_ship(folder, experiment, lists):
    wanted = choose_trials(experiment.grid, lists, {}, folder / "grids.yaml")
    assert set(wanted) == set(dict(read_trials(folder / f"{folder.name}.csv", experiment.Trial)))


def test_shipped_texts_name_no_path_of_one_machine():
    texts = [
        path for pattern in ("*.md", "*.json", "*.yaml", "*.csv") for path in (REPOSITORY / "bundles").rglob(pattern)
    ]
    assert texts
    for path in texts:
        if "outputs" not in path.parts:
            assert not re.search(r"(?:^|[\s\"'=])/(?:work|root|home|tmp|Users)/", path.read_text()), path
