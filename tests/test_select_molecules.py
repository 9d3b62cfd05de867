# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Molecules for pretraining, chosen from the repository's own examples."""

import csv
import json

import pytest
from conftest import ROOT

import select_molecules
from atomica_hf import StructureError
from splitting import canonical_smiles, scaffold_of


MOLECULES = ROOT / "examples" / "molecules.csv"


def lines(path):
    return path.read_text(encoding="utf-8").split()


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """A file of a benchmark: every tenth of the molecules, spelled in another way, and one that is in no other file."""
    from rdkit import Chem

    with open(MOLECULES, encoding="utf-8", newline="") as file:
        smiles = [row["smiles"] for row in csv.DictReader(file)][::10]
    path = tmp_path_factory.mktemp("benchmark") / "benchmark.smi"
    other = [Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(text), 1, randomSeed=1)[0] for text in smiles]
    path.write_text("\n".join([*other, "FC(F)(F)C(F)(F)C(F)(F)F"]) + "\n", encoding="utf-8")
    return path


def run(output, *more):
    select_molecules.main([str(word) for word in (MOLECULES, "--output_dir", output, "--validation_fraction", 0.2, *more)])
    return lines(output / "train.smi"), lines(output / "validation.smi"), json.loads((output / "selection.json").read_text())


def test_what_is_judged_by_is_left_out_and_no_scaffold_is_on_both_sides(benchmark, tmp_path):
    train, validation, report = run(tmp_path / "chosen", "--exclude", benchmark)
    both = train + validation
    assert len(set(both)) == len(both) and canonical_smiles(both) == both
    judged = set(canonical_smiles(lines(benchmark)))
    assert not judged & set(both)
    all_of_them, rest, _ = run(tmp_path / "all")
    assert judged & set(all_of_them + rest) == set(all_of_them + rest) - set(both)  # and nothing else is
    assert not set(map(scaffold_of, train)) & set(map(scaffold_of, validation))
    assert len(validation) == pytest.approx(0.2 * len(both), abs=3)
    counts = report["counts"]
    assert counts["train"] == len(train) and counts["validation"] == len(validation)
    assert counts["excluded"] == len(judged) - 1
    names = ("repeated", "excluded", "not_drawn", "train", "validation")
    assert counts["read"] == sum(counts[name] for name in names)  # no molecule of the examples is unreadable


def test_the_same_again_whatever_the_order_of_the_file(tmp_path):
    with open(MOLECULES, encoding="utf-8", newline="") as file:
        smiles = [row["smiles"] for row in csv.DictReader(file)]
    chosen = []
    for name, rows in (("one", smiles), ("two", smiles[::-1] + smiles[:5])):
        path = tmp_path / f"{name}.smi"
        path.write_text("\n".join(rows), encoding="utf-8")
        select_molecules.main([str(path), "--output_dir", str(tmp_path / name), "--max_samples", "50"])
        chosen.append([lines(tmp_path / name / f"{part}.smi") for part in ("train", "validation")])
    assert chosen[0] == chosen[1] and len(chosen[0][0] + chosen[0][1]) == 50


def test_what_cannot_be_chosen_from_is_an_error_and_leaves_nothing(tmp_path):
    output, few = tmp_path / "chosen", tmp_path / "few.smi"
    few.write_text("CCO\nnot-a-molecule\n", encoding="utf-8")
    wrong = {
        "in train .*'not_readable': 1": [few],
        "expected more than 0": [MOLECULES, "--validation_fraction", "1.5"],
        "--max_samples is 1": [MOLECULES, "--max_samples", "1"],
        "no such file": [tmp_path / "missing.smi"],
    }
    for message, words in wrong.items():
        with pytest.raises(StructureError, match=message):
            select_molecules.main([*map(str, words), "--output_dir", str(output)])
    assert not output.exists()
    output.mkdir()
    with pytest.raises(StructureError, match="exists already"):
        select_molecules.main([str(MOLECULES), "--output_dir", str(output)])
