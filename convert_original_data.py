# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""ATOMICA's processed data -> a dataset of examples, which `run_pretraining.py` and the rest read without delay; and back.

python convert_original_data.py PDBBind_train.pkl QBioLiP.jsonl.gz --output_dir prepared
python convert_original_data.py --reverse prepared --output_file records.jsonl.gz

Read are `.pkl`, `.jsonl`, `.json` (also with `.gz`) and `.parquet`; written is JSON, one record a line.
"""

import contextlib
import gzip
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from atomica_hf import ROOT, ReadReport, StructureError
from atomica_hf.structure_atomica import suffix_of
from dataset_shards import as_read_report, prepare, report_text
from model_loading import load_processor
from original_data import (
    ORIGINAL_SUFFIXES,
    example_to_record,
    is_original,
    read_original_records,
    record_to_example,
)  # fmt: skip
from prepared_datasets import is_prepared, load_prepared
from script_arguments import ScriptParser, run_script


@dataclass
class ConversionArguments:
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for the dataset; must not exist, or be one that this command began."}
    )
    reverse: str | None = field(default=None, metadata={"help": "A prepared dataset to be written as ATOMICA's records."})
    output_file: str | None = field(default=None, metadata={"help": "With --reverse: .jsonl or .jsonl.gz file to write."})
    processor: str = field(
        default=str(ROOT),
        metadata={
            "help": "Folder or hub id of the processor whose vocabulary the block tokens are of (PS_300 for published data)."
        },
    )
    max_samples: int | None = field(default=None, metadata={"help": "Convert only this many records of each file."})


def closing_line(output, report, things):
    """How many were kept, how many rejected and why."""
    reasons = Counter(code for _, code, _ in report.rejected).most_common()
    why = f" ({', '.join(f'{count} x {code}' for code, count in reasons)})" if reasons else ""
    return f"{output}: {report.kept} {things} kept, {len(report.rejected)} rejected{why}."


def write_records(examples, file, report):
    """Examples -> ATOMICA's records, one line of JSON each; the file is there only when complete.

    Args:
        examples: iterable of examples.
        file (`str` or `Path`): to be written; with the ending `.gz`, compressed.
        report (`ReadReport`): counts; what a record cannot say is left out and goes there.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(open(temporary, "wb"))
            if file.suffix.lower() == ".gz":
                stream = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=stream, mtime=0))
            for example in examples:
                try:
                    line = json.dumps(example_to_record(example))
                except StructureError as error:
                    report.reject(example["name"], error)
                else:
                    stream.write(line.encode() + b"\n")
                    report.keep()
        if not report.kept:
            raise StructureError("nothing_usable", f"{file}: no example could be written.\n{report.summary()}")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def main(argv=None):
    parser = ScriptParser(ConversionArguments, description=__doc__)
    parser.add_argument("inputs", nargs="*", help=".pkl .jsonl .json (also .gz) or .parquet files of ATOMICA's records")
    arguments, rest = parser.parse_args_into_dataclasses(argv)
    usage = "expected either INPUT... --output_dir D, or --reverse PREPARED --output_file F"
    if arguments.max_samples is not None and arguments.max_samples < 1:
        raise StructureError("usage", f"--max_samples is {arguments.max_samples}, expected at least 1.")
    if arguments.reverse is None:
        if not rest.inputs or arguments.output_dir is None or arguments.output_file is not None:
            raise StructureError("usage", f"{usage}.")
        for path in rest.inputs:
            if not is_original(path):
                raise StructureError(
                    "unknown_format", f"{path}: expected a file ending in {' '.join(ORIGINAL_SUFFIXES)} (also .gz)."
                )
        processor = load_processor(arguments.processor)
        report = prepare(rest.inputs, arguments.output_dir, processor, max_samples=arguments.max_samples)
        print(report_text(report), file=sys.stderr)
        print(closing_line(arguments.output_dir, as_read_report(report), "records"))
        return
    if rest.inputs or arguments.output_file is None or arguments.output_dir is not None:
        raise StructureError("usage", f"{usage}.")
    if suffix_of(arguments.output_file) != ".jsonl" or Path(arguments.output_file).is_dir():
        raise StructureError("usage", f"--output_file {arguments.output_file}: expected a name ending in .jsonl or .jsonl.gz.")
    if not is_prepared(arguments.reverse):
        raise StructureError("not_prepared", f"--reverse {arguments.reverse}: no dataset that prepare_dataset.py wrote.")
    dataset = load_prepared(arguments.reverse, load_processor(arguments.processor).tokenizer)
    if arguments.max_samples is not None:
        dataset = dataset.select(range(min(len(dataset), arguments.max_samples)))
    report = ReadReport()
    write_records(tqdm(dataset, desc="Writing records", unit="record"), arguments.output_file, report)
    if report.rejected:
        print(report.summary(), file=sys.stderr)
    print(closing_line(arguments.output_file, report, "examples"))


__all__ = ["example_to_record", "read_original_records", "record_to_example", "write_records"]


if __name__ == "__main__":
    run_script(main, stopped="stopped; the same command goes on from the last finished shard.")
