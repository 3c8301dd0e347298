import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from common.data.mask_transforms import (
    CleanUpd,
    LoadMaskd,
    PadGeometry,
    PadResized,
    ToOriginald,
    label_map,
    to_original,
)
from common.data.transforms import LoadRadiographd
from common.errors import UserError
from common.io.segmentation_classes import GROUPED

SIZES = [(123, 457), (457, 123), (64, 64), (31, 17), (1, 9)]


def write_pair(folder, image_size=(6, 9), mask=None):
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, image_size, np.uint8)).save(folder / "image.png")
    mask = generator.integers(0, 12, image_size) if mask is None else mask
    Image.fromarray(mask.astype(np.uint8)).save(folder / "mask.png")
    return {"image": str(folder / "image.png"), "label": str(folder / "mask.png")}, mask


def load(item, mask_values="periapical"):
    return LoadMaskd(["label"], GROUPED, mask_values)(LoadRadiographd(["image"])(item))


def test_loading_maps_the_values_of_the_data_set(tmp_path):
    item, mask = write_pair(tmp_path)
    loaded = load(item)
    assert loaded["label"].dtype == torch.int64 and loaded["label"].shape == loaded["image"].shape
    assert np.array_equal(loaded["label"][0], GROUPED.map_mask(mask, "periapical"))
    assert loaded["label_path"] == item["label"] and loaded["image_spacing_mm"].isnan().all()


def test_nifti_pairs_lie_on_each_other_and_know_their_spacing(tmp_path):
    mask = np.zeros((9, 6), np.uint8)
    mask[1:3, 2:6] = 5
    for name, values in {"image": mask * 50, "mask": mask}.items():
        nibabel.save(nibabel.Nifti1Image(values, np.diag([0.1, -0.2, 1, 1])), tmp_path / f"{name}.nii.gz")
    loaded = load({"image": tmp_path / "image.nii.gz", "label": tmp_path / "mask.nii.gz"}, "labels")
    assert torch.equal(loaded["label"] > 0, loaded["image"] > 0) and loaded["label"].max() == 5
    torch.testing.assert_close(loaded["image_spacing_mm"], torch.tensor([0.2, 0.1]).double())


def test_a_mask_that_does_not_fit_its_image_is_refused(tmp_path):
    item, _ = write_pair(tmp_path, mask=np.zeros((9, 6)))
    with pytest.raises(UserError, match=r"mask\.png.*9 × 6 .*6 × 9.*image\.png"):
        load(item)


def test_an_item_may_say_itself_what_its_mask_values_are(tmp_path):
    item, _ = write_pair(tmp_path, mask=np.full((6, 9), 5))
    assert load(item)["label"].unique().tolist() == [2]  # 5 of the periapical set is a canal
    assert load({**item, "mask_values": "labels"})["label"].unique().tolist() == [5]
    assert load({**item, "mask_values": ""}, "labels")["label"].unique().tolist() == [5]  # an empty cell of a manifest
    assert load({**item, "mask_values": "periapical"}, "labels")["label"].unique().tolist() == [2]


@pytest.mark.parametrize("size", SIZES)
def test_the_square_holds_the_whole_image_in_its_middle(size):
    image = torch.ones(1, *size)
    item = PadResized(["image", "label"], 96)({"image": image, "label": image.long()})
    assert item["image"].shape == item["label"].shape == (1, 96, 96)
    geometry = PadGeometry.of(item["geometry"])
    assert (geometry.height, geometry.width) == size
    assert max(geometry.resized_height, geometry.resized_width) == 96
    assert abs(geometry.resized_height / geometry.resized_width - size[0] / size[1]) <= 1
    for key in ("image", "label"):
        rows, columns = torch.nonzero(item[key][0] > 0.99, as_tuple=True)
        margins = rows.min(), 95 - rows.max(), columns.min(), 95 - columns.max()
        assert abs(margins[0] - margins[1]) <= 1 and abs(margins[2] - margins[3]) <= 1
        assert len(rows) == geometry.resized_height * geometry.resized_width


@pytest.mark.parametrize(
    ("size", "turn", "expected"),
    [
        ((125, 90), False, (96, 128)),
        ((125, 90), True, (128, 96)),
        ((90, 125), True, (96, 128)),
        ((64, 64), True, (96, 128)),
    ],
)
def test_an_oblong_size_holds_the_image_and_turns_with_it_if_told(size, turn, expected):
    item = PadResized(["image"], [96, 128], turn=turn)({"image": torch.ones(1, *size)})
    assert item["image"].shape[-2:] == expected
    geometry = PadGeometry.of(item["geometry"])
    room = expected[0] / geometry.resized_height, expected[1] / geometry.resized_width
    assert min(room) == pytest.approx(1, abs=0.02)  # as large as fits
    assert to_original(item["image"], item["geometry"]).shape[-2:] == size


