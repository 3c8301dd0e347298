"""Patients that share an image, directly or through others, are one group with one name."""

from common.pipelines.patient_groups import PatientGroups


def names(groups, patients):
    return [groups.name(patient) for patient in patients]


def test_an_image_joins_its_patients_and_links_join_groups():
    groups = PatientGroups([("A",), ("B", "C"), (), ("D", "E"), ("C", "D")])
    assert names(groups, "ABCDE") == ["A", "B", "B", "B", "B"]


def test_joining_says_whether_a_name_changes():
    groups = PatientGroups([("A",), ("B",)])
    assert not groups.join(("A", "C")) and not groups.join(("A", "C")) and not groups.join(())
    assert groups.join(("B", "C"))
    assert len(set(names(groups, "ABC"))) == 1


def test_a_chain_of_many_links_is_one_group():
    groups = PatientGroups((str(number), str(number + 1)) for number in range(5000))
    assert {groups.name(str(number)) for number in range(5001)} == {"0"}
