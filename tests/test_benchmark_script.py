"""The benchmark on tiny work: what it says of calls whose cost is known, and that its rows run."""

import json
import time

import pytest
import torch
from script_module import load_script

from common.errors import SettingsError
from common.experiments.benchmark import COMPARED, Row, markdown, measure, predicted_costs

CPU = torch.device("cpu")


def test_all_are_called_in_turn_and_the_first_call_of_each_does_not_count():
    called = []
    calls = {name: lambda name=name: called.append(name) for name in ("ours", "peer")}
    found = measure(Row("row", "call", calls, before=lambda: called.append("before")), CPU, repetitions=2)
    assert called == 3 * ["before", "ours", "before", "peer"]
    assert [each["contender"] for each in found] == ["ours", "peer"] and found[0]["ratio"] == 1.0


def test_what_takes_longer_or_stands_for_more_has_the_larger_ratio():
    calls = {"ours": lambda: time.sleep(0.01), "slow": lambda: time.sleep(0.05), "part": lambda: time.sleep(0.01)}
    row = Row("row", "call", calls, factors={"part": 100.0}, parameters={"slow": 2_000_000}, is_wall=True)
    ours, slow, part = measure(row, CPU, repetitions=3)
    assert slow["ratio"] > 1.5 and part["ratio"] > 10
    assert ours["lower_quartile"] <= ours["seconds"] <= ours["upper_quartile"]
    assert slow["parameters"] == 2_000_000 and "2.00 M" in markdown([slow])


def test_waiting_costs_nothing_on_the_clock_of_a_cpu():
    (found,) = measure(Row("row", "call", {"ours": lambda: time.sleep(0.2)}), CPU, repetitions=1)
    assert found["seconds"] < 0.1 and found["clock"] == "CPU"


def test_memory_is_that_of_the_call():
    (found,) = measure(Row("row", "call", {"ours": lambda: torch.ones(2**24).sum()}), CPU, repetitions=1)
    assert found["peak_mebibytes"] is None or found["peak_mebibytes"] > 50


def test_rows_are_measured_and_written(tmp_path, capsys):
    script = load_script("benchmark")
    script.benchmark("read", "fid", "store", "lungs", output_dir=str(tmp_path), repetitions=1, tiny=True)
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert {each["row"] for each in written["rows"]} == {
        "read",
        "fid",
        "store_open",
        "store_item",
        "store_batch",
        "lungs",
    }
    assert written["hardware"]["cores"] >= 1 and written["versions"]["torch"] == torch.__version__
    assert (tmp_path / "benchmark.png").stat().st_size > 1000
    table = (tmp_path / "benchmark.md").read_text()
    assert table.count("\n") == 2 + len(written["rows"]) and "MONAI" in capsys.readouterr().out


def test_costs_grow_with_images_and_are_shared_by_devices():
    work = ("reading", "encoding", "training", "reconstruction", "generation", "features", "pair", "nearest")
    seconds = dict.fromkeys(work, 1.0)
    one = predicted_costs(seconds, COMPARED, 1, 10, 60_000)
    assert one["store"][0] == 2 * COMPARED / 3600 and one["training"][0] == 10 * COMPARED / 3600
    assert one["store"][1] == 60_000 * COMPARED / 1e9
    twice = predicted_costs(seconds, 2 * COMPARED, 2, 10, 60_000)
    for name in ("store", "training", "generation"):
        assert twice[name][0] == one[name][0] and twice[name][1] == 2 * one[name][1]
    assert one["evaluation"][0] / 2 < twice["evaluation"][0] < one["evaluation"][0]  # as many are compared
    assert one["privacy"][0] < twice["privacy"][0] <= 2 * one["privacy"][0]  # linear, and not shared


@pytest.mark.slow
def test_every_row_runs(tmp_path):
    script = load_script("benchmark")
    script.benchmark(*script.ROWS, output_dir=str(tmp_path), repetitions=1, batch_size=1, tiny=True)
    assert (tmp_path / "cost.md").read_text().count("\n") == 2 + 5
    assert (tmp_path / "gpu.md").read_text().splitlines()[0].startswith("This has not run on a GPU")
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert len({each["row"] for each in written["rows"]}) >= len(script.ROWS)
    sizes = {each["contender"]: each["parameters"] for each in written["rows"] if each["row"] == "train_step"}
    assert all(size is None or abs(size / sizes["ours"] - 1) < 0.05 for size in sizes.values())


def test_a_row_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SettingsError):
        load_script("benchmark").benchmark("nothing", output_dir=str(tmp_path))
