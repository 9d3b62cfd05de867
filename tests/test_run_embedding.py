import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import VOCAB_SIZE, run, tiny_model

import run_embedding
from atomica_hf import StructureError


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, processor):
    folder = tmp_path_factory.mktemp("model")
    tiny_model(dtype=torch.float32).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("name,smiles\nethanol,CCO\nbad,c1ccc\naspirin,CC(=O)Oc1ccccc1C(=O)O\npair,CCO.O\n")
    return path


def test_one_vector_per_complex_in_the_order_of_the_input(model_folder, table, tmp_path, processor):
    done = run("run_embedding.py", "--model_name_or_path", model_folder, "--input_file", table, "--output_file",
               tmp_path / "v.parquet", "--max_blocks_per_batch", 5, "--dtype", "float64", "--device", "cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 vectors" in done.stdout and "3 kept, 1 left out" in done.stdout and "bad" in done.stdout
    rows = pq.read_table(tmp_path / "v.parquet").to_pylist()
    assert [row["name"] for row in rows] == ["ethanol", "aspirin", "pair"]
    report = json.loads((tmp_path / "v.parquet.report.json").read_text())
    assert report["kept"] == 3 and report["rejected"][0]["reason"] == "smiles_syntax"
    model, _ = run_embedding.load_model(str(model_folder), "float64")
    inputs = processor(["CCO", "CC(=O)Oc1ccccc1C(=O)O", ("CCO", "O")], return_tensors="pt")
    expected = model(**inputs).pooler_output.detach().numpy()
    assert np.abs(np.array([row["embedding"] for row in rows]) - expected).max() < 1e-6


@pytest.mark.parametrize("level, columns", [("block", {"block", "token", "origin"}), ("atom", {"atom", "atom_name", "block"})])
def test_vectors_of_blocks_and_atoms(level, columns, model_folder, table, tmp_path, processor):
    options = [
        "--model_name_or_path",
        model_folder,
        "--input_file",
        table,
        "--output_file",
        tmp_path / "v.parquet",
        "--level",
        level,
    ]
    run_embedding.main([str(x) for x in [*options, "--device", "cpu"]])
    rows = [row for row in pq.read_table(tmp_path / "v.parquet").to_pylist() if row["name"] == "aspirin"]
    inputs = processor("CC(=O)Oc1ccccc1C(=O)O", return_tensors="pt")
    model, _ = run_embedding.load_model(str(model_folder))
    output = model(**inputs)
    expected = (output.last_hidden_state if level == "block" else output.atom_hidden_state)[0].detach().numpy()
    assert columns <= set(rows[0]) and np.abs(np.array([row["embedding"] for row in rows]) - expected).max() < 1e-4
    if level == "block":
        assert [row["token"] for row in rows] == processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())


def test_what_cannot_be_embedded_is_named(model_folder, table, tmp_path):
    good = {"--model_name_or_path": model_folder, "--input_file": table, "--output_file": tmp_path / "v.parquet"}
    for change, words in (
        ({"--model_name_or_path": tmp_path / "nowhere"}, "nowhere"),
        ({"--input_file": tmp_path / "gone.sdf"}, "gone.sdf: no such file"),
        ({"--output_file": tmp_path}, "is a folder"),
        ({"--device": "nonsense"}, "--device nonsense"),
        ({"--max_samples": 0}, "at least 1"),
    ):
        with pytest.raises(StructureError, match=words):
            run_embedding.main([str(x) for pair in {**good, **change}.items() for x in pair])
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    (copy / "vocab.json").unlink()
    with pytest.raises(StructureError, match=f"{VOCAB_SIZE} block tokens, the tokenizer 150"):
        run_embedding.main([str(x) for pair in {**good, "--model_name_or_path": copy}.items() for x in pair])
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(StructureError, match="no Atomica model there"):
        run_embedding.main([str(x) for pair in {**good, "--model_name_or_path": copy}.items() for x in pair])
    assert not (tmp_path / "v.parquet").exists()


def run_main(*options):
    run_embedding.main([str(x) for x in (*options, "--device", "cpu", "--dtype", "float64")])


def test_representations_have_columns_of_their_names(model_folder, tmp_path, processor, capsys):
    table = tmp_path / "pairs.csv"
    table.write_text("smiles\nCC(=O)Oc1ccccc1C(=O)O.CCO\nCCO\nNC(=O)C.CCO.O\n")
    output = tmp_path / "v.parquet"
    base = ("--model_name_or_path", model_folder, "--input_file", table, "--output_file", output)
    names = ["h_graph", "z_graph", "h_interface", "z_interface", "z_block"]
    pooling = "mean_component_normalized"
    run_main(*base, "--representations", *names, "--pooling", pooling, "--segment", 1)
    text = capsys.readouterr().out
    rows = pq.read_table(output).to_pylist()
    model, _ = run_embedding.load_model(str(model_folder), "float64")
    widths = model.representation_widths(pooling)
    assert [row["index"] for row in rows] == [0, 2] and "CCO: 1 segments, none is number 1" in text
    assert f"z_block {widths['z_block']}" in text
    for row, item in zip(rows, (("CC(=O)Oc1ccccc1C(=O)O", "CCO"), ("NC(=O)C", "CCO", "O"))):
        inputs = processor(item, return_tensors="pt")
        expected = model.get_representations(names, pooling, 1, **inputs)
        for name in names:
            assert np.shape(row[name])[-1] == widths[name]
            assert np.abs(np.array(row[name]) - expected[name][0].detach().numpy()).max() < 1e-6, name
        assert row["tokens"] == processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    run_main(*base, "--representations", "h_block", "z_block")
    rows = pq.read_table(output).to_pylist()
    assert {"block", "token", "h_block", "z_block"} <= set(rows[0]) and len(rows[0]["h_block"]) == 8


def test_names_that_do_not_fit_together_are_named(model_folder, table, tmp_path):
    base = ("--model_name_or_path", model_folder, "--input_file", table, "--output_file", tmp_path / "v.parquet")
    for options, words in (
        (("--representations", "z_graph"), "z_graph needs a `pooling`"),
        (("--representations", "h_interface"), "needs a `segment`"),
        (("--representations", "h_graph", "--pooling", "mean_std_global"), "take none"),
        (("--representations", "h_graph", "--level", "block"), "exclude each other"),
        (("--representations", "h_interface", "--segment", 7), "nothing has a segment 7"),
    ):
        with pytest.raises(StructureError, match=words):
            run_main(*base, *options)
    assert not (tmp_path / "v.parquet").exists()


def test_a_model_that_attends_to_padding_embeds_one_by_one(table, tmp_path, processor, capsys):
    folder = tmp_path / "model"
    tiny_model(dtype=torch.float32, attend_to_padding=True).save_pretrained(folder)
    processor.save_pretrained(folder)
    run_main("--model_name_or_path", folder, "--input_file", table, "--output_file", tmp_path / "v.parquet")
    assert "one by one" in capsys.readouterr().out
    model, _ = run_embedding.load_model(str(folder), "float64")
    for row, item in zip(pq.read_table(tmp_path / "v.parquet").to_pylist(), ("CCO", "CC(=O)Oc1ccccc1C(=O)O", ("CCO", "O"))):
        alone = model(**processor(item, return_tensors="pt")).pooler_output[0].detach().numpy()
        assert np.abs(np.array(row["embedding"]) - alone).max() < 1e-6
