"""Distances to training images and to the nearest patients, and what is left of a picture to compare."""

import numpy as np
import pytest
import torch
from test_copy_detection import SIZE, draw, join, noisy

from common.data.alignment import evened_out
from common.evaluation.nearest_patients import SPACES, NearestPatients

TRAIN, HELD_OUT = draw(30, 0), draw(5, 1)


def nearest_patients(patients=None, num_neighbours=3, max_shift=1):
    return NearestPatients(TRAIN, HELD_OUT, patients, num_neighbours, max_shift)


def test_brightness_and_contrast_do_not_matter():
    picture = draw(3, 0).pictures
    torch.testing.assert_close(evened_out(0.3 * picture + 5), evened_out(picture), atol=1e-3, rtol=0)
    assert not evened_out(torch.full((1, 1, SIZE, SIZE), 0.5)).any()  # and a blank one stays finite


@pytest.mark.parametrize("space", SPACES)
def test_an_image_is_nearest_to_itself_and_its_patient_can_be_left_out(space):
    patients = [number // 2 for number in range(30)]  # two images each
    found = nearest_patients(patients)
    index, distance, typical = found.nearest(space, TRAIN[[4, 9]], [(), ()])
    assert index.tolist() == [4, 9] and (distance < 1e-5).all() and (typical > 0.05).all()
    index, distance, _ = found.nearest(space, TRAIN[[4, 9]], [(5,), (9,)])
    assert not {4, 5} & {int(index[0])} and not {8, 9} & {int(index[1])} and (distance > 0.05).all()


@pytest.mark.parametrize("space", SPACES)
def test_sources_are_training_images_then_held_out_ones(space):
    samples = join(noisy(TRAIN[[3]], 2), noisy(HELD_OUT[[1]], 3), draw(1, 4))
    distance = nearest_patients().source_distance(space, samples, [(7, 3), (30 + 1,), ()])
    assert (distance[:2] < 0.05).all() and np.isnan(distance[2])
    assert (nearest_patients().source_distance(space, samples, [(7,), (3,), (30,)]) > 0.05).all()
