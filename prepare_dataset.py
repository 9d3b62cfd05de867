# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Files of molecules and complexes -> a dataset of examples, which `run_pretraining.py` and the rest read without delay.

python prepare_dataset.py molecules.csv dimers.sdf.gz --output_dir prepared --num_proc 8

The folder holds Parquet shards, `data-00000.parquet` and so on, and `read_report.json`: what was kept, what was left out and
why. The same command continues a run that was stopped. Files of ATOMICA's processed data (`.pkl`, `.jsonl`, `.json`,
`.parquet`; see `convert_original_data.py`) and prepared datasets are inputs too.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets.utils.py_utils import convert_file_size_to_int
from transformers.hf_argparser import HfArg

from atomica_hf import ROOT, StructureError
from dataset_shards import SHARD_SIZE, prepare, report_text
from engines import ENGINES, check_engine
from model_loading import load_processor, read_all_atoms
from script_arguments import ScriptParser, run_script


TIME_LIMIT = 60.0  # seconds for one structure


@dataclass
class PrepareArguments:
    output_dir: str = HfArg(help="Folder for the dataset; must not exist, or be one that this command began.")
    processor: str = HfArg(default=str(ROOT), help="Folder or hub id with processor and tokenizer.")
    num_proc: int = HfArg(default=1, help="Processes that read; the dataset is the same with any number.")
    engine: str = HfArg(
        default="local",
        metadata={"choices": list(ENGINES)},
        help="local: --num_proc processes of this machine. ray: all cores of a Ray cluster (needs the package ray), whose "
        "machines see this repository and the inputs at the same paths; the dataset is the same.",
    )
    ray_address: str | None = HfArg(
        default=None, help="Address of the Ray cluster; without it, that of this machine, begun if there is none."
    )
    max_samples: int | None = HfArg(default=None, help="Read only this many files, records or rows of each input.")
    strict: bool = HfArg(default=False, help="The first structure that cannot be read is an error; duplicates are not.")
    deduplicate: bool = HfArg(
        default=True,
        help="Whether examples with the same blocks, atoms, positions (to 0.001 angstrom) and label as another are left out.",
    )
    time_limit: float = HfArg(
        default=TIME_LIMIT,
        help="Seconds for one structure, which is left out if it takes longer. With one process, a step of RDKit or gemmi "
        "comes to its end first (RDKit's search for a conformer after 20 s).",
    )
    shard_size: int = HfArg(default=SHARD_SIZE, help="Examples in a shard, at most; a run that is stopped loses no more.")
    max_shard_size: str = HfArg(
        default="64MB", help="Size of a shard, about and before compression; a shard ends at this or at --shard_size."
    )
    seed: int | None = HfArg(default=None, help="Seed of the conformers built from SMILES (of the processor by default).")
    num_conformers: int = HfArg(default=1, help="Conformers of each SMILES, an example each.")
    interfaces: str | None = HfArg(
        default=None, help="'all' for every interface of a PDB or mmCIF file; without it, that of two chains."
    )
    interface_distance: float | None = HfArg(
        default=None, help="What is closer than this to the other side is kept, in angstrom (of the processor by default)."
    )
    model: int = HfArg(default=1, help="Number of the model to read from each file.")
    assembly: str | None = HfArg(default=None, help="Biological assembly to build first, by its name in the file.")
    keep_waters: bool = HfArg(default=False, help="Keep the waters of an interface too.")
    keep_buffers: bool = HfArg(default=False, help="Keep the buffer components of an interface too.")
    keep_hydrogens: bool = HfArg(
        default=False, help="Hydrogens become atoms too: molecules get those they lack, residues need them in the file."
    )
    return_charges: bool = HfArg(default=False, help="Also the formal charges of atoms (the column atom_charges).")
    ccd: str | None = HfArg(default=None, help="File of chemical components (mmCIF), for bonds and parents of residues.")


def _read_options(arguments, processor):
    """The processor's way of reading, with what the command line changes.

    Raises:
        `StructureError`: if it cannot be so.
    """
    given = processor.read_options
    options = replace(
        given,
        seed=given.seed if arguments.seed is None else arguments.seed,
        distance=given.distance if arguments.interface_distance is None else arguments.interface_distance,
        keep_waters=given.keep_waters or arguments.keep_waters,
        keep_buffers=given.keep_buffers or arguments.keep_buffers,
        ccd=arguments.ccd or given.ccd,
        **{name: getattr(arguments, name) for name in ("interfaces", "model", "assembly", "num_conformers")},
    )
    if options.as_published and (options.interfaces or options.keep_waters or options.keep_buffers):
        raise StructureError(
            "usage",
            f"{arguments.processor}: this processor reads complexes as ATOMICA does, without --interfaces, --keep_waters and "
            "--keep_buffers.",
        )
    if options.ccd is not None and not Path(options.ccd).is_file():
        raise StructureError("missing_file", f"--ccd {options.ccd}: no such file.")
    return options


def closing_line(folder, report) -> str:
    sizes = [
        pc.list_value_length(batch["input_ids"]).to_numpy()
        for shard in report["shards"]
        for batch in pq.ParquetFile(folder / shard["file"]).iter_batches(columns=["input_ids"])
    ]
    sizes = np.concatenate(sizes)
    return (
        f"{folder}: {len(sizes)} examples in {len(report['shards'])} shards, {sizes.sum()} blocks (median "
        f"{np.median(sizes):.0f}, largest {sizes.max()})."
    )


def main(argv=None):
    parser = ScriptParser(PrepareArguments, description=__doc__)
    parser.add_argument(
        "inputs",
        nargs="+",
        help=".smi .csv .tsv .sdf .mol2 .xyz .pdb .cif .bcif .parquet (also .gz), an index CSV, folders of structure files, "
        "ATOMICA's data, or prepared datasets",
    )
    arguments, rest = parser.parse_args_into_dataclasses(argv)
    for name, least in (("num_proc", 1), ("max_samples", 1), ("shard_size", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise StructureError("usage", f"--{name} is {value}, expected at least {least}.")
    check_engine(arguments)
    try:
        max_shard_size = convert_file_size_to_int(arguments.max_shard_size)
    except ValueError:
        max_shard_size = 0
    if max_shard_size < 1:
        raise StructureError("usage", f"--max_shard_size is {arguments.max_shard_size}, expected a size such as 64MB.")
    if not 0 < arguments.time_limit < float("inf"):
        raise StructureError("usage", f"--time_limit is {arguments.time_limit}, expected a positive number of seconds.")
    output, processor = Path(arguments.output_dir), load_processor(arguments.processor)
    read_all_atoms(processor, arguments.keep_hydrogens, arguments.return_charges)
    report = prepare(
        rest.inputs, output, processor, arguments.num_proc, arguments.max_samples, _read_options(arguments, processor),
        arguments.strict, arguments.deduplicate, arguments.time_limit, arguments.shard_size,
        max_shard_size=max_shard_size, engine=arguments.engine, ray_address=arguments.ray_address,
    )  # fmt: skip
    print(report_text(report))
    print(closing_line(output, report))


if __name__ == "__main__":
    run_script(main, stopped="stopped; the same command goes on from the last finished shard.")
