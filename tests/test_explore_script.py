"""The explorer page: what it can do, as a person does it in a browser, and what it refuses."""

import base64
import io
import json
import shutil
import threading

import numpy as np
import pydicom
import pytest
from conftest import draw_radiographs, make_tiny_codec, randomise
from PIL import Image
from script_module import load_script
from tiny_bundles import SEGMENTER, generator_models

from common.errors import SettingsError, UserError
from common.io import read_radiograph
from common.networks.diffusion_segmenter import DiffusionSegmenter
from common.networks.weights import save_weights
from common.page_server import PageServer, Upload

explore = load_script("explore")
WISH = {"count": 2, "seed": 3, "guidance": 1.5}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, tiny_dino):
    folder = tmp_path_factory.mktemp("bundles")
    generator = generator_models(folder / "generator", tiny_dino)
    draw_radiographs(generator / "samples" / "images", 2, 48)
    segmenter = DiffusionSegmenter(**{**SEGMENTER, "num_classes": 6})
    randomise(segmenter, 0.3)
    parts = {"class_table": "grouped", "image_size": [24, 32]}
    save_weights(segmenter, folder / "segmenter" / "models" / "model.pt", parts)
    return [generator, folder / "segmenter"]


@pytest.fixture(scope="module")
def explorer(bundles, tmp_path_factory):
    settings = {"num_inference_steps": 2, "prior_steps": 3, "amp": False}
    return explore.Explorer(bundles, tmp_path_factory.mktemp("pictures"), "cpu", **settings)


@pytest.fixture(scope="module")
def phantom(bundles):
    return bundles[0] / "samples" / "images" / "phantom_0.png"


def upload(explorer, content, name="x.png"):
    return explorer.post("/radiographs", Upload(name, str(len(content)), io.BytesIO(content)))


def act(explorer, action, **wish):
    body = json.dumps({**WISH, **wish}).encode()
    return explorer.post(f"/{action}", Upload("", str(len(body)), io.BytesIO(body)))["pictures"]


def test_pictures_are_those_of_the_pipeline_and_say_that_they_are_synthetic(explorer, phantom):
    source = upload(explorer, phantom.read_bytes())["id"]
    pictures = act(explorer, "variation", source=source, guidance=2.5)
    assert explorer.generator.image_sampler.sampler.guidance_scale == 2.5
    expected = explorer.generator.vary(phantom, 2, seed=3)
    for picture, image in zip(pictures, expected, strict=True):
        with Image.open(explorer.get(picture["files"]["PNG"])) as png:
            assert np.abs(np.asarray(png) / 255 - image[0].numpy()).max() < 0.6 / 255
            assert png.text["Synthetic"] == "true" and png.text["guidance_scale"] == "2.5"
        assert pydicom.dcmread(explorer.get(picture["files"]["DICOM"])).ConversionType == "SYN"
    assert not np.array_equal(*(read_radiograph(explorer.get(each["image"])).pixels for each in pictures))
    strip = act(explorer, "interpolation", source=pictures[0]["id"], other=source, count=3)
    assert len(strip) == 3 and len(act(explorer, "prior", label="a")) == 2


def test_inpainting_changes_nothing_that_is_not_painted_over_and_gives_no_dicom(explorer, phantom):
    source = upload(explorer, phantom.read_bytes())["id"]
    alpha = np.zeros((48, 48), np.uint8)
    alpha[10:30, 12:28] = 255
    file = io.BytesIO()
    Image.fromarray(np.dstack([alpha] * 4)).save(file, format="PNG")
    mask = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    (picture,) = act(explorer, "inpainting", source=source, mask=mask, count=1)
    changed = np.asarray(Image.open(explorer.get(picture["image"]))) != np.asarray(Image.open(phantom))
    assert changed[alpha > 0].any() and not changed[alpha == 0].any() and list(picture["files"]) == ["PNG"]
    with pytest.raises(SettingsError):
        act(explorer, "inpainting", source=source, mask=mask[:-40])


