# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Rows of a data set -> training, validation and test set: at random, by scaffold, by a column, or as a file says.

A split is a dictionary of set -> sorted row numbers; rows that belong to no set (a scaffold cannot be made, say) are in none.
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

from atomic_files import write_text
from atomica_hf import StructureError


SETS = ("train", "validation", "test")
SPLITS = ("random", "scaffold", "scaffold_balanced", "column", "group")
_SET_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test",
}  # fmt: skip


def check_fractions(fractions):
    """Raises `StructureError` unless these are three shares that add up to one, of which the first is not zero."""
    possible = len(fractions) == 3 and all(share >= 0 for share in fractions) and fractions[0] > 0  # not so for NaN
    if not possible or abs(sum(fractions) - 1) > 1e-6:
        raise StructureError(
            "bad_fractions", f"The shares of train, validation and test are {list(fractions)}, expected three that add up to 1."
        )


def scaffold_of(smiles):
    """Bemis-Murcko scaffold as SMILES, with chirality; empty for molecules without rings, None for what RDKit cannot read."""
    mol = None if smiles is None else Chem.MolFromSmiles(smiles)
    return None if mol is None else MurckoScaffold.MurckoScaffoldSmiles(mol=mol, includeChirality=True)


def _assign(groups, fractions):
    """Puts whole groups of rows, in their order, into the training set until one does not fit, else into validation, else
    into test."""
    total = sum(map(len, groups))
    train_size, seen_size = fractions[0] * total, (fractions[0] + fractions[1]) * total
    split = {name: [] for name in SETS}
    for group in groups:
        if len(split["train"]) + len(group) <= train_size + 1e-9:
            split["train"] += group
        elif len(split["train"]) + len(split["validation"]) + len(group) <= seen_size + 1e-9:
            split["validation"] += group
        else:
            split["test"] += group
    return {name: sorted(rows) for name, rows in split.items()}


def _balanced(groups, fractions, seed, limit):
    """Groups larger than `limit` times the smaller held-out set first, the largest before the others, and then what is left in
    a shuffled order."""
    largest = limit * min((share for share in fractions[1:] if share), default=1.0) * sum(map(len, groups))
    big = sorted((group for group in groups if len(group) > largest), key=len, reverse=True)
    small = [group for group in groups if len(group) <= largest]
    order = np.random.default_rng(seed).permutation(len(small))
    return _assign(big + [small[i] for i in order], fractions)


def _cell(value):
    """Text of a cell of a column; empty where it is blank, as a table or pandas may say it."""
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in ("nan", "none") else text


def canonical_smiles(smiles):
    """SMILES as RDKit writes them, None for what it cannot read."""
    mols = [Chem.MolFromSmiles(text) if text else None for text in smiles]
    return [None if mol is None else Chem.MolToSmiles(mol) for mol in mols]


def shared_molecules(smiles, split):
    """Set -> how many of its rows have the canonical SMILES of a row of the training set."""
    canonical = canonical_smiles(smiles)
    train = {canonical[row] for row in split["train"]} - {None}
    return {name: sum(canonical[row] in train for row in split[name]) for name in SETS[1:]}


def _by_value(values):
    """Values -> lists of the rows that have each; None is left out."""
    groups = defaultdict(list)
    for row, value in enumerate(values):
        if value is not None:
            groups[value].append(row)
    return list(groups.values())


def random_split(rows, fractions=(0.8, 0.1, 0.1), seed=0):
    """Row numbers -> a split in a shuffled order; sizes are rounded, and what is left over is for training."""
    order = np.random.default_rng(seed).permutation(np.asarray(rows, dtype=np.int64)).tolist()
    held = [round(share * len(order)) for share in fractions[1:]]
    parts = (order[sum(held) :], order[: held[0]], order[held[0] : sum(held)])
    return {name: sorted(part) for name, part in zip(SETS, parts)}


def scaffold_split(smiles, fractions=(0.8, 0.1, 0.1)):
    """SMILES -> a split without chance: scaffolds from the most frequent to the rarest (of equally many rows, the one that
    appears last first) go into training, then validation, then test, as far as each has room."""
    groups = _by_value(map(scaffold_of, smiles))
    return _assign(sorted(groups, key=lambda group: (len(group), group[0]), reverse=True), fractions)


