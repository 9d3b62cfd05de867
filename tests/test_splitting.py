import json

import pytest

import splitting
from atomica_hf import StructureError


# rows 0-3 benzenes, 4-5 pyridines, 6 and 8 without rings, 7 cyclohexane, 9 naphthalene
SMILES = [
    "c1ccccc1",
    "Cc1ccccc1",
    "CCc1ccccc1",
    "Oc1ccccc1",
    "c1ccncc1",
    "Cc1ccncc1",
    "CCO",
    "C1CCCCC1",
    "CCN",
    "c1ccc2ccccc2c1",
]


def rows_of(split):
    return sorted(row for rows in split.values() for row in rows)


def test_scaffolds_by_hand():
    assert [splitting.scaffold_of(s) for s in ("Cc1ccccc1", "CCO", "c1ccc", None)] == ["c1ccccc1", "", None, None]
    # by size, of equals the one that appears last first: benzenes (4), rows 6, 8 (2), rows 4, 5 (2), row 9, row 7
    split = splitting.scaffold_split(SMILES, (0.8, 0.1, 0.1))
    assert split == {"train": [0, 1, 2, 3, 4, 5, 6, 8], "validation": [9], "test": [7]}
    split = splitting.scaffold_split(SMILES, (0.5, 0.2, 0.3))  # the pairs do not fit beside four; one goes to each other set
    assert split == {"train": [0, 1, 2, 3, 9], "validation": [6, 8], "test": [4, 5, 7]}


def test_a_scaffold_is_never_shared():
    for split in [splitting.scaffold_balanced_split(SMILES * 5, seed=seed) for seed in range(5)]:
        sets = [{splitting.scaffold_of((SMILES * 5)[row]) for row in rows} for rows in split.values()]
        assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
        assert rows_of(split) == list(range(50)) and "c1ccccc1" in sets[0]  # the big one stays in training
    many = [f"C1CCCC1{'C' * (i % 2)}" if i < 20 else "C" * (i % 7 + 1) + f"1{'C' * (i - 18)}1" for i in range(60)]
    assert splitting.scaffold_balanced_split(many, seed=1) == splitting.scaffold_balanced_split(many, seed=1)
    assert splitting.scaffold_balanced_split(many, seed=1) != splitting.scaffold_balanced_split(many, seed=2)


def test_random_groups_and_columns():
    split = splitting.random_split(range(100), (0.7, 0.2, 0.1), seed=3)
    assert [len(rows) for rows in split.values()] == [70, 20, 10] and rows_of(split) == list(range(100))
    assert (
        split
        == splitting.random_split(range(100), (0.7, 0.2, 0.1), 3)
        != splitting.random_split(range(100), (0.7, 0.2, 0.1), 4)
    )
    targets = [f"t{i % 10}" for i in range(50)] + ["", None]
    split = splitting.group_split(targets, seed=0)
    assert [len(rows) for rows in split.values()] == [40, 5, 5]
    assert not {targets[row] for row in split["train"]} & {targets[row] for row in split["test"]}
    assert splitting.column_split(["Train", "valid", "", "test", None, "train"]) == {
        "train": [0, 5], "validation": [1], "test": [3]
    }  # fmt: skip
    with pytest.raises(StructureError, match="Row 2.*'holdout', expected train"):
        splitting.column_split(["train", "holdout"])


def test_blanks_and_spaces_of_a_column():
    nan = float("nan")
    assert splitting.column_split(["train ", nan, "nan", None, "TEST"]) == {"train": [0], "validation": [], "test": [4]}
    split = splitting.group_split(["A", "A ", nan, "nan", "B", "C", "D"], (0.5, 0.25, 0.25))
    assert rows_of(split) == [0, 1, 4, 5, 6] and [0 in rows for rows in split.values()] == [
        1 in rows for rows in split.values()
    ]


def test_molecules_in_two_sets_are_counted():
    smiles = ["CCO", "c1ccccc1", "OCC", "C1=CC=CC=C1", "CCN", None, "c1ccc"]
    split = {"train": [0, 1, 5], "validation": [2, 4, 6], "test": [3]}
    assert splitting.shared_molecules(smiles, split) == {"validation": 1, "test": 1}


def test_rows_that_are_not_usable_take_no_part():
    for kind in ("random", "scaffold", "scaffold_balanced", "group"):
        split = splitting.make_split(kind, 10, SMILES, list("aabbccddee"), (0.6, 0.2, 0.2), usable=set(range(1, 10)))
        assert rows_of(split) == list(range(1, 10)), kind


def test_written_and_read_again(tmp_path):
    split = splitting.scaffold_split(SMILES)
    splitting.write_split(tmp_path / "split.json", split, kind="scaffold", seed=0)
    assert splitting.read_split(tmp_path / "split.json", 10) == split
    with pytest.raises(StructureError, match="the row 9, expected rows 0 to 8"):
        splitting.read_split(tmp_path / "split.json", 9)
    (tmp_path / "twice.json").write_text(json.dumps({"train": [1, 2], "test": [2]}))
    with pytest.raises(StructureError, match="more than one set"):
        splitting.read_split(tmp_path / "twice.json", 9)
    for rows in ("[0.5, 1]", '["1"]', "[true]", '"12"', "null"):
        (tmp_path / "odd.json").write_text(f'{{"train": {rows}}}')
        with pytest.raises(StructureError, match="expected a list of row numbers"):
            splitting.read_split(tmp_path / "odd.json", 9)
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(StructureError, match="not a split"):
        splitting.read_split(tmp_path / "bad.json", 9)


def test_what_cannot_be_split():
    with pytest.raises(StructureError, match=r"leaves validation and test empty \(train 3, validation 0, test 0 rows\)"):
        splitting.check_split(splitting.scaffold_split(["c1ccccc1"] * 2 + ["CCO"], (0.99, 0.005, 0.005)) | {
            "train": [0, 1, 2], "validation": [], "test": []
        })  # fmt: skip
    with pytest.raises(StructureError, match="needs SMILES"):
        splitting.make_split("scaffold", 2, [None, None])
    with pytest.raises(StructureError, match="needs a column"):
        splitting.make_split("group", 2)
    with pytest.raises(StructureError, match="expected one of random"):
        splitting.make_split("by_moon", 2)
    for wrong in ((float("nan"), 0.1, 0.1), (0.5, 0.5), (0.8, 0.3, 0.1), (1.2, -0.1, -0.1)):
        with pytest.raises(StructureError, match="add up to 1"):
            splitting.make_split("random", 10, fractions=wrong)
