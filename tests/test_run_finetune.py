import csv
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, run, tiny_model
from huggingface_hub import ModelCard
from rdkit import Chem
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import finetuning_models
import finetuning_training
import run_embedding
import run_finetune
from atomica_hf import AtomicaConfig, AtomicaForSequenceClassification, AtomicaProcessor, StructureError


TINY = "hidden_size=8,atom_hidden_size=8,edge_size=8,num_hidden_layers=2,num_pooling_layers=1"
SIZES = {"hidden_size": 8, "atom_hidden_size": 8, "edge_size": 8, "num_hidden_layers": 2, "num_pooling_layers": 1}
SMILES = [row["smiles"] for row in csv.DictReader(open(ROOT / "examples" / "molecules.csv", encoding="utf-8"))]
SMILES = [smiles for smiles in SMILES if len(smiles) < 25][:30]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, processor):
    folder = tmp_path_factory.mktemp("pretrained")
    tiny_model(dtype=torch.float32, vocab_size=len(processor.tokenizer), **SIZES).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A number, a class, two labels with gaps and a set for each molecule, and one that cannot be read."""
    path = tmp_path_factory.mktemp("data") / "data.csv"
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["smiles", "share", "ring", "a", "b", "set"])
        for i, smiles in enumerate(SMILES):
            mol = Chem.MolFromSmiles(smiles)
            ring = "ring" if mol.GetRingInfo().NumRings() else "chain"
            share = 100 + 100 * sum(atom.GetAtomicNum() != 6 for atom in mol.GetAtoms()) / mol.GetNumAtoms()
            labels = (int("O" in smiles), "" if i % 3 == 0 else int("N" in smiles))
            writer.writerow([smiles, share, ring, *labels, ("train", "valid", "test")[max(0, i % 5 - 2)]])
        writer.writerow(["c1ccc", 150, "ring", 1, 1, ""])
    return path


def finetune(folder, data, cache, *options, epochs=1):
    """Runs main in this process; returns the numbers and the predictions."""
    base = ("--train_file", data, "--output_dir", folder, "--cache_dir", cache, "--num_bootstrap", 20, "--disable_tqdm", True)
    options = (*base, "--num_train_epochs", epochs, "--per_device_train_batch_size", 8, *options)
    run_finetune.main([str(option) for option in options])
    return json.loads((folder / "metrics.json").read_text()), read_csv(folder / "predictions.csv")


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def regression(tmp_path_factory, data, cache, pretrained):
    folder = tmp_path_factory.mktemp("run") / "model"
    options = ("--model_name_or_path", pretrained, "--label_columns", "share", "--baselines", "--num_conformers", 2)
    numbers, rows = finetune(
        folder, data, cache, *options, "--learning_rate", 0.01, "--load_best_model_at_end", False, epochs=8
    )
    return folder, numbers, rows


def test_help_has_own_options_first_and_says_what_each_is(capsys):
    with pytest.raises(SystemExit):
        run_finetune.main(["--help"])
    text = capsys.readouterr().out
    titles = ["\nmodel:", "\ndata:", "\ntraining and numbers:", "\nthe Trainer:", "\nall other options of the Trainer"]
    places = [text.index(title) for title in titles]
    assert places == sorted(places) and text.index("--teacher") < text.index("--learning_rate") < places[4]
    assert text.index("--adam_beta1") > places[4] and "--train-file" not in text
    for option in re.findall(r"\n  (--\w+)", text):
        described = text.split(f"\n  {option}", 1)[1].split("\n  --", 1)[0].split("(default:")[0]
        assert len(described.split()) > 3, f"{option} has no help"


def test_the_folder_has_all_that_was_promised(regression):
    folder, numbers, rows = regression
    for name in ("README.md", "split.json", "parity.png", "learning_curve.png", "model.safetensors", "tokenizer_config.json"):
        assert (folder / name).exists(), name
    assert list(numbers["results"]) == ["finetune", "mean", "ecfp4_random_forest", "descriptors_gradient_boosting"]
    card = (folder / "README.md").read_text()
    assert "On the test set" in card and "| mean |" in card and str(folder.parent) not in card
    data = ModelCard(card).data
    assert data.library_name == "transformers" and data.tags[-1] == "regression" and "rmse" in data.metrics
    assert data.base_model is None  # that of this run was a folder
    assert len(rows) == len(SMILES) + 1 and "smiles_syntax" in rows[-1]["reason"] and rows[-1]["set"] == ""
    test = numbers["results"]["finetune"]["test"]["metrics"]["rmse"]
    assert test["low"] <= test["value"] <= test["high"]
    truth, found = (np.array([float(row[name]) for row in rows[:-1]]) for name in ("share", "share_predicted"))
    part = np.array([row["set"] for row in rows[:-1]])
    rmse = lambda chosen: np.sqrt(np.mean((truth - found)[chosen] ** 2))
    assert test["value"] == pytest.approx(rmse(part == "test"))
    assert rmse(part == "train") < 0.9 * truth[part == "train"].std()  # it learns, and in the units of the labels


def test_a_fresh_process_predicts_the_same_numbers(regression, processor, data, cache):
    folder, _, rows = regression
    code = """
