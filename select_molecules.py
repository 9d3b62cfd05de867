# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""SMILES -> molecules to pretrain on and to validate on, without those that a model will be judged by.

    python select_molecules.py druglike.smi.gz --exclude BBBP.csv lipo.csv --max_samples 40000 --output_dir molecules

Writes `train.smi`, `validation.smi` (other scaffolds than those of `train.smi`) and `selection.json` with the counts. Every
SMILES is canonical and appears once; the result depends on the files and the seed alone.
"""

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rdkit import rdBase
from tqdm import tqdm
from transformers.hf_argparser import HfArg

from atomic_files import write_text
from atomica_hf import StructureError
from atomica_hf.structure_atomica import read_smiles
from benchmark_statistics import corpus_molecules
from script_arguments import ScriptParser, run_script
from splitting import canonical_smiles, scaffold_balanced_split


@dataclass
class SelectionArguments:
    output_dir: str = HfArg(help="Folder of the two files and the counts; must not exist.")
    exclude: list[str] = HfArg(
        default_factory=list, help="Files whose molecules (same canonical SMILES) are left out: those of benchmarks, say."
    )
    max_samples: int | None = HfArg(default=None, help="A random sample of this many molecules, both files together.")
    validation_fraction: float = HfArg(default=0.05, help="Share of the molecules to validate on.")
    smiles_column: str | None = HfArg(default=None, help="Column of a table; by default one with a usual name.")
    seed: int = HfArg(default=0, help="Seed of the sample and of the scaffolds to validate on.")


def select(smiles, excluded, max_samples=None, validation_fraction=0.05, seed=0, progress=True):
    """SMILES -> molecules for training and for validation.

    Args:
        smiles (`list[str]`): in any order, as often as they like.
        excluded (`set[str]`): canonical SMILES to leave out.
        max_samples (`int`): how many to keep at most, drawn at random.
        validation_fraction (`float`): share of those kept, whole Bemis-Murcko scaffolds.

    Returns:
        (`dict[str, list[str]]`, `dict`): canonical SMILES of `train` and `validation`, and the counts.
    """
    order = sorted(set(smiles))
    random.Random(seed).shuffle(order)
    counts, kept = Counter(read=len(smiles), repeated=len(smiles) - len(order)), {}
    with rdBase.BlockLogs(), tqdm(order, desc="Molecules", unit="molecule", disable=not progress) as bar:
        for text in bar:
            if max_samples is not None and len(kept) == max_samples:
                break
            (canonical,) = canonical_smiles([text])
            if canonical is None:
                counts["not_readable"] += 1
            elif canonical in excluded:
                counts["excluded"] += 1
            elif canonical in kept:
                counts["repeated"] += 1
            else:
                kept[canonical] = None
    kept = list(kept)
    split = scaffold_balanced_split(kept, (1 - validation_fraction, validation_fraction, 0.0), seed)
    split["train"] = sorted(split["train"] + split["test"])  # what fitted neither by rounding
    chosen = {part: [kept[row] for row in split[part]] for part in ("train", "validation")}
    counts["not_drawn"] = counts["read"] - sum(counts[name] for name in ("repeated", "not_readable", "excluded")) - len(kept)
    return chosen, {**counts, **{part: len(rows) for part, rows in chosen.items()}}


def main(argv=None):
    parser = ScriptParser(SelectionArguments, description=__doc__)
    parser.add_argument("inputs", nargs="+", help="Files with SMILES: .smi .csv .tsv .parquet; also .gz.")
    arguments, rest = parser.parse_args_into_dataclasses(argv)
    output = Path(arguments.output_dir)
    if output.exists():
        raise StructureError("usage", f"--output_dir {output} exists already; name a new folder.")
    if not 0 < arguments.validation_fraction < 1:
        raise StructureError(
            "usage", f"--validation_fraction is {arguments.validation_fraction}, expected more than 0 and less than 1."
        )
    if arguments.max_samples is not None and arguments.max_samples < 2:
        raise StructureError("usage", f"--max_samples is {arguments.max_samples}, expected at least 2.")
    smiles = [text for path in rest.inputs for text in read_smiles(path, arguments.smiles_column)]
    excluded, lines = corpus_molecules(arguments.exclude)
    chosen, counts = select(smiles, excluded, arguments.max_samples, arguments.validation_fraction, arguments.seed)
    empty = [part for part, rows in chosen.items() if not rows]
    if empty:
        raise StructureError(
            "usage", f"{', '.join(rest.inputs)}: no molecule is left to be in {' or '.join(empty)} ({counts})."
        )
    output.mkdir(parents=True)
    for part, rows in chosen.items():
        write_text(output / f"{part}.smi", "".join(f"{text}\n" for text in rows))
    report = {
        "inputs": [Path(path).name for path in rest.inputs], "excluded_files": lines, "seed": arguments.seed,
        "max_samples": arguments.max_samples, "validation_fraction": arguments.validation_fraction, "counts": counts,
    }  # fmt: skip
    write_text(output / "selection.json", json.dumps(report, indent=1))
    print(f"{output}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}.")


if __name__ == "__main__":
    run_script(main)
