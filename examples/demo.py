"""The whole story in a few minutes on two cores: pretrain on the molecules and pairs that the repository ships, save, open the
folder in a new offline process, embed, and draw.

    python examples/demo.py --output_dir demo-output

The puzzles are made of larger motions than the published recipe's (shifts up to 2 angstrom, turns up to 1 radian), and the
pairs are shown three times an epoch, because so small a model learns those within minutes.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from atomic_files import save_figure  # noqa: E402
from embedding_map import draw_map, project  # noqa: E402


RECIPE = {
    "task": "pretrain_torsion_masking", "hidden_size": 16, "atom_hidden_size": 16, "edge_size": 16, "num_hidden_layers": 2,
    "rotation_loss_weight": 1.0,
    "translation_noise": 2.0, "rotation_noise": 2.0, "max_rotation": 1.0, "max_blocks_per_batch": 300, "learning_rate": 0.005,
    "num_warmup_steps": 50, "max_grad_norm": 2.0, "checkpointing_steps": 400, "seed": 0,
}  # fmt: skip
LOSSES = ("torsion", "translation", "rotation", "mask")

OPEN = """
import sys
import torch
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor, AutoTokenizer
folder = sys.argv[1]
config, tokenizer, processor, model, pretraining = (
    auto.from_pretrained(folder, trust_remote_code=True)
    for auto in (AutoConfig, AutoTokenizer, AutoProcessor, AutoModel, AutoModelForPreTraining)
)
inputs = processor("CC(=O)Oc1ccccc1C(=O)O", return_tensors="pt")
with torch.no_grad():
    vector = model(**inputs).pooler_output[0]
    again = pretraining(**inputs).pooler_output[0]
assert torch.equal(vector, again) and vector.isfinite().all()
print(f"{type(config).__name__}, {type(tokenizer).__name__} ({len(tokenizer)} tokens), {type(processor).__name__}, "
      f"{type(model).__name__} and {type(pretraining).__name__} ({pretraining.num_parameters():,} parameters)")
print("aspirin is", tokenizer.decode(inputs["input_ids"][0]))
print("and its vector begins", [round(x, 3) for x in vector[:4].tolist()])
"""


def run(title, *command, **environment):
    print(f"\n== {title}", flush=True)
    started = time.time()
    subprocess.run([sys.executable, *map(str, command)], check=True, env={**os.environ, **environment})
    print(f"   {time.time() - started:.0f} s", flush=True)


def draw_molecules(vectors, molecules, picture):
    """A map of the molecules, each the mean of its blocks, coloured by family; some are named."""
    blocks = {}
    for row in pq.read_table(vectors).to_pylist():
        if row["token"] != "<global>":
            blocks.setdefault(row["name"], []).append(row["embedding"])
    points, axes = project(np.array([np.mean(rows, axis=0) for rows in blocks.values()]), "tsne")
    families = {row["name"]: row["family"] for row in molecules}
    title = "Molecules by the mean of their block vectors"
    families = [families[name] for name in blocks]
    save_figure(draw_map(points, list(blocks), families, axes=axes, title=title, value_name="family", labels=60), picture)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="demo-output", help="Where the model, the vectors and the pictures go.")
    parser.add_argument("--max_train_steps", type=int, default=1200, help="Optimizer steps.")
    arguments = parser.parse_args()
    output, started = Path(arguments.output_dir).resolve(), time.time()
    molecules, pairs = ROOT / "examples" / "molecules.csv", ROOT / "examples" / "pairs.csv"
    model, vectors, picture = output / "model", output / "blocks.parquet", output / "map.png"
    options = [text for name, value in RECIPE.items() for text in (f"--{name}", value)]
    run(
        "Pretraining on the shipped molecules and pairs",
        ROOT / "run_pretraining.py", "--train_file", molecules, pairs, pairs, pairs, "--output_dir", model,
        "--max_train_steps", arguments.max_train_steps, "--overwrite_output_dir", *options,
    )  # fmt: skip
    run("Opening the folder in a new, offline process", "-c", OPEN, model, HF_HUB_OFFLINE="1")
    run(
        "Embedding the blocks of the molecules",
        ROOT / "run_embedding.py", "--model_name_or_path", model, "--input_file", molecules, "--output_file", vectors,
        "--level", "block",
    )  # fmt: skip
    with open(molecules, newline="", encoding="utf-8") as stream:
        draw_molecules(vectors, list(csv.DictReader(stream)), picture)

    rows = [json.loads(line) for line in (model / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] == "train"][-10:]
    print("\n== Losses at the end (mean of the last 100 steps) beside predicting nothing")
    under = True
    for name in LOSSES:
        loss, baseline = (sum(row[f"{name}_{kind}"] for row in rows) / len(rows) for kind in ("loss", "baseline"))
        under &= loss < baseline
        print(f"   {name:12s} {loss:6.3f}   predict nothing {baseline:6.3f}   {100 * (1 - loss / baseline):+.0f} % better")
    print(f"\nModel     {model}\nLosses    {model / 'losses.png'}\nVectors   {vectors}\nMap       {picture}")
    print(f"Finished in {time.time() - started:.0f} s.")
    if not under:
        sys.exit("A loss is not under its baseline.")


if __name__ == "__main__":
    main()
