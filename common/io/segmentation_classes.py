"""The one table of classes: label values, names, colours, and which mask value of a data set means what.

Everything else follows from it: the channels of the network, `channel_def` of metadata.json, palettes, legends,
columns of tables and segments of DICOM SEG.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError

Colour = tuple[int, int, int]
Category = Literal["anatomical structure", "abnormality", "material"]

BACKGROUND = "background"
OWN_LABELS = "labels"  # of masks that hold a table's labels; not None, which MONAI's command line drops
MAX_LABELS = 256  # masks are files of 8 bits


@dataclass(frozen=True)
class SegmentationClass:
    """One class beside the background."""

    name: str  # in lower case, such as "root canal filling"
    colour: Colour  # sRGB, 0 to 255
    category: Category  # what kind of thing it is, for DICOM SEG

    def __post_init__(self) -> None:
        if self.category not in get_args(Category) or len(self.colour) != 3 or not set(self.colour) <= set(range(256)):
            raise ValueError(f"{self.name}: {self.colour}, {self.category}")

    @property
    def key(self) -> str:
        """The name for column headings and JSON keys."""
        return self.name.replace(" ", "_")


@dataclass(frozen=True)
class ClassTable:
    """The classes that a network tells apart; label 0 is background, label i is `classes[i - 1]`."""

    name: str  # of the table
    classes: tuple[SegmentationClass, ...]  # in the order of their labels
    # For each data set the label of each value its masks have (0 is background everywhere)
    mask_values: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    mirror_pairs: tuple[tuple[int, int], ...] = ()  # labels that change places when an image is flipped left to right

    @property
    def num_labels(self) -> int:
        """Labels with the background: the channels of the network's output."""
        return len(self.classes) + 1

    @property
    def names(self) -> list[str]:
        """Names by label, the background first."""
        return [BACKGROUND, *(entry.name for entry in self.classes)]

    def label_of(self, name: str) -> int:
        """Label of a class; raises `DatasetError` where there is no such class."""
        if name not in self.names:
            raise DatasetError(f"classes: found {name!r}; expected one of {', '.join(self.names)}.")
        return self.names.index(name)

    def palette(self) -> list[int]:
        """256 colours as Pillow's `putpalette` wants them: 768 numbers; background and unused labels are black."""
        colours = [(0, 0, 0), *(entry.colour for entry in self.classes)]
        return [level for colour in colours for level in colour] + [0] * 3 * (MAX_LABELS - len(colours))

    def mirrored_labels(self) -> list[int]:
        """The label that each label becomes when an image is flipped left to right; its own inverse.

        As an index over channels it also undoes the flip of a prediction: `probabilities[mirrored_labels].flip(-1)`.
        """
        labels = list(range(self.num_labels))
        for one, other in self.mirror_pairs:
            labels[one], labels[other] = other, one
        return labels

    def recognised(self, values: Iterable[int]) -> str | None:
        """Data set whose masks hold these values, "labels" where that is no matter; None where they leave it open.

        Raises:
            DatasetError: a value that neither this table nor a data set of it has.
        """
        found, own = set(values), set(range(self.num_labels))
        fitting = [name for name, label_of in self.mask_values.items() if found <= {0, *label_of}]
        if found <= own and all(self.mask_values[name].get(value, 0) == value for name in fitting for value in own):
            return OWN_LABELS
        if not fitting and not found <= own:
            raise DatasetError(
                f"found mask values {sorted(found)[:12]}; no data set of class table {self.name} has them "
                f"({', '.join(self.mask_values)}). Choose the table that the masks were drawn for."
            )
        return fitting[0] if len(fitting) == 1 and not found <= own else None

    def map_mask(self, mask: NDArray[np.integer], dataset: str | None) -> NDArray[np.int64]:
        """Labels for the values of a mask of any shape: of a data set in `mask_values`, or (None) of this table's own.

        Raises:
            DatasetError: the table has no such data set, or the mask has a value without a label.
        """
        if dataset is not None and dataset not in self.mask_values:
            raise DatasetError(
                f"class table {self.name}: found masks of {dataset!r}; expected one of "
                f"{', '.join(self.mask_values)}, or none for masks that hold this table's labels."
            )
        own = {label: label for label in range(self.num_labels)}
        label_of = own if dataset is None else {0: 0, **self.mask_values[dataset]}
        found = np.unique(mask).tolist()
        unknown = [value for value in found if value not in label_of]
        if unknown:
            raise DatasetError(
                f"found mask values {unknown[:8]}; expected {sorted(label_of)}, as masks "
                f"{'with the labels' if dataset is None else f'of {dataset!r}'} of class table {self.name} have them. "
                "Choose the table and the data set that the masks were drawn for."
            )
        lookup = np.zeros(max(found, default=0) + 1, np.int64)
        lookup[found] = [label_of[value] for value in found]
        return lookup[mask]


