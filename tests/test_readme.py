"""What the READMEs tell people to type exists and does what they say; the notebook runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from common.config_graph import load_file
from common.evaluation.generator_evaluation import markdown
from common.evaluation.privacy_report import markdown as privacy_tables
from common.evaluation.reconstruction_evaluation import markdown as markdown_table
from common.evaluation.segmentation_evaluation import markdown as segmentation_table
from common.experiments import benefit_report, benefit_trials, label_efficiency, label_fidelity, lung_report
from common.experiments.trials import choose_trials, read_trials

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    REPOSITORY / "README.md",
    *(REPOSITORY / "docs" / name for name in ("training.md", "performance.md", "gpu.md")),
    *sorted(REPOSITORY.glob("bundles/*/docs/README.md")),
    REPOSITORY / "bundles" / "dental_radiograph_segmentation" / "docs" / "monai_label.md",
]
AUTOENCODER_DOCS = REPOSITORY / "bundles" / "cxr_autoencoder" / "docs"
DENTAL_DOCS = REPOSITORY / "bundles" / "dental_radiograph_segmentation" / "docs"
CHEST_DOCS = REPOSITORY / "bundles" / "cxr_dino_latent_diffusion" / "docs"
RUN_ARGUMENTS = {"config_file", "bundle_root", "meta_file", "args_file"}
OWN_PATHS = re.compile(r"(?:bundles|scripts|tests|common)/[\w./-]+")
CONFIGS = re.compile(r"(?:bundles/\w+/)?configs/\w+\.yaml")
# What the README's other commands do is run by these tests: on tiny data, or with servers that they start.
RUN_BY = {
    "scripts/quickstart.sh": None,  # its inference commands stand on the page, too
    "scripts/run_tests.sh": None,  # runs this
    "scripts/inspect_dataset.py": "test_inspect_dataset_script.py",
    "scripts/train_all.py": "test_train_all_script.py",
    "scripts/serve_label.sh": "label/label_server.py",
    "scripts/png_to_dx.py": "test_png_to_dx_script.py",
    "scripts/explore.py": "test_explore_script.py",
    "scripts/gallery.py": "test_gallery_script.py",
    "scripts/image_quality.py": "test_image_quality.py",
    "scripts/synthetic_benefit.py": "test_benefit_study.py",
    "scripts/label_fidelity.py": "test_label_fidelity.py",
    "scripts/label_efficiency.py": "test_label_efficiency.py",
    "scripts/zero_shot_lungs.py": "test_lung_study.py",
    "scripts/benchmark.py": "test_benchmark_script.py",
    "scripts/package_bundle.py": "test_packaged_bundles.py",
    "scripts/check_bundle.py": "test_zoo_check.py",
    "scripts/export_bundle.py": "test_exports.py",
    "scripts/publish_bundle.py": "test_hub.py",
    "scripts/convert_checkpoint.py": "test_convert_checkpoint_script.py",
    "configs/train.yaml": "test_bundles_run.py",
    "configs/evaluate.yaml": "test_bundles_run.py",
    "configs/privacy.yaml": "test_ldm_commands.py",
}


def commands(document):
    """Every line of the document's shell blocks, continuation lines joined."""
    blocks = re.findall(r"```(?:bash|sh|shell)\n(.*?)```", document.read_text(), flags=re.DOTALL)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def config_files(line):
    """The config files of a command, also of one that begins with `(cd BUNDLE &&`."""
    moved = re.match(r"\(cd (bundles/\w+) && ", line)
    folder = REPOSITORY / moved[1] if moved else REPOSITORY
    return [folder / name for name in CONFIGS.findall(line)]


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
        files = config_files(line)
        assert files, f"no config file in: {line}"
        keys = {key.split("#")[0].split("::")[0] for file in files for key in load_file(file)}
        given = {key.split("#")[0] for key in re.findall(r"--([\w#]+)", line.split("monai.bundle run", 1)[1])}
        assert given <= keys | RUN_ARGUMENTS, line


def test_every_command_of_the_front_page_is_run_by_a_test():
    for line in commands(REPOSITORY / "README.md"):
        without_test = line.startswith(("#", "git clone", "source ", "pip install"))
        if without_test or re.search(r"configs/(inference|generate)\.yaml", line):
            continue
        found = [(what, where) for what, where in RUN_BY.items() if what in line]
        assert found, f"no test runs: {line}"
        for what, where in found:
            assert where is None or Path(what).stem in (REPOSITORY / "tests" / where).read_text(), what


