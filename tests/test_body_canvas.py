"""Body coordinates follow tilt, shift and scale, and thicknesses are those of the solids they are named after."""

import numpy as np
import pytest

from common.data.body_canvas import BodyCanvas, smooth_curve


def centre_of(image, canvas):
    """Centre of mass in the picture's own coordinates, (x, y)."""
    return [float((image * frame).sum() / image.sum()) for frame in (canvas.frame_x, canvas.frame_y)]


def test_the_shorter_side_spans_two_units_and_pixels_are_square():
    canvas = BodyCanvas(40, 60)
    assert canvas.x[0, -1] - canvas.x[0, 0] == pytest.approx(59 * canvas.pixel) and canvas.pixel == 2 / 40
    assert canvas.y[-1, 0] == pytest.approx(1 - canvas.pixel / 2)


def test_what_is_drawn_moves_grows_and_turns_with_the_body():
    plain = BodyCanvas(128, 128)
    moved = BodyCanvas(128, 128, shift=(0.25, -0.125), scale=1.5)
    dot, other = (canvas.ellipse((0.0, 0.0), (0.2, 0.2)) for canvas in (plain, moved))
    assert centre_of(other, moved) == pytest.approx([0.25, -0.125], abs=0.01)
    assert (other > 0).sum() == pytest.approx(1.5**2 * (dot > 0).sum(), rel=0.05)
    turned = BodyCanvas(128, 128, tilt=np.pi / 2)
    assert centre_of(turned.ellipse((0.5, 0.0), (0.1, 0.1)), turned) == pytest.approx([0.0, 0.5], abs=0.01)


def test_an_ellipsoid_is_thickest_in_the_middle_and_a_tube_has_its_radius():
    canvas = BodyCanvas(200, 200)
    ball = canvas.ellipse((0.0, 0.0), (0.5, 0.5))
    np.testing.assert_allclose(ball[100, 100:150], np.sqrt(1 - (canvas.x[100, 100:150] / 0.5) ** 2), atol=0.02)
    line = np.stack([np.linspace(-0.5, 0.5, 400), np.zeros(400)], axis=1)
    tube, hollow = (canvas.tube(line, np.full(400, 0.2), share) for share in (0.0, 0.5))
    assert tube[100, 100] == pytest.approx(0.2, abs=0.01) and tube[0, 0] == 0 and tube[100, 190] == 0
    assert hollow[100, 100] < tube[100, 100] and hollow[82, 100] == tube[82, 100] > 0


def test_a_curve_goes_through_its_points_without_overshooting():
    curve = smooth_curve([(0.0, 0.0), (1.0, 1.0), (2.0, 1.0)], 201)
    assert curve.shape == (201, 2) and curve[0].tolist() == [0, 0] and curve[100].tolist() == [1, 1]
    assert curve[:, 1].max() <= 1.0