# Five and eleven colours that stay apart in normal vision and in protan, deutan and tritan deficiency (Machado et al.
# 2009): CIE76 distance of at least 20 in each. The five are of Okabe & Ito's set, the eleven were searched for.
_DECAY = (204, 121, 167)
_ANATOMY: Category = "anatomical structure"

GROUPED = ClassTable(
    name="grouped",
    classes=(
        SegmentationClass("root", (86, 180, 233), _ANATOMY),
        SegmentationClass("canal", (0, 114, 178), _ANATOMY),
        SegmentationClass("root canal filling", (240, 228, 66), "material"),
        SegmentationClass("apical lesion", (213, 94, 0), "abnormality"),
        SegmentationClass("decay", _DECAY, "abnormality"),
    ),
    mask_values={"periapical": {1: 4, 2: 1, 3: 2, 4: 1, 5: 2, 6: 1, 7: 2, 8: 2, 9: 1, 10: 3, 11: 5}},
)

ELEVEN = ClassTable(
    name="eleven",
    classes=(
        SegmentationClass("apical lesion", (255, 0, 255), "abnormality"),
        SegmentationClass("main root", (204, 204, 255), _ANATOMY),
        SegmentationClass("main canal", (51, 51, 255), _ANATOMY),
        SegmentationClass("mesial root", (51, 204, 0), _ANATOMY),
        SegmentationClass("mesial canal", (0, 102, 51), _ANATOMY),
        SegmentationClass("distal root", (255, 204, 153), _ANATOMY),
        SegmentationClass("distal canal", (153, 102, 0), _ANATOMY),
        SegmentationClass("palatal canal", (102, 102, 153), _ANATOMY),
        SegmentationClass("palatal root", (153, 153, 102), _ANATOMY),
        SegmentationClass("root canal filling", (153, 255, 0), "material"),
        SegmentationClass("decay", (102, 51, 153), "abnormality"),
    ),
    mask_values={"periapical": {value: value for value in range(1, 12)}},
    mirror_pairs=((4, 6), (5, 7)),
)

CARIES = ClassTable(
    name="caries",
    classes=(SegmentationClass("caries", _DECAY, "abnormality"),),
    mask_values={"panoramic": {1: 1}, "panoramic_molar_crops": {1: 1}},
)

TABLES = (GROUPED, ELEVEN, CARIES)


def class_table(name: str | Mapping[str, Any]) -> ClassTable:
    """The table "grouped" (the published labels 0 to 5), "eleven" (of the periapical set) or "caries" (panoramics).

    Or one of your own, as a config or weights describe it: the fields of `ClassTable`, in plain JSON types.

    Raises:
        DatasetError: there is no such table, or its description lacks a field or has a wrong one.
    """
    tables = {each.name: each for each in TABLES}
    if isinstance(name, str):
        if name not in tables:
            raise DatasetError(f"class table: found {name!r}; expected one of {', '.join(tables)}.")
        return tables[name]
    try:
        table = dict(name)
        classes = tuple(SegmentationClass(**{**each, "colour": tuple(each["colour"])}) for each in table["classes"])
        values = {
            of: {int(value): label for value, label in meant.items()}
            for of, meant in table.get("mask_values", {}).items()
        }
        named = {label for meant in values.values() for label in meant.values()}.union(*table.get("mirror_pairs", ()))
        if table["name"] in tables or not classes or not named <= set(range(len(classes) + 1)):
            raise ValueError("a name that is taken, no classes, or labels that are none")
        return ClassTable(**{**table, "classes": classes, "mask_values": values})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"class table: found {name}; expected the fields of ClassTable ({error})") from error
