"""The pipelines, from memory and from a saved folder in a fresh process; the table and the drawing of proposals."""

import csv
import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, run, tiny_config
from rdkit import Chem
from rdkit.Chem.rdMolDescriptors import CalcMolFormula
from test_docs import run_blocks
from transformers import pipeline

import run_fill_mask
from atomica_hf import AtomicaForMaskedLM, AtomicaForPreTraining, AtomicaModel, AtomicaProcessor, StructureError
from atomica_hf.data_collator_atomica import Puzzle
from atomica_hf.pipelines_atomica import kind_of_token, smiles_of_token
from atomica_hf.processing_atomica import MODEL_INPUTS, pad_examples
from drawing import draw_proposals, molecule_of


ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
INPUTS = [ASPIRIN, ("CCO", "O"), "c1ccccc1", ("CC(N)C(=O)O", "Oc1ccccc1")]
FRESH = """
import json, sys
from transformers import pipeline
for i, folder in enumerate(sys.argv[2:]):
    fill = pipeline("atomica-fill-mask", model=folder, trust_remote_code=True, device="cpu")
    extract = pipeline("atomica-feature-extraction", model=folder, trust_remote_code=True, device="cpu")
    print("found", json.dumps({"fill": fill(["CC(=O)Oc1ccccc1C(=O)O", ["CCO", "O"]], top_k=2), "vector": extract("CCO")}))
    if i == 0:
        fill.save_pretrained(sys.argv[1])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, processor):
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("model") / "saved"
    AtomicaForPreTraining(tiny_config()).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fill(folder, processor):
    return pipeline("atomica-fill-mask", model=AtomicaForMaskedLM.from_pretrained(folder), processor=processor, device="cpu")


@pytest.fixture(scope="module")
def extract(folder, processor):
    model = AtomicaModel.from_pretrained(folder)
    return pipeline("atomica-feature-extraction", model=model, processor=processor, device="cpu")


def close(first, second, tolerance=1e-5):
    """Whether two results of lists, dictionaries, texts and numbers are the same."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(close(first[key], second[key], tolerance) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(close(a, b, tolerance) for a, b in zip(first, second))
    return abs(first - second) < tolerance if isinstance(first, float) else first == second


def test_a_saved_folder_and_the_clone_work_in_a_fresh_process(folder, fill, extract, tmp_path):
    clone = tmp_path / "clone"  # the repository as it is cloned, with weights beside its files
    shutil.copytree(ROOT, clone, ignore=lambda _, names: [n for n in names if not n.endswith(("_atomica.py", ".json"))])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shipped = json.loads((ROOT / "config.json").read_text(encoding="utf-8"))
    assert config["custom_pipelines"] == shipped["custom_pipelines"]
    (clone / "config.json").write_text(json.dumps({**shipped, **{k: config[k] for k in shipped}}), encoding="utf-8")
    shutil.copyfile(folder / "model.safetensors", clone / "model.safetensors")
    expected = {"fill": fill([ASPIRIN, ("CCO", "O")], top_k=2), "vector": extract("CCO")}
    saved = [tmp_path / "again", tmp_path / "and_again"]
    for to, opened in ((saved[0], [folder]), (saved[1], [saved[0], clone])):
        done = run("-c", FRESH, to, *opened, HF_HOME=str(tmp_path / "home"), PYTHONPATH="", PYTHONSAFEPATH="1")
        assert done.returncode == 0, done.stderr[-3000:]
        found = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("found ")]
        assert len(found) == len(opened) and all(close(result, expected) for result in found)
    names = sorted(path.name for path in folder.iterdir())
    assert "pipelines_atomica.py" in names and names == sorted(path.name for path in saved[1].iterdir())
    assert json.loads((saved[1] / "config.json").read_text())["custom_pipelines"] == config["custom_pipelines"]


def test_it_needs_trust(folder):
    with pytest.raises(ValueError, match="trust_remote_code"):
        pipeline("atomica-fill-mask", model=str(folder))


