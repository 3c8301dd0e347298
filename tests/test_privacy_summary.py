import json

from privacy_folders import NUM_HELD_OUT, NUM_TRAIN, copy_of, fresh, generate

from common.evaluation.privacy_summary import markdown, summary


def test_the_summary_has_the_figures_and_names_nobody(tmp_path, real_phantoms, privacy_check):
    generate(tmp_path / "generated", [*fresh(4), copy_of(3)])
    train, held_out = real_phantoms
    twin = {"image": train[9]["image"], "patient_id": "someone else"}
    report = privacy_check((train, [*held_out, twin])).run()
    text = (tmp_path / "report" / "privacy_summary.json").read_text()
    found = json.loads(text)
    assert found == summary(report)
    assert found["verdict"]["num_copies"] == 1 and found["images"]["training"] == NUM_TRAIN
    assert found["num_held_out_copies_of_training"] == 1
    table = (tmp_path / "report" / "privacy_summary.md").read_text()
    assert table == markdown(found) and found["verdict"]["text"] in table
    assert f"calibrated on {NUM_HELD_OUT + 1} held-out" in table
    sensitivity = found["sensitivity"]
    assert f"{sensitivity['found']} of {sensitivity['copies']} altered copies" in table
    for private in (str(tmp_path), train[3]["image"], "generated_dir", ".png"):
        assert private not in text.replace(json.dumps(found["provenance"]["command"]), "") and private not in table


def test_what_may_be_shared_can_go_to_a_folder_of_its_own(tmp_path, real_phantoms, privacy_check):
    generate(tmp_path / "generated", fresh(4))
    privacy_check(real_phantoms, summary_dir=tmp_path / "shared").run()
    shared = {"privacy_summary.json", "privacy_summary.md", "distances.png"}
    assert {path.name for path in (tmp_path / "shared").iterdir()} == shared
    assert not shared & {path.name for path in (tmp_path / "report").iterdir()}
