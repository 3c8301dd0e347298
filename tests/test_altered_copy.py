import numpy as np
import torch

from common.data.phantom import draw_chest_phantom
from common.evaluation.altered_copy import altered_copy


def test_altered_copies_are_near_but_not_the_same():
    image = draw_chest_phantom(64, 64, seed=0)
    first, again, other = (altered_copy(image, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == image.shape and first.dtype == torch.float32
    assert first.min() >= 0 and first.max() <= 1
    assert 0.9 < np.corrcoef(first.flatten(), image.flatten())[0, 1] < 0.9999
