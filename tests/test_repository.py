"""The clone itself is a model repository."""

import re
import runpy
import sys

import pytest
import torch
from conftest import ROOT, run
from datasets import load_dataset

from atomica_hf import AtomicaForPreTraining, AtomicaPreTrainingCollator
from atomica_hf.configuration_atomica import AUTO_MAP, CUSTOM_PIPELINES, NUM_SPECIAL_BLOCKS


README = (ROOT / "README.md").read_text(encoding="utf-8")


FLAT = ["configuration", "fragmentation", "mining", "tokenization", "component", "protonation", "molecule", "macromolecule"]
FLAT += ["structure", "processing", "convolution_triton", "geometry", "elements", "graph", "energy", "interpretation"]
FLAT += ["data_collator", "modeling", "pipelines"]


def fresh(code, tmp_path):
    """Runs code in a new process that knows neither the network nor the modules here; returns what it printed."""
    done = run("-c", code, ROOT, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1", PYTHONPATH="", PYTHONSAFEPATH="1")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, done.stderr


def test_the_clone_opens_with_the_auto_classes_and_its_weights(tmp_path):
    code = """
import sys
import torch
from transformers import (
    AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoModelForSequenceClassification, AutoProcessor,
    AutoTokenizer,
)
folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
assert config.vocab_size == len(tokenizer) == len(processor.tokenizer)
inputs = processor(["CCO", ("O", "CC(N)=O")], return_tensors="pt")
vectors = []
for auto in (AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining):
    model, found = auto.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(found.values()), (auto, found)
    vectors.append(getattr(model.eval(), "atomica", model)(**inputs).pooler_output)
assert all(torch.equal(vectors[0], vector) for vector in vectors[1:])
found = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)[1]
assert {name.split(".")[0] for name in found["missing_keys"]} == {"classifier", "projection"}
print(vectors[0].shape)
"""
    out, err = fresh(code, tmp_path)
    assert "[2, 32]" in out and "UNEXPECTED" not in err
    assert (ROOT / "model.safetensors").stat().st_size < 40e6


def test_the_lines_of_the_readme_find_neighbours_that_make_sense(tmp_path):
    lines = re.search(r"^## Ten lines that run.*?^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[1]
    out, _ = fresh("import os, sys\nos.chdir(sys.argv[1])\n" + lines, tmp_path)
    for pair in ("salicylic acid: aspirin", "caffeine: theophylline", "theophylline: caffeine", "ibuprofen: aspirin"):
        assert f"'{pair}'" in out, out


def test_the_shipped_model_knows_what_it_is_said_to_know(processor):
    """On shipped molecules, some of whose scaffolds were in its training: far above guessing, and always the same numbers."""
    examples = load_dataset("csv", data_files=str(ROOT / "examples" / "molecules.csv"), split="train")["smiles"][:60]
    encoded = [processor.encode(processor.read(smiles)[0]) for smiles in examples]
    model = AtomicaForPreTraining.from_pretrained(ROOT).eval()
    batch = AtomicaPreTrainingCollator(seed=0)([{**e, "epoch": 0, "example_index": i} for i, e in enumerate(encoded)])
    with torch.no_grad():
        output = model(**batch)
    hidden = batch["labels"] >= 0
    right = (output.prediction_logits.argmax(-1) + NUM_SPECIAL_BLOCKS == batch["labels"])[hidden].float().mean()
    assert right == pytest.approx(0.25, abs=0.04)
    found = {name: float(output[f"{name}_loss"] / output[f"{name}_baseline"]) for name in ("torsion", "mask", "composition")}
    assert found == pytest.approx({"torsion": 0.587, "mask": 0.453, "composition": 0.692}, abs=0.02)


def test_the_flat_files_import_only_what_stands_above_them():
    for place, name in enumerate(FLAT):
        text = (ROOT / f"{name}_atomica.py").read_text(encoding="utf-8")
        imported = re.findall(r"^from \.(\w+)_atomica import", text, re.MULTILINE)
        assert all(other in FLAT[:place] for other in imported), (name, imported)
        assert not re.findall(r"^\s*from \. import|^\s*import \.", text, re.MULTILINE)
        assert not re.search(r"^\s*(import|from) (e3nn|torch_scatter|torch_cluster|torch_geometric)", text, re.MULTILINE)
    assert "tokenization" not in (ROOT / "processing_atomica.py").read_text().split('"""', 2)[2].split("class ")[0]
    targets = [target if isinstance(target, str) else target[0] for target in AUTO_MAP.values()]
    for target in targets + [entry["impl"] for entry in CUSTOM_PIPELINES.values()]:
        file, cls = target.split(".")
        assert f"class {cls}(" in (ROOT / f"{file}.py").read_text(encoding="utf-8")


SCRIPTS = [file.name for file in sorted(ROOT.glob("*.py")) if '__name__ == "__main__"' in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_every_option(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    text = capsys.readouterr().out
    assert not stop.value.code and "--output" in text
    for option in re.findall(r"\n  (--\w+)[^\n]*", text):
        described = text.split(f"\n  {option}", 1)[1].split("\n  --", 1)[0]
        assert len(described.split("(default:")[0].split()) > 3, f"{option} has no help"