def test_proposals_are_those_of_the_model_for_a_hidden_block(fill, folder, processor):
    model = AtomicaForMaskedLM.from_pretrained(folder).eval()
    example = processor.encode(processor.read(("CC(N)C(=O)O", "Oc1ccccc1"))[0])
    blocks = [i for i, token in enumerate(example["input_ids"]) if token >= 4]
    for together in (False, True):
        rows = fill(example, together=together, top_k=3)
        assert [row["block"] for row in rows] == [block for block in blocks for _ in range(3)]
        for block in blocks:
            puzzle = Puzzle(example)
            puzzle.hide(blocks if together else [block])
            assert (puzzle.input_ids == 1).sum() == (len(blocks) if together else 1)
            with torch.no_grad():
                logits = model(**pad_examples([puzzle.to_example()], MODEL_INPUTS)).logits[0, block]
            best = logits.softmax(-1).topk(3)
            mine = [row for row in rows if row["block"] == block]
            assert [row["token"] for row in mine] == best.indices.tolist()
            assert np.allclose([row["score"] for row in mine], best.values, rtol=1e-5)
            assert all(row["true_token"] == example["input_ids"][block] for row in mine)
            assert abs(mine[0]["true_score"] - float(logits.softmax(-1)[mine[0]["true_token"]])) < 1e-7
    with pytest.raises(AssertionError):  # a block in sight gets other proposals than a hidden one
        with torch.no_grad():
            seen = model(**pad_examples([example], MODEL_INPUTS)).logits[0, blocks[0]].softmax(-1)
        assert np.allclose([row["score"] for row in rows[:3]], seen.topk(3).values, rtol=1e-5)


def test_probabilities_sum_to_one_over_what_can_be_named(fill, processor):
    rows = fill(ASPIRIN, top_k=None)
    for block in {row["block"] for row in rows}:
        mine = [row for row in rows if row["block"] == block]
        assert len(mine) == len(processor.tokenizer) - 4 and min(row["token"] for row in mine) == 4
        assert abs(sum(row["score"] for row in mine) - 1) < 1e-5
        assert [row["score"] for row in mine] == sorted((row["score"] for row in mine), reverse=True)


@pytest.mark.parametrize("batch_size", [2, 3, 50])
def test_batches_change_nothing(fill, extract, batch_size):
    assert close(fill(INPUTS, batch_size=batch_size), [fill(item) for item in INPUTS])
    options = {"representation": ["h_block", "h_graph", "z_graph"], "pooling": "mean_std_global"}
    assert close(extract(INPUTS, batch_size=batch_size, **options), [extract(item, **options) for item in INPUTS], 1e-4)
    streamed = list(extract((item for item in INPUTS), batch_size=batch_size))
    assert close(streamed, extract(INPUTS))


def test_workers_read_the_same(extract):
    if sys.platform != "linux":
        pytest.skip("a pipeline cannot be sent to a new process")
    assert close(extract(INPUTS, num_workers=1, batch_size=2), extract(INPUTS))


def test_what_is_hidden_can_be_chosen(fill, processor, shared):
    path = shared / "data/complexes/atomica_examples/4yaz.cif"
    (first,) = fill({"inputs": path, "top_k": 1, "blocks": [3]})
    origin = first["origin"]
    assert origin.startswith(first["chain"]) and first["component"] in origin and first["number"] is not None
    assert first["atoms"] and first["true_token_str"]
    assert [row["origin"] for row in fill(str(path), blocks=[origin], top_k=1)] == [origin]
    index = first["block"]
    assert close(fill(path, blocks=index), fill(path, blocks=[origin]))
    # residues that are not among those of the interface
    for wrong, words in ((f"{first['chain']}:GLY:9999", "near.*Nearest by number are "), ("Q:GLY:1", "chains A, R; side_a")):
        with pytest.raises(
            StructureError, match=f"no block of '{wrong}': the residue is not in the file, or.*{words}"
        ) as error:
            fill(path, blocks=[wrong])
        assert len(str(error.value)) < 300
    with pytest.raises(StructureError, match=f"Nearest by number are {re.escape(origin)},"):
        fill(path, blocks=[f"{first['chain']}:XYZ:{first['number']}"])
    # a block that is hidden already
    example = processor.encode(processor.read(ASPIRIN)[0])
    puzzle = Puzzle(example)
    puzzle.hide([2])
    asked = fill({**puzzle.to_example(), "name": "asked"}, top_k=2)
    assert {row["block"] for row in asked} == {2} and asked[0]["true_token"] == example["input_ids"][2]
    unlabelled = {name: puzzle.to_example()[name] for name in MODEL_INPUTS}
    assert [row["true_token"] for row in fill(unlabelled, top_k=1)] == [None]
    assert close([row["score"] for row in asked], [row["score"] for row in fill(ASPIRIN, blocks=2, top_k=2)])


