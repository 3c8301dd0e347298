import numpy as np
import pytest

from common.experiments.lung_baselines import membership_affinity
from common.experiments.pose_fit import COARSE, pose_evidence, pose_weights, posed_probability
from common.experiments.position_prior import POSES, USUAL, EllipsePrior, Pose, dice

PRIOR = EllipsePrior()
TRUE = Pose(0.04, -0.06, 0.9, 0.87)
GRID = (32, 32)


@pytest.fixture
def affinity():
    """Lungs in an unusual pose attend to lungs, the rest to the rest."""
    return membership_affinity(PRIOR.mask(GRID, TRUE).astype(int), GRID)


def test_structure_tells_the_pose(affinity):
    evidence = pose_evidence(PRIOR, affinity, np.zeros(GRID))
    best = int(evidence.association.argmax())
    assert POSES[best] == TRUE and evidence.association[best] == pytest.approx(2, abs=1e-4)
    weights = pose_weights(evidence, association=200, contrast=0, deviation=0)
    assert weights.sum() == pytest.approx(1) and weights.argmax() == best
    posed = posed_probability(PRIOR, weights, 0.05) > 0.5
    truth = PRIOR.mask(COARSE, TRUE)
    assert dice(posed, truth) > 0.95 > 0.9 > dice(PRIOR.mask(COARSE), truth)


def test_darkness_tells_the_pose_too():
    darkness = np.where(PRIOR.mask(GRID, TRUE), 1.0, -1.0)
    evidence = pose_evidence(PRIOR, np.full((1024, 1024), 1 / 1024), darkness)
    assert np.ptp(evidence.association) < 1e-3
    assert POSES[int(pose_weights(evidence, 0, 50, 0).argmax())] == TRUE


def test_without_evidence_the_usual_pose_is_likeliest(affinity):
    weights = pose_weights(pose_evidence(PRIOR, affinity, np.zeros(GRID)), 0, 0, 0.5)
    assert POSES[int(weights.argmax())] == USUAL
