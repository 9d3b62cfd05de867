import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from atomica_hf import ROOT, AtomicaConfig, AtomicaForPreTraining, AtomicaProcessor, AtomicaTokenizer  # noqa: E402
from atomica_hf.processing_atomica import pad_examples  # noqa: E402


VOCAB_SIZE = len(AtomicaTokenizer.from_pretrained(ROOT))
SHARED = Path(os.environ.get("ATOMICA_SHARED", ROOT.parent / "shared"))
INPUTS = ("CC(=O)Oc1ccccc1C(=O)O", ("CCO", "c1ccccc1O"), "CC(N)C(=O)O", ("CC(=O)NC", "O"), "[Na+]", ("OCC", "O", "[Cl-]"))


@pytest.hookimpl(trylast=True)  # when -m has chosen
def pytest_collection_modifyitems(items):
    forking = [item for item in items if "forks" in item.keywords]
    if len(forking) == len(items):
        os.environ["OMP_NUM_THREADS"] = "1"
        return torch.set_num_threads(1)
    for item in forking:
        item.add_marker(pytest.mark.skip(reason="forks, which other tests' threads do not bear: pytest -m forks"))


def load_script(path):
    """A script of the repository that is not at its top, as a module."""
    specification = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), ROOT / path)
    loaded = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="session")
def shared():
    """Folder with real data and reference values, beside the repository or at $ATOMICA_SHARED."""
    if not (SHARED / "parity").is_dir():
        pytest.skip(f"no real data at {SHARED}; set ATOMICA_SHARED")
    return SHARED


@pytest.fixture(scope="session")
def tokenizer():
    return AtomicaTokenizer.from_pretrained(ROOT)


@pytest.fixture(scope="session")
def processor():
    return AtomicaProcessor.from_pretrained(ROOT)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, processor):
    """A model of a few channels, saved with its processor."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model(dtype=torch.float32).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def examples(processor):
    """A molecule, pairs, single atoms and a complex of three, as `AtomicaProcessor.encode` makes them."""
    encoded = [processor.encode(processor.read(item)[0]) for item in INPUTS]
    return [{**example, "example_index": i, "epoch": 0} for i, example in enumerate(encoded)]


@pytest.fixture(scope="session")
def original_tokenizer(shared):
    return AtomicaTokenizer.from_fragment_vocabulary(shared / "data/original/ps_vocab_300.txt")


@pytest.fixture(scope="session")
def tokenizer_benchmark():
    """benchmarks/tokenizer.py, which has the plain form of the published procedure."""
    return load_script("benchmarks/tokenizer.py")


def tiny_config(**changes):
    values = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 8,
        "atom_hidden_size": 8,
        "edge_size": 8,
        "num_hidden_layers": 3,
        **changes,
    }
    return AtomicaConfig(**values)


def tiny_model(seed=0, dtype=torch.float64, **changes):
    torch.manual_seed(seed)
    return AtomicaForPreTraining(tiny_config(**changes)).to(dtype).eval()


def to_batch(examples, dtype=torch.float64):
    batch = pad_examples(examples, ("input_ids", "token_type_ids", "attention_mask", "atom_ids", "atom_to_block", "positions"))
    batch["positions"] = batch["positions"].to(dtype)
    return batch


def random_rotation(seed=0):
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return torch.tensor(q if np.linalg.det(q) > 0 else -q)


def run(*command, timeout=300, **environment):
    """Runs python with these arguments in the repository, offline; returns the finished process."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)


def shipped_smiles():
    with open(ROOT / "examples" / "molecules.csv", newline="", encoding="utf-8") as stream:
        return [row["smiles"] for row in csv.DictReader(stream)]
