"""Every bundle in bundles/, now and later: static checks of its configs, and what MONAI makes of them."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from config_lint import base_file, disagreements, problems_of
from monai.bundle import ConfigParser, ConfigWorkflow
from packaging.version import Version

from common.config_graph import iter_items
from common.packaging.bundle import Bundle
from common.packaging.zoo_check import check_bundle
from common.packaging.zoo_code import network

BUNDLES = sorted(p for p in (Path(__file__).resolve().parents[1] / "bundles").iterdir() if p.is_dir())
CONFIGS = [path for bundle in BUNDLES for path in sorted(bundle.glob("configs/*.yaml"))]
NETWORK_SIZE = 8  # `8*n` is 64 px then: small, and large enough for every network here

every_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parents[1].name}-{path.stem}")


def overrides_for(files: list[Path], bundle: Path, output_dir: Path) -> dict[str, Any]:
    """Overrides that build a workflow without the real data or weights: the bundle's samples and random weights."""
    config = ConfigParser.load_config_files([str(file) for file in files])
    overrides: dict[str, Any] = {
        "bundle_root": str(bundle),
        "output_dir": str(output_dir),
        "device": "$torch.device('cpu')",
    }
    if "weights_path" in config:
        weights = output_dir / "random.pt"
        parser = ConfigParser(config)
        parser["bundle_root"] = str(bundle)
        torch.save(parser.get_parsed_content("network_def").state_dict(), weights)
        overrides["weights_path"] = str(weights)
    return overrides


def test_there_are_bundles() -> None:
    assert BUNDLES and CONFIGS


@every_config
def test_config_file(config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # what parses only from the repository is found out
    assert problems_of(config) == []


@every_bundle
def test_configs_together(bundle: Path) -> None:
    assert (bundle / "configs" / "train.yaml").is_file() and (bundle / "configs" / "inference.yaml").is_file()
    assert disagreements(bundle / "configs") == []


@every_bundle
def test_files_and_metadata_are_what_the_zoo_asks_for(bundle: Path) -> None:
    """Packaged or not; of a bundle that is not packaged it would miss the JSON twins, and find what training left."""
    verdicts = [v for v in check_bundle(bundle, run_code=False) if v.name not in ("contents", "sizes")]
    assert [verdict.line() for verdict in verdicts if verdict.problems] == []


@every_bundle
def test_pinned_packages_are_installed_here_and_not_newer(bundle: Path) -> None:
    metadata = Bundle(bundle).metadata
    pins = {name: metadata[f"{key}_version"] for name, key in (("monai", "monai"), ("torch", "pytorch"))}
    pins |= {"numpy": metadata["numpy_version"], **metadata["required_packages_version"]}
    newer = {name for name, pin in pins.items() if Version(pin) > Version(importlib.metadata.version(name))}
    assert newer == set()
    assert Version(pins["numpy"]) < Version("2.3"), "the zoo checks with Python 3.10, which 2.3 has no wheel for"


@every_bundle
def test_figures_of_the_metadata_are_those_of_the_evaluation(bundle: Path) -> None:
    metrics = json.loads((bundle / "configs" / "metadata.json").read_text())["eval_metrics"]
    measured = json.loads((bundle / "docs" / "evaluation.json").read_text())
    numbers = [value for _, value in iter_items(measured) if isinstance(value, float)]
    for name, value in metrics.items():
        digits = len(str(value).split(".")[1])
        assert value in {round(number, digits) for number in numbers}, name


@every_bundle
def test_network_is_what_the_metadata_say(bundle: Path) -> None:
    assert list(network(Bundle(bundle), NETWORK_SIZE)) == []


@every_bundle
@pytest.mark.parametrize(("names", "kind"), [(("train", "smoke"), "train"), (("inference",), "infer")])
def test_properties(bundle: Path, names: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    files = [bundle / "configs" / f"{name}.yaml" for name in names]
    overrides = overrides_for(files, bundle, tmp_path)
    workflow = ConfigWorkflow([*map(str, files)], workflow_type=kind, logging_file=False, **overrides)
    workflow.initialize()
    assert not workflow.check_properties()
    assert not list(tmp_path.rglob("checkpoint*")), "nothing was trained"


@every_config
@pytest.mark.parametrize("run_id", ["run", "training"])
def test_override_check_in_place(config: Path, run_id: str) -> None:
    """The check at the head of the real run list is silent as shipped, and stops a typo; nothing else is run."""
    base = base_file(config)
    files = [str(file) for file in ([base, config] if base else [config])]
    if run_id not in ConfigParser.load_config_files(files):
        assert run_id == "training", "every workflow has 'run'"
        return
    options = {"run_id": run_id, "bundle_root": str(config.parents[1])}
    workflow = ConfigWorkflow(files, logging_file=False, workflow_type=None, **options)
    workflow.parser.parse()
    assert workflow._run_expr(f"{run_id}::0") == [None]
    workflow.parser["image_sice"] = 64
    with pytest.raises(RuntimeError, match="check_overrides") as caught:
        workflow._run_expr(f"{run_id}::0")
    assert "'image_sice'" in str(caught.value.__cause__)
