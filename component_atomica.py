# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""What a structure is: segments of components, where each came from, and the report of what was read and why not.

A `Structure` is a list of segments (the partners of a complex; one for a lone molecule), a segment a list of `Component`s: a
residue (known by its name) or a molecule (known by its bonds). Positions are in angstrom. Hydrogens stand beside the atoms, not
among them: most of the work is done without.
"""

import gzip
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rdkit import Chem, RDLogger
from rdkit.Geometry import Point3D


LARGEST_COORDINATE = 1e6  # angstrom; nothing that is larger is a structure

RDLogger.DisableLog("rdApp.*")  # RDKit's messages come back as the reasons of rejected items


class StructureError(ValueError):
    """Input that cannot become a structure. `code` is a short word for counting, the message names thing, found, expected."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code

    def __reduce__(self):  # two arguments: without this the error cannot come back from a worker process
        return type(self), (self.code, str(self))


@dataclass(frozen=True)
class Origin:
    """Where a component came from: model, chain, residue number, insertion code and name in a structure file, or the number of
    a molecule. As text `"A:GLY:12"`, `"A:GLY:12B"`, in a model but the first `"2/A:GLY:12"`, or the name alone."""

    name: str = ""
    chain: str = ""
    number: int | None = None
    insertion: str = ""
    model: int = 1

    def __str__(self):
        if self.chain or self.number is not None:
            model = "" if self.model == 1 else f"{self.model}/"
            return f"{model}{self.chain}:{self.name}:{'' if self.number is None else self.number}{self.insertion}"
        return self.name

    @classmethod
    def from_text(cls, text: str):
        """The origin that has this text."""
        match = re.fullmatch(r"(?:(\d+)/)?([^:]*):([^:]*):(-?\d+)?(\w?)", text)
        if match is None:
            return cls(text)
        model, chain, name, number, insertion = match.groups()
        return cls(name, chain, None if number is None else int(number), insertion, int(model or 1))


@dataclass
class Component:
    """A residue or a molecule.

    Args:
        name (`str`): block token of a residue (`GLY`, `RA`), or the component's own name.
        elements (`np.ndarray` of shape `(num_atoms,)`): atomic numbers.
        positions (`np.ndarray` of shape `(num_atoms, 3)`): in angstrom.
        atom_names (`list[str]`): name in the file, or element and index.
        origin (`Origin`): where it came from.
        mol (`rdkit.Chem.Mol`): for a molecule, its atoms in the same order with bonds; None for a residue.
        kind (`str`): what it is in a structure file: `protein`, `dna`, `rna`, `ligand` or `ion`; empty for other molecules.
        charges (`np.ndarray` of shape `(num_atoms,)`): formal charge of each atom, hydrogens included; zero by default.
        hydrogens (`np.ndarray` of shape `(num_hydrogens, 3)`): positions of those that the source has; none by default.
        hydrogen_parents (`np.ndarray` of shape `(num_hydrogens,)`): the atom that each is bonded to.
    """

    name: str
    elements: np.ndarray
    positions: np.ndarray
    atom_names: list
    origin: Origin = field(default_factory=Origin)
    mol: Chem.Mol | None = None
    kind: str = ""
    charges: np.ndarray | None = None
    hydrogens: np.ndarray | None = None
    hydrogen_parents: np.ndarray | None = None

    def __post_init__(self):
        if self.charges is None:
            self.charges = np.zeros(len(self.elements), dtype=np.int64)
        if self.hydrogens is None:
            self.hydrogens, self.hydrogen_parents = np.zeros((0, 3)), np.zeros(0, dtype=np.int64)


