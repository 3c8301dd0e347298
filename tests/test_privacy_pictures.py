"""The most suspicious samples stand first, beside what they may have copied."""

import numpy as np
from PIL import Image
from privacy_folders import SIZE, copy_of, fresh, generate, phantom


def test_sheet_shows_samples_beside_their_neighbours_the_worst_first(tmp_path, real_phantoms, privacy_check):
    generate(tmp_path / "generated", [*fresh(3), copy_of(3)])
    privacy_check(real_phantoms, num_examples=2).run()
    with Image.open(tmp_path / "report" / "flagged.png") as sheet:
        assert sheet.width == 4 + 3 * (SIZE + 4) and sheet.height == 24 + 2 * (SIZE + 4 + 20)
        cells = [np.asarray(sheet)[44 : 44 + SIZE, 4 + i * (SIZE + 4) :][:, :SIZE] for i in range(3)]
    expected = [(phantom(3)[0] * 255).numpy()] * 3
    assert np.abs(cells[0] - expected[0]).mean() < 5  # the copy has noise
    for cell, image in zip(cells[1:], expected[1:], strict=True):
        np.testing.assert_allclose(cell, image, atol=1)


def test_the_plot_has_distances_and_ratios_of_both_spaces(tmp_path, real_phantoms, privacy_check):
    generate(tmp_path / "generated", fresh(3))
    privacy_check(real_phantoms).run()
    with Image.open(tmp_path / "report" / "distances.png") as picture:
        assert picture.size == (960, 480)
        grey, blue = (np.all(np.asarray(picture) == colour, axis=-1) for colour in ((187, 187, 187), (31, 79, 216)))
    for rows in (slice(0, 240), slice(240, 480)):
        for columns in (slice(0, 480), slice(480, 960)):
            assert grey[rows, columns].any() and blue[rows, columns].any(), "held-out images and samples"
