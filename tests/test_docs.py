"""The commands of the documentation, run as they are written."""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import torch
from conftest import ROOT
from safetensors.torch import load_file


def run_blocks(text, folder):
    """Every bash and python block of a page, in order, in a folder."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    outputs = []
    for language, block in re.findall(r"^```(bash|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language == "python":
            commands = [[sys.executable, "-c", block]]
        else:
            lines = block.replace("\\\n", " ").strip().splitlines()
            commands = [[sys.executable, str(ROOT / words[1]), *words[2:]] for words in map(shlex.split, lines)]
        for command in commands:
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-2000:]}"
            outputs.append(done.stdout)
    return outputs


def test_moving_over_from_atomica(shared, tmp_path):
    for path in (shared / "data/complexes/atomica_examples").iterdir():
        shutil.copy(path, tmp_path)
    shutil.copy(shared / "data/original/ps_vocab_300.txt", tmp_path)
    reference = shared / "parity/pretrain_torsion_masking"
    config = json.loads(reference.with_suffix(".json").read_text())["config"]
    (tmp_path / "pretrain_model_config.json").write_text(json.dumps(config))
    tensors = load_file(reference.with_suffix(".safetensors"))
    weights = {name.removeprefix("state_dict."): w for name, w in tensors.items() if name.startswith("state_dict.")}
    torch.save(weights, tmp_path / "pretrain_model_weights.pt")

    outputs = "\n".join(run_blocks((ROOT / "docs" / "from_atomica.md").read_text(encoding="utf-8"), tmp_path))
    assert "7 vectors, one per complex" in outputs and "1 of 7 complexes have <unk> blocks" in outputs
    back = json.loads((tmp_path / "back" / "model_config.json").read_text())
    assert back["model_type"] == "RegressionPredictor" and back["fragmentation_method"] == "PS_300"
    with gzip.open(tmp_path / "complexes.jsonl.gz", "rt") as stream:
        assert len(stream.readlines()) == 7
