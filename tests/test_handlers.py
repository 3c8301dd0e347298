import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.training.handlers import ProgressBar, ReconstructionGrid, ReconstructionWriter, scalars


def test_scalars_are_the_floats_of_a_step():
    assert scalars({"image": torch.zeros(1), "l1": 0.5, "count": 3}) == {"l1": 0.5}


def test_bar_starts_where_the_run_resumes_and_shows_the_losses(capsys):
    engine = Engine(lambda engine, batch: {"l1": 0.25})
    ProgressBar("training").attach(engine)
    engine.load_state_dict({"iteration": 6, "epoch_length": 4, "max_epochs": 2})
    engine.run([0] * 4, max_epochs=2, epoch_length=4)
    shown = capsys.readouterr().err
    assert "6/8" in shown and "8/8" in shown and "l1=0.2500" in shown


def test_an_error_passes_through_the_bar():
    def fail(engine, batch):
        raise RuntimeError("broken step")

    engine = Engine(fail)
    ProgressBar("training").attach(engine)
    with pytest.raises(RuntimeError, match="broken step"):
        engine.run([0], max_epochs=1)


def test_a_grid_of_the_first_batch_goes_to_tensorboard(tmp_path):
    image = torch.rand(3, 1, 16, 16)
    engine = Engine(lambda engine, batch: {"image": image, "pred": 1 - image})
    ReconstructionGrid(str(tmp_path), num_images=2).attach(engine)
    engine.run([0, 1], max_epochs=1)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert len(events.Images("validation/reconstruction")) == 1


@pytest.fixture
def written(tmp_path):
    """Two images of one name in two folders, reconstructed with a known error of 0.1."""
    paths = [tmp_path / "data" / folder / "image.png" for folder in "ab"]
    image = torch.full((2, 1, 16, 16), 0.5)
    engine = Engine(lambda engine, batch: {"image": image, "pred": image + 0.1})
    writer = ReconstructionWriter(str(tmp_path / "out"), str(tmp_path / "data"), sheet_rows=1)
    writer.attach(engine)
    engine.run([{"image_path": [str(path) for path in paths]}], max_epochs=1)
    return tmp_path / "out"


def test_images_of_one_name_do_not_overwrite_each_other(written):
    names = sorted(path.name for path in written.glob("*_reconstruction.png"))
    assert names == ["a__image_png_reconstruction.png", "b__image_png_reconstruction.png"]
    assert (np.asarray(Image.open(written / names[0])) == 153).all()


def test_table_and_sheet_are_written(written):
    with open(written / "reconstructions.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["psnr_db"] for row in rows] == ["20.00", "20.00"]
    assert Image.open(written / "contact_sheet.png").width > 3 * 16


def test_the_bar_needs_no_dict_output():
    bar = ProgressBar("x")
    engine = SimpleNamespace(state=SimpleNamespace(max_epochs=1, epoch_length=1, iteration=0, output=None))
    bar._start(engine)
    bar._advance(engine)
    bar._close(engine)
    assert bar.bar.n == 1