@pytest.mark.parametrize(
    ("action", "wish"),
    [
        *(("prior", {name: value}) for name, value in [("count", 0), ("count", 1.5), ("seed", -1), ("guidance", "x")]),
        *(("variation", {"source": name}) for name in ("0" * 16, "../..", None, 3)),
        ("explode", {}),
    ],
)
def test_what_cannot_be_is_refused(explorer, action, wish):
    with pytest.raises(UserError):
        act(explorer, action, **wish)


def test_what_cannot_be_read_is_told_in_the_readers_words_and_not_kept(explorer):
    before = set(explorer.folder.iterdir())
    with pytest.raises(SettingsError, match=r"(?s)report\.pdf: found .*PDF.*expected"):
        upload(explorer, b"%PDF-1.7 a report", "report.pdf")
    assert set(explorer.folder.iterdir()) == before
    assert explorer.get("/pictures/../explore.html") is None and explorer.get("/samples/variation/7") is None


def test_bundles_of_something_else_are_refused(tmp_path):
    save_weights(make_tiny_codec(), tmp_path / "models" / "model.pt")
    with pytest.raises(SettingsError):
        explore.Explorer([tmp_path], tmp_path)


# ---- in a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"needs a browser: one of {', '.join(BROWSERS)}")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, explorer):
    server = PageServer(0, explorer.get, explorer.post)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    page.set_default_timeout(60_000)
    faults, asked = [], []
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.address)
    page.wait_for_selector(".drop")
    yield page
    page.close()
    server.shutdown()
    server.server_close()
    assert not [fault for fault in faults if "400 (Bad Request)" not in fault]  # refused on purpose
    assert asked and all(url.startswith((server.address, "data:", "blob:")) for url in asked)


def drop(page, path, place=0):
    content = base64.b64encode(path.read_bytes()).decode()
    page.evaluate(
        """([content, name, place]) => {
            const data = new DataTransfer();
            data.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name));
            const box = document.querySelectorAll(".source:not([hidden]) .picture")[place];
            box.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        [content, path.name, place],
    )


RESULT = "#result .picture > img"


@pytest.mark.parametrize("width", [1280, 390])
def test_a_person_drops_a_file_varies_it_paints_and_downloads(page, phantom, width):
    page.set_viewport_size({"width": width, "height": 844})
    drop(page, phantom)
    page.wait_for_selector(".source .picture > img")
    page.fill("#seed", "5")
    page.click("#run")
    page.wait_for_selector(RESULT)
    assert page.locator("#strip img").count() == 4
    with page.expect_download() as download:
        page.click("#result >> text=DICOM")
    assert pydicom.dcmread(download.value.path()).ConversionType == "SYN"
    page.click("text=Inpaint")
    assert page.is_disabled("#run")
    box = page.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.6, steps=3)
    page.mouse.up()
    page.click("#run")
    page.wait_for_selector(RESULT)
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_two_are_joined_with_the_keyboard_alone(page):
    page.focus("#tabs input:checked")
    page.keyboard.press("ArrowRight")
    for place in (0, 1):
        page.locator(".samples").first.locator("button").nth(place).focus()
        page.keyboard.press("Enter")
        page.wait_for_selector(f".source:{('first', 'last')[place]}-of-type .picture > img")
    page.wait_for_function("document.activeElement.id === 'run'")
    page.keyboard.press("Enter")
    page.wait_for_selector(RESULT)
    first = page.get_attribute(RESULT, "src")
    page.focus("#strip input:checked")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute(RESULT, "src") != first


def test_masks_have_areas_and_are_switched_by_class(page, phantom, tmp_path):
    page.click("text=Dental masks")
    (tmp_path / "none.txt").write_text("no radiograph")
    drop(page, tmp_path / "none.txt")
    page.wait_for_selector("#error:not([hidden])")
    assert "none.txt: found" in page.inner_text("#error") and "expected" in page.inner_text("#error")
    drop(page, phantom)
    page.click("#run")
    page.wait_for_selector("#classes input")
    assert page.is_hidden("#error") and page.locator(".layer:visible").count() == 5
    areas = [int(text.split()[0].replace(",", "")) for text in page.locator("#classes output").all_inner_texts()]
    assert 0 < sum(areas) <= 48 * 48
    page.uncheck("#classes input >> nth=1")
    assert page.locator(".layer:visible").count() == 4 and page.locator(".layer >> nth=1").is_hidden()
