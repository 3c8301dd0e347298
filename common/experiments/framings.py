"""The framing drill: the same radiograph, framed otherwise, in which the same lungs have to be found."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


@dataclass(frozen=True)
class Framing:
    """How a radiograph comes to lie in a picture of its own size."""

    scale: float = 1.0  # of the radiograph
    down: float = 0.0  # shift, share of the sides
    across: float = 0.0
    angle: float = 0.0  # that it is turned by, degrees
    border: float = 0.0  # grey value around it

    def of_image(self, image: NDArray[np.floating]) -> NDArray[np.float32]:
        """An image [H, W] in [0, 1], framed."""
        return self._moved(image.astype(np.float32), self.border)

    def of_mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask [H, W] of the image, framed; what no longer lies in the picture is lost."""
        return self._moved(mask.astype(np.float32), 0.0) > 0.5

    def _moved(self, values: NDArray[np.float32], border: float) -> NDArray[np.float32]:
        size, turn = np.array(values.shape), math.radians(self.angle)
        matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) / self.scale
        centre = (size - 1) / 2
        offset = centre - matrix @ (centre + size * (self.down, self.across))
        return ndimage.affine_transform(values, matrix, offset, order=1, mode="constant", cval=border)


FRAMINGS = {
    "as it is": Framing(),
    "80 %, black border": Framing(0.8),
    "60 %, black border": Framing(0.6),
    "80 %, white border": Framing(0.8, border=1.0),
    "60 %, white border": Framing(0.6, border=1.0),
    "15 % to the right": Framing(across=0.15),
    "15 % down": Framing(down=0.15),
    "15 % up": Framing(down=-0.15),
    "turned by 5°": Framing(angle=5.0),
    "turned by -5°": Framing(angle=-5.0),
}
