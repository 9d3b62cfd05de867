# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Reading complexes: files to tensors here, beside reading them with Bio.PDB, in one run.

    python benchmarks/reading.py --index example_inputs.csv --processor atomica [--repeats 3]

The baseline parses each file with Bio.PDB, drops hydrogens and waters, takes the atoms of both sides, cuts the interface of 8
angstrom with its KD-tree, and makes arrays of elements and positions: no tokens, no ligand bonds, no report. Needs biopython.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from atomica_hf import AtomicaProcessor  # noqa: E402
from atomica_hf.structure_atomica import list_inputs, read_table  # noqa: E402


def with_biopython(folder, row):
    from Bio.PDB import MMCIFParser, NeighborSearch, PDBParser

    path = folder / row["pdb_path"]
    parser = (MMCIFParser if path.suffix == ".cif" else PDBParser)(QUIET=True)
    model = next(iter(parser.get_structure(row["pdb_id"], path)))
    atoms = lambda residues: [a for r in residues for a in r if a.element not in ("H", "D") and r.get_resname() != "HOH"]
    first = atoms(r for c in row["chain1"].split("_") for r in model[c] if r.id[0] == " ")
    if row["lig_code"]:
        second = atoms(r for r in model[row["chain2"]] if r.get_resname() == row["lig_code"])
    else:
        second = atoms(r for c in row["chain2"].split("_") for r in model[c] if r.id[0] == " ")
    sides = []
    for side, other in ((first, second), (second, first)):
        tree = NeighborSearch(other)
        near = {a.get_parent() for a in side if tree.search(a.coord, 8.0, level="A")}
        kept = [a for a in side if a.get_parent() in near]
        sides.append((np.array([a.element for a in kept]), np.array([a.coord for a in kept])))
    return sides


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--index", required=True, help="Index CSV of complexes.")
    parser.add_argument("--processor", required=True, help="Folder of a processor.")
    parser.add_argument("--repeats", type=int, default=3, help="The fastest of so many runs counts.")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    processor = AtomicaProcessor.from_pretrained(arguments.processor)
    rows, work = read_table(arguments.index), list_inputs(arguments.index, processor.read_options)
    print("| complex | Bio.PDB, ms | here, ms | ratio | atoms |\n|---|---|---|---|---|")
    totals = np.zeros(2)
    for row, (_, function, given) in zip(rows, work):
        best = [np.inf, np.inf]
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            with_biopython(Path(arguments.index).parent, row)
            middle = time.perf_counter()
            examples = [processor.encode(structure) for structure in function(*given)]
            best = [min(best[0], middle - start), min(best[1], time.perf_counter() - middle)]
        totals += best
        atoms = sum(len(example["atom_ids"]) for example in examples)
        print(f"| {row['pdb_id']} | {1e3 * best[0]:.0f} | {1e3 * best[1]:.0f} | {best[0] / best[1]:.1f} | {atoms} |")
    print(f"| all | {1e3 * totals[0]:.0f} | {1e3 * totals[1]:.0f} | {totals[0] / totals[1]:.1f} | |")


if __name__ == "__main__":
    main()
