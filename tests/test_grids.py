import numpy as np
import torch
from ignite.engine import Engine
from PIL import Image

from common.io.contact_sheet import contact_sheet_array
from common.training.grids import ReconstructionGrid


def test_reconstructions_of_the_first_batch_are_drawn(tmp_path):
    images = torch.rand(2, 3, 1, 16, 16)
    engine = Engine(lambda engine, batch: {"image": images[batch], "pred": 1 - images[batch]})
    ReconstructionGrid(str(tmp_path), num_images=2).attach(engine)
    engine.run([0, 1], max_epochs=1)
    drawn = np.asarray(Image.open(tmp_path / "reconstructions_epoch_001.png"))
    first, last = (contact_sheet_array([[each]])[4:20, 4:20] for each in (images[0, 1], images[1, 1]))
    assert any((drawn[top : top + 16, 4:20] == first).all() for top in range(drawn.shape[0] - 15))
    assert not any((drawn[top : top + 16, 4:20] == last).all() for top in range(drawn.shape[0] - 15))
