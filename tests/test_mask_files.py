import nibabel
import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from common.io import read_radiograph
from common.io.mask_files import read_mask, stored_mask, write_nifti_mask


@pytest.fixture
def mask():
    """Labels 0 to 5 [5, 7], no symmetry."""
    return np.random.default_rng(0).integers(0, 6, (5, 7))


def test_png_of_every_kind_gives_its_numbers(mask, tmp_path):
    values = mask.astype(np.uint8)
    palette = Image.fromarray(values)
    palette.putpalette([255 - level for level in range(256)] * 3)
    pictures = {"grey": Image.fromarray(values), "palette": palette}
    pictures |= {"wide": Image.fromarray(mask.astype(np.uint16)), "rgb": Image.fromarray(np.stack([values] * 3, -1))}
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
        assert np.array_equal(read_mask(tmp_path / f"{name}.png"), mask), name
    Image.fromarray(mask > 2).save(tmp_path / "binary.png")
    assert np.array_equal(read_mask(tmp_path / "binary.png"), mask > 2)


def test_what_is_no_mask_is_refused_with_the_reason(mask, tmp_path):
    Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "lossy.jpg")
    Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "a.tif")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 4, 3), np.uint8)).save(tmp_path / "colour.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "colour.png").read_bytes()[:60])
    numbers = {"half": np.full((4, 4), 0.5), "negative": np.full((4, 4), -1, np.int16), "nan": np.full((4, 4), np.nan)}
    for name, values in {**numbers, "volume": np.zeros((4, 4, 2), np.uint8)}.items():
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii")
    for name, found in {
        "lossy.jpg": "a JPEG file.*changes labels",
        "a.tif": "a TIFF file.*Save it as PNG",
        "colour.png": "a PNG in colour",
        "cut.png": "damaged",
        "half.nii": "not whole",
        "negative.nii": "negative",
        "nan.nii": "not whole",
        "volume.nii": r"shape \(4, 4, 2\)",
        "absent.png": "no such file",
    }.items():
        with pytest.raises(UserError, match=rf"{name}: found.*{found}"):
            read_mask(tmp_path / name)


@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz"])
def test_a_written_mask_keeps_labels_and_spacing_and_claims_none_that_is_not_known(mask, tmp_path, name):
    for spacing, unit in (((0.1, 0.25), "mm"), (None, "unknown")):
        path = write_nifti_mask(mask, tmp_path / name, spacing)
        stored = nibabel.load(path)
        assert np.array_equal(read_mask(path), mask) and stored.header.get_xyzt_units()[0] == unit
        assert stored.shape == (7, 5, 1) and stored.get_data_dtype() == np.uint8
        if spacing:
            assert read_radiograph(path).spacing_mm == pytest.approx(spacing, rel=1e-6)
            np.testing.assert_allclose(stored.header.get_zooms(), (0.25, 0.1, 1.0), rtol=1e-6)
    again = write_nifti_mask(mask, tmp_path / f"again_{name}", None)
    assert again.read_bytes() == path.read_bytes() and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("linear", [[[0.1, 0, 0], [0, 0.2, 0], [0, 0, 1]], [[0, -0.3, 0], [0.1, 0, 0], [0, 0, 1]]])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_the_mask_of_a_nifti_image_lies_where_the_image_lies(tmp_path, linear, suffix):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, (5, -7, 2)
    array = np.random.default_rng(2).integers(0, 255, (7, 5, 1)).astype(np.uint8)
    source = tmp_path / f"image{suffix}"
    nibabel.save(nibabel.Nifti1Image(array, affine), source)
    radiograph = read_radiograph(source)
    mask = (radiograph.pixels[0].numpy() > 0.5).astype(int)
    path = write_nifti_mask(mask, tmp_path / f"mask{suffix}", radiograph.spacing_mm, source)
    stored = nibabel.load(path)
    np.testing.assert_allclose(stored.affine, nibabel.load(source).affine, atol=1e-6)
    assert np.array_equal(np.asarray(stored.dataobj), array / 255 > 0.5)
    assert np.array_equal(read_mask(path), mask)


def test_nothing_is_written_where_the_mask_does_not_fit(mask, tmp_path):
    source = tmp_path / "image.nii"
    nibabel.save(nibabel.Nifti1Image(np.eye(5, dtype=np.uint8), np.eye(4)), source)
    for arguments, found in [
        ((mask, tmp_path / "m.nii", None, source), r"\(5, 7\); expected \(5, 5\)"),
        ((mask, tmp_path / "m.png", None), "m.png"),
        ((mask + 255, tmp_path / "m.nii", None), "labels from"),
        ((mask / 2, tmp_path / "m.nii", None), "float64"),
    ]:
        with pytest.raises(ValueError, match=f"found.*{found}|{found}.*found"):
            write_nifti_mask(*arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["image.nii"]


def nifti_headers():
    """Images of one slice with every kind of header: (name, array shape, affine, whether the header tells it)."""
    turned = np.array([[0, -0.3, 0, 5.0], [0.1, 0, 0, -7], [0, 0, 1, 2], [0, 0, 0, 1]])
    yield "lps", (7, 5), np.diag([-0.1, -0.2, 1, 1]), True
    yield "ras", (7, 5, 1), np.diag([0.1, 0.2, 1, 1]), True
    yield "turned", (7, 5, 1), turned, True
    yield "sagittal", (1, 7, 5), np.diag([1, 0.1, 0.2, 1]), True
    yield "identity", (7, 5), np.eye(4), True
    yield "unknown", (7, 5), np.diag([0.1, 0.2, 1, 1]), False
    yield "four_axes", (7, 5, 1, 1), np.diag([0.1, -0.2, 1, 1]), True


@pytest.mark.parametrize(("name", "shape", "affine", "known"), nifti_headers(), ids=lambda value: str(value)[:9])
def test_a_mask_in_the_order_of_its_file_is_displayed_as_the_image_is(tmp_path, name, shape, affine, known):
    image = nibabel.Nifti1Image(np.random.default_rng(2).integers(0, 255, shape).astype(np.uint8), affine)
    if not known:
        image.set_sform(None, 0)
        image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "image.nii")
    radiograph = read_radiograph(tmp_path / "image.nii")
    mask = (radiograph.pixels[0].numpy() * 5).astype(np.uint8)
    stored, own = stored_mask(mask, tmp_path / "image.nii")
    assert stored.ndim == 3 and stored.dtype == np.uint8
    nibabel.save(nibabel.Nifti1Image(stored, own), tmp_path / "mask.nii")
    assert np.array_equal(read_mask(tmp_path / "mask.nii"), mask)
    if known:
        np.testing.assert_allclose(own, affine, atol=1e-6)


def test_a_mask_of_a_picture_is_stored_across_first(mask, tmp_path):
    Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7)).save(tmp_path / "image.png")
    stored, affine = stored_mask(mask, tmp_path / "image.png")
    assert np.array_equal(stored.T, mask) and affine is None
