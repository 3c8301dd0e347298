import json
from dataclasses import dataclass

import numpy as np
import torch

from common.experiments.attention_segmenter import OTSU, Seen, SegmentSettings
from common.experiments.lung_choice import ChoiceSettings
from common.experiments.lung_tuning import Tuned, coordinate_search, tune_method
from common.experiments.position_prior import EllipsePrior, dice


@dataclass(frozen=True)
class Knobs:
    a: float = 0.0
    b: float = 0.0


def test_each_field_goes_to_its_best_candidate():
    grid = {"a": (-1.0, 1.0, 2.0), "b": (3.0, 4.0)}
    best, score = coordinate_search(Knobs(), grid, lambda k: -((k.a - 1) ** 2) - (k.b - 4) ** 2, "test")
    assert best == Knobs(1.0, 4.0) and score == 0


def test_what_is_there_stays_where_nothing_is_better():
    best, score = coordinate_search(Knobs(), {"a": (1.0,), "b": (1.0,)}, lambda _: 0.5, "test")
    assert best == Knobs() and score == 0.5


def test_settings_survive_json():
    tuned = Tuned(EllipsePrior(0.4), {"diffseg": SegmentSettings(anchors=8)}, {"diffseg": ChoiceSettings(bias=0.4)})
    assert Tuned.from_plain(json.loads(json.dumps(tuned.plain()))) == tuned


def test_tuning_learns_from_training_masks():
    """Lungs above where the prior has them, and a bias that lets nothing be lung: the search finds the way out."""
    truth = np.zeros((64, 64), bool)
    truth[8:30, 6:24] = truth[8:30, 40:58] = True
    image = torch.from_numpy(np.where(truth, 0.2, 0.8).astype(np.float32))[None]
    seen = Seen(image, torch.zeros(1, 1), (1, 1), {500.0: [torch.full((8, 8, 8, 8), 1 / 64)]})
    prior = EllipsePrior()
    start = SegmentSettings(), ChoiceSettings(attention=0.0, bias=-20.0)
    _, choice, after = tune_method(OTSU, [seen], [truth], prior, start, rounds=2)
    assert after > 0.95 > 0.8 > dice(prior.mask((64, 64)), truth)
    assert choice.bias > -1
