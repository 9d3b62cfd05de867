# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Hydrogens and formal charges of components: those that a file says or RDKit knows, and what follows for residues and ions.

A charge belongs to an atom together with its hydrogens: that of ammonium stands on its nitrogen.
"""

from dataclasses import replace

import numpy as np
from rdkit import Chem
from rdkit.Geometry import Point3D

from .component_atomica import Component, StructureError
from .molecule_atomica import with_positions


# residue: atoms of the group that takes up or gives off a proton, its hydrogens while it is neutral, its charge near pH 7
_GROUPS = {
    "ASP": (("OD1", "OD2"), 1, -1),
    "GLU": (("OE1", "OE2"), 1, -1),
    "TYR": (("OH",), 1, 0),
    "HIS": (("ND1", "NE2"), 1, 0),
    "LYS": (("NZ",), 2, 1),
    "ARG": (("NE", "NH1", "NH2"), 4, 1),
}
_PHOSPHATE = ("OP1", "OP2", "OP3", "O1P", "O2P", "O3P")
# the usual ions, by atomic number
ION_CHARGES = {
    **dict.fromkeys((3, 11, 19, 37, 47, 55, 81), 1),
    **dict.fromkeys((4, 12, 20, 25, 26, 27, 28, 29, 30, 38, 48, 56, 80, 82), 2),
    **dict.fromkeys((13, 21, 31, 39, *range(57, 72)), 3),
    **dict.fromkeys((9, 17, 35, 53), -1),
}
_TAKES_UP_PROTONS = (7, 8, 15, 16)  # where a hydrogen more or less than expected is a charge


def with_hydrogens(component, name) -> Component:
    """The component with all hydrogens that it has by RDKit, if it is a molecule: those that are missing are placed; it is the
    same object if none is. `name` is that of its structure.

    Raises:
        `StructureError`: for a residue or a water without hydrogens.
    """
    if not len(component.hydrogens) and (component.mol is None or component.kind == "water"):
        raise StructureError(
            "no_hydrogens",
            f"{name}: {component.origin or component.name} has no hydrogens, expected them in the file; programs such as "
            "PDBFixer or reduce add them.",
        )
    if component.mol is None:
        return component
    wanted = np.array([atom.GetTotalNumHs() for atom in component.mol.GetAtoms()])
    if (np.bincount(component.hydrogen_parents, minlength=len(wanted)) >= wanted).all():
        return component
    mol = Chem.RWMol(with_positions(component.mol, component.positions))
    for parent, position in zip(component.hydrogen_parents.tolist(), component.hydrogens.tolist()):
        number, atom = mol.AddAtom(Chem.Atom(1)), mol.GetAtomWithIdx(parent)
        atom.SetNumExplicitHs(max(0, atom.GetNumExplicitHs() - 1))
        mol.AddBond(parent, number, Chem.BondType.SINGLE)
        mol.GetConformer().SetAtomPosition(number, Point3D(*position))
    Chem.SanitizeMol(mol)
    full = Chem.AddHs(mol, addCoords=True)
    added = [full.GetAtomWithIdx(i) for i in range(len(wanted), full.GetNumAtoms())]
    return replace(
        component,
        hydrogens=full.GetConformer().GetPositions()[len(wanted) :],
        hydrogen_parents=np.array([atom.GetNeighbors()[0].GetIdx() for atom in added]),
    )


def residue_charges(token, names, parents):
    """Formal charges of the atoms of an amino acid or nucleotide.

    Args:
        token (`str`): its block token.
        names (`list[str]`): of its atoms, without hydrogens.
        parents (`np.ndarray` of shape `(num_hydrogens,)`): the atom of each hydrogen. Without any hydrogen, groups are charged
            as near pH 7, and the first residue of a chain, which only its hydrogens tell, is neutral.

    Returns:
        `np.ndarray` of shape `(num_atoms,)`.
    """
    charges, place = np.zeros(len(names), dtype=np.int64), {name: i for i, name in enumerate(names)}
    count = np.bincount(parents, minlength=len(names)) if len(parents) else None

    def add(group, neutral, usual):
        atoms = [place[name] for name in group if name in place]
        if atoms:
            charges[atoms[0]] += usual if count is None else count[atoms].sum() - neutral

    if "P" in place:
        ends = [name for name in _PHOSPHATE if name in place]
        add(ends, max(1, len(ends) - 1), 1 - max(2, len(ends)))
    if token in _GROUPS:
        add(*_GROUPS[token])
    if "OXT" in place:
        add(("OXT", "O"), 1, -1)
    if count is not None and "N" in place and count[place["N"]] >= (2 if token == "PRO" else 3):
        charges[place["N"]] += 1
    return charges


def molecule_charges(component):
    """Formal charges of the atoms of a molecule: those of its bonds, changed by hydrogens that it has more or fewer than these
    ask for, and of a lone atom that of the usual ion; shape `(num_atoms,)`."""
    charges = np.array([atom.GetFormalCharge() for atom in component.mol.GetAtoms()], dtype=np.int64)
    if len(charges) == 1 and not len(component.hydrogens) and not charges.any():
        return np.array([ION_CHARGES.get(int(component.elements[0]), 0)])
    if len(component.hydrogens):
        wanted = np.array([atom.GetTotalNumHs() for atom in component.mol.GetAtoms()])
        if len(charges) == 1:  # such an atom is told to have none, whatever it has
            wanted = np.array([max(0, Chem.GetPeriodicTable().GetDefaultValence(int(component.elements[0])))])
        more = np.bincount(component.hydrogen_parents, minlength=len(wanted)) - wanted
        charges += np.where(np.isin(component.elements, _TAKES_UP_PROTONS), more.clip(-1, 1), 0)
    return charges


__all__ = ["ION_CHARGES", "molecule_charges", "residue_charges", "with_hydrogens"]
