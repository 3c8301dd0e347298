from common.label.train_task import hold_out


def test_what_was_held_out_stays_so_and_what_was_trained_on_too(tmp_path):
    first_train, first_held = hold_out([f"n{n}" for n in range(5)], 0.2, 0, tmp_path)
    assert len(first_held) == 1 and len(first_train) == 4
    for seed in (0, 1):
        train, held = hold_out([f"n{n}" for n in range(20)], 0.2, seed, tmp_path)
        assert len(held) == 4 and set(first_held) <= set(held) and set(first_train) <= set(train)
        assert sorted(train + held) == sorted(f"n{n}" for n in range(20))


def test_few_labels_are_all_trained_on_and_never_held_out_later(tmp_path):
    assert hold_out(["b", "a"], 0.2, 0, tmp_path) == (["a", "b"], [])
    assert hold_out(["a", "b", "c"], 0.5, 0, tmp_path) == (["a", "b"], ["c"])


def test_the_split_depends_on_the_seed_alone(tmp_path):
    names = [f"n{n}" for n in range(10)]
    one = hold_out(names, 0.3, 0, tmp_path / "one")
    assert one == hold_out(names[::-1], 0.3, 0, tmp_path / "two")
    assert one != hold_out(names, 0.3, 1, tmp_path / "three")
