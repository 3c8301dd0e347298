"""Can samples be linked to patients of the training set? What a verification head finds, and how much it can find.

The head is a linear map of DINO's cls tokens after which the differences between two images of one patient are white
(within-class covariance normalisation, Hatch et al. 2006), fitted on the pairs that the training set has of patients
with several images. How well it tells patients apart is measured on pairs of held-out patients, and whether it would
find a generator that shows patients in pictures of its own, on another picture of held-out patients that are added to
the training set for that purpose. Only then samples are looked at.

This finds no more than these figures say. DINO was not made to recognise people: a network trained on many images of
many patients (Packhäuser et al. 2022, doi 10.1038/s41598-022-19045-3) would find more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .held_out_ratios import Floats, HeldOutRatios, codes, nearer
from .nearest_patients import CopyFeatures, NearestPatients
from .report import Row, cell, draw_shares, markdown_table, plot_file

FALSE_ALARMS = 0.01  # share of pairs of different patients that may be taken for one
SHRINKAGE = 0.1  # of the covariance towards a multiple of the identity
LEAST_PATIENTS = 5  # with several images, on either side
NUM_RESAMPLES = 200


@dataclass(frozen=True)
class PatientImages:
    """N images with what is known of them."""

    features: CopyFeatures  # of the images
    patients: Sequence[Hashable]  # of each
    # of each, such as the hospital; pairs are compared within one, as any two sources are told apart easily
    sources: Sequence[Hashable]

    @property
    def is_repeated(self) -> NDArray[np.bool_]:
        """Whether an image's patient has others here."""
        count = Counter(self.patients)
        return np.array([count[patient] > 1 for patient in self.patients])

    def __getitem__(self, rows: Sequence[int]) -> PatientImages:
        patients, sources = ([values[row] for row in rows] for values in (self.patients, self.sources))
        return PatientImages(self.features[rows], patients, sources)


class PatientHead:
    """The map, fitted on the images whose patient has several."""

    def __init__(self, train: PatientImages) -> None:
        tokens = train.features.embeddings.double().numpy()
        rows = np.flatnonzero(train.is_repeated)
        patients = codes([train.patients[row] for row in rows.tolist()])
        sums = np.zeros((patients.max() + 1, tokens.shape[1]))
        np.add.at(sums, patients, tokens[rows])
        within = tokens[rows] - (sums / np.bincount(patients)[:, None])[patients]
        covariance = within.T @ within / (len(rows) - len(sums))
        ridge = SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        self.mean = tokens.mean(0)
        self.whitening = np.linalg.inv(np.linalg.cholesky((1 - SHRINKAGE) * covariance + ridge)).T
        self.num_patients, self.num_images = len(sums), len(rows)

    def __call__(self, features: CopyFeatures) -> CopyFeatures:
        """The same images, with embeddings whose cosine says whether two are of one patient."""
        mapped = (features.embeddings.double().numpy() - self.mean) @ self.whitening
        return replace(features, embeddings=torch.from_numpy(mapped).float())


