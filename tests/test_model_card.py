"""The card on the hub: its front matter as the hub reads it, its links, what it adds to the README."""

import json

import pytest
import yaml
from conftest import REPOSITORY
from huggingface_hub import ModelCard
from packaged import METADATA, make_packaged

from common.packaging.model_card import ModelCardError, make_model_card, pipeline_tag

BUNDLES = sorted(path.parents[1] for path in REPOSITORY.glob("bundles/*/configs/metadata.json"))


@pytest.fixture
def folder(tmp_path):
    return make_packaged(tmp_path)


def card_of(folder):
    return ModelCard(make_model_card(folder, "me/tiny"))


def change_metadata(folder, **changes):
    (folder / "configs" / "metadata.json").write_text(json.dumps({**METADATA, **changes}))


def test_the_hub_reads_our_front_matter(folder):
    data = card_of(folder).data
    assert (data.library_name, data.pipeline_tag, data.to_dict()["version"]) == ("monai", "image-segmentation", "0.2.0")
    assert data.tags == ["monai", "medical", "radiograph", "dental-radiograph", "self-supervised"]
    assert {result.metric_type: result.metric_value for result in data.eval_results} == {
        "dice": 0.75,
        "by_class_root": 0.9,
    }
    assert data.model_name == "Tiny segmenter"


def test_terms_of_the_data_make_the_licence_another(folder):
    data = card_of(folder).data
    assert (data.license, data.license_name) == ("other", "apache-2.0-with-data-terms")
    assert data.license_link == "https://huggingface.co/me/tiny/blob/main/docs/data_license.txt"
    assert "The images:\n  CC BY 4.0. Ask `them` first." in card_of(folder).text
    (folder / "docs" / "data_license.txt").unlink()
    alone = card_of(folder)
    assert alone.data.license == "apache-2.0" and alone.data.license_name is None
    assert "data_license" not in alone.text


def test_a_licence_that_is_not_known_is_told(folder):
    (folder / "LICENSE").write_text("Do as you like.")
    with pytest.raises(ModelCardError, match="neither the Apache License"):
        make_model_card(folder, "me/tiny")


def test_figures_come_only_where_there_are_any(folder):
    change_metadata(folder, eval_metrics={})
    assert card_of(folder).data.eval_results is None


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("Segmentation of teeth", "image-segmentation"),
        ("Chest radiograph synthesis from embeddings", "unconditional-image-generation"),
        ("Radiograph compression to latents", "image-to-image"),
        ("Something else", None),
    ],
)
def test_the_task_is_named_as_the_hub_names_it(folder, task, expected):
    assert pipeline_tag(task) == expected
    change_metadata(folder, task=task)
    assert card_of(folder).data.pipeline_tag == expected


def test_links_work_one_folder_up_and_none_leaves_the_bundle(folder):
    text = card_of(folder).text
    assert '![A mask](docs/quickstart.png "A title") and [its file](samples/a.png)' in text
    assert "[terms](docs/data_license.txt#who), [below](#limits)" in text
    assert "The front page, `another` bundle, [paper](https://arxiv.org/abs/1)" in text
    assert "[![badge](docs/quickstart.png)](https://example.org/), gone," in text


def test_code_is_left_alone_but_for_the_folder(folder):
    text = card_of(folder).text
    assert "`[code](../../other.md)`" in text
    assert "--bundle_root tiny # [text](../../x.md)" in text


def test_the_card_says_how_to_load_what_is_there(folder):
    text = card_of(folder).text
    assert (
        text.index("# Tiny") < text.index("## Get it from here") < text.index("## Commands") < text.index("## Limits")
    )
    assert 'source="huggingface_hub", repo="me/tiny", version="0.2.0"' in text
    assert 'load("tiny", workflow_type="inference"' in text and "load_ts_module=True" in text
    assert "monai==1.6.1 numpy==2.2.6 einops==0.8.1" in text
    assert "--config_file tiny/configs/inference.json" in text
    assert "## Intended use\n\nResearch. Not for diagnosis." in text
    (folder / "models" / "model.ts").unlink()
    (folder / "configs" / "inference.json").unlink()
    text = card_of(folder).text
    assert "monai.bundle.load" not in text and "--config_file tiny/configs/inference.yaml" in text


def test_pictures_that_the_readme_does_not_show_are_shown(folder):
    text = card_of(folder).text
    assert "![second figure](docs/second_figure.png)" in text and text.count("![quickstart]") == 0


def test_front_matter_of_the_readme_gives_way(folder):
    readme = folder / "docs" / "README.md"
    readme.write_text("---\nlicense: mit\n---\n" + readme.read_text())
    assert card_of(folder).data.license == "other" and "license: mit" not in card_of(folder).content


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_cards_of_our_bundles(bundle):
    text = make_model_card(bundle, f"me/{bundle.name}")
    card = ModelCard(text)
    assert (
        yaml.safe_load(text.split("---\n")[1])["version"]
        == json.loads((bundle / "configs" / "metadata.json").read_text())["version"]
    )
    assert card.data.pipeline_tag is not None and len(card.data.tags) > 3
    assert "\n## Limits" in card.text and f"bundles/{bundle.name}" not in card.text and "](../" not in card.text
    assert "](docs/quickstart.png)" in card.text
