import csv
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from common.errors import DatasetError, UserError
from common.io.segmentation_classes import CARIES, ELEVEN, GROUPED, class_table

TABLES = [GROUPED, ELEVEN, CARIES]
# Machado, Oliveira & Fernandes 2009, severity 1.0, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]])


def lab(colour, matrix):
    """CIE L*a*b* of an sRGB colour as an eye of that kind sees it."""
    unit = np.asarray(colour) / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(np.asarray(matrix) @ linear, 0, 1) / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("matrix", VISION.values(), ids=VISION)
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_colours_stay_apart_for_every_kind_of_colour_vision(table, matrix):
    for one, other in combinations(table.classes, 2):
        assert np.linalg.norm(lab(one.colour, matrix) - lab(other.colour, matrix)) > 20, (one.name, other.name)


def test_the_published_labels_are_those_of_the_issue_and_periapical_values_are_grouped_as_the_data_readme_says():
    names = ["background", "root", "canal", "root canal filling", "apical lesion", "decay"]
    assert GROUPED.names == names and GROUPED.num_labels == 6 and GROUPED.label_of("decay") == 5
    assert [entry.key for entry in GROUPED.classes] == ["root", "canal", "root_canal_filling", "apical_lesion", "decay"]
    grouped = np.array(names)[GROUPED.map_mask(np.arange(12), "periapical")]
    first = "background, apical lesion, root, canal, root, canal, root, canal, canal, root"
    assert grouped.tolist() == [*first.split(", "), "root canal filling", "decay"]


def test_eleven_classes_keep_their_values_and_group_into_the_published_ones():
    values = np.arange(12).reshape(3, 4)
    assert np.array_equal(ELEVEN.map_mask(values, "periapical"), values)
    grouped = np.array(GROUPED.names)[GROUPED.map_mask(values, "periapical")].ravel()
    for name, group in zip(ELEVEN.names, grouped, strict=True):
        assert name.endswith(group)


def test_own_labels_pass_and_what_is_no_label_is_refused():
    assert GROUPED.map_mask(np.array([[0, 5]], np.uint8), None).tolist() == [[0, 5]]
    with pytest.raises(UserError, match=r"found mask values \[6, 255\]; expected \[0, 1, 2, 3, 4, 5\]"):
        GROUPED.map_mask(np.array([0, 6, 255]), None)
    with pytest.raises(UserError, match=r"\[12\]; expected .*'periapical'"):
        GROUPED.map_mask(np.array([12]), "periapical")
    with pytest.raises(UserError, match="found masks of 'panoramic'; expected one of periapical"):
        GROUPED.map_mask(np.array([0]), "panoramic")


def test_unknown_names_are_answered_with_the_known_ones():
    assert class_table("eleven") is ELEVEN
    with pytest.raises(UserError, match="found 'five'; expected one of grouped, eleven, caries"):
        class_table("five")
    with pytest.raises(UserError, match="found 'tooth'; expected one of background, root"):
        GROUPED.label_of("tooth")


OWN = {
    "name": "implants",
    "classes": [
        {"name": "tooth", "colour": [86, 180, 233], "category": "anatomical structure"},
        {"name": "implant", "colour": [240, 228, 66], "category": "material"},
    ],
    "mask_values": {"clinic": {"7": 2}},  # as JSON has the keys
}


def test_a_table_of_ones_own_is_as_good():
    table = class_table(OWN)
    assert table.names == ["background", "tooth", "implant"]
    assert table.map_mask(np.array([0, 7]), "clinic").tolist() == [0, 2]
    assert table.palette()[3:9] == [86, 180, 233, 240, 228, 66]


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": []},
        {"name": "grouped"},  # whose masks would be taken for others
        {"mask_values": {"clinic": {"7": 3}}},
        {"mirror_pairs": [[1, 3]]},
        {"mirrored": [[1, 2]]},
        {"classes": [{"name": "tooth", "colour": [86, 180, 256], "category": "material"}]},
        {"classes": [{"name": "tooth", "colour": [86, 180, 233], "category": "metal"}]},
    ],
)
def test_a_wrong_table_of_ones_own_is_refused(wrong):
    with pytest.raises(DatasetError):
        class_table({**OWN, **wrong})


def test_the_palette_gives_each_label_its_colour():
    image = Image.fromarray(np.arange(6, dtype=np.uint8)[None])
    image.putpalette(GROUPED.palette())
    colours = np.asarray(image.convert("RGB"))[0]
    assert colours.tolist() == [[0, 0, 0], *(list(entry.colour) for entry in GROUPED.classes)]
    assert len(GROUPED.palette()) == 768


def test_a_mirror_swaps_mesial_and_distal_only():
    mirrored = [ELEVEN.names[label] for label in ELEVEN.mirrored_labels()]
    swap = {"mesial": "distal", "distal": "mesial"}
    assert mirrored == [" ".join(swap.get(word, word) for word in name.split()) for name in ELEVEN.names]
    assert GROUPED.mirrored_labels() == list(range(6))


@pytest.mark.shared
def test_every_mask_of_the_data_has_labels(shared_data):
    folder = shared_data / "dental"
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    table_of = {"periapical": GROUPED, "panoramic": CARIES, "panoramic_molar_crops": CARIES}
    for row in rows[::20]:
        with Image.open(folder / row["mask"]) as mask:
            table_of[row["set"]].map_mask(np.asarray(mask), row["set"])
    assert {row["set"] for row in rows[::20]} == set(table_of)
