"""The clone itself is a model repository."""

import re

from conftest import ROOT, run

from atomica_hf.configuration_atomica import AUTO_MAP, CUSTOM_PIPELINES


FLAT = ["configuration", "fragmentation", "mining", "tokenization", "component", "molecule", "macromolecule", "structure"]
FLAT += ["processing", "convolution_triton", "geometry", "graph", "interpretation", "data_collator", "modeling", "pipelines"]


def test_the_clone_opens_with_the_auto_classes(tmp_path):
    code = """
import sys
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor, AutoTokenizer
folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_config(config, trust_remote_code=True)
AutoModelForPreTraining.from_config(config, trust_remote_code=True)
assert config.vocab_size == len(tokenizer) == len(processor.tokenizer)
print(model(**processor(["CCO", ("O", "CC(N)=O")], return_tensors="pt")).pooler_output.shape)
"""
    done = run("-c", code, ROOT, HF_HOME=str(tmp_path), PYTHONPATH="")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "[2, 32]" in done.stdout


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


def test_help_lists_every_option():
    for script in (
        "run_pretraining.py",
        "run_embedding.py",
        "run_fill_mask.py",
        "run_denoising.py",
        "run_interaction_scores.py",
        "embedding_map.py",
        "search_embeddings.py",
        "run_finetune.py",
        "run_benchmark.py",
        "prepare_dataset.py",
        "select_molecules.py",
        "split_dataset.py",
        "evaluate_pretraining.py",
        "train_tokenizer.py",
        "list_interfaces.py",
        "convert_original_checkpoint.py",
        "convert_original_data.py",
    ):
        done = run(script, "--help")
        assert done.returncode == 0 and "--output" in done.stdout
        for option in re.findall(r"\n  (--\w+)[^\n]*", done.stdout):
            described = done.stdout.split(f"\n  {option}", 1)[1].split("\n  --", 1)[0]
            assert len(described.split("(default:")[0].split()) > 3, f"{script} {option} has no help"
