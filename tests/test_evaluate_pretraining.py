# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""A model pretrained for a moment on shipped molecules and pairs, judged on those held out."""

import json

import numpy as np
import pytest
from conftest import ROOT

import evaluate_pretraining
import prepare_dataset
import run_pretraining
import split_dataset
from atomica_hf import StructureError
from evaluate_pretraining import CompositionGuess


SIZES = ["--atom_hidden_size", "4", "--num_hidden_layers", "1", "--edge_size", "8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    for name, file in (("molecules", "molecules.csv"), ("pairs", "pairs.csv")):
        prepared = folder / "prepared" / name
        prepare_dataset.main([str(ROOT / "examples" / file), "--output_dir", str(prepared), "--max_samples", "30"])
        split_dataset.main([str(prepared), "--group", ".+", "--validation_fraction", "0.3", "--output_dir", str(folder / name)])
    run_pretraining.main([
        "--train_file", str(folder / "molecules" / "train"), str(folder / "pairs" / "train"), *SIZES, "--max_train_steps", "3",
        "--validation_file", str(folder / "pairs" / "validation"), "--output_dir", str(folder / "model"),
    ])  # fmt: skip
    return folder


def run(folder, output, *more, sets=("molecules", "pairs")):
    words = [*(folder / name for name in sets), "--model_name_or_path", folder / "model", "--output_dir", output, *more]
    evaluate_pretraining.main([str(word) for word in words])
    return json.loads((output / "evaluation.json").read_text(encoding="utf-8"))["sets"]


def test_the_numbers_are_those_of_the_validation_in_training(folder, tmp_path):
    found = run(folder, tmp_path / "out", "--seed", 1, sets=["pairs"])["pairs"]  # the seed of validation is one further
    expected = json.loads((folder / "model" / "all_results.json").read_text(encoding="utf-8"))["validation"]
    same = [f"{loss}_{kind}" for loss in ("torsion", "translation", "rotation") for kind in ("loss", "baseline", "error")]
    same = [name for name in [*same, "mask_loss", "mask_top1", "mask_top5", "rotation_error_baseline"] if name in expected]
    assert len(same) >= 9
    assert {name: found[name] for name in same} == pytest.approx({name: expected[name] for name in same}, rel=1e-5)


def test_the_same_in_other_batches_and_a_table_of_it(folder, tmp_path):
    found = run(folder, tmp_path / "one", "--repeats", 2)
    again = run(folder, tmp_path / "two", "--repeats", 2, "--max_blocks_per_batch", 25)
    assert list(found) == ["molecules", "pairs"] and found["pairs"]["translation_baseline"] > 0
    assert not found["molecules"]["translation_baseline"]  # a lone molecule is not shifted
    for name in found:
        plain = [{key: value for key, value in of[name].items() if isinstance(value, float)} for of in (found, again)]
        assert plain[0] == pytest.approx(plain[1], rel=1e-4)
        ratio, low, high = found[name]["torsion_ratio"]
        assert low < ratio < high
    text = (tmp_path / "one" / "evaluation.md").read_text(encoding="utf-8")
    assert "## Hidden blocks" in text and "| pairs | translation |" in text and "| molecules | translation |" not in text
    other = run(folder, tmp_path / "three", "--repeats", 2, "--seed", 5)
    assert other["pairs"]["mask_loss"] != found["pairs"]["mask_loss"]


def test_a_guess_by_composition_names_what_is_missing_among_the_alike():
    train = np.zeros((12, 20), dtype=np.float32)
    train[:4, [5, 6, 7]] = 1  # 5 with 6 and 7
    train[4:, [5, 9]] = 1
    train[4:, 12] = 2  # 12 is the most frequent
    guess = CompositionGuess(train)
    visible = np.zeros((2, 20), dtype=np.float32)
    visible[0, [6, 7]] = 1
    visible[1, [5, 9]] = 1
    ranking = guess.ranking(visible)
    assert ranking[1, 0] == 12
    few = CompositionGuess(train[:4]).ranking(visible)
    assert few[0, 0] == 5 and sorted(few[0]) == list(range(20))


def test_what_cannot_be_judged_is_an_error(folder, tmp_path):
    wrong = {
        "repeats is 0": ["--repeats", 0],
        "another task": ["--task", "masking"],
        "no Atomica model": ["--model_name_or_path", tmp_path],
    }
    for message, words in wrong.items():
        with pytest.raises(StructureError, match=message):
            run(folder, tmp_path / "out", *words)
    with pytest.raises(StructureError, match="expected different names"):
        run(folder, tmp_path / "out", sets=["pairs", "pairs"])
    with pytest.raises(StructureError, match="no dataset there"):
        run(folder, tmp_path / "out", sets=["prepared"])
    assert not (tmp_path / "out").exists()
