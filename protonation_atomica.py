# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Hydrogens and formal charges of components: those that a file says or RDKit knows, and what follows for residues and ions.

A charge belongs to an atom together with its hydrogens: that of ammonium stands on its nitrogen.
"""

from dataclasses import replace

import numpy as np
from rdkit import Chem
from rdkit.Geometry import Point3D

from .component_atomica import Component, StructureError, with_positions


# residue: atoms of the group that takes up or gives off a proton, its hydrogens while it is neutral, its charge near pH 7, and
# its least and largest
_GROUPS = {
    "ASP": (("OD1", "OD2"), 1, -1, (-1, 0)),
    "GLU": (("OE1", "OE2"), 1, -1, (-1, 0)),
    "TYR": (("OH",), 1, 0, (-1, 0)),
    "HIS": (("ND1", "NE2"), 1, 0, (0, 1)),
    "LYS": (("NZ",), 2, 1, (0, 1)),
    "ARG": (("NE", "NH1", "NH2"), 4, 1, (0, 1)),
}
_BACKBONE = ("N", "CA", "C", "O", "OXT")
_LEAST_HYDROGENS = 0.4  # of a residue with all its hydrogens, for each of its atoms; nucleotides and aspartate have 0.5
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
    """The component with all hydrogens that it has by its bonds and charges, if it is a molecule: RDKit places those that are
    missing; it is the same object if none is. A molecule of a structure file, whose bonds may be a guess, that has some on
    carbon has all. `name` is that of its structure.

    Raises:
        `StructureError`: for a residue, a water or another lone N, O, S or P of a structure file without its hydrogens.
    """
    residue, count, parents = component.mol is None, len(component.elements), component.hydrogen_parents
    bare = not len(parents) and count == 1 and component.kind in ("water", "ion")
    if residue and len(parents) < _LEAST_HYDROGENS * count or bare and component.elements[0] in _TAKES_UP_PROTONS:
        raise StructureError(
            "no_hydrogens",
            f"{name}: {component.origin or component.name} has {len(parents) or 'no'} hydrogens for {count} atoms, expected "
            "all of them in the file; programs such as PDBFixer or reduce add them.",
        )
    if residue or component.kind and (component.elements[parents] == 6).any():
        return component
    atoms = list(component.mol.GetAtoms())
    missing = np.array([atom.GetTotalNumHs() for atom in atoms]) - np.bincount(parents, minlength=count)
    formal = np.array([atom.GetFormalCharge() for atom in atoms])
    missing += np.where(np.isin(component.elements, _TAKES_UP_PROTONS), component.charges - formal, 0)
    if count > 1:
        missing[[atom.GetDegree() == 0 for atom in atoms]] = 0  # bonds to metals are not known
    if (missing <= 0).all():
        return component
    mol = Chem.RWMol(with_positions(component.mol, component.positions))
    for atom, few, charge in zip(list(mol.GetAtoms()), missing.clip(0).tolist(), component.charges.tolist()):
        atom.SetNoImplicit(True)
        atom.SetNumExplicitHs(few)
        atom.SetFormalCharge(charge)
    for parent, position in zip(parents.tolist(), component.hydrogens.tolist()):
        number = mol.AddAtom(Chem.Atom(1))
        mol.AddBond(parent, number, Chem.BondType.SINGLE)
        mol.GetConformer().SetAtomPosition(number, Point3D(*position))
    try:
        Chem.SanitizeMol(mol)
    except (Chem.MolSanitizeException, ValueError) as error:
        raise StructureError(
            "chemistry", f"{name}: {component.origin or component.name} and its hydrogens cannot be sanitised: {error}."
        ) from error
    full = Chem.AddHs(mol, addCoords=True)
    added = [full.GetAtomWithIdx(i) for i in range(count, full.GetNumAtoms())]
    return replace(
        component,
        hydrogens=full.GetConformer().GetPositions()[count:],
        hydrogen_parents=np.array([atom.GetNeighbors()[0].GetIdx() for atom in added]),
    )


def residue_charges(token, names, parents):
    """Formal charges of the atoms of an amino acid or nucleotide.

    Args:
        token (`str`): its block token.
        names (`list[str]`): of its atoms, without hydrogens.
        parents (`np.ndarray` of shape `(num_hydrogens,)`): the atom of each hydrogen. Without any hydrogen (of a side chain,
            for its group), groups are charged as near pH 7, and the first residue of a chain, which only its hydrogens tell, is
            neutral.

    Returns:
        `np.ndarray` of shape `(num_atoms,)`.
    """
    charges, place = np.zeros(len(names), dtype=np.int64), {name: i for i, name in enumerate(names)}
    count, known = np.bincount(parents, minlength=len(names)), len(parents) > 0

    def add(group, neutral, usual, possible, known):
        atoms = [place[name] for name in group if name in place]
        if not atoms:
            return
        found = int(count[atoms].sum())
        told = known and (found or possible[0] < 0)  # a group that takes up a proton has hydrogens without it
        charges[atoms[0]] += np.clip(found - neutral, *possible) if told else usual

    if "P" in place:
        ends = [name for name in _PHOSPHATE if name in place]
        usual = 1 - max(2, len(ends))
        add(ends, max(1, len(ends) - 1), usual, (usual, 0), known)
    if token in _GROUPS:
        add(*_GROUPS[token], known and any(names[i] not in _BACKBONE for i in parents.tolist()))
    if "OXT" in place:
        add(("OXT", "O"), 1, -1, (-1, 0), known)
    if known and "N" in place and count[place["N"]] >= (2 if token == "PRO" else 3):
        charges[place["N"]] += 1
    return charges


def molecule_charges(component, links=0):
    """Formal charges of the atoms of a molecule: those of its bonds, changed by hydrogens (and `links`, bonds of each atom to
    other components) that it has more or fewer than these ask for, and of a lone atom that of the usual ion; shape
    `(num_atoms,)`."""
    charges = np.array([atom.GetFormalCharge() for atom in component.mol.GetAtoms()], dtype=np.int64)
    if len(charges) == 1 and not len(component.hydrogens) and not charges.any():
        return np.array([ION_CHARGES.get(int(component.elements[0]), 0)])
    if len(component.hydrogens):
        wanted = np.array([atom.GetTotalNumHs() for atom in component.mol.GetAtoms()])
        if len(charges) == 1:  # such an atom is told to have none, whatever it has
            wanted = np.array([max(0, Chem.GetPeriodicTable().GetDefaultValence(int(component.elements[0])))])
        more = np.bincount(component.hydrogen_parents, minlength=len(wanted)) + links - wanted
        charges += np.where(np.isin(component.elements, _TAKES_UP_PROTONS), more.clip(-1, 1), 0)
    return charges


__all__ = ["ION_CHARGES", "molecule_charges", "residue_charges", "with_hydrogens"]
