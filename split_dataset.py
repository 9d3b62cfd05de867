# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Prepared datasets -> a training and a validation set that share no entry.

    python split_dataset.py prepared/protein_protein --output_dir split/protein_protein
    python split_dataset.py prepared/dimers --output_dir split/dimers --names NCIA_ --group "[^_]+_[^_]+"

Examples whose names begin alike, as far as --group (a regular expression) matches, come from one entry and stay together. The
folders `train` and `validation` are datasets like those of `prepare_dataset.py`; the same command makes the same files.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from transformers.hf_argparser import HfArg

from atomic_files import replacing, write_text
from atomica_hf import StructureError
from dataset_shards import SHARD_SIZE
from prepared_datasets import REPORT_FILE
from script_arguments import ScriptParser, run_script
from splitting import group_split


@dataclass
class SplitArguments:
    output_dir: str = HfArg(help="Folder of the two datasets; must not exist.")
    group: str = HfArg(
        default="[^_]+", help="What of a name, from its beginning, is its entry; the first word by default, such as 1A2K."
    )
    names: str = HfArg(default="", help="Only examples whose names begin like this (a regular expression).")
    validation_fraction: float = HfArg(default=0.1, help="Share of the examples to validate on, about.")
    seed: int = HfArg(default=0, help="Seed of the entries to validate on.")


def read_prepared(folder):
    """A dataset of `prepare_dataset.py` -> (its table, its report).

    Raises:
        `StructureError`: if it is none, or a shard is missing or damaged.
    """
    folder = Path(folder)
    try:
        report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
        table = pa.concat_tables([pq.read_table(folder / shard["file"]) for shard in report["shards"]])
    except (OSError, ValueError, KeyError) as error:  # ArrowInvalid is a ValueError
        raise StructureError("not_prepared", f"{folder}: not a dataset of prepare_dataset.py: {error}.") from error
    return table, report


def split_names(names, pattern, group, validation_fraction, seed):
    """Names of examples -> rows of `train` and `validation`.

    Raises:
        `StructureError`: if `group` does not match a name, or a set would be empty.
    """
    chosen = [row for row, name in enumerate(names) if re.match(pattern, name)]
    entries = [None] * len(names)
    for row in chosen:
        found = re.match(group, names[row])
        if not found or not found.group():
            raise StructureError("bad_group", f"--group {group!r} matches nothing at the beginning of {names[row]!r}.")
        entries[row] = found.group()
    fractions = (1 - validation_fraction, validation_fraction, 0.0)
    split = group_split([entry or "" for entry in entries], fractions, seed)
    split = {"train": sorted(split["train"] + split["test"]), "validation": split["validation"]}
    empty = [part for part, rows in split.items() if not rows]
    if empty:
        different = f"{len(chosen)} of {len(names)} examples are chosen, of {len(set(entries) - {None})} entries"
        raise StructureError("empty_set", f"{different}: none is left for {empty[0]}.")
    return split, {part: sorted({entries[row] for row in rows}) for part, rows in split.items()}


def write_part(folder, table, report, inputs):
    """A dataset of these rows in a new folder; `report` is that of the whole."""
    folder.mkdir(parents=True)
    shards = []
    for start in range(0, len(table), SHARD_SIZE):
        piece, file = table.slice(start, SHARD_SIZE), f"data-{len(shards):05d}.parquet"
        with replacing(folder / file) as temporary:
            pq.write_table(piece, temporary, compression="zstd")
        shards.append({"file": file, "examples": len(piece), "bytes": (folder / file).stat().st_size})
    kept = {name: report[name] for name in ("columns", "vocabulary", "settings")}
    more = {"kept": len(table), "rejected": [], "notes": {}, "reasons": {}, "inputs": inputs, "shards": shards}
    write_text(folder / REPORT_FILE, json.dumps({**more, **kept}, indent=1))


def main(argv=None):
    parser = ScriptParser(SplitArguments, description=__doc__)
    parser.add_argument("input", help="A dataset of prepare_dataset.py.")
    arguments, rest = parser.parse_args_into_dataclasses(argv)
    output, fraction = Path(arguments.output_dir), arguments.validation_fraction
    if output.exists():
        raise StructureError("usage", f"--output_dir {output} exists already; name a new folder.")
    if not 0 < fraction < 1:
        raise StructureError("usage", f"--validation_fraction is {fraction}, expected more than 0 and less than 1.")
    for name in ("group", "names"):
        try:
            re.compile(getattr(arguments, name))
        except re.error as error:
            raise StructureError("usage", f"--{name} {getattr(arguments, name)!r}: {error}.") from error
    table, report = read_prepared(rest.input)
    names = table["name"].to_pylist()
    split, entries = split_names(names, arguments.names, arguments.group, fraction, arguments.seed)
    settings = {name: getattr(arguments, name) for name in ("group", "names", "validation_fraction", "seed")}
    temporary = output.with_name(f"{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for part, rows in split.items():
            inputs = [{"input": Path(rest.input).name, "part": part, "entries": entries[part], **settings}]
            write_part(temporary / part, table.take(rows), report, inputs)
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    counts = [f"{part} {len(split[part]):,} examples of {len(entries[part]):,} entries" for part in split]
    print(f"{output}: {', '.join(counts)}; {len(names) - sum(map(len, split.values())):,} not chosen.")


if __name__ == "__main__":
    run_script(main)
