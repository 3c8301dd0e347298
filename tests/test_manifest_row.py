"""A row goes to text and back, and refuses what would break a folder or a split."""

import pytest
from test_generation_manifest import AWKWARD, row

from common.pipelines.manifest_row import ROW_COLUMNS, ManifestRow, several


@pytest.mark.parametrize("each", [row(0), AWKWARD, row(2, ("P",), flagged=True, label="normal")])
def test_a_row_is_its_cells(each):
    assert tuple(each.cells()) == ROW_COLUMNS and all(isinstance(cell, str) for cell in each.cells().values())
    assert ManifestRow.from_cells(each.cells()) == each


def test_a_cell_holds_several_values_whatever_is_in_them():
    values = ("a;b", "50%3B", "100%", "plain")
    made = row(0, values)
    assert several(made.cells()["source_patient_ids"]) == values and several("") == ()


def test_what_goes_into_the_picture_names_no_source():
    provenance = row(3, ("P-secret", "Q-secret"), mix=0.25, label="normal").provenance()
    assert "secret" not in str(provenance)
    assert provenance["seed"] == "3" and provenance["mix"] == "0.25" and provenance["label"] == "normal"
    assert "flagged" not in provenance  # nothing to say


@pytest.mark.parametrize("image", ["/abs.png", "../a.png", "a/../../b.png", "a\\b.png", "./a.png", ""])
def test_paths_that_leave_the_folder_are_refused(image):
    with pytest.raises(ValueError, match="expected a path"):
        ManifestRow(image, "prior", 0, 20, 1.0, "ddim", "3fa9")


@pytest.mark.parametrize(
    ("sources", "patients"), [(("a.png",), ()), (("a.png",), ("",)), (("a", "b"), ("P",)), (("",), ("P",))]
)
def test_a_source_without_patient_is_refused(sources, patients):
    with pytest.raises(ValueError, match="one patient for each source"):
        ManifestRow("a.png", "prior", 0, 20, 1.0, "ddim", "3fa9", sources, patients)