@dataclass
class Structure:
    """One example: `segments` is a list of lists of `Component`; `properties` holds what else the file said of it, `label` a
    number to learn, `modality` ATOMICA's number of its kind. With `published_distance`, the segments are whole and the
    interface is still to be cut out of their blocks, ATOMICA's way."""

    name: str
    segments: list
    properties: dict = field(default_factory=dict)
    notes: Counter = field(default_factory=Counter)
    published_distance: float | None = None
    label: float | None = None
    modality: int | None = None

    def check(self):
        """Returns itself.

        Raises:
            `StructureError`: if a segment is empty or a position is not finite.
        """
        for number, segment in enumerate(self.segments):
            if not sum(len(component.elements) for component in segment):
                raise StructureError("empty_segment", f"{self.name}: segment {number} has no atoms, expected at least one.")
            for component in segment:
                same = component.mol is not None and len(np.unique(component.positions, axis=0)) < len(component.positions)
                if same:
                    raise StructureError(
                        "bad_coordinates", f"{self.name}: {component.origin or component.name} has two atoms at the same place."
                    )
                check_positions(component.positions, self.name, component.atom_names, component.origin or component.name)
        return self


def with_positions(mol, positions):
    """A copy of the molecule with these coordinates, `(num_atoms, 3)` in angstrom."""
    mol, conformer = Chem.Mol(mol), Chem.Conformer(mol.GetNumAtoms())
    conformer.Set3D(True)
    for i, position in enumerate(positions):
        conformer.SetAtomPosition(i, Point3D(*map(float, position)))
    mol.RemoveAllConformers()
    mol.AddConformer(conformer)
    return mol


def check_positions(positions, name, atom_names, origin=None):
    """
    Raises:
        `StructureError`: naming the first atom of `positions` `(num_atoms, 3)` that is nowhere, or absurdly far away.
    """
    bad = ~(np.abs(positions) < LARGEST_COORDINATE).all(-1)
    if bad.any():
        i = int(bad.argmax())
        of = "" if origin is None else f" of {origin}"
        raise StructureError(
            "bad_coordinates",
            f"{name}: atom {atom_names[i]}{of} is at {positions[i].tolist()}, expected coordinates within "
            f"{LARGEST_COORDINATE:g} angstrom.",
        )


@dataclass
class ReadReport:
    """What was read and what was left out, and why. A strict one raises the first reason to leave something out."""

    kept: int = 0
    rejected: list = field(default_factory=list)  # (name, code, message)
    notes: Counter = field(default_factory=Counter)  # things altered in structures that were kept
    strict: bool = False

    def reject(self, name, error):
        if self.strict:
            raise error
        code = getattr(error, "code", type(error).__name__)
        self.rejected.append((str(name), code, str(error)))

    def keep(self, notes=()):
        self.kept += 1
        self.notes.update(notes)

    def to_dict(self):
        return {
            "kept": self.kept,
            "rejected": [dict(zip(("name", "reason", "message"), row)) for row in self.rejected],
            "notes": dict(self.notes),
        }

    def summary(self, most: int = 10) -> str:
        """A few lines: how many were kept, how many rejected for each reason, the first `most` of them by name."""
        lines = [f"{self.kept} kept, {len(self.rejected)} left out"]
        lines += [f"  {n} x {code}" for code, n in Counter(code for _, code, _ in self.rejected).most_common()]
        lines += [f"  {name}: {message}" for name, _, message in self.rejected[:most]]
        if len(self.rejected) > most:
            lines.append(f"  ... and {len(self.rejected) - most} more")
        lines += [f"  note: {n} x {note}" for note, n in self.notes.most_common()]
        return "\n".join(lines)


def read_bytes(path) -> bytes:
    """Content of a file, unpacked if it is gzip, whatever its ending.

    Raises:
        `StructureError`: if it is missing or cannot be read.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except FileNotFoundError as error:
        raise StructureError("missing_file", f"{path}: no such file.") from error
    except (OSError, EOFError, gzip.zlib.error) as error:
        raise StructureError("unreadable_file", f"{path}: cannot be read: {error}.") from error


__all__ = [
    "Component", "Origin", "ReadReport", "Structure", "StructureError", "check_positions", "read_bytes", "with_positions",
]  # fmt: skip