import sys, torch
from transformers import AutoModelForSequenceClassification, AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
found = []
for seed in (0, 1):
    processor.seed = seed
    with torch.no_grad():
        found.append(model(**processor(sys.argv[2:], return_tensors="pt")).logits[:, 0])
print(*torch.stack(found).mean(0).tolist(), model.config.id2label)
"""
    done = run("-c", code, folder, *SMILES[:4], HF_HOME=str(cache), PYTHONPATH="")
    assert done.returncode == 0, done.stderr[-2000:]
    expected = [float(row["share_predicted"]) for row in rows[:4]]
    assert np.allclose([float(word) for word in done.stdout.split()[:4]], expected, atol=1e-3)  # 100 to 300, two conformers
    assert "{0: 'share'}" in done.stdout

    options = ["--do_predict", "--model_name_or_path", folder, "--predict_file", data, "--output_dir", folder / "out",
               "--cache_dir", cache, "--disable_tqdm", True]  # fmt: skip
    run_finetune.main([str(option) for option in options])
    again = read_csv(folder / "out" / "predictions-data.csv")
    same = [(a["share_predicted"], b["share_predicted"]) for a, b in zip(rows, again)]
    assert len(again) == len(rows) and "smiles_syntax" in again[-1]["reason"]
    assert all(a == b == "" or float(a) == pytest.approx(float(b), abs=1e-3) for a, b in same)


def test_a_fine_tuned_head_is_checked_and_goes_on(regression, data, cache, tmp_path):
    folder, numbers, _ = regression
    base = ("--model_name_or_path", folder)
    for options, words in (
        (("--label_columns", "ring"), "has num_labels 1, expected 2; has problem_type 'regression', expected 'single_label"),
        (("--label_columns", "a", "b"), "has num_labels 1, expected 2.*--reset_head"),
    ):
        with pytest.raises(StructureError, match=words):
            finetune(tmp_path / "other", data, cache, *base, *options)
    options = (
        "--label_columns",
        "share",
        "--num_conformers",
        2,
        "--learning_rate",
        1e-12,
        "--split_file",
        folder / "split.json",
    )
    again, _ = finetune(tmp_path / "more", data, cache, *base, *options)  # the head is taken over in its own units
    value = lambda report: report["results"]["finetune"]["test"]["metrics"]["rmse"]["value"]
    assert value(again) == pytest.approx(value(numbers), rel=1e-3)
    finetune(tmp_path / "reset", data, cache, *base, "--label_columns", "ring", "--reset_head")


def test_freeze_leaves_the_encoder_as_it_was(pretrained, data, cache, tmp_path):
    options = ("--model_name_or_path", pretrained, "--label_columns", "ring", "--class_weights", "balanced")
    numbers, rows = finetune(tmp_path / "m", data, cache, *options, "--strategy", "freeze", epochs=2)
    before, after = load_file(pretrained / "model.safetensors"), load_file(tmp_path / "m" / "model.safetensors")
    encoder = [name for name in after if name.startswith("atomica.")]
    assert encoder and all(torch.equal(before[name], after[name]) for name in encoder)
    torch.manual_seed(0)
    config = AtomicaConfig.from_pretrained(tmp_path / "m")
    assert config.id2label == {0: "chain", 1: "ring"} and config.problem_type == "single_label_classification"
    assert {row["ring_predicted"] for row in rows[:-1]} <= {"chain", "ring"}
    row = rows[0]
    assert float(row["ring_probability_chain"]) + float(row["ring_probability_ring"]) == pytest.approx(1)
    finetune(tmp_path / "n", data, cache, *options[:4], epochs=1)
    after = load_file(tmp_path / "n" / "model.safetensors")
    assert not all(torch.equal(before[name], after[name]) for name in encoder)


def test_gradual_unfreezing_goes_down_layer_by_layer(pretrained, data, cache, tmp_path):
    options = ("--model_name_or_path", pretrained, "--label_columns", "ring", "--strategy", "gradual")
    for epochs, changed in ((1, ()), (2, ("pooler", "block_encoder.readout")), (3, ("pooler", "block_encoder"))):
        folder = tmp_path / str(epochs)
        finetune(folder, data, cache, *options, "--load_best_model_at_end", False, epochs=epochs)
        before, after = load_file(pretrained / "model.safetensors"), load_file(folder / "model.safetensors")
        encoder = [name for name in after if name.startswith("atomica.")]
        different = {name.removeprefix("atomica.") for name in encoder if not torch.equal(before[name], after[name])}
        assert all(name.startswith(changed) for name in different) and bool(different) == bool(changed), different
        assert "block_encoder.layers.0.norm.weight" not in different


@pytest.mark.parametrize("column", ["share", "ring"])
def test_a_linear_probe_is_scikit_learn_on_exported_vectors(column, pretrained, data, cache, tmp_path):
    import pyarrow.parquet as pq

    options = ("--model_name_or_path", pretrained, "--label_columns", column, "--strategy", "linear_probe")
    _, rows = finetune(tmp_path / "m", data, cache, *options, "--split_column", "set")
    words = (
        "--model_name_or_path",
        pretrained,
        "--input_file",
        data,
        "--output_file",
        tmp_path / "v.parquet",
        "--device",
        "cpu",
    )
    run_embedding.main([str(word) for word in words])
    vectors = np.array(pq.read_table(tmp_path / "v.parquet")["embedding"].to_pylist(), dtype=np.float32)
    train = [i for i, row in enumerate(rows) if row["set"] == "train"]
    if column == "share":
        probe = make_pipeline(StandardScaler(), Ridge()).fit(vectors[train], [float(rows[i][column]) for i in train])
        expected, name = probe.predict(vectors), "share_predicted"
    else:
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        expected = probe.fit(vectors[train], [rows[i][column] for i in train]).predict_proba(vectors)[:, 1]
        name = "ring_probability_ring"
    assert np.allclose([float(row[name]) for row in rows[:-1]], expected, rtol=1e-3, atol=1e-3)

    words = ("--do_predict", "--model_name_or_path", tmp_path / "m", "--predict_file", data, "--output_dir", tmp_path)
    run_finetune.main([str(word) for word in (*words, "--cache_dir", cache)])
    again = read_csv(tmp_path / "predictions-data.csv")
    assert np.allclose([float(row[name]) for row in again[:-1]], expected, rtol=1e-3, atol=1e-3)


def test_a_probe_without_a_model_is_one_on_random_weights_of_the_seed(data, cache, tmp_path):
    options = ("--label_columns", "share", "--strategy", "linear_probe", "--split_column", "set", "--config_overrides", TINY)
    found = {}
    for name, seed in (("a", 3), ("again", 3), ("b", 4)):
        _, rows = finetune(tmp_path / name, data, cache, *options, "--seed", seed)
        found[name] = [row["share_predicted"] for row in rows]
    assert found["a"] == found["again"] != found["b"]
    predictions = tmp_path / "p.csv"
    words = ("--do_predict", "--model_name_or_path", tmp_path / "a", "--predict_file", data, "--predictions_file", predictions)
    run_finetune.main([str(word) for word in (*words, "--output_dir", tmp_path, "--cache_dir", cache)])
    again = [row["share_predicted"] for row in read_csv(predictions)]
    assert [float(text) for text in again[:-1]] == pytest.approx([float(text) for text in found["a"][:-1]], rel=1e-4)


def test_a_head_reads_what_pooling_says(pretrained, data, cache, tmp_path):
    options = ("--label_columns", "share", "--split_column", "set")
    pooled = ("--model_name_or_path", pretrained, "--pooling", "mean_std_global")
    _, rows = finetune(tmp_path / "m", data, cache, *pooled, *options)
    model, info = AtomicaForSequenceClassification.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert model.config.pooling == "mean_std_global" and not info["missing_keys"] and not info["unexpected_keys"]
    before = AtomicaConfig.from_pretrained(pretrained)
    assert before.pooling == "graph"
    again = ("--do_predict", "--model_name_or_path", tmp_path / "m", "--predict_file", data, "--output_dir", tmp_path)
    run_finetune.main([str(word) for word in (*again, "--cache_dir", cache)])
    found = [row["share_predicted"] for row in read_csv(tmp_path / "predictions-data.csv")]
    assert [float(x) for x in found[:-1]] == pytest.approx([float(row["share_predicted"]) for row in rows[:-1]], rel=1e-3)
    other = ("--model_name_or_path", tmp_path / "m", "--pooling", "graph")
    with pytest.raises(StructureError, match="has pooling 'mean_std_global', expected 'graph'. Use --reset_head"):
        finetune(tmp_path / "n", data, cache, *other, *options)
    numbers, _ = finetune(tmp_path / "n", data, cache, *other, *options, "--reset_head", True)
    assert "finetune" in numbers["results"] and AtomicaConfig.from_pretrained(tmp_path / "n").pooling == "graph"


def test_interaction_energies_of_pairs(cache, tmp_path):
    pairs = [f"{smiles}.{('O', '[Cl-]')[i % 2]}" for i, smiles in enumerate(SMILES[:12])]
    rows = [f"{smiles},{-2.5 - i % 4},{('train', 'valid', 'test')[i % 3]}" for i, smiles in enumerate([*pairs, "CCO"])]
    (tmp_path / "d.csv").write_text("\n".join(["smiles,energy,set", *rows]))
    common = ("--label_columns", "energy", "--split_column", "set", "--pooling", "pair_energy", "--regression_loss", "huber")
    common += ("--config_overrides", f"{TINY},use_atom_charges=true")
    options = ("--keep_hydrogens", "True", "--energy_unit", "kJ/mol")
    _, rows = finetune(tmp_path / "m", tmp_path / "d.csv", cache, *common, *options)
    assert "a lone molecule, expected a complex" in rows[-1]["reason"] and all(row["energy_predicted"] for row in rows[:-1])
    model = AtomicaForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    assert (model.config.energy_unit, model.config.regression_loss) == ("kJ/mol", "huber")
    processor = AtomicaProcessor.from_pretrained(tmp_path / "m")
    assert processor.keep_hydrogens and processor.return_charges
    with torch.no_grad():
        found = model(**processor(pairs[:3], return_tensors="pt")).logits[:, 0].tolist()
    assert found == pytest.approx([float(row["energy_predicted"]) for row in rows[:3]], rel=1e-4)
    (tmp_path / "new.smi").write_text(f"{pairs[0]}\nCCO\n")
    words = ("--do_predict", "--model_name_or_path", tmp_path / "m", "--predict_file", tmp_path / "new.smi")
    run_finetune.main([str(word) for word in (*words, "--output_dir", tmp_path, "--cache_dir", cache)])
    again = read_csv(tmp_path / "predictions-new.csv")
    assert float(again[0]["energy_predicted"]) == pytest.approx(found[0], rel=1e-4) and "lone molecule" in again[1]["reason"]
    assert 'processor([("CC(=O)O", "CC(N)=O")]' in (tmp_path / "m" / "README.md").read_text()
    with pytest.raises(StructureError, match="--do_predict takes --energy_unit and --keep_hydrogens from the folder"):
        run_finetune.main([str(word) for word in (*words, *options, "--output_dir", tmp_path)])
    teacher = ("--teacher", tmp_path / "m", "--unlabeled", tmp_path / "new.smi", "--energy_unit", "eV", *options[:2])
    with pytest.raises(StructureError, match="of kJ/mol, expected eV"):
        finetune(tmp_path / "s", tmp_path / "d.csv", cache, *common, *teacher)
    with pytest.raises(StructureError, match="the run that is resumed had keep_hydrogens True"):
        finetune(tmp_path / "m", tmp_path / "d.csv", cache, *common, *options[2:], "--resume_from_checkpoint", "latest")


def test_several_labels_several_seeds_and_a_forest(pretrained, data, cache, tmp_path):
    options = ("--label_columns", "a", "b", "--split_column", "set", "--config_overrides", TINY, "--num_seeds", 2)
    numbers, rows = finetune(tmp_path / "m", data, cache, *options, "--class_weights", "balanced")
    assert list(numbers["results"]) == ["scratch", "seed 0", "seed 1"]
    assert numbers["results"]["scratch"]["test"]["all_tasks"] == 2 and rows[0]["b"] == ""
    members = [AtomicaForSequenceClassification.from_pretrained(tmp_path / "m" / name) for name in (".", "seed-1")]
    weights = [member.classifier.layers[0].weight for member in members]
    assert not torch.equal(*weights)
    options = ("--model_name_or_path", pretrained, "--label_columns", "a", "b", "--strategy", "random_forest")
    numbers, _ = finetune(tmp_path / "f", data, cache, *options, "--split_column", "set", "--pooling", "mean_std_global")
    assert numbers["results"]["random_forest"]["test"]["metrics"]["roc_auc"]["value"] is not None


def test_three_classes_of_a_tsv_with_options_of_a_json_file_stop_early(cache, tmp_path):
    rows = [(smiles, "acyclic" if "1" not in smiles else "aromatic" if "c" in smiles else "ring") for smiles in SMILES]
    assert {name for _, name in rows} == {"acyclic", "aromatic", "ring"}
    (tmp_path / "d.tsv").write_text("\n".join(["\t".join(row) for row in [("structure", "kind"), *rows]]))
    options = {
        "train_file": tmp_path / "d.tsv", "output_dir": tmp_path / "m", "cache_dir": cache, "config_overrides": TINY,
        "num_train_epochs": 6, "learning_rate": 1e-12, "early_stopping_patience": 2, "num_bootstrap": 20, "disable_tqdm": True,
        "metric_for_best_model": "accuracy", "split_fractions": [0.6, 0.2, 0.2],
    }  # fmt: skip
    plain = {name: str(value) if isinstance(value, os.PathLike) else value for name, value in options.items()}
    (tmp_path / "options.json").write_text(json.dumps(plain))
    run_finetune.main([str(tmp_path / "options.json")])
    numbers = json.loads((tmp_path / "m" / "metrics.json").read_text())
    assert [row["epoch"] for row in numbers["log"] if "eval_loss" in row] == [1, 2, 3]  # the first, and two that were no better
    found = read_csv(tmp_path / "m" / "predictions.csv")
    names = ("acyclic", "aromatic", "ring")
    assert all(sum(float(row[f"kind_probability_{name}"]) for name in names) == pytest.approx(1) for row in found)
    config = AtomicaConfig.from_pretrained(tmp_path / "m")
    assert config.num_labels == 3 and list(config.id2label.values()) == list(names)


def test_a_teacher_labels_more_molecules(regression, data, cache, tmp_path, monkeypatch):
    folder, _, _ = regression
    (tmp_path / "more.smi").write_text("\n".join(SMILES[:5]))
    sizes = []
    make = finetuning_training.make_trainer
    monkeypatch.setattr(finetuning_training, "make_trainer", lambda *arguments: record(make(*arguments), sizes))
    options = ("--config_overrides", TINY, "--label_columns", "share", "--teacher", folder)
    finetune(tmp_path / "m", data, cache, *options, "--unlabeled", tmp_path / "more.smi")
    assert [len(examples) for examples in sizes] == [24 + 2 * 5]  # the teacher has two conformers of each
    noisy, clean = sizes[0][30], sizes[0].examples[30]  # one of those; the teacher saw it without noise
    moved = np.asarray(noisy["positions"]) - clean["positions"]
    assert 0.05 < moved[1:].std() < 0.2 and noisy["labels"] == clean["labels"]
    with pytest.raises(StructureError, match=r"learnt share \(regression\), expected ring"):
        finetune(tmp_path / "n", data, cache, *options[:2], "--label_columns", "ring", *options[4:], "--unlabeled",
                 tmp_path / "more.smi")  # fmt: skip


def record(found, sizes):
    sizes.append(found[0].train_dataset)
    return found


def test_labels_of_blocks(cache, tmp_path, processor):
    lines = ["smiles,blocks"]
    for smiles in SMILES[:20]:
        ids = processor(smiles, return_tensors="np")["input_ids"][0]
        lines.append(f'{smiles},"{json.dumps([int(token) % 2 for token in ids[1:]])}"')
    (tmp_path / "b.csv").write_text("\n".join(lines))
    options = (
        "--block_labels",
        "--label_columns",
        "blocks",
        "--config_overrides",
        TINY,
        "--baselines",
        "--learning_rate",
        0.02,
    )
    options += ("--load_best_model_at_end", False, "--eval_strategy", "no", "--save_strategy", "no")
    numbers, rows = finetune(tmp_path / "m", tmp_path / "b.csv", cache, *options, epochs=25)
    assert numbers["results"]["mean"]["test"]["metrics"]["roc_auc"]["value"] == 0.5
    right = total = 0
    for row in rows:
        truth, predicted = json.loads(row["blocks"]), json.loads(row["blocks_predicted"])
        assert len(predicted) == len(truth) + 1 and len(predicted[0]) == 2  # with the global block
        right += sum(int(np.argmax(one)) == value for one, value in zip(predicted[1:], truth))
        total += len(truth)
    assert right / total > 0.9  # the kind of a block says its label


def test_a_run_is_resumed(data, cache, tmp_path):
    options = (
        "--config_overrides",
        TINY,
        "--label_columns",
        "share",
        "--save_total_limit",
        5,
        "--lr_scheduler_type",
        "constant",
    )
    whole, _ = finetune(tmp_path / "whole", data, cache, *options, epochs=3)
    finetune(tmp_path / "halves", data, cache, *options, epochs=2)
    with pytest.raises(StructureError, match="--resume_from_checkpoint latest"):
        finetune(tmp_path / "halves", data, cache, *options, epochs=3)
    halves, _ = finetune(tmp_path / "halves", data, cache, *options, "--resume_from_checkpoint", "latest", epochs=3)
    assert halves["results"]["scratch"] == whole["results"]["scratch"]


def test_noisy_nodes_leave_a_plain_model(data, cache, tmp_path):
    options = ("--config_overrides", TINY, "--label_columns", "ring", "--class_weights", "balanced")
    options += ("--lr_scheduler_type", "constant", "--save_total_limit", 5)
    without, plain = finetune(tmp_path / "plain", data, cache, *options, epochs=2)
    zero = ("--noisy_nodes_weight", 0, "--coordinate_noise", 0)
    assert finetune(tmp_path / "zero", data, cache, *options, *zero, epochs=2)[1] == plain
    noisy = (*options, "--noisy_nodes_weight", 0.5)
    numbers, rows = finetune(tmp_path / "noisy", data, cache, *noisy, epochs=2)
    train = [row for row in numbers["log"] if "noise_loss" in row]
    assert len(train) == 2 and all(row["noise_loss"] > 1 and 2 < row["noise_baseline"] < 3.5 for row in train)
    assert all("noise_loss" not in row for row in without["log"]) and rows != plain
    weights, before = (load_file(tmp_path / name / "model.safetensors") for name in ("noisy", "plain"))
    assert list(weights) == list(before)
    for name in ("noisy", "plain"):
        assert json.loads((tmp_path / name / "config.json").read_text())["architectures"] == [
            "AtomicaForSequenceClassification"
        ]
    model, info = AtomicaForSequenceClassification.from_pretrained(tmp_path / "noisy", output_loading_info=True)
    assert not info["unexpected_keys"] and not info["missing_keys"]

    again = tmp_path / "again"
    words = ("--do_predict", "--model_name_or_path", tmp_path / "noisy", "--predict_file", data, "--output_dir", again)
    run_finetune.main([str(word) for word in (*words, "--cache_dir", cache)])
    found = read_csv(again / "predictions-data.csv")[:-1]
    name = "ring_probability_ring"
    assert np.allclose([float(row[name]) for row in found], [float(row[name]) for row in rows[:-1]], atol=1e-6)

    finetune(tmp_path / "halves", data, cache, *noisy, epochs=1)
    _, resumed = finetune(tmp_path / "halves", data, cache, *noisy, "--resume_from_checkpoint", "latest", epochs=2)
    assert resumed == rows
    with pytest.raises(StructureError, match="coordinate_noise 0.1, expected 0.2"):
        finetune(tmp_path / "halves", data, cache, *noisy, "--coordinate_noise", 0.2, "--resume_from_checkpoint", "latest",
                 epochs=3)  # fmt: skip


def test_hyperparameters_are_searched(data, cache, tmp_path, monkeypatch):
    pytest.importorskip("optuna", reason="--hyperparameter_search needs optuna")
    options = ("--config_overrides", TINY, "--label_columns", "share", "--learning_rate", 0.01)
    numbers, _ = finetune(tmp_path / "m", data, cache, *options, "--hyperparameter_search", 2, epochs=2)
    found = json.loads((tmp_path / "m" / "hyperparameters.json").read_text())
    assert len(found["trials"]) == 2
    best = min(found["trials"], key=lambda trial: trial["eval_rmse"])
    assert best["number"] == found["best"] and 0.001 <= best["learning_rate"] <= 0.1
    validation = numbers["results"]["scratch"]["validation"]["metrics"]["rmse"]["value"]
    assert validation == pytest.approx(best["eval_rmse"], rel=1e-4)  # the model in the folder is that of the best trial
    first = next(row for row in numbers["log"] if "learning_rate" in row)
    assert first["learning_rate"] <= best["learning_rate"] and any("Best of 2 trials" in note for note in numbers["notes"])
    more = ("--hyperparameter_search", 3, "--resume_from_checkpoint", "latest")
    with pytest.raises(StructureError, match="trained after 2 trials; 3 of them need another folder"):
        finetune(tmp_path / "m", data, cache, *options, *more, epochs=2)
    for checkpoint in (tmp_path / "m").glob("checkpoint-*"):  # as if it had been stopped during the search
        shutil.rmtree(checkpoint)
    with pytest.raises(StructureError, match="has a search of an earlier run"):
        finetune(tmp_path / "m", data, cache, *options, *more[:2], epochs=2)
    with pytest.raises(StructureError, match="had learning_rate 0.01, expected 0.02"):
        finetune(tmp_path / "m", data, cache, *options[:-1], 0.02, *more, epochs=2)
    finetune(tmp_path / "m", data, cache, *options, *more, epochs=2)
    trials = json.loads((tmp_path / "m" / "hyperparameters.json").read_text())["trials"]
    assert trials[:2] == found["trials"] and len(trials) == 3 and trials[2]["learning_rate"] != trials[0]["learning_rate"]

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(StructureError, match="needs the package optuna: pip install optuna"):
        finetune(tmp_path / "n", data, cache, *options, "--hyperparameter_search", 1)


def test_only_the_same_run_is_resumed(data, cache, tmp_path):
    options = ("--label_columns", "share", "--config_overrides", TINY)
    folder = tmp_path / "m"
    (folder / "checkpoint-9").mkdir(parents=True)  # of a run that was stopped while it wrote
    (folder / "checkpoint-9" / "model.safetensors").write_bytes(b"x")
    finetune(folder, data, cache, *options)
    resumed = ("--resume_from_checkpoint", "latest")
    with pytest.raises(StructureError, match="num_hidden_layers 2, expected 1.*only as it was started"):
        finetune(folder, data, cache, *options[:3], TINY.replace("layers=2", "layers=1"), *resumed, epochs=2)
    with pytest.raises(StructureError, match="num_conformers 1, expected 2"):
        finetune(folder, data, cache, *options, "--num_conformers", 2, *resumed, epochs=2)
    (tmp_path / "other.csv").write_text(data.read_text().replace(",150,", ",151,"))
    with pytest.raises(StructureError, match="had other labels"):
        finetune(folder, tmp_path / "other.csv", cache, *options, *resumed, epochs=2)
    finetune(folder, data, cache, *options, *resumed, epochs=2)


def test_what_is_odd_about_a_split_is_said(cache, tmp_path, capsys):
    sets = ["train"] * 10 + ["valid"] * 3 + ["test"] * 4
    smiles = [*SMILES[:13], "OCC", SMILES[0], SMILES[15], SMILES[16]]
    smiles[1] = "CCO"  # the same as a test molecule, in other words
    rows = [f"{text},{i}.5,{'' if i < 10 else i},{part}" for i, (text, part) in enumerate(zip(smiles, sets))]
    (tmp_path / "d.csv").write_text("\n".join(["smiles,y,z,set", *rows]))
    options = ("--label_columns", "y", "z", "--split_column", "set", "--config_overrides", TINY)
    numbers, _ = finetune(tmp_path / "m", tmp_path / "d.csv", cache, *options)
    notes = [
        "2 of 4 test molecules and 0 of 3 validation molecules have the same canonical SMILES as a training molecule.",
        "The training set has no two different labels of z: nothing is learnt of it.",
    ]
    card = (tmp_path / "m" / "README.md").read_text()
    assert numbers["notes"] == notes and all(f"- {note}" in card for note in notes)
    assert notes[0] in capsys.readouterr().out


def test_held_out_labels_do_not_reach_the_model(data, cache, tmp_path):
    base, found = read_csv(data)[:-1], []
    for name, change in (("a", 0), ("b", 5000)):
        changed = [row["set"] != "train" for row in base]
        rows = [f"{r['smiles']},{float(r['share']) + change * c},{r['set']}" for r, c in zip(base, changed)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["smiles,y,set", *rows]))
        options = ("--label_columns", "y", "--split_column", "set", "--config_overrides", TINY)
        _, predictions = finetune(tmp_path / name, tmp_path / f"{name}.csv", cache, *options, "--load_best_model_at_end", False)
        found.append([row["y_predicted"] for row in predictions])
    assert found[0] == found[1]


def test_folders_that_cannot_predict(regression, data, cache, tmp_path):
    folder, _, _ = regression
    shutil.copytree(folder, tmp_path / "m", ignore=shutil.ignore_patterns("checkpoint-*"))

    def predict():
        words = ("--do_predict", "--model_name_or_path", tmp_path / "m", "--predict_file", data, "--output_dir", tmp_path)
        words = (*words, "--cache_dir", cache)
        run_finetune.main([str(word) for word in words])

    (tmp_path / "m" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(StructureError, match="no model that can be read"):
        predict()
    (tmp_path / "m" / "finetuning.json").write_text("{}")
    with pytest.raises(StructureError, match="not a folder that run_finetune.py wrote"):
        predict()


def test_a_run_that_diverges_is_an_error(data, cache, tmp_path):
    options = ("--label_columns", "share", "--config_overrides", TINY, "--learning_rate", 1e6, "--max_grad_norm", 1e9)
    options += ("--load_best_model_at_end", False)
    with pytest.raises(StructureError, match="training diverged"):
        finetune(tmp_path / "m", data, cache, *options, epochs=4)


@pytest.mark.parametrize(
    "options, words",
    [
        (("--label_columns", "gone"), "no column 'gone'"),
        ((), "Candidates: share, a, b"),
        (("--label_columns", "ring", "--problem_type", "regression"), "expected a number"),
        (("--label_columns", "share", "--split_fractions", "0.98", "0.01", "0.01"), "leaves validation and test empty"),
        (("--label_columns", "share", "--strategy", "freeze"), "needs --model_name_or_path"),
        (("--label_columns", "share", "--config_overrides", "colour=1"), "colour"),
        (("--label_columns", "share", "--config_overrides", "hidden_size=7"), "even number"),
        (("--label_columns", "share", "--num_seeds", "0"), "at least 1"),
        (("--label_columns", "share", "--strategy", "linear_probe", "--pooling", "block_sum"), "no outputs of blocks"),
        (("--label_columns", "share", "--pooling", "pair_energy", "--config_overrides", TINY), "no complex is in it"),
        (("--label_columns", "share", "--strategy", "linear_probe", "--energy_unit", "eV"), "--energy_unit is not for"),
        (("--label_columns", "share", "--energy_unit", "eV"), "--energy_unit is for --pooling pair_energy"),
        (("--label_columns", "ring", "--regression_loss", "mae"), "--regression_loss is for numbers; ring"),
        (("--label_columns", "share", "--block_labels", "True", "--pooling", "graph"), "a whole complex, not of its blocks"),
        (("--label_columns", "share", "--pooling", "graph", "--config_overrides", "pooling=block_sum"), "both say the pooling"),
        (("--label_columns", "share", "--noisy_nodes_weight", "-1"), "noisy_nodes_weight is -1.0, expected at least 0"),
        (("--label_columns", "share", "--noisy_nodes_weight", "1", "--coordinate_noise", "0"), "needs --coordinate_noise"),
        (
            ("--label_columns", "share", "--model_name_or_path", "x", "--strategy", "freeze", "--noisy_nodes_weight", "1"),
            "not for --strategy freeze",
        ),
        (("--label_columns", "share", "--predict_file", "x.csv"), "needs --do_predict"),
        (("--label_columns", "share", "--split", "group"), "needs --group_column"),
        (("--label_columns", "share", "--model_name_or_path", "nowhere"), "nowhere: no Atomica"),
        (("--label_columns", "share", "--resume_from_checkpoint", "latest"), "no checkpoint in"),
        (("--label_columns", "share", "--eval_strategy", "no"), "load_best_model_at_end"),
        (("--label_columns", "share", "--metric_for_best_model", "roc_auc"), "'roc_auc', expected one of loss, mae, rmse"),
        (("--label_columns", "share", "--class_weights", "balanced"), "--class_weights is for classes"),
        (("--label_columns", "share", "--predictions_file", "x.csv"), "--predictions_file needs --do_predict"),
        (("--label_columns", "share", "--do_predict", "--predict_file", "gone.csv"), "gone.csv: no such file"),
        (("--label_columns", "share", "--split_file", "x.json", "--split_column", "set"), "--split_file excludes"),
        (("--label_columns", "share", "--dataloader_drop_last", "True"), "leave out predictions"),
        (("--label_columns", "share", "--per_device_eval_batch_size", "0"), "per_device_eval_batch_size is 0, expected at"),
        (
            ("--label_columns", "share", "--group_column", "ring"),
            r"by ring \(rows of one ring stay in one set\) leaves",
        ),
        (("--label_columns", "share", "--split_column", "ring"), "Row 1: ring is 'ring', expected train"),
        (("--label_columns", "set", "--split_column", "set"), "names 'set', which is the column of the split"),
    ],
)
def test_what_cannot_be_trained_is_said_before_training(options, words, data, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning_training.FinetuningTrainer, "train", lambda *args, **kwargs: pytest.fail("training began"))
    with pytest.raises(StructureError, match=words):
        finetune(tmp_path / "m", data, cache, *options)


def test_a_training_set_of_one_class_is_an_error(cache, tmp_path):
    rows = [
        f"{smiles},{int(i > 5)},{'train' if i > 5 else 'test' if i % 2 else 'valid'}" for i, smiles in enumerate(SMILES[:12])
    ]
    (tmp_path / "d.csv").write_text("\n".join(["smiles,y,set", *rows]))
    with pytest.raises(StructureError, match="The training set has one class only of y"):
        finetune(tmp_path / "m", tmp_path / "d.csv", cache, "--label_columns", "y", "--split_column", "set")
    (tmp_path / "e.csv").write_text("smiles,y\nc1ccc,1.5\nC(C,2.5\n")
    with pytest.raises(StructureError, match="no row has both a label and a SMILES string"):
        finetune(tmp_path / "m", tmp_path / "e.csv", cache, "--smiles_column", "smiles", "--label_columns", "y")


def torchrun(*words):
    """run_finetune.py in two processes."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, ROOT / "run_finetune.py")
    done = subprocess.run(
        [str(word) for word in (*launcher, *words)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_see_the_noise_of_one(data, cache, tmp_path):
    options = ("--config_overrides", TINY, "--label_columns", "share", "--noisy_nodes_weight", 0.5)
    numbers, _ = finetune(tmp_path / "one", data, cache, *options)
    words = ("--train_file", data, "--output_dir", tmp_path / "two", "--cache_dir", cache, "--num_bootstrap", 20)
    torchrun(*words, *options, "--num_train_epochs", 1, "--per_device_train_batch_size", 4)
    found = json.loads((tmp_path / "two" / "metrics.json").read_text())
    one, two = (next(row for row in log["log"] if "noise_loss" in row) for log in (numbers, found))
    assert two["noise_baseline"] == pytest.approx(one["noise_baseline"], rel=1e-5)  # 24 examples: three steps of eight
    assert two["noise_loss"] == pytest.approx(one["noise_loss"], rel=1e-2) and two["loss"] == pytest.approx(
        one["loss"], rel=0.05
    )


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(regression, data, cache, tmp_path):
    folder, numbers, rows = regression
    words = ("--train_file", data, "--label_columns", "share", "--model_name_or_path", folder, "--split_file",
             folder / "split.json", "--num_conformers", 2, "--learning_rate", 1e-12, "--num_train_epochs", 1, "--output_dir",
             tmp_path / "m", "--cache_dir", cache, "--num_bootstrap", 20)  # fmt: skip
    torchrun(*words)
    found = json.loads((tmp_path / "m" / "metrics.json").read_text())["results"]["finetune"]
    for part in ("validation", "test"):
        for name, metric in numbers["results"]["finetune"][part]["metrics"].items():
            assert found[part]["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-3), (part, name)
    assert len(read_csv(tmp_path / "m" / "predictions.csv")) == len(rows)


@pytest.mark.parametrize("pooling", ["graph", "block_sum"])
def test_the_last_layer_takes_up_the_units(pooling, processor):
    config = AtomicaConfig(vocab_size=len(processor.tokenizer), num_labels=2, pooling=pooling, **SIZES)
    model = AtomicaForSequenceClassification(config).double().eval()
    inputs = processor(SMILES[:3], return_tensors="pt")
    before = model(**inputs).logits.detach().numpy()
    mean, std = np.array([5.0, -3.0]) * (pooling == "graph"), np.array([2.0, 10.0])
    finetuning_models.scale_head(model, mean, std)
    assert np.abs(model(**inputs).logits.detach().numpy() - (before * std + mean)).max() < 1e-6
    finetuning_models.unscale_head(model, mean, std)
    assert np.abs(model(**inputs).logits.detach().numpy() - before).max() < 1e-6


def test_balanced_weights_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    labels, weights = torch.tensor([0.0, 1.0, float("nan")]), torch.tensor([1.0, 3.0])
    found = finetuning_training.weighted_loss(logits, labels, weights, "single_label_classification")
    first, second = -torch.log_softmax(logits, -1)[[0, 1], [0, 1]]
    assert found == pytest.approx(float((first + 3 * second) / 4))
    labels = torch.tensor([[1.0, float("nan")], [0.0, -1.0], [0.0, 1.0]])
    found = finetuning_training.weighted_loss(logits, labels, weights, "multi_label_classification")
    chance = torch.sigmoid(torch.tensor([2.0, 0.0, 1.0, 1.0]))  # of the labels that are there: 1, 0, 0 and, weighted, 1
    expected = -(chance[0].log() + (1 - chance[1]).log() + (1 - chance[2]).log() + 3 * chance[3].log()) / 4
    assert found == pytest.approx(float(expected))
