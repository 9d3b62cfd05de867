"""Makes examples/pairs.csv from examples/molecules.csv, and the files with which the clone itself opens from the folder of a
pretrained model (`run_pretraining.py`) or of a tokenizer (`train_tokenizer.py`): vocab.json, tokenizer_config.json,
processor_config.json, config.json and, of a model, model.safetensors.

    python examples/make_repository_files.py my-atomica
"""

import csv
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from rdkit import Chem


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from atomica_hf import AtomicaConfig, AtomicaForPreTraining, AtomicaProcessor, AtomicaTokenizer  # noqa: E402


NUM_PAIRS, LARGEST = 60, 16  # pairs, heavy atoms of a partner
WEIGHTS = "model.safetensors"


def make_pairs(rows, path):
    small = [row for row in rows if Chem.MolFromSmiles(row["smiles"]).GetNumHeavyAtoms() <= LARGEST]
    rng = np.random.default_rng(0)
    pairs = {}
    while len(pairs) < NUM_PAIRS:
        a, b = (small[i] for i in rng.choice(len(small), size=2, replace=False))
        pairs.setdefault(frozenset((a["name"], b["name"])), (f"{a['name']} + {b['name']}", f"{a['smiles']}.{b['smiles']}"))
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["name", "smiles"])
        writer.writerows(pairs.values())


def main():
    with open(ROOT / "examples" / "molecules.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    make_pairs(rows, ROOT / "examples" / "pairs.csv")
    source = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT)
    tokenizer = AtomicaTokenizer(source / "vocab.json")
    with tempfile.TemporaryDirectory() as folder:
        AtomicaProcessor(tokenizer).save_pretrained(folder)
        files = ["vocab.json", "tokenizer_config.json", "processor_config.json", "config.json"]
        if (source / WEIGHTS).exists():
            model = AtomicaForPreTraining.from_pretrained(source)
            assert model.config.vocab_size == len(tokenizer)
            model.save_pretrained(folder)
            files.append(WEIGHTS)
        else:
            AtomicaConfig(vocab_size=len(tokenizer), architectures=["AtomicaForPreTraining"]).save_pretrained(folder)
        for name in files:
            shutil.copyfile(Path(folder) / name, ROOT / name)
    print(f"{len(tokenizer)} tokens, {NUM_PAIRS} pairs.")


if __name__ == "__main__":
    main()
