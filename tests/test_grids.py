import numpy as np
import torch
from ignite.engine import Engine
from PIL import Image

from common.io.contact_sheet import contact_sheet_array
from common.training.grids import ReconstructionGrid


def test_reconstructions_of_the_first_batch_are_drawn(tmp_path):
    images = torch.rand(2, 3, 1, 16, 16)
    engine = Engine(lambda engine, batch: {"image": images[batch["n"]], "pred": 1 - images[batch["n"]]})
    ReconstructionGrid(str(tmp_path), num_images=2).attach(engine)
    drawn = []
    for name in ("first", "other"):
        engine.run([{"n": n, "image_path": [f"/deep/{name}_{i}.png" for i in range(3)]} for n in (0, 1)], max_epochs=1)
        drawn.append(np.asarray(Image.open(tmp_path / "reconstructions_epoch_001.png")))
    assert (drawn[0] != drawn[1]).any()  # each row is under the name of its image
    drawn = drawn[0]
    first, last = (contact_sheet_array([[each]])[4:20, 4:20] for each in (images[0, 1], images[1, 1]))
    assert any((drawn[top : top + 16, 4:20] == first).all() for top in range(drawn.shape[0] - 15))
    assert not any((drawn[top : top + 16, 4:20] == last).all() for top in range(drawn.shape[0] - 15))
