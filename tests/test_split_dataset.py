# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Prepared datasets of the shipped pairs, divided by entry, and opened as any other."""

import csv
import json

import pytest
from conftest import ROOT

import prepare_dataset
import prepared_datasets
import split_dataset
from atomica_hf import AtomicaProcessor, StructureError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Six molecules with three conformers each, named by molecule and number."""
    folder = tmp_path_factory.mktemp("prepared")
    with open(ROOT / "examples" / "molecules.csv", encoding="utf-8", newline="") as file:
        smiles = [row["smiles"] for row in csv.DictReader(file)][:12:2]
    table = folder / "conformers.csv"
    rows = [f"{text},{'ab'[number % 2]}{number}_{text[:2]}" for number, text in enumerate(smiles)]
    table.write_text("smiles,name\n" + "\n".join(rows) + "\n", encoding="utf-8")
    prepare_dataset.main([str(table), "--output_dir", str(folder / "set"), "--num_conformers", "3"])
    return folder / "set"


def run(prepared, output, *more):
    split_dataset.main([str(word) for word in (prepared, "--output_dir", output, *more)])
    tokenizer = AtomicaProcessor.from_pretrained(ROOT).tokenizer
    return [prepared_datasets.load_prepared(output / part, tokenizer) for part in ("train", "validation")]


def test_entries_stay_together_and_examples_stay_what_they_were(prepared, tmp_path):
    train, validation = run(prepared, tmp_path / "split", "--validation_fraction", 0.3)
    whole = prepared_datasets.load_prepared(prepared, AtomicaProcessor.from_pretrained(ROOT).tokenizer)
    entries = [{name.split("_")[0] for name in part["name"]} for part in (train, validation)]
    assert not entries[0] & entries[1] and len(entries[0] | entries[1]) == 6
    assert len(train) + len(validation) == len(whole) > 12 and 3 < len(validation) < len(train)
    by_name = {row["name"]: row for row in whole}
    assert all(row == by_name[row["name"]] for part in (train, validation) for row in part)
    report = json.loads((tmp_path / "split" / "validation" / "read_report.json").read_text(encoding="utf-8"))
    assert set(report["inputs"][0]["entries"]) == entries[1] and report["kept"] == len(validation)
    again = run(prepared, tmp_path / "again", "--validation_fraction", 0.3)[1]
    assert again["name"] == validation["name"]
    other = run(prepared, tmp_path / "other", "--validation_fraction", 0.3, "--seed", 1)[1]
    assert set(other["name"]) != set(validation["name"])


def test_only_the_names_asked_for_grouped_as_asked_for(prepared, tmp_path):
    train, validation = run(prepared, tmp_path / "split", "--names", "a", "--validation_fraction", 0.4)
    assert {name[0] for part in (train, validation) for name in part["name"]} == {"a"}
    with pytest.raises(StructureError, match="3 of 18 examples are chosen, of 1 entries: none is left for"):
        run(prepared, tmp_path / "one", "--names", "a0")


def test_what_cannot_be_divided_is_an_error_and_leaves_nothing(prepared, tmp_path):
    wrong = {
        "matches nothing at the beginning of 'a0": ["--group", "x"],
        "--group .* missing": ["--group", "("],
        "expected more than 0": ["--validation_fraction", "1"],
        "0 of 18 examples are chosen, of 0 entries": ["--names", "nobody"],
    }
    for message, words in wrong.items():
        with pytest.raises(StructureError, match=message):
            run(prepared, tmp_path / "split", *words)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "read_report.json").write_text((prepared / "read_report.json").read_text())
    (damaged / "data-00000.parquet").write_bytes(b"PAR1 and no more")
    for folder in (tmp_path / "missing", damaged):
        with pytest.raises(StructureError, match="not a dataset of prepare_dataset.py"):
            run(folder, tmp_path / "split")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]
    with pytest.raises(StructureError, match="exists already"):
        run(prepared, damaged)
