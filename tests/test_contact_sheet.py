import numpy as np
import torch
from PIL import Image

from common.io.contact_sheet import GAP, TEXT_HEIGHT, contact_sheet_array, reconstruction_rows
from common.io.contact_sheet import save_contact_sheet as save


def flat(value, height=20, width=30, channels=1):
    return torch.full((channels, height, width), value)


def test_reconstruction_rows_by_hand():
    images, reconstructions = torch.full((2, 1, 2, 2), 0.5), torch.full((2, 1, 2, 2), 0.5)
    reconstructions[0] += 0.1
    reconstructions[1] -= 0.4
    rows = reconstruction_rows(images, reconstructions)
    assert [len(row) for row in rows] == [3, 3]
    assert torch.equal(rows[1][0], images[1]) and torch.equal(rows[1][1], reconstructions[1])
    torch.testing.assert_close(rows[0][2], torch.full((1, 2, 2), 0.4))
    assert torch.equal(rows[1][2], torch.ones(1, 2, 2))


def test_cells_hold_the_images_row_by_row():
    sheet = contact_sheet_array([[flat(0.0), flat(0.2)], [flat(0.4), flat(1.0)]])
    assert sheet.dtype == np.uint8
    assert sheet.shape == (GAP + 2 * (20 + GAP), GAP + 2 * (30 + GAP))
    for r, row in enumerate([(0, 51), (102, 255)]):
        for c, level in enumerate(row):
            y, x = GAP + r * (20 + GAP), GAP + c * (30 + GAP)
            assert (sheet[y : y + 20, x : x + 30] == level).all()


def test_different_sizes_are_padded_below_and_to_the_right_so_that_pixels_lie_side_by_side():
    sheet = contact_sheet_array([[flat(0.0, 20, 30), flat(0.0, 10, 12)]])
    assert (sheet == 0).sum() == 20 * 30 + 10 * 12
    second = sheet[GAP : GAP + 20, GAP + 34 : GAP + 64]
    assert (second[:10, :12] == 0).all()


def test_scale_enlarges_and_reduces():
    pattern = torch.tensor([[0.0, 1.0], [1.0, 0.0]])[None]
    large = contact_sheet_array([[pattern]], scale=3)[GAP:-GAP, GAP:-GAP]
    assert np.array_equal(large, np.kron(np.array([[0, 255], [255, 0]], dtype=np.uint8), np.ones((3, 3), np.uint8)))
    small = contact_sheet_array([[pattern.repeat(1, 4, 4)]], scale=0.5)[GAP:-GAP, GAP:-GAP]
    assert small.shape == (4, 4) and (abs(small.astype(int) - 128) <= 1).all()


def test_titles_and_captions_take_their_own_lines_and_are_cut_to_the_sheet():
    rows = [[flat(1.0, 20, 200)], [flat(1.0, 20, 200)]]
    plain, titled = contact_sheet_array(rows), contact_sheet_array(rows, ["input"], ["PSNR 34.1 dB " * 99, "b"])
    assert titled.shape == (plain.shape[0] + 3 * TEXT_HEIGHT, 200 + 2 * GAP)
    assert (plain == 255).all() and (titled[:, -GAP:] == 255).all()
    assert (titled[: GAP + TEXT_HEIGHT] < 100).any()  # the title
    assert (titled[GAP + TEXT_HEIGHT : GAP + 2 * TEXT_HEIGHT] < 100).any()  # the first caption


def test_several_captions_share_a_row_and_a_footer_lies_below_all():
    rows = [[flat(1.0, 20, 100)] * 2, [flat(1.0, 20, 100)]]
    titled = contact_sheet_array(rows, row_captions=[["a " * 99, "b"], ["c"]])
    second = titled[GAP : GAP + TEXT_HEIGHT, 100 + 2 * GAP :]
    assert (second[:, :30] < 100).any() and (second[:, 30:] == 255).all()  # the first does not run into it
    footed = contact_sheet_array(rows, footer=lambda width: Image.new("RGB", (width, 7), (200, 0, 0)))
    assert (footed[-7:] == (200, 0, 0)).all() and (footed[:-7, :, 1] == footed[:-7, :, 0]).all()


def test_colour_and_values_out_of_range():
    image = torch.tensor([[[2.0, -1.0, torch.nan, torch.inf]]])
    assert contact_sheet_array([[image]])[GAP, GAP:-GAP].tolist() == [255, 0, 0, 255]
    red = torch.zeros(3, 5, 5)
    red[0] = 1
    sheet = contact_sheet_array([[red, flat(0.0, 5, 5)]])
    assert sheet.ndim == 3 and sheet[GAP + 2, GAP + 2].tolist() == [255, 0, 0]


def test_png_is_written_whole(tmp_path):
    path = save([[flat(0.2), flat(0.8)]], tmp_path / "deep" / "sheet.png", ["a", "b"], ["PSNR 34.1 dB"])
    assert [p.name for p in path.parent.iterdir()] == ["sheet.png"]
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.mode == "L"
        assert np.array_equal(
            np.asarray(picture), contact_sheet_array([[flat(0.2), flat(0.8)]], "ab", ["PSNR 34.1 dB"])
        )
