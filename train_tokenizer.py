# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Mines a fragment vocabulary from SMILES and writes a folder that AutoTokenizer opens.

    python train_tokenizer.py examples/molecules.csv --output_dir my-tokenizer --vocab_size 240 --min_count 4
    python train_tokenizer.py druglike.smi.gz --output_dir my-tokenizer --vocab_size 440 --max_samples 250000 --num_proc 2

Reads .smi, .csv, .tsv and .parquet, also .gz. The result depends on the molecules, not on their spelling, their order or the
number of processes. A run that was stopped goes on where it was, if it is started again with the same SMILES and the same
output folder.
"""

import json
import os
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from transformers.hf_argparser import HfArg

from atomica_hf import AtomicaTokenizer, StructureError
from atomica_hf.fragmentation_atomica import ATOM_ORDERS
from atomica_hf.structure_atomica import read_smiles
from atomica_hf.tokenization_atomica import BASE_TOKENS
from script_arguments import ScriptParser, run_script


REPORT_FILE = "mining.json"


@dataclass
class MiningArguments:
    output_dir: str = HfArg(help="Folder of the tokenizer; must not exist.")
    vocab_size: int = HfArg(
        default=440, help=f"Tokens in all: {len(BASE_TOKENS)} special ones, residues, nucleotides, elements, and fragments."
    )
    min_count: int = HfArg(default=2, help="A fragment that is less frequent ends the mining.")
    atom_order: str = HfArg(
        default="canonical", metadata={"choices": list(ATOM_ORDERS)},
        help="What breaks ties between atoms: canonical ranks, or the order they are written in, as in ATOMICA.",
    )  # fmt: skip
    smiles_column: str | None = HfArg(default=None, help="Column of a table; by default one with a usual name.")
    max_samples: int | None = HfArg(default=None, help="Mine a random sample of this many molecules.")
    seed: int = HfArg(default=0, help="Seed of the sample.")
    num_proc: int = HfArg(default=1, help="Processes. The vocabulary does not depend on their number.")
    checkpoint_seconds: float = HfArg(
        default=60.0, help="The merges so far are kept in OUTPUT_DIR.checkpoint.json this often; the file goes at the end."
    )


def main(argv=None):
    parser = ScriptParser(MiningArguments, description=__doc__)
    parser.add_argument(
        "inputs", nargs="+", help="Files with SMILES: .smi (first word of a line), .csv .tsv .parquet (a column); also .gz."
    )
    arguments, rest = parser.parse_args_into_dataclasses(argv)
    output = Path(arguments.output_dir)
    if output.exists():
        raise StructureError("usage", f"--output_dir {output} exists already; name a new folder.")
    smiles = [text for path in rest.inputs for text in read_smiles(path, arguments.smiles_column)]
    if arguments.max_samples is not None and arguments.max_samples < len(smiles):
        smiles = random.Random(arguments.seed).sample(smiles, max(0, arguments.max_samples))
    if not smiles:
        raise StructureError("usage", f"{', '.join(rest.inputs)}: no SMILES to mine.")
    checkpoint, temporary = (output.with_name(output.name + ending) for ending in (".checkpoint.json", ".tmp"))
    output.parent.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        print(f"Going on from {checkpoint}.", file=sys.stderr)
    rejected = []
    tokenizer = AtomicaTokenizer(atom_order=arguments.atom_order).train_new_from_iterator(
        smiles, arguments.vocab_size, min_count=arguments.min_count, num_proc=arguments.num_proc, checkpoint_file=checkpoint,
        checkpoint_seconds=arguments.checkpoint_seconds, rejected=rejected,
    )  # fmt: skip
    if len(rejected) == len(smiles):
        raise StructureError("usage", f"None of {len(smiles)} SMILES can be read; the first: {rejected[0][1]}")
    report = {
        "molecules": len(smiles) - len(rejected), "min_count": arguments.min_count, "atom_order": arguments.atom_order,
        "seed": arguments.seed, "inputs": [Path(path).name for path in rest.inputs], "rejected": rejected,
    }  # fmt: skip
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        tokenizer.save_pretrained(temporary)
        (temporary / REPORT_FILE).write_text(json.dumps(report, indent=1), encoding="utf-8")
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    checkpoint.unlink(missing_ok=True)
    for text, message in rejected[:5]:
        print(f"Left out {text}: {message}", file=sys.stderr)
    fragments = sum(fragment["atoms"] > 1 for fragment in tokenizer.fragments)
    if len(tokenizer) < arguments.vocab_size:
        print(f"No pair of fragments was left with a count of {arguments.min_count}.", file=sys.stderr)
    print(
        f"{output}: {len(tokenizer)} tokens, {fragments} of them fragments of several atoms, from {report['molecules']} "
        f"molecules; {len(rejected)} left out, see {REPORT_FILE}."
    )


if __name__ == "__main__":
    run_script(main, ValueError, stopped="stopped; the same command goes on from its last checkpoint.")