class LinkCheck:
    """Fit the head, measure it on held-out patients, and look at samples.

    The distance to the nearest training patient is compared with that to `num_neighbours`; at most `false_flag_rate` of
    images of new patients may be linked. `run` leaves the ratios of "held out", "planted" and "samples".
    """

    def __init__(
        self, train: PatientImages, held_out: PatientImages, num_neighbours: int, false_flag_rate: float
    ) -> None:
        self.train, self.held_out = train, held_out
        self.num_neighbours, self.false_flag_rate = num_neighbours, false_flag_rate
        self.head = PatientHead(train)
        self.ratios: dict[str, Floats] = {}
        vectors = torch.nn.functional.normalize(self.head(held_out.features).embeddings, dim=1)
        first, second = np.triu_indices(len(vectors), 1)
        patients, sources = codes(held_out.patients), codes(held_out.sources)
        is_alike = sources[first] == sources[second]
        self._pairs = np.stack([patients[first], patients[second]], axis=1)[is_alike]
        self._pair_sources = np.array([str(source) for source in held_out.sources])[first[is_alike]]
        self.similarity = (vectors @ vectors.T).numpy()[first, second][is_alike]  # cosine
        self.is_same = self._pairs[:, 0] == self._pairs[:, 1]

    @classmethod
    def can(cls, train: PatientImages, held_out: PatientImages) -> bool:
        """Whether enough patients have several images, those held out within one source."""
        known, new = (
            {(source, who) for source, who, many in zip(x.sources, x.patients, x.is_repeated, strict=True) if many}
            for x in (train, held_out)
        )
        largest = max(Counter(source for source, _ in new).values(), default=0)
        return min(len(known), largest) >= LEAST_PATIENTS

    def run(self, samples: CopyFeatures, own: Sequence[tuple[int, ...]], groups: Sequence[Hashable]) -> Row:
        """All figures of samples as plain numbers; arguments as of `CopyReference.check`."""
        _, once = np.unique(self._pairs[self.is_same, 0], return_index=True)
        sources = Counter(self._pair_sources[self.is_same][once].tolist())
        shown = [source for source in sorted(sources) if sources[source] >= LEAST_PATIENTS]
        by_source = {source: self._verify(self._pair_sources == source) for source in shown}
        planted = self._planted()
        _, first = np.unique(codes(self.held_out.patients), return_index=True)
        new = self._nearest(self.train, self.held_out[first.tolist()].features)
        made = self._nearest(self.train, samples, own)
        self.ratios |= {"held out": new[1], "samples": made[1]}
        reference = HeldOutRatios(new[1], self.false_flag_rate)
        flags = reference.flags(made[1])
        probability, p_value = nearer(made[1], new[1], groups)
        return {
            "head": {"num_patients": self.head.num_patients, "num_images": self.head.num_images},
            "pairs": {"all": self._verify(np.ones(len(self.is_same), bool)), **by_source},
            "planted": planted,
            "samples": {
                "num_samples": len(samples),
                "flagged": int(flags.sum()),
                "expected_flagged": len(samples) * reference.rank / (len(new[1]) + 1),
                "count_p_value": reference.count_p_value(flags, groups),
                "probability_sample_is_nearer": probability,
                "p_value": p_value,
            },
        }

    def _verify(self, chosen: NDArray[np.bool_]) -> Row:
        """AUC and power of pairs, every patient with several images counting once; intervals by resampling patients."""
        order = np.flatnonzero(chosen)[np.argsort(self.similarity[chosen], kind="stable")]
        pairs, is_same = self._pairs[order], self.is_same[order]
        rng, count = np.random.default_rng(0), int(self._pairs.max()) + 1
        once = np.where(is_same, 1 / np.bincount(pairs[is_same, 0], minlength=count).clip(1)[pairs[:, 0]], 1.0)
        found = [_auc_and_power(is_same, once)]
        for _ in range(NUM_RESAMPLES):
            times = np.bincount(rng.integers(count, size=count), minlength=count)
            weights = np.where(is_same, times[pairs[:, 0]], times[pairs[:, 0]] * times[pairs[:, 1]])
            found.append(_auc_and_power(is_same, once * weights))
        low, high = np.nanquantile(found[1:], [0.025, 0.975], axis=0).tolist()
        return {
            "num_same": int(is_same.sum()),
            "num_different": int((~is_same).sum()),
            "num_patients": len(np.unique(pairs[is_same])),
            **{"auc": found[0][0], "auc_ci": [low[0], high[0]], "power": found[0][1], "power_ci": [low[1], high[1]]},
        }

    def _planted(self) -> Row:
        """A generator that shows known patients in new pictures: held-out patients, one image trained on, one shown."""
        rows: dict[Hashable, list[int]] = {}
        for row, patient in enumerate(self.held_out.patients):
            rows.setdefault(patient, []).append(row)
        several = [found for found in rows.values() if len(found) > 1]
        several = several[:: 1 if 2 * len(several) < len(rows) else 2]  # some stay to calibrate on
        new_rows = [found[0] for found in rows.values() if found not in several]
        known, shown = self.held_out[[found[0] for found in several]], self.held_out[[found[1] for found in several]]
        gallery = _joined(self.train, known)
        new = self._nearest(gallery, self.held_out[new_rows].features)
        nearest, ratio = self._nearest(gallery, shown.features)
        self.ratios["planted"] = ratio
        is_right = np.array([gallery.patients[i] == p for i, p in zip(nearest, shown.patients, strict=True)])
        flags = HeldOutRatios(new[1], self.false_flag_rate).flags(ratio)
        return {
            "num_patients": len(several),
            "nearest_is_right": int(is_right.sum()),
            "flagged": int(flags.sum()),
            "linked": int((flags & is_right).sum()),
        }

    def _nearest(
        self, gallery: PatientImages, queries: CopyFeatures, own: Sequence[tuple[int, ...]] | None = None
    ) -> tuple[NDArray[np.integer], Floats]:
        """Index of the nearest image of the gallery, and the ratio of distances."""
        known, asked = self.head(gallery.features), self.head(queries)
        patients = NearestPatients(known, asked, gallery.patients, self.num_neighbours, 0)
        index, distance, typical = patients.nearest("embedding", asked, own or [()] * len(queries))
        return index, distance / typical


