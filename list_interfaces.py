# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""What touches what in structure files: every pair of chains, every ligand, every ion, as a table.

python list_interfaces.py complex.cif
python list_interfaces.py folder --output_file index.csv
"""

import csv
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm
from transformers.hf_argparser import HfArg

from atomica_hf import StructureError
from atomica_hf.structure_atomica import INTERFACE_DISTANCE, ReadOptions, format_of, is_structure_file, list_interfaces
from script_arguments import ScriptParser, run_script


COLUMNS = ("file", "kind", "side a", "side b", "nearest", "blocks a", "blocks b")
INDEX = ("pdb_id", "pdb_path", "chain1", "chain2", "lig_code", "lig_smiles", "lig_resi", "kind")


@dataclass
class InterfaceArguments:
    interface_distance: float = HfArg(default=INTERFACE_DISTANCE, help="What is closer than this touches, in angstrom.")
    model: int = HfArg(default=1, help="Number of the model to read.")
    assembly: str | None = HfArg(default=None, help="Biological assembly to build first.")
    keep_waters: bool = HfArg(default=False, help="Count waters too.")
    keep_buffers: bool = HfArg(default=False, help="Count buffer components too.")
    output_file: str | None = HfArg(default=None, help="Write an index CSV that the other scripts read, instead of a table.")


def files_of(paths):
    for path in map(Path, paths):
        if not path.exists():
            raise StructureError("missing_file", f"{path}: no such file or folder.")
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.is_file() and is_structure_file(p))
        else:
            yield path


def index_row(path, interface, folder):
    """Row of an index CSV; None for what it cannot say, two ligands or a ligand of several molecules."""
    if ":" in interface.side_a or "+" in interface.side_b:
        return None
    chain, code, number = (interface.side_b.split(":") + ["", ""])[:3]
    relative = os.path.relpath(path, folder)
    return dict(zip(INDEX, (path.name.split(".")[0], relative, interface.side_a, chain, code, "", number, interface.kind)))


def main(argv=None):
    parser = ScriptParser(InterfaceArguments, description=__doc__)
    parser.add_argument("inputs", nargs="+", help="PDB, mmCIF and BinaryCIF files, or folders of them.")
    arguments, rest = parser.parse_args_into_dataclasses(argv)
    options = ReadOptions(
        distance=arguments.interface_distance, model=arguments.model, assembly=arguments.assembly,
        keep_waters=arguments.keep_waters, keep_buffers=arguments.keep_buffers,
    )  # fmt: skip
    output = None if arguments.output_file is None else Path(arguments.output_file)
    files, rows, index, problems, unsaid = list(files_of(rest.inputs)), [], [], [], 0
    for path in tqdm(files, desc="Reading", unit="file", disable=len(files) < 2):
        try:
            if format_of(path) != "macromolecule":
                raise StructureError("unknown_format", f"{path}: not a PDB, mmCIF or BinaryCIF file.")
            found = list_interfaces(path, options)
        except StructureError as error:
            problems.append(str(error))
            continue
        if not found:
            problems.append(f"{path}: nothing within {options.distance} angstrom.")
        for interface in found:
            rows.append((path.name, interface.kind, interface.side_a, interface.side_b, f"{interface.distance:.2f}",
                         str(interface.blocks_a), str(interface.blocks_b)))  # fmt: skip
            row = index_row(path, interface, output.resolve().parent) if output is not None else None
            unsaid += row is None
            index += [row] if row is not None else []
    if output is not None:
        temporary = output.with_name(f"{output.name}.{os.getpid()}.tmp")
        with open(temporary, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, INDEX, lineterminator="\n")
            writer.writeheader()
            writer.writerows(index)
        os.replace(temporary, output)
        print(
            f"{output}: {len(index)} interfaces of {len(files)} files; {unsaid} have no row, because an index cannot name them."
        )
    elif rows:
        widths = [max(len(row[i]) for row in [COLUMNS, *rows]) for i in range(len(COLUMNS))]
        for row in [COLUMNS, *rows]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    for problem in problems:
        print(problem, file=sys.stderr)
    if not rows:
        raise StructureError("no_interface", f"no interface was found in {len(files)} files.")


if __name__ == "__main__":
    run_script(main)
