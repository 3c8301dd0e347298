"""One row of a generated folder's manifest: how an image was made, as fields and as cells of text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import PurePosixPath

_FLAGS = {None: "", True: "yes", False: "no"}


def several(cell: str) -> tuple[str, ...]:
    """The values that a cell of the manifest joins by semicolons."""
    return tuple(part.replace("%3B", ";").replace("%25", "%") for part in cell.split(";") if part)


@dataclass(frozen=True)
class ManifestRow:
    """How one image was made.

    Attributes:
        image: its path relative to the folder, with forward slashes.
        strategy: how the embedding was chosen: variation, interpolation, neighbourhood or prior; or unconditional.
        seed: of this sample.
        num_inference_steps: of the sampler.
        guidance_scale: of classifier-free guidance; 1 is none.
        method: the sampler's name.
        weights_sha256: of the weights.
        sources: paths of the source images; none for `prior` and `unconditional`.
        source_patient_ids: the patient of each source, from the data list.
        mix: interpolation weight in [0, 1] of the second source; None where nothing is mixed.
        label: that of the sources where they agree, else "".
        flagged: whether the privacy check took it for a copy; None if it was not checked.

    Raises:
        ValueError: a path that leaves the folder, or a source without patient.
    """

    image: str
    strategy: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    method: str
    weights_sha256: str
    sources: tuple[str, ...] = ()
    source_patient_ids: tuple[str, ...] = ()
    mix: float | None = None
    label: str = ""
    flagged: bool | None = None

    def __post_init__(self) -> None:
        path = PurePosixPath(self.image)
        if path.is_absolute() or ".." in path.parts or str(path) != self.image or "\\" in self.image:
            raise ValueError(f"manifest row: found image {self.image!r}; expected a path like images/0001.png.")
        if len(self.sources) != len(self.source_patient_ids) or not all((*self.sources, *self.source_patient_ids)):
            raise ValueError(
                f"manifest row {self.image}: found sources {self.sources} of patients {self.source_patient_ids}; "
                "expected one patient for each source, or a split by patient would not hold."
            )

    def provenance(self) -> dict[str, str]:
        """What may go into the picture itself: all but the sources, whose names may be those of patients."""
        hidden = ("image", "sources", "source_patient_ids")
        return {name: cell for name, cell in self.cells().items() if cell and name not in hidden}

    def cells(self) -> dict[str, str]:
        """The row as text; several values are joined by semicolons."""
        cells = {field.name: getattr(self, field.name) for field in fields(self)}
        cells["flagged"] = _FLAGS[self.flagged]
        for name in ("sources", "source_patient_ids"):
            cells[name] = ";".join(value.replace("%", "%25").replace(";", "%3B") for value in cells[name])
        return {name: "" if value is None else str(value) for name, value in cells.items()}

    @classmethod
    def from_cells(cls, cells: Mapping[str, str]) -> ManifestRow:
        """The row that `cells` came from; KeyError or ValueError if it came from none."""
        return cls(
            image=cells["image"],
            strategy=cells["strategy"],
            seed=int(cells["seed"]),
            num_inference_steps=int(cells["num_inference_steps"]),
            guidance_scale=float(cells["guidance_scale"]),
            method=cells["method"],
            weights_sha256=cells["weights_sha256"],
            sources=several(cells["sources"]),
            source_patient_ids=several(cells["source_patient_ids"]),
            mix=float(cells["mix"]) if cells["mix"] else None,
            label=cells["label"],
            flagged={text: flag for flag, text in _FLAGS.items()}[cells["flagged"]],
        )


ROW_COLUMNS = tuple(field.name for field in fields(ManifestRow))