def scaffold_balanced_split(smiles, fractions=(0.8, 0.1, 0.1), seed=0):
    """SMILES -> a split by scaffolds, of which the big ones stay in training and the others are shuffled."""
    return _balanced(_by_value(map(scaffold_of, smiles)), fractions, seed, limit=0.5)


def group_split(values, fractions=(0.8, 0.1, 0.1), seed=0):
    """A value for each row -> a split that keeps rows of one value (a target, a batch, ...) together; blanks are left out."""
    return _balanced(_by_value(_cell(value) or None for value in values), fractions, seed, limit=1.0)


def column_split(values, name="the column"):
    """train, validation or test (also valid, val, dev) for each row -> split; blanks are left out.

    Raises:
        `StructureError`: for any other word.
    """
    split = {part: [] for part in SETS}
    for row, value in enumerate(values):
        word = _cell(value).lower()
        if word and word not in _SET_NAMES:
            raise StructureError("bad_split", f"Row {row + 1}: {name} is {value!r}, expected train, validation or test.")
        if word:
            split[_SET_NAMES[word]].append(row)
    return split


def make_split(kind, num_rows, smiles=None, values=None, fractions=(0.8, 0.1, 0.1), seed=0, usable=None, name="the column"):
    """The split of a data set.

    Args:
        kind (`str`): one of `SPLITS`.
        num_rows (`int`): how many rows there are.
        smiles (`list[str]`): for the two by scaffold; None where there is none.
        values (`list`): of the column, for `column` and `group`.
        fractions (`tuple`): shares of training, validation and test set.
        seed (`int`): of `random`, `scaffold_balanced` and `group`.
        usable (`set[int]`): rows that take part, all by default.
        name (`str`): of that column, for messages.

    Raises:
        `StructureError`: if the kind is unknown, or what it needs is missing.
    """
    if kind not in SPLITS:
        raise StructureError("bad_split", f"The split is {kind!r}, expected one of {', '.join(SPLITS)}.")
    check_fractions(fractions)
    usable = set(range(num_rows)) if usable is None else set(usable)
    if kind == "random":
        return random_split(sorted(usable), fractions, seed)
    needed = smiles if kind.startswith("scaffold") else values
    if needed is None or all(value is None for value in needed):
        what = "SMILES" if kind.startswith("scaffold") else "a column"
        raise StructureError("bad_split", f"The split {kind!r} needs {what}, which this input does not have.")
    needed = [value if row in usable else None for row, value in enumerate(needed)]
    if kind == "scaffold":
        return scaffold_split(needed, fractions)
    if kind == "scaffold_balanced":
        return scaffold_balanced_split(needed, fractions, seed)
    return column_split(needed, name) if kind == "column" else group_split(needed, fractions, seed)


def check_split(split, needed=SETS, name="The split"):
    """Returns the split; `name` is what messages call it.

    Raises:
        `StructureError`: if a set that is needed is empty, or two sets share a row.
    """
    empty = [part for part in needed if not split.get(part)]
    if empty:
        sizes = ", ".join(f"{part} {len(split.get(part, ()))}" for part in SETS)
        raise StructureError("empty_set", f"{name} leaves {' and '.join(empty)} empty ({sizes} rows).")
    rows = sorted(row for part in SETS for row in split.get(part, ()))
    twice = [row for row, following in zip(rows, rows[1:]) if row == following]
    if twice:
        raise StructureError("bad_split", f"{name}: the row {twice[0]} is in more than one set, or twice in one.")
    return split


def write_split(path, split, **details):
    """Writes a split, and what else is to be remembered of it, as JSON."""
    write_text(path, json.dumps({**details, **split}, indent=1))


def read_split(path, num_rows):
    """Reads what `write_split` wrote.

    Raises:
        `StructureError`: if it cannot be read, or names rows that a data set of `num_rows` rows does not have.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        split = {name: found.get(name, []) for name in SETS}
    except (OSError, ValueError, AttributeError) as error:
        raise StructureError("bad_split", f"{path}: not a split that can be read ({error}).") from error
    for name, rows in split.items():
        if not isinstance(rows, list) or any(type(row) is not int for row in rows):
            raise StructureError("bad_split", f"{path}: {name} is {str(rows)[:50]!r}, expected a list of row numbers.")
    wrong = [row for rows in split.values() for row in rows if not 0 <= row < num_rows]
    if wrong:
        raise StructureError("bad_split", f"{path}: names the row {wrong[0]}, expected rows 0 to {num_rows - 1}.")
    return check_split(split, needed=(), name=str(path))
