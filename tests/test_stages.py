"""A chain of stages, with a small script in the place of trainings."""

import json
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import yaml

from common.errors import RunError
from common.training.recipe import read_recipe
from common.training.stages import DONE, STOPPED, WAITING, Chain, hours_to_go
from common.training.step_log import read_log

COUNT = """
    import json, signal, sys, time
    from pathlib import Path

    arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    folder, total = Path(arguments["--output_dir"]), int(arguments["--total"])
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.jsonl"
    done = len(log.read_text().splitlines()) if log.exists() else 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for step in range(done + 1, total + 1):
        time.sleep(0.02)
        with log.open("a") as stream:
            stream.write(json.dumps({"step": step, "seconds": 2.0}) + "\\n")
    (folder / "weights.txt").write_text("VERSION")
"""


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    (folder / "scripts").mkdir(parents=True)
    (folder / "common").mkdir()
    (folder / "bundles").mkdir()
    (folder / "scripts" / "count.py").write_text(textwrap.dedent(COUNT).replace("VERSION", "old"))
    return folder


def write_recipe(folder, total=5, steps=5):
    count = {"script": "count.py", "settings": {"total": total}}
    read = {"script": "count.py", "settings": {"total": 1, "note": "{weights:first}", "source": "{source}"}}
    stages = {"first": {"commands": [count], "steps": steps, "weights": "weights.txt"}, "second": {"commands": [read]}}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"stages": stages}))
    return path


SCORE = """
    import os, signal, sys
    from pathlib import Path

    arguments = dict(zip(sys.argv[3::2], sys.argv[4::2]))
    folder, name = Path(arguments["--output_dir"]), arguments["--name"]
    if not (folder / "stopped_once").exists():
        (folder / "stopped_once").touch()
        os.kill(os.getpid(), signal.SIGTERM)
    with (folder / "scores.csv").open("a") as stream:
        stream.write(f"name,lpips\\n{name},{0.1 if 'long' in name else 0.2}\\n")
"""


def make_chain(repository, tmp_path, **changes):
    return Chain(write_recipe(tmp_path, **changes), tmp_path / "data", tmp_path / "work", repository)


def test_a_stage_is_run_once_and_the_next_one_gets_its_weights(repository, tmp_path):
    chain = make_chain(repository, tmp_path)
    assert [chain.status(name) for name in chain.stages] == [WAITING, WAITING]
    with pytest.raises(RunError):
        chain.weights("first")
    assert chain.run("first") and chain.run("second")
    assert [chain.status(name) for name in chain.stages] == [DONE, DONE]
    words = (chain.folder("second") / "output.txt").read_text()
    assert str(chain.run_folder("first") / "weights.txt") in words and str(tmp_path / "data") in words
    assert chain.steps_done("first") == 5 and chain.state("first")["seconds"] > 0


def test_a_stage_goes_on_with_the_code_that_began_it(repository, tmp_path):
    chain = make_chain(repository, tmp_path, total=40)
    assert not chain.run("first", deadline=time.monotonic())
    assert chain.status("first") == STOPPED
    script = repository / "scripts" / "count.py"
    script.write_text(script.read_text().replace('"old"', '"new"'))
    assert chain.run("first")
    assert chain.weights("first").read_text() == "old"
    assert [line["step"] for line in read_log(chain.run_folder("first"))] == list(range(1, 41))


def test_sigterm_stops_the_stage_and_the_same_command_goes_on(repository, tmp_path):
    chain = make_chain(repository, tmp_path, total=100)
    program = (
        "from pathlib import Path; from common.training.stages import Chain; "
        f"chain = Chain({str(chain.recipe)!r}, {str(chain.source)!r}, {str(chain.work)!r}, Path({str(repository)!r}))\n"
        "with chain.locked(): chain.run('first')"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    while chain.steps_done("first") < 3:
        assert process.poll() is None
        time.sleep(0.05)
    with pytest.raises(RunError), chain.locked():
        pass
    assert chain.pause()
    assert process.wait() == 128 + signal.SIGTERM
    assert chain.status("first") == STOPPED and 3 <= chain.steps_done("first") < 100
    assert not chain.pause()
    assert chain.run("first") and chain.steps_done("first") == 100


def test_a_stage_that_is_stopped_while_averages_are_compared_is_not_done(repository, tmp_path):
    (repository / "scripts" / "score_weights.py").write_text(textwrap.dedent(SCORE))
    recipe = write_recipe(tmp_path)
    stages = yaml.safe_load(recipe.read_text())
    stages["stages"]["first"]["choose"] = {"kind": "autoencoder", "by": "lpips"}
    recipe.write_text(yaml.safe_dump(stages))
    chain = Chain(recipe, tmp_path / "data", tmp_path / "work", repository)
    longer = chain.run_folder("first") / "milestones" / "step_000005_long_ema.pt"
    longer.parent.mkdir(parents=True)
    longer.touch()
    assert not chain.run("first") and chain.status("first") == STOPPED
    assert chain.run("first") and chain.status("first") == DONE
    assert chain.weights("first") == longer


def test_a_stage_that_fails_says_where_its_output_is(repository, tmp_path):
    chain = make_chain(repository, tmp_path, total="many")
    with pytest.raises(RunError) as caught:
        chain.run("first")
    assert str(chain.folder("first") / "output.txt") in str(caught.value) and "ValueError" in str(caught.value)
    assert chain.status("first") == STOPPED


def test_other_settings_are_refused_but_more_steps_are_taken(repository, tmp_path):
    make_chain(repository, tmp_path).run("first")
    with pytest.raises(RunError):
        make_chain(repository, tmp_path, total=6).run("first")
    longer = Chain(write_recipe(tmp_path), tmp_path, tmp_path / "work", repository, steps={"first": 9})
    assert longer.status("first") == STOPPED
    with pytest.raises(RunError):
        Chain(write_recipe(tmp_path), tmp_path, tmp_path / "work", repository, steps={"second": 9})


def test_hours_to_go_are_those_of_the_steps_that_are_left(repository, tmp_path):
    chain = make_chain(repository, tmp_path, steps=5000)
    assert hours_to_go(chain, "first") == (None, None)
    folder = chain.run_folder("first")
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text(json.dumps({"step": 1400, "seconds": 2800.0}) + "\n")
    assert hours_to_go(chain, "first") == (2.0, pytest.approx(2.0))


def test_a_recipe_on_another_changes_what_it_names_and_nothing_else(tmp_path):
    first = {"commands": [{"script": "a.py"}], "steps": 5, "weights": "a.pt", "choose": {"by": "psnr"}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"stages": {"first": first, "second": {"commands": []}}}))
    changes = {"base": "base.yaml", "stages": {"first": {"steps": 7, "choose": None}}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(changes))
    base, found = read_recipe(tmp_path / "base.yaml"), read_recipe(tmp_path / "other.yaml")
    assert list(found) == ["first", "second"] and found["second"] == base["second"]
    assert (found["first"].steps, found["first"].choose) == (7, None)
    assert (found["first"].commands, found["first"].weights) == (base["first"].commands, "a.pt")
