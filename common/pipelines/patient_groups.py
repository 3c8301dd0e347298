"""Which patients no split may tear apart, because images were made of several of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class PatientGroups:
    """Patients that share an image, directly or through others; each group is named after one of them.

    Args:
        images: of each, the patients that it shows.
    """

    def __init__(self, images: Iterable[Sequence[str]]) -> None:
        self._towards: dict[str, str] = {}  # patient -> patient nearer to the group's name; the name leads to itself
        for patients in images:
            self.join(patients)

    def name(self, patient: str) -> str:
        """The name of a known patient's group."""
        while self._towards[patient] != patient:
            self._towards[patient] = self._towards[self._towards[patient]]
            patient = self._towards[patient]
        return patient

    def join(self, patients: Sequence[str]) -> bool:
        """Make one group of these; returns whether a group that was there before changes its name."""
        known = list(dict.fromkeys(self.name(patient) for patient in patients if patient in self._towards))
        for patient in patients:
            self._towards.setdefault(patient, patient)
        for patient in patients:
            self._towards[self.name(patient)] = known[0] if known else patients[0]
        return len(known) > 1
