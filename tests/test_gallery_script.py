"""A gallery holds its pictures itself, with what the tables say of them."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from script_module import load_script

from common.errors import DatasetError

gallery = load_script("gallery").gallery
PICTURES = re.compile(r"src='data:image/(\w+);base64,([^']+)'")


def test_pictures_are_inside_with_their_captions(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(tmp_path / "images" / "a.png")
    Image.fromarray(np.full((20, 3000), 40000, np.uint16)).save(tmp_path / "<sheet>.png")
    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "b_overlay.jpg")
    (tmp_path / "manifest.csv").write_text("image,seed,sources\nimages/a.png,17,/patients/name.png\nb,18,\n")
    gallery(str(tmp_path), longest=300)
    text = (tmp_path / "gallery.html").read_text()
    found = [(kind, Image.open(io.BytesIO(base64.b64decode(content)))) for kind, content in PICTURES.findall(text)]
    assert [(kind, picture.size) for kind, picture in found] == [("png", (300, 2)), ("jpeg", (8, 8)), ("png", (10, 10))]
    assert abs(int(np.asarray(found[0][1]).max()) - 40000 // 256) <= 1
    assert np.array_equal(np.asarray(found[2][1]).ravel(), np.arange(100))
    assert "seed 17" in text and "seed 18" in text and "&lt;sheet&gt;" in text
    assert "<sheet>" not in text and "name.png" not in text and "http" not in text


def test_no_more_than_asked_for_and_none_is_told(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DatasetError):
            gallery(str(folder))
    assert not (tmp_path / "none").exists()
    for number in range(3):
        Image.new("L", (4, 4)).save(tmp_path / f"{number}.png")
    gallery(str(tmp_path), output=str(tmp_path / "out" / "g.html"), limit=2)
    text = (tmp_path / "out" / "g.html").read_text()
    assert len(PICTURES.findall(text)) == 2 and "2 of 3" in text