def test_sides_for_all_or_for_one(extract, shared, processor):
    path = shared / "data/complexes/atomica_examples/6d1u.cif"
    (listed, *_) = extract(path)
    assert "error" not in listed
    import gemmi

    chains = [chain.name for chain in gemmi.read_structure(str(path))[0]]
    sides = {"side_a": chains[0], "side_b": chains[1]}
    (one,) = extract(path, **sides)
    (other,) = extract([{"inputs": path, **sides}, "CCO"])[0]
    assert close(one, other)
    with torch.no_grad():
        expected = extract.model(**processor(path, **sides, return_tensors="pt")).pooler_output[0]
    assert np.allclose(one["h_graph"], expected, atol=1e-6)


def test_representations(extract, processor):
    names = ["h_atom", "h_block", "h_interface", "z_graph"]
    options = {"representation": names, "pooling": "mean_component_normalized", "segment": 1}
    results = extract([INPUTS[1], INPUTS[3]], return_tensors="pt", batch_size=2, **options)
    for item, (row,) in zip((INPUTS[1], INPUTS[3]), results):
        batch = processor(item, return_tensors="pt")
        with torch.no_grad():
            expected = extract.model.get_representations(names, "mean_component_normalized", 1, **batch)
        for name in names:
            assert torch.allclose(row[name], expected[name][0], atol=1e-5), name
        assert len(row["tokens"]) == len(row["h_block"]) and len(row["atom_to_block"]) == len(row["h_atom"])
    assert isinstance(extract("CCO", return_tensors="np")[0]["h_graph"], np.ndarray)
    with pytest.raises(StructureError, match="1 segments, none is number 1"):
        extract("CCO", representation="h_interface", segment=1)
    mixed = extract(["CCO", {"inputs": "CCO", "representation": "h_block"}], batch_size=2)
    assert "h_graph" in mixed[0][0] and "h_block" in mixed[1][0]


def test_dtype_and_device(folder, processor):
    model = AtomicaModel.from_pretrained(folder, dtype=torch.float64)
    double = pipeline("atomica-feature-extraction", model=model, processor=processor, device=torch.device("cpu"))
    assert double("CCO", return_tensors="pt")[0]["h_graph"].dtype == torch.float64
    assert double("CCO", return_tensors="np")[0]["h_graph"].tolist() == double("CCO")[0]["h_graph"]
    model = AtomicaModel.from_pretrained(folder, dtype=torch.bfloat16)
    short = pipeline("atomica-feature-extraction", model=model, processor=processor, device="cpu")
    assert short("CCO", return_tensors="np")[0]["h_graph"].dtype == np.float32
    half = pipeline("atomica-fill-mask", model=str(folder), trust_remote_code=True, dtype=torch.bfloat16, device=-1)
    assert half.model.dtype == torch.bfloat16
    assert abs(sum(row["score"] for row in half("CCO", top_k=None)) - 1) < 1e-3


