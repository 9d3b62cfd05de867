import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import run, tiny_model

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
    with pytest.raises(StructureError, match="240 block tokens, the tokenizer 150"):
        run_embedding.main([str(x) for pair in {**good, "--model_name_or_path": copy}.items() for x in pair])
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(StructureError, match="no Atomica model there"):
        run_embedding.main([str(x) for pair in {**good, "--model_name_or_path": copy}.items() for x in pair])
    assert not (tmp_path / "v.parquet").exists()
