import math

import pytest
import torch

from common.io.segmentation_classes import GROUPED
from common.label.active_learning import (
    ScoringParameters,
    predictive_entropy,
    sample_with_dropout,
    sample_with_flips,
    score_image,
)
from common.label.bundle import Bundle


@pytest.fixture
def pipeline(tiny_bundle):
    bundle = Bundle(tiny_bundle)
    return bundle.pipeline(bundle.shipped_weights, torch.device("cpu"))


def test_entropy_is_zero_where_sure_ln_k_where_nothing_is_known_and_ln_2_where_two_disagree():
    sure = torch.zeros(3, 4, 2, 2)
    sure[:, 1] = 1
    assert predictive_entropy(sure) == 0
    assert predictive_entropy(torch.full((3, 4, 2, 2), 0.25)) == pytest.approx(math.log(4))
    samples = torch.zeros(2, 2, 1, 1)
    samples[0, 0] = samples[1, 1] = 1
    assert predictive_entropy(samples) == pytest.approx(math.log(2))


def test_dropout_drops_repeatably_and_is_off_afterwards(pipeline):
    image, network = torch.rand(1, 1, 48, 64), pipeline.network
    with torch.no_grad():
        before = network(image)
        one = sample_with_dropout(image, network, 3, seed=1)
        torch.manual_seed(5)
        assert torch.equal(one, sample_with_dropout(image, network, 3, seed=1))
        assert not torch.equal(one, sample_with_dropout(image, network, 3, seed=2))
        assert not torch.equal(one[0], one[1])
        assert torch.equal(network(image), before) and not any(m.training for m in network.modules())


def test_flips_are_turned_back(pipeline):
    image = torch.rand(1, 1, 48, 64)
    with torch.no_grad():
        straight, mirrored = sample_with_flips(image, pipeline.network, GROUPED)
        again, other = sample_with_flips(image.flip(-1), pipeline.network, GROUPED)
    torch.testing.assert_close(straight, other.flip(-1))
    torch.testing.assert_close(mirrored, again.flip(-1))


def test_the_score_is_of_the_picture_not_of_its_padding(pipeline, studies):
    chosen = ScoringParameters(samples=2)
    score = score_image(pipeline, studies / "tooth_0.png", GROUPED, chosen)
    assert score == score_image(pipeline, studies / "tooth_0.png", GROUPED, chosen)
    probabilities = pipeline.sample_probabilities(studies / "tooth_0.png", lambda image, network: network(image))
    assert probabilities.shape == (1, 6, 47, 64)  # 45 × 61 made to fit 48 × 64
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(1, 47, 64))
