import pytest
from tiny_lungs import lung_folder

from common.data.phantom import draw_lung_mask
from common.experiments.lung_masks import LungMasksError, lung_cases


def test_cases_of_a_split_come_with_their_masks(tmp_path):
    folder = lung_folder(tmp_path / "data", num_train=2, num_val=1)
    (case,) = lung_cases(folder, "lung_masks.csv", "val")
    assert (case.name, case.source, case.definition) == ("images__2", "clinic0", "drawn")
    assert case.image.is_file() and (case.truth() == draw_lung_mask(72, 80, seed=2)[0].numpy()).all()
    assert [c.name for c in lung_cases(folder, "lung_masks.csv", "train")] == ["images__0", "images__1"]


def test_lists_that_cannot_be_used_are_refused(tmp_path):
    folder = lung_folder(tmp_path / "data", 1, 1)
    with pytest.raises(LungMasksError, match="no such file"):
        lung_cases(folder, "other.csv", "val")
    with pytest.raises(LungMasksError, match="'test'"):
        lung_cases(folder, "lung_masks.csv", "test")
    (folder / "bad.csv").write_text("image,mask_file\na,b\n")
    with pytest.raises(LungMasksError, match="source, split"):
        lung_cases(folder, "bad.csv", "val")
