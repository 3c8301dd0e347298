"""The command: every format in, bad ones told, nothing overwritten or duplicated."""

from __future__ import annotations

import csv
import shutil

import nibabel
import numpy as np
import pydicom
import pytest
from conftest import REPOSITORY, draw_radiographs
from PIL import Image
from script_module import load_script

from common.data.phantom import draw_chest_phantom
from common.errors import DatasetError, SettingsError
from common.io import read_radiograph

SAMPLES = REPOSITORY / "bundles" / "cxr_autoencoder" / "samples"
FORMATS = ["grey.png", "wide.png", "rgb.png", "photo.jpg", "plate.tif", "slice.nii.gz", "film.dcm"]


@pytest.fixture(scope="module")
def script():
    return load_script("png_to_dx")


@pytest.fixture
def sources(tmp_path):
    """One file of each format, none square; the DICOM file is MONOCHROME1 with a patient."""
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = draw_chest_phantom(40, 56, seed=1)[0].clamp(0, 1).numpy()
    grey = (pixels * 255).round().astype(np.uint8)
    for name in ("grey.png", "photo.jpg", "plate.tif"):
        Image.fromarray(grey).save(folder / name)
    Image.fromarray(np.stack([grey, grey, grey // 2], axis=-1)).save(folder / "rgb.png")
    Image.fromarray((pixels * 4095).round().astype(np.uint16)).save(folder / "wide.png")
    nibabel.save(nibabel.Nifti1Image(grey.T[..., None], np.diag([-0.2, -0.3, 1, 1])), folder / "slice.nii.gz")
    film = pydicom.dcmread(SAMPLES / "phantom_07_cr.dcm")
    film.PatientName, film.PatientID, film.InstitutionName = "Doe^Jane", "4711", "St. Elsewhere"
    film.save_as(folder / "film.dcm")
    return folder


def table(folder):
    with (folder / "png_to_dx.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def ends_with_one(function, *args, **options):
    with pytest.raises(SystemExit) as ended:
        function(*args, **options)
    return ended.value.code == 1


@pytest.mark.parametrize("bits", [12, 16])
def test_every_format_comes_back_as_the_reader_gives_it(script, sources, tmp_path, bits):
    script.png_to_dx(str(sources), output_dir=str(tmp_path / "out"), bits=bits)
    rows = table(tmp_path / "out")
    assert sorted(row["source"].rsplit("/")[-1] for row in rows) == sorted(FORMATS)
    for row in rows:
        source, result = read_radiograph(row["source"]), read_radiograph(tmp_path / "out" / row["file"])
        assert result.pixels.shape == source.pixels.shape and result.modality == "DX"
        assert float((result.pixels - source.pixels).abs().max()) <= 0.5 / (2**bits - 1) + 1e-6, row["source"]
        assert result.spacing_mm == pytest.approx(source.spacing_mm or (1.0, 1.0))
        assert row["spacing_known"] == ("yes" if source.spacing_mm else "no")
        lossy = pydicom.dcmread(tmp_path / "out" / row["file"]).LossyImageCompression
        assert lossy == ("01" if row["source"].endswith(".jpg") else "00")


def test_nothing_of_the_header_is_copied(script, sources, tmp_path):
    script.png_to_dx(str(sources / "film.dcm"), output_dir=str(tmp_path / "out"))
    content = (tmp_path / "out" / "film_dcm.dcm").read_bytes()
    source = pydicom.dcmread(sources / "film.dcm")
    for text in ("Doe", "4711", "Elsewhere", "film", source.StudyInstanceUID, source.SOPInstanceUID):
        assert str(text).encode() not in content, text


def test_bad_files_are_told_and_the_others_done(script, sources, tmp_path, capsys):
    (sources / "text.png").write_text("no picture")
    (sources / "cut.dcm").write_bytes((sources / "film.dcm").read_bytes()[:3000])
    Image.fromarray(np.full((9, 9), 7, np.uint8)).save(sources / "blank.png")
    marked = pydicom.dcmread(sources / "film.dcm")
    marked.BurnedInAnnotation = "YES"
    marked.save_as(sources / "named.dcm")
    assert ends_with_one(script.png_to_dx, str(sources), output_dir=str(tmp_path / "out"))
    rows = {row["source"].rsplit("/")[-1]: row for row in table(tmp_path / "out")}
    notes = {name: row["note"] for name, row in rows.items() if row["result"] == "failed"}
    assert sorted(notes) == ["blank.png", "cut.dcm", "named.dcm", "text.png"]
    assert "text" in notes["text.png"] and "same" in notes["blank.png"] and "names the patient" in notes["named.dcm"]
    assert len(list((tmp_path / "out").glob("*.dcm"))) == len(FORMATS)
    printed = capsys.readouterr().out
    assert "7 written, 0 there already, 4 failed" in printed and all(name in printed for name in notes)


def test_again_changes_nothing_and_other_content_needs_overwrite(script, sources, tmp_path, capsys):
    source, out = str(sources / "grey.png"), tmp_path / "out"
    script.png_to_dx(source, output_dir=str(out))
    result = out / "grey_png.dcm"
    before = result.stat().st_mtime_ns, result.read_bytes()
    script.png_to_dx(source, output_dir=str(out))
    assert (result.stat().st_mtime_ns, result.read_bytes()) == before
    assert "1 there already" in capsys.readouterr().out
    assert ends_with_one(script.png_to_dx, source, output_dir=str(out), pixel_spacing=0.1)
    assert result.read_bytes() == before[1] and "--overwrite" in capsys.readouterr().out
    script.png_to_dx(source, output_dir=str(out), pixel_spacing=0.1, overwrite=True)
    assert read_radiograph(result).spacing_mm == (0.1, 0.1)


def test_spacing_of_the_command_line_is_for_files_without_one(script, sources, tmp_path):
    script.png_to_dx(str(sources), output_dir=str(tmp_path / "out"), pixel_spacing=[0.05, 0.06])
    found = {name: read_radiograph(tmp_path / "out" / name).spacing_mm for name in ("grey_png.dcm", "film_dcm.dcm")}
    assert found["grey_png.dcm"] == (0.05, 0.06)
    assert found["film_dcm.dcm"] == read_radiograph(sources / "film.dcm").spacing_mm


def test_folders_keep_apart_and_same_pictures_are_told(script, tmp_path, capsys):
    draw_radiographs(tmp_path / "in" / "one", count=1, size=24)
    shutil.copytree(tmp_path / "in" / "one", tmp_path / "in" / "two")
    out = tmp_path / "in" / "results"  # inside of the input: not to be converted the next time
    for _ in range(2):
        script.png_to_dx(str(tmp_path / "in"), output_dir=str(out))
    rows = table(out)
    assert [row["file"] for row in rows] == ["one__phantom_0_png.dcm", "two__phantom_0_png.dcm"]
    assert rows[0]["sop_instance_uid"] == rows[1]["sop_instance_uid"] and "same picture as" in rows[1]["note"]


def test_a_manifest_names_the_images_so_that_masks_stay_out(script, tmp_path):
    draw_radiographs(tmp_path / "in" / "images", count=1, size=24)
    shutil.copytree(tmp_path / "in" / "images", tmp_path / "in" / "masks")
    (tmp_path / "in" / "manifest.csv").write_text("image,mask\nimages/phantom_0.png,masks/phantom_0.png\n")
    script.png_to_dx(str(tmp_path / "in"), output_dir=str(tmp_path / "out"))
    assert [row["file"] for row in table(tmp_path / "out")] == ["images__phantom_0_png.dcm"]


@pytest.mark.parametrize("value", ["0.1", [0.1], [0.1, 0.1, 0.1], [0, 0.1], ["a", "b"], [None, 1]])
def test_wrong_spacing_is_told(script, value):
    with pytest.raises(SettingsError):
        script.parse_spacing(value)


def test_nothing_to_convert_is_told(script, tmp_path):
    for source in (tmp_path / "absent", tmp_path):
        with pytest.raises(DatasetError):
            script.png_to_dx(str(source), output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
