# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""What is learnt: labelled rows, their examples, and a split."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rdkit import Chem

from atomica_hf import StructureError
from finetuning_data import (
    Encoded,
    ExampleStore,
    Labels,
    Source,
    align_block_labels,
    encode_source,
    read_labels,
    read_source,
    reject_lone,
    reject_unaligned,
)
from finetuning_models import pooling_of
from metrics_atomica import CLASSES, REGRESSION
from splitting import SETS, check_split, make_split, read_split, shared_molecules


@dataclass
class Task:
    """What is learnt: labelled rows, their examples, and which set each is in."""

    source: Source
    labels: Labels
    encoded: Encoded
    split: dict
    notes: list = dataclasses.field(default_factory=list)  # for people: in the printed report and the card
    is_energy: bool = False  # what is learnt is the interaction energy of partners

    @property
    def problem(self):
        return self.labels.problem

    def rows(self, part):
        """Rows of a set that have an example."""
        return [row for row in self.split[part] if self.encoded.items[row]]

    def block_labels(self, row):
        example = self.encoded.store.example(self.encoded.items[row][0])
        return align_block_labels(self.labels.values[row], example)

    def targets(self, rows):
        """Labels of rows as `metrics_atomica` wants them, and the row of each (of each block, if they have labels)."""
        if not self.labels.of_blocks:
            return np.asarray(self.labels.values)[rows], np.array(rows)
        parts = [self.block_labels(row) for row in rows]
        flat = np.concatenate(parts) if parts else np.zeros(0)
        return flat if self.problem == CLASSES else flat[:, None], np.repeat(rows, [len(part) for part in parts])


def _has_label(labels):
    if labels.of_blocks:
        return {row for row, value in enumerate(labels.values) if value is not None}
    return set(np.flatnonzero(~np.isnan(labels.values.reshape(len(labels.values), -1)).all(1)).tolist())


def split_rows(source, labels, data):
    """The split of the rows that have a label and, where they are SMILES, a molecule; whether a conformer was found does not
    matter here.

    Raises:
        `StructureError`: if a set is empty.
    """
    usable = _has_label(labels)
    if data.split_file is not None:
        found = read_split(data.split_file, len(source.rows))
        labelled = {part: [row for row in rows if row in usable] for part, rows in found.items()}
        return check_split(labelled, _needed_sets(data), f"{data.split_file} (of rows with a label)")
    if source.kind == "smiles":
        usable = {row for row in usable if source.smiles[row] and Chem.MolFromSmiles(source.smiles[row]) is not None}
    if not usable:
        raise StructureError("nothing_usable", f"{source.path}: no row has both a label and a SMILES string that can be read.")
    column = data.split_column or data.group_column
    values = source.column(column) if column else None
    found = make_split(
        data.split, len(source.rows), source.smiles, values, data.split_fractions, data.split_seed, usable, column
    )
    if data.split == "random":
        name = "the random split"
    elif data.split == "column":
        name = f"the split by {column}"
    else:
        group = column or "scaffold"
        name = f"the split by {group} (rows of one {group} stay in one set)"
    return check_split(found, _needed_sets(data), f"{source.path}: {name}")


def _needed_sets(data):
    no_test = data.split != "column" and data.split_fractions[-1] == 0
    return SETS[:2] if no_test else SETS


def check_training_set(task):
    """Raises `StructureError` if nothing can be learnt from the training set."""
    values, _ = task.targets(task.rows("train"))
    columns = values.reshape(len(values), -1).T
    kinds = [len(np.unique(column[~np.isnan(column)])) for column in columns]
    if max(kinds, default=0) < 2:
        what = "one value only" if task.problem == REGRESSION else "one class only"
        raise StructureError(
            "one_class", f"The training set has {what} of {', '.join(task.labels.columns)}; try another split."
        )


def notes_of(task):
    """Lines on what is odd about a split, for people."""
    source, labels, notes = task.source, task.labels, list(task.source.notes)
    split = {part: task.rows(part) for part in SETS}
    targets, _ = task.targets(split["train"])
    if source.kind in ("smiles", "records") and any(source.smiles):
        shared = shared_molecules(source.smiles, split)
        parts = [f"{shared[part]} of {len(split[part])} {part} molecules" for part in reversed(SETS[1:]) if split[part]]
        notes.append(f"{' and '.join(parts)} have the same canonical SMILES as a training molecule.")
    left = {row for row in _has_label(labels) if task.encoded.items[row]} - {row for rows in split.values() for row in rows}
    if left:
        notes.append(f"{len(left)} usable rows with a label are in no set.")
    if labels.problem == CLASSES:
        there = set(targets[~np.isnan(targets)].astype(int).tolist())
        missing, what = [name for i, name in enumerate(labels.classes) if i not in there], "has no example of the class"
    else:
        varied = [len(np.unique(column[~np.isnan(column)])) > 1 for column in targets.T]
        missing, what = [name for name, one in zip(labels.columns, varied) if not one], "has no two different labels of"
    if missing:
        notes.append(f"The training set {what} {', '.join(missing)}: nothing is learnt of it.")
    return notes


def prepare_task(options, processor):
    """Reads, splits and builds, in this order, so that what is wrong shows before what takes long.

    Raises:
        `StructureError`: if no model can be trained on it.
    """
    data = options.data
    source = read_source(data.train_file, processor, data.smiles_column, data.max_samples)
    excluded = [column for column in (data.split_column, data.group_column) if column]
    labels = read_labels(source, data.label_columns, data.problem_type, None, data.block_labels, excluded)
    if options.run.class_weights and labels.problem == REGRESSION:
        raise StructureError("usage", f"--class_weights is for classes; {', '.join(labels.columns)}: numbers to predict.")
    is_energy = not labels.of_blocks and pooling_of(options, len(processor.tokenizer), labels) == "pair_energy"
    if options.model.energy_unit and not is_energy:
        raise StructureError("usage", "--energy_unit is for --pooling pair_energy.")
    if options.model.regression_loss and labels.problem != REGRESSION:
        raise StructureError("usage", f"--regression_loss is for numbers; {', '.join(labels.columns)}: {labels.problem}.")
    split = split_rows(source, labels, data)
    encoded = build(source, processor, options, is_energy)
    if labels.of_blocks:
        reject_unaligned(labels, source, encoded)
    task = Task(source, labels, encoded, split, is_energy=is_energy)
    try:
        check_split({part: task.rows(part) for part in SETS}, _needed_sets(data))
    except StructureError as error:
        raise StructureError(error.code, f"After structures were built: {error}\n{encoded.report.summary()}") from error
    check_training_set(task)
    task.notes += notes_of(task)
    if options.is_main:
        print("\n".join(task.notes))
    return task


def build(source, processor, options, needs_partners=False):
    """Examples of a source; the main process builds them, the others find them on disk. On request, lone molecules are
    rejected."""
    with options.training.main_process_first(desc="building structures"):
        store = ExampleStore(Path(options.data.cache_dir) / "structures.sqlite")
        workers = options.data.preprocessing_num_workers
        encoded = encode_source(source, processor, store, options.data.num_conformers, workers, options.shows_progress)
    if needs_partners:
        reject_lone(source, encoded)
    if options.is_main:
        lost = f"; {encoded.lost_conformers} conformers of others failed" if encoded.lost_conformers else ""
        print(f"{source.path}: {encoded.report.summary()}{lost}")
    return encoded