@pytest.mark.parametrize("options", [{"size": 256}, {"size": 640}, {"size": 256, "pad": False}])
@pytest.mark.parametrize("size", SIZES[:2])
def test_what_is_drawn_comes_back_where_it_was(size, options):
    """A ramp of row and column numbers to a tenth of a pixel and a rectangle to one: nothing is shifted by half."""
    ramp = torch.stack(torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")).float()
    label = torch.zeros(1, *size, dtype=torch.int64)
    top, bottom, left, right = (size[0] // 3, size[0] // 3 + 40, size[1] // 4, size[1] // 4 + 31)
    label[:, top:bottom, left:right] = 3
    item = {"rows": ramp[:1], "columns": ramp[1:], "label": label}
    item = PadResized(["rows", "columns", "label"], **options)(item)
    back = to_original(torch.cat([item["rows"], item["columns"]]), item["geometry"])
    assert back.shape == ramp.shape
    inside = (slice(None), slice(8, -8), slice(8, -8))
    torch.testing.assert_close(back[inside], ramp[inside], atol=0.1, rtol=0)
    assert item["label"].dtype == torch.int64 and item["label"].unique().tolist() == [0, 3]
    logits = 20.0 * torch.nn.functional.one_hot(item["label"][0], 6).permute(2, 0, 1)
    back = label_map(logits, item["geometry"])
    assert back.shape == label.shape and back.dtype == torch.uint8 and back.unique().tolist() == [0, 3]
    rows, columns = torch.nonzero(back[0], as_tuple=True)
    found = rows.min().item(), rows.max().item() + 1, columns.min().item(), columns.max().item() + 1
    np.testing.assert_allclose(found, (top, bottom, left, right), atol=1)


def test_halving_does_not_shift_a_mask_and_what_fits_is_untouched():
    image = torch.rand(1, 33, 64)
    item = PadResized(["image"], 64)({"image": image})
    assert torch.equal(to_original(item["image"], item["geometry"]), image)
    label = torch.zeros(1, 64, 64, dtype=torch.int64)
    label[:, 21:43, 13:51] = 2  # in the middle, each edge within a pair of pixels that becomes one
    halved = PadResized(["label"], 32)({"label": label})["label"]
    assert halved.eq(2).sum() > 0
    assert torch.equal(halved, halved.flip(1)) and torch.equal(halved, halved.flip(2))


def test_every_label_survives_resizing():
    label = torch.arange(256).reshape(1, 16, 16).repeat_interleave(3, 1).repeat_interleave(3, 2)
    resized = PadResized(["label"], 32)({"label": label})["label"]
    assert sorted(resized.unique().tolist()) == list(range(256))
    assert torch.equal(PadResized(["label"], 96)({"label": label})["label"][0, 3::6, 3::6].flatten(), torch.arange(256))


def test_geometry_collates_and_each_image_uses_its_own():
    batch = default_collate([PadResized(["image"], 64)({"image": torch.rand(1, *size)}) for size in SIZES])
    for output, geometry, size in zip(batch["image"], batch["geometry"], SIZES, strict=True):
        assert ToOriginald(["pred"])({"pred": output, "geometry": geometry})["pred"].shape == (1, *size)
    with pytest.raises(ValueError, match="geometry"):
        to_original(batch["image"][0], batch["geometry"])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: PadResized(["image"], 0),
        lambda: PadResized(["image", "label"], 8)({"image": torch.zeros(1, 4, 4), "label": torch.zeros(1, 4, 5)}),
        lambda: to_original(torch.zeros(2, 8, 8), PadGeometry(10, 10, 8, 8, 4, 0)),
    ],
)
def test_wrong_use_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        wrong()


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.float32])
def test_clean_up_by_name_keeps_shape_and_type(kind):
    label = torch.zeros(1, 8, 8, dtype=kind)
    label[:, :3, :3], label[:, 6, 6], label[:, 6, 0] = 1, 1, 5
    cleaned = CleanUpd(["pred"], GROUPED, ["root"], {"decay": 2})({"pred": label})["pred"]
    assert cleaned.dtype == kind and cleaned.shape == label.shape
    assert cleaned.nonzero().shape[0] == 9 and cleaned[0, :3, :3].eq(1).all()
    with pytest.raises(UserError, match="tooth"):
        CleanUpd(["pred"], GROUPED, ["tooth"], {})
