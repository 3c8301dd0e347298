import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from common.io.segmentation_classes import GROUPED
from common.label.client_files import image_size, read_label, slicer_labels


def test_messages_name_the_image_not_the_temporary_file(tmp_path):
    path = tmp_path / "tmpabc.png"
    path.write_text("no picture")
    with pytest.raises(UserError) as refused:
        image_size(path, "tooth.png")
    assert str(refused.value).startswith("tooth.png: ") and "tmpabc" not in str(refused.value)


def test_a_mask_of_another_size_or_with_another_value_is_refused(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.full((4, 5), 9, np.uint8)).save(path)
    for size, found in (((5, 4), "4 × 5"), ((4, 5), "[9]")):
        with pytest.raises(UserError) as refused:
            read_label(path, "tooth", size, GROUPED)
        assert found in str(refused.value)


@pytest.mark.parametrize(
    ("values", "segments", "labels"),
    [
        ([0, 1, 2], [{"name": "Root", "idx": 1}, {"name": "decay", "idx": 5}], [0, 1, 5]),  # numbered anew by Slicer
        ([0, 1, 5], [{"name": "Root", "idx": 1}, {"name": "decay", "idx": 5}], [0, 1, 5]),  # or with its own values
        ([5, 0, 2], [{"name": name, "idx": label} for label, name in enumerate(GROUPED.names) if label], [5, 0, 2]),
        ([1, 0], [{"name": "root"}, {"name": "Segment_2"}], [1, 0]),  # a name that is no class, but not in use
        ([2], [{"name": "root"}, {"name": "Segment_2"}], None),
        ([3], [{"name": "root"}, {"name": "decay"}], None),
        ([1], [{"name": "background"}], None),
    ],
)
def test_segments_are_told_by_name(values, segments, labels):
    if labels is None:
        with pytest.raises(UserError):
            slicer_labels(np.array([values]), segments, GROUPED)
    else:
        assert slicer_labels(np.array([values]), segments, GROUPED).tolist() == [labels]
