"""scripts/mutation.py on two modules of a line each: one whose test looks, one whose test does not."""

import csv

import pytest

pytest.importorskip("cosmic_ray")

from script_module import load_script


@pytest.mark.slow
def test_mutants_are_killed_by_tests_that_look_and_survive_those_that_do_not(tmp_path):
    script = load_script("mutation")
    for name, asserted in (("seen", "== 5"), ("unseen", "is not None")):
        (tmp_path / f"{name}.py").write_text("def total(a: int | None, b):\n    return a + b\n")
        (tmp_path / f"test_{name}.py").write_text(
            f"from {name} import total\n\ndef test_total():\n    assert total(2, 3) {asserted}\n"
        )
    table = tmp_path / "mutants.csv"
    for name, outcome in (("seen", "killed"), ("unseen", "survived")):
        group = script.Group([f"{name}.py"], [f"test_{name}.py"])
        assert script.group_outcomes(tmp_path, group, 9, 0, 60, table) == [outcome]
    before = table.read_bytes()
    assert script.group_outcomes(tmp_path, script.Group(["seen.py"], ["no.py"]), 9, 0, 60, table) == ["killed"]
    assert table.read_bytes() == before, "what the table has is not tested again"
    with table.open() as stream:
        assert [row["line"] for row in csv.DictReader(stream)] == ["2", "2"], "annotations are left alone"
