import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from common.io.segmentation_classes import GROUPED
from common.label.label_checks import check_id, check_image, check_label, check_tag, slicer_labels


@pytest.mark.parametrize("image_id", ["", ".hidden", "..", "../outside", "a/b", "a\\b", "a\nb", "x" * 300])
def test_ids_that_are_no_file_names_are_refused(image_id):
    with pytest.raises(UserError, match="image id"):
        check_id(image_id)


def test_names_with_dots_and_umlauts_are_ids():
    check_id("pä_IO000001.1 (2)")


@pytest.mark.parametrize("tag", ["", "../final", "a/b", "a b"])
def test_tags_that_are_no_words_are_refused(tag):
    with pytest.raises(UserError, match="label tag"):
        check_tag(tag)


def test_messages_name_the_image_not_the_temporary_file(tmp_path):
    path = tmp_path / "tmpabc.png"
    path.write_text("no picture")
    with pytest.raises(UserError, match=r"^tooth\.png: found text \('no picture'\); expected one radiograph"):
        check_image(path, "tooth.png")


def test_a_mask_of_another_size_or_with_another_value_is_refused(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.full((4, 5), 9, np.uint8)).save(path)
    with pytest.raises(UserError, match=r"tooth: found a mask of 4 × 5 pixels; expected 5 × 4"):
        check_label(path, "tooth", (5, 4), GROUPED)
    with pytest.raises(UserError, match=r"tooth: found mask values \[9\]; expected \[0, 1, 2, 3, 4, 5\]"):
        check_label(path, "tooth", (4, 5), GROUPED)


def test_segments_are_told_by_name_as_slicer_numbers_them_anew():
    values = np.array([[0, 1, 2]])
    segments = [{"name": "Root", "idx": 1}, {"name": "decay", "idx": 5}]
    assert slicer_labels(values, segments, GROUPED).tolist() == [[0, 1, 5]]
    assert slicer_labels(np.array([[0, 1, 5]]), segments, GROUPED).tolist() == [[0, 1, 5]]
    everything = [{"name": name, "idx": label} for label, name in enumerate(GROUPED.names) if label]
    assert slicer_labels(np.array([[5, 0, 2]]), everything, GROUPED).tolist() == [[5, 0, 2]]


def test_segments_that_are_no_class_are_refused_where_they_are_used():
    segments = [{"name": "root"}, {"name": "Segment_2"}]
    assert slicer_labels(np.array([[1, 0]]), segments, GROUPED).tolist() == [[1, 0]]
    with pytest.raises(UserError, match="found a segment 'Segment_2'; expected root, canal"):
        slicer_labels(np.array([[2]]), segments, GROUPED)
    with pytest.raises(UserError, match="found mask value 3"):
        slicer_labels(np.array([[3]]), segments, GROUPED)
