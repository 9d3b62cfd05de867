# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Which interfaces of PDB and mmCIF files a script reads: its options, and the reading."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from datasets import Dataset
from transformers.hf_argparser import HfArg

from atomica_hf import ReadReport, StructureError
from atomica_hf.structure_atomica import MACROMOLECULE_SUFFIXES, suffix_of
from dataset_shards import load_examples
from prepared_datasets import is_prepared


@dataclass
class Sides:
    """Options that name one interface of a PDB or mmCIF file, as `AtomicaProcessor.read` takes them."""

    side_a: str | None = HfArg(default=None, help="First side of an interface of a PDB or mmCIF file, such as A or B_C.")
    side_b: str | None = HfArg(default=None, help="Second side: chains, or a ligand such as A:UDP:900.")
    ligand_smiles: str | None = HfArg(default=None, help="Bonds of the ligand.")

    def named(self):
        """Those that were given."""
        names = [field.name for field in fields(Sides)]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass
class Interfaces(Sides):
    """The same, or all interfaces of a file or a folder."""

    interfaces: str | None = HfArg(default=None, help="'all' for every interface of PDB and mmCIF files.")

    def check(self, input_file):
        """
        Raises:
            `StructureError`: if the options exclude each other, or are not for this input.
        """
        if self.interfaces is None:
            return
        if self.named():
            raise StructureError("usage", "--interfaces excludes --side_a, --side_b and --ligand_smiles, which name one.")
        if not is_raw(input_file):
            raise StructureError("usage", f"--interfaces is for PDB and mmCIF files, not for {input_file}.")

    def read(self, input_file, processor, cache, num_proc=1, max_samples=None, **engine):
        """Dataset of examples and the report, as from `load_examples`.

        Raises:
            `StructureError`: if nothing could be read, or the options do not fit the processor.
        """
        if not self.named():
            options = replace(processor.read_options, interfaces=self.interfaces)
            if options.as_published and options.interfaces:
                message = "the processor of this model reads complexes as ATOMICA does, without --interfaces."
                raise StructureError("usage", f"{input_file}: {message}")
            return load_examples(input_file, processor, cache, num_proc, max_samples, options=options, **engine)
        report, examples = ReadReport(), []
        for structure in processor.read(Path(input_file), **self.named())[:max_samples]:
            try:
                examples.append(processor.encode(structure))
                report.keep(structure.notes)
            except StructureError as error:
                report.reject(structure.name, error)
        if not examples:
            raise StructureError("no_examples", f"{input_file}: nothing could be read. {report.summary()}")
        return Dataset.from_list(examples), report

    def hint(self, input_file, report):
        """How to read what the report says was left out of a file, because no interface was named; "" if nothing was."""
        left_out = not report.kept or any(note.startswith("molecule_left_out") for note in report.notes)
        if any(asdict(self).values()) or not left_out or not is_raw(input_file):
            return ""
        return (
            f"\nNo sides were named. `python list_interfaces.py {input_file}` prints what --side_a and --side_b can name; "
            "--interfaces all takes every interface."
        )


def is_raw(path):
    """Whether a path is a PDB or mmCIF file, or a folder that is no prepared dataset."""
    return suffix_of(path) in MACROMOLECULE_SUFFIXES or (Path(path).is_dir() and not is_prepared(path))