def test_bad_inputs_are_named_or_returned_in_their_place(fill, extract, examples, tmp_path):
    with pytest.raises(StructureError, match="C1CC"):
        extract(["CCO", "C1CC"])
    bad_file = tmp_path / "few.smi"
    bad_file.write_text("CCO ethanol\nC1CC broken\nO water\n", encoding="utf-8")
    nowhere = {**examples[0], "positions": np.full_like(examples[0]["positions"], np.nan), "name": "nowhere"}
    inputs = ["CCO", "C1CC", bad_file, tmp_path / "missing.pdb", nowhere, {"input_ids": [3]}, 7, "O"]
    results = extract(inputs, on_error="return", batch_size=3)
    assert len(results) == len(inputs)
    assert "h_graph" in results[0][0] and "h_graph" in results[-1][0]
    assert results[1][0]["error"] == "smiles_syntax" and "C1CC" in results[1][0]["message"]
    assert [row.get("error") for row in results[2]] == [None, None, "smiles_syntax"] and "broken" in results[2][2]["name"]
    errors = [result[0]["error"] for result in results[3:7]]
    assert errors == ["missing_file", "bad_coordinates", "missing_input", "unknown_input"]
    for blocks, words in ((0, "block 0"), (99, "block 99"), ("A:GLY:1", "A:GLY:1")):
        with pytest.raises(StructureError, match=words):
            fill("CCO", blocks=blocks)
        assert fill("CCO", blocks=blocks, on_error="return")[0]["error"] == "no_block"
    for call, words in (
        (lambda: extract("CCO", layers=3), "layers"),
        (lambda: fill("CCO", top_k=0), "`top_k` is 0"),
        (lambda: extract("CCO", on_error="skip"), "'skip'"),
        (lambda: extract("CCO", representation="z_graph"), "pooling"),
        (lambda: extract([]), "No inputs"),
        (lambda: extract("CCO", return_tensors="tf"), "'tf'"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_models_that_cannot_name_blocks_are_refused(processor, tmp_path):
    with pytest.raises(ValueError, match="use_masking=False"):
        pipeline("atomica-fill-mask", model=AtomicaForMaskedLM(tiny_config(use_masking=False)), processor=processor)
    AtomicaModel(tiny_config()).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="AtomicaModel.*no trained head"):
        pipeline("atomica-fill-mask", model=str(tmp_path), trust_remote_code=True)
    with pytest.raises(ValueError, match="30 block tokens, the tokenizer"):
        pipeline("atomica-feature-extraction", model=AtomicaModel(tiny_config(vocab_size=30)), processor=processor)


def test_every_token_has_a_kind_and_residues_a_structure(processor):
    tokens = processor.tokenizer.convert_ids_to_tokens(range(len(processor.tokenizer)))
    kinds = [kind_of_token(token) for token in tokens]
    assert kinds[:4] == ["special"] * 4 and [kinds.count(kind) for kind in ("amino acid", "nucleotide", "atom")] == [20, 8, 118]
    assert set(kinds[4:]) == {"amino acid", "nucleotide", "atom", "fragment"}
    weights = {"GLY": "C2H5NO2", "TRP": "C11H12N2O2", "HIS": "C6H9N3O2", "DA": "C10H14N5O6P", "RU": "C9H13N2O9P"}
    for token, formula in weights.items():
        assert CalcMolFormula(Chem.MolFromSmiles(smiles_of_token(token))) == formula
    assert all(Chem.MolFromSmiles(smiles_of_token(token), sanitize=False) for token in tokens[4:])
    assert smiles_of_token("Na") == "[Na]" and smiles_of_token("C") == "C" and smiles_of_token("<mask>") is None


def test_the_drawing_shows_every_proposal(fill, tmp_path):
    rows = fill(ASPIRIN, top_k=3) + fill("C1CC", on_error="return")
    svg = draw_proposals(rows, tmp_path / "grid.svg")
    assert (tmp_path / "grid.svg").read_text(encoding="utf-8") == svg and svg.lstrip().startswith("<?xml")
    first, second = svg.split("width='")[1], draw_proposals(rows[:3]).split("width='")[1]
    assert first[:3] == second[:3] == "760"  # the true block and three proposals
    draw_proposals(rows, tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="no proposals"):
        draw_proposals(fill("C1CC", on_error="return"))
    with pytest.raises(ValueError, match="svg or .png"):
        draw_proposals(rows, tmp_path / "grid.jpg")


def test_a_piece_of_an_aromatic_ring_is_drawn_with_its_atoms_marked():
    mol, marked = molecule_of("c[nH]")
    assert marked == [0, 1] and [bond.GetBondType() for bond in mol.GetBonds()] == [Chem.BondType.SINGLE]
    assert [atom.GetTotalNumHs() for atom in mol.GetAtoms()] == [0, 1]
    assert molecule_of("c1ccccc1")[1] == []
    row = {"name": "x", "origin": "", "block": 0, "true_token_str": "c[nH]", "true_smiles": "c[nH]", "score": 0.5}
    svg = draw_proposals([{**row, "token_str": "c[nH]", "smiles": "c[nH]"}])
    assert "stroke-dasharray" not in svg and svg.count("<ellipse") == 4
    assert "M 0.0,0.0 L 0.0,160.0 L 190.0,160.0" in svg  # the ground of the first column


def test_every_token_can_be_drawn(processor):
    tokens = processor.tokenizer.convert_ids_to_tokens(range(4, len(processor.tokenizer)))
    row = {"name": "all", "block": 1, "origin": "", "true_token_str": None, "score": 0.1}
    rows = [{**row, "token_str": token, "smiles": smiles_of_token(token)} for token in tokens]
    assert draw_proposals(rows).count("<path") > len(tokens)


def test_the_script_writes_table_report_and_drawing(folder, tmp_path):
    table = tmp_path / "deep" / "proposals.csv"
    done = run(
        "run_fill_mask.py", "--model_name_or_path", folder, "--inputs", ASPIRIN, "C1CC", "CCO", "--top_k", "2",
        "--output_file", table, "--drawing", tmp_path / "grid.svg", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "6 proposals for 3 blocks" in done.stdout and "2 kept, 1 left out" in done.stdout
    with open(table, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == [ASPIRIN] * 4 + ["CCO"] * 2 and 0 < float(rows[0]["score"]) < 1
    report = json.loads(table.with_name("proposals.csv.report.json").read_text(encoding="utf-8"))
    assert report["rejected"][0]["name"] == "C1CC"
    assert "<svg" in (tmp_path / "grid.svg").read_text(encoding="utf-8")
    for wrong, words in ((("--blocks", "77"), "block 77"), (("--drawing", "a.gif"), "a.gif"), (("--top_k", "0"), "top_k")):
        common = ["--model_name_or_path", str(folder), "--inputs", "CCO", "--output_file", str(tmp_path / "no.csv")]
        with pytest.raises(StructureError, match=words):
            run_fill_mask.main([*common, *wrong])
        assert not (tmp_path / "no.csv").exists()


def test_the_processor_is_saved_with_a_pipeline(fill, tmp_path):
    fill.save_pretrained(tmp_path)
    assert len(AtomicaProcessor.from_pretrained(tmp_path).tokenizer) == len(fill.processor.tokenizer)


def test_the_page_does_as_it_says(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "demo-output" / "model")
    outputs = run_blocks((ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8"), tmp_path)
    assert len(outputs) == 4 and "->" in outputs[0] and "fragment" in outputs[0] + outputs[1]
    assert abs(float(outputs[0].splitlines()[-1]) - 1) < 1e-4
    assert "10 proposals for 2 blocks" in outputs[1]
    assert "[8]" in outputs[2] and "<global>" in outputs[2] and "smiles_syntax - C1CC" in outputs[3]
    assert (tmp_path / "proposals.svg").exists() and (tmp_path / "proposals.csv").exists()


def test_inputs_of_one_name_are_counted_and_drawn_apart(folder, fill, tmp_path):
    few = tmp_path / "few.smi"
    few.write_text("CCO same\nOCC same\n", encoding="utf-8")
    rows = fill([ASPIRIN, ASPIRIN, few], top_k=2)
    assert rows[0] == rows[1] and [row["rank"] for row in rows[0]] == [1, 2] * (len(rows[0]) // 2)
    assert [row["structure"] for row in rows[2]] == [0, 0, 1, 1]
    alone, all_rows = draw_proposals(rows[0]), rows[0] + rows[1] + rows[2]
    drawings = [int(svg.split("height='")[1].split("px")[0]) for svg in (alone, draw_proposals(all_rows))]
    blocks = len(rows[0]) // 2
    assert drawings[1] * blocks == drawings[0] * (2 * blocks + 2)
    table = tmp_path / "p.csv"
    common = ["--model_name_or_path", str(folder), "--device", "cpu", "--top_k", "2", "--output_file", str(table)]
    run_fill_mask.main([*common, "--inputs", ASPIRIN, ASPIRIN, str(few), "--drawing", str(tmp_path / "new" / "p.svg")])
    with open(table, newline="", encoding="utf-8") as stream:
        assert [row["input"] for row in csv.DictReader(stream)] == ["0"] * len(rows[0]) + ["1"] * len(rows[0]) + ["2"] * 4
    assert json.loads((tmp_path / "p.csv.report.json").read_text(encoding="utf-8"))["kept"] == 4
    assert (tmp_path / "new" / "p.svg").exists()


@pytest.mark.parametrize(
    "wrong, words",
    [
        (["--batch_size", "0"], "--batch_size is 0"),
        (["--device", "banana"], "--device banana"),
        (["--blocks", "\u00b2"], "no block of '\u00b2'"),
        (["--blocks", "9"], "no block 9 that can be hidden, expected one of 1\\."),
        (["--output_file", str(ROOT)], "is a folder"),
    ],
)
def test_wrong_options_of_the_script_are_named(folder, tmp_path, wrong, words):
    common = ["--model_name_or_path", str(folder), "--inputs", "CCO", "--output_file", str(tmp_path / "no.csv")]
    with pytest.raises(StructureError, match=words):
        run_fill_mask.main([*common, "--device", "cpu", *wrong])
    assert not list(tmp_path.iterdir())


def test_batches_of_none_are_refused(fill):
    with pytest.raises(ValueError, match="`batch_size` is 0"):
        fill(ASPIRIN, batch_size=0)