@pytest.mark.slow
def test_the_front_page_runs_as_it_stands(tmp_path, monkeypatch):
    page = REPOSITORY / "README.md"
    monkeypatch.chdir(REPOSITORY)
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        names: dict = {}
        exec(block, names)
        assert names["images"].shape == (4, 1, 256, 256) and names["strip"].shape == (7, 1, 256, 256)
        assert names["latents"].shape == (1, 4, 32, 32) and sum(names["found"].areas_px.values()) > 0
    lines = [each for each in commands(page) if re.search(r"configs/(inference|generate)\.yaml", each)]
    assert len(lines) == 4
    for number, line in enumerate(lines):
        output = tmp_path / str(number)
        line = (
            line.split("#")[0].replace("OUT", str(output)).replace("DIR", "samples").replace("python", sys.executable)
        )
        line = line.replace("variation", "variation --limit 1")
        run = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-2000:]
        assert list(output.rglob("*.png"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_to_a_file_leads_to_one(document):
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)|^\[\w+\]: (\S+)", text, flags=re.MULTILINE)
    links = [link for pair in found for link in pair if link and not re.match(r"https?:|#", link)]
    assert links
    for link in links:
        assert (document.parent / link.split("#")[0]).exists(), link


def test_the_tables_are_those_of_the_evaluations_that_ship():
    for docs, table_of in (
        (AUTOENCODER_DOCS, markdown_table),
        (CHEST_DOCS, markdown),
        (DENTAL_DOCS, segmentation_table),
    ):
        table = table_of(json.loads((docs / "evaluation.json").read_text()))
        assert table.strip() in (docs / "README.md").read_text()


def test_the_figures_of_the_front_page_are_those_of_the_evaluations_that_ship():
    page = (REPOSITORY / "README.md").read_text()
    rows = {docs: (docs / "README.md").read_text() for docs in (AUTOENCODER_DOCS, CHEST_DOCS, DENTAL_DOCS)}

    def cell(docs, start, column):
        line = next(each for each in rows[docs].splitlines() if each.startswith(start))
        return line.split("|")[column + 1].split("±")[0].strip()

    psnr, lpips = (float(cell(AUTOENCODER_DOCS, "| overall |", column)) for column in (3, 6))
    assert f"PSNR {psnr:.1f} dB, LPIPS {lpips:.3f}" in page
    made, real = (float(cell(CHEST_DOCS, f"| dino | {name}", 11)) for name in ("variation", "real"))
    inception = cell(CHEST_DOCS, "| inception | variation", 2)
    assert f"DINOv2 coverage {made:.2f} (real {real:.2f}), FD-Inception[^fd] {inception}" in page
    assert f"pooled mIoU {cell(DENTAL_DOCS, '| mean |', 4)}" in page


def test_the_tables_of_the_privacy_check_are_those_of_its_json():
    text = privacy_tables(json.loads((CHEST_DOCS / "privacy" / "privacy_summary.json").read_text()))
    assert text.strip() in (CHEST_DOCS / "README.md").read_text()


@pytest.mark.parametrize(
    ("docs", "report_of"),
    [
        (CHEST_DOCS, benefit_report),
        (CHEST_DOCS, label_fidelity),
        (CHEST_DOCS, lung_report),
        (DENTAL_DOCS, label_efficiency),
    ],
    ids=lambda found: getattr(found, "STEM", ""),
)
def test_the_tables_of_the_experiments_are_those_of_their_json(docs, report_of):
    report = json.loads((docs / report_of.STEM / f"{report_of.STEM}.json").read_text())
    lines = [line for line in report_of.markdown(report).splitlines() if line.startswith("| ")]
    readme = (docs / "README.md").read_text()
    assert lines and [line for line in lines if line not in readme] == [] and not report["settings"]["quick"]


@pytest.mark.parametrize(
    ("docs", "trial", "report_of"),
    [
        (CHEST_DOCS, benefit_trials.Trial, benefit_report),
        (CHEST_DOCS, label_fidelity.Judge, label_fidelity),
        (DENTAL_DOCS, label_efficiency.Trial, label_efficiency),
    ],
    ids=lambda found: getattr(found, "STEM", ""),
)
def test_the_json_of_the_experiments_is_that_of_the_trials_that_ship(docs, trial, report_of):
    trials = read_trials(docs / report_of.STEM / f"{report_of.STEM}.csv", trial)
    assert len(dict(trials)) == len(trials) and all(row["commit"] and row["date"] for _, row in trials)
    for each, row in trials if report_of is benefit_report else []:
        assert row["num_synthetic"] == each.ratio * each.size and row["num_real"] == each.size
    report = json.loads((docs / report_of.STEM / f"{report_of.STEM}.json").read_text())
    assert report["rows"] == report_of.rows([each for each in trials if getattr(each[0], "timestep", 1) == 1])
    if "timesteps" in report:
        assert report["timesteps"] == report_of.timestep_rows(trials)


@pytest.mark.parametrize(
    ("folder", "experiment", "lists"),
    [
        (
            CHEST_DOCS / "synthetic_benefit",
            benefit_trials,
            {
                **{"classifiers": (), "strategies": (), "ratios": (), "sizes": ()},
                **{"regimes": benefit_trials.REGIMES, "seeds": range(5)},
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


# ---- the notebook ----------------------------------------------------------------------------------------------------


NOTEBOOK = REPOSITORY / "docs" / "tour.ipynb"


def test_the_notebook_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) == 15
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.slow
def test_the_notebook_runs_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    made = tmp_path / "outputs" / "tour"
    assert len(list((made / "generated" / "images").glob("*.png"))) == 8
    assert len(list((made / "masks").glob("*_mask.png"))) == 3
    for name in ("inspection/inspection.png", "variations.png", "interpolation.png", "privacy/privacy_summary.json"):
        assert (made / name).is_file()
    printed = str([cell.get("outputs") for cell in notebook.cells])
    assert "nothing to mend was found" in printed and "Undecided" in printed and "root" in printed