def _auc_and_power(is_same: NDArray[np.bool_], weights: Floats) -> tuple[float, float]:
    """Area under the ROC curve, and power at `FALSE_ALARMS`, of weighted pairs in ascending order of similarity."""
    same, different = np.where(is_same, weights, 0), np.where(is_same, 0, weights)
    if not (same.any() and different.any()):  # a resample without
        return np.nan, np.nan
    below = np.cumsum(different)
    is_found = 1 - below / below[-1] < FALSE_ALARMS
    return (
        float((same * (below - different / 2)).sum() / (same.sum() * below[-1])),
        float(same[is_found].sum() / same.sum()),
    )


def _joined(a: PatientImages, b: PatientImages) -> PatientImages:
    embeddings, pictures = (
        torch.cat([getattr(each.features, name) for each in (a, b)]) for name in ("embeddings", "pictures")
    )
    return PatientImages(CopyFeatures(embeddings, pictures), [*a.patients, *b.patients], [*a.sources, *b.sources])


# ---- the report ------------------------------------------------------------------------------------------------------


def draw_links(path: str | Path, check: LinkCheck) -> None:
    """Histograms of what the head says of held-out pairs and of the nearest patients, which show nobody."""
    pairs = {"two patients": check.similarity[~check.is_same], "one patient": check.similarity[check.is_same]}
    with plot_file(path, panels=2, columns=2) as panels:
        titles = "similarity of held-out pairs of one source", "distance to the nearest patient over the nearest few"
        for axes, series, title in zip(panels, (pairs, check.ratios), titles, strict=True):
            draw_shares(axes, series, title)
            axes.legend()


def link_markdown(link: Row) -> str:
    """What `LinkCheck.run` gives, as sentences and a table by source."""
    head, planted, samples = link["head"], link["planted"], link["samples"]
    lines = []
    for source, found in link["pairs"].items():
        shown = [
            f"{found[name]:.3f} [{found[f'{name}_ci'][0]:.3f}, {found[f'{name}_ci'][1]:.3f}]"
            for name in ("auc", "power")
        ]
        lines.append([source, str(found["num_same"]), str(found["num_patients"]), *shown])
    columns = ["held-out pairs", "of one patient", "patients", "AUC", f"found at {FALSE_ALARMS:.0%} false alarms"]
    worst = max((name for name in link["pairs"] if name != "all"), key=lambda name: link["pairs"][name]["auc"])
    nearer, tables = cell(samples["probability_sample_is_nearer"], 0, factor=100), markdown_table(columns, lines)
    return (
        f"Patients: {samples['flagged']} of {samples['num_samples']} samples are linked to a training patient; of "
        f"images of new patients {samples['expected_flagged']:.1f} would be (p = {samples['count_p_value']:.2g}).\n"
        f"Samples are nearer than new patients in {nearer} % of comparisons (p = {samples['p_value']:.2g}).\n"
        f"Of {planted['num_patients']} patients shown in another picture, {planted['linked']} are linked to the right "
        f"patient; the nearest one is right for {planted['nearest_is_right']}.\n"
        f"The head was fitted on {head['num_images']} images of {head['num_patients']} training patients; those of "
        f"{worst} are the easiest to recognise.\n\n{tables}"
    )
