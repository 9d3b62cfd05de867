# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Molecules -> `Structure`, with RDKit: SMILES (built in 3D), SDF, MOL, MOL2, XYZ; and bonds where there are none."""

import re
import time
from itertools import combinations

import networkx
import numpy as np
from rdkit import Chem
from rdkit.Chem import AllChem, rdDetermineBonds
from rdkit.Geometry import Point3D
from scipy.spatial import cKDTree

from .component_atomica import Component, Origin, Structure, StructureError, check_positions, with_positions
from .protonation_atomica import ION_CHARGES, molecule_charges


EMBEDDING_SECONDS = 10  # of RDKit's embedding, which looks at its watch between steps only
LARGEST_EMBEDDED = 600  # atoms with hydrogens; a single step for 900 can take a minute


def parse_smiles(smiles, name):
    mol = Chem.MolFromSmiles(smiles, sanitize=False) if len((smiles or "").split()) == 1 else None
    if mol is None or mol.GetNumAtoms() == 0:
        raise StructureError("smiles_syntax", f"{name}: {smiles!r} is not a SMILES string.")
    try:
        Chem.SanitizeMol(mol)
    except (Chem.MolSanitizeException, ValueError) as error:
        raise StructureError("smiles_chemistry", f"{name}: {smiles!r} cannot be sanitised: {error}.") from error
    Chem.AssignStereochemistry(mol, cleanIt=True, force=True)  # else conformers of polyenes take minutes
    _refuse_dummies(mol, name)
    return mol


def _refuse_dummies(mol, name):
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 0:
            raise StructureError(
                "not_an_element", f"{name}: atom {atom.GetIdx()} is {atom.GetSymbol()!r}, expected an element."
            )


def _relax(mol, interfragment=False):
    """MMFF where it has parameters for every atom, else UFF, else as embedded. Returns whether there were parameters."""
    steps = max(50, min(1000, 50_000 // mol.GetNumAtoms()))  # a step of a large molecule takes long
    if AllChem.MMFFHasAllMoleculeParams(mol):
        AllChem.MMFFOptimizeMolecule(mol, maxIters=steps, ignoreInterfragInteractions=not interfragment)
    elif AllChem.UFFHasAllMoleculeParams(mol):
        AllChem.UFFOptimizeMolecule(mol, maxIters=steps, ignoreInterfragInteractions=not interfragment)
    else:
        return False
    return True


def embed(mol, seed: int = 0, name: str = "molecule"):
    """A molecule without coordinates -> with hydrogens, in 3D (ETKDGv3, then MMFF), the same for the same seed.

    Raises:
        `StructureError`: if it has more than `LARGEST_EMBEDDED` atoms, or no conformer could be found, in about
            `EMBEDDING_SECONDS` for each of two starts; the second is made if the first failed for another reason than time.
    """
    mol = Chem.AddHs(mol)
    if mol.GetNumAtoms() > LARGEST_EMBEDDED:
        raise StructureError(
            "no_conformer",
            f"{name}: {mol.GetNumAtoms()} atoms with hydrogens, expected at most {LARGEST_EMBEDDED} to build a 3D conformer.",
        )
    parameters = AllChem.ETKDGv3()
    parameters.randomSeed = seed + 1  # for RDKit 0 and 1 are the same
    parameters.timeout = EMBEDDING_SECONDS
    for random_start in (False, True):
        parameters.useRandomCoords = random_start
        start = time.monotonic()
        try:
            if AllChem.EmbedMolecule(mol, parameters) >= 0:
                _relax(mol)
                return mol
            reason = "RDKit's attempts from two starts failed"
        except (RuntimeError, ValueError) as error:  # RDKit's invariants, for what it has no distances for
            reason = " ".join(str(error).split()[:12])
        if time.monotonic() - start > 0.9 * EMBEDDING_SECONDS:  # a timeout: RDKit counts roughly
            reason = f"none was found in {EMBEDDING_SECONDS} s"
            break
    smiles = Chem.MolToSmiles(Chem.RemoveHs(mol))
    raise StructureError("no_conformer", f"{name}: no 3D conformer of {smiles!r}: {reason}.")


def _random_rotation(rng):
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else q * [-1, 1, 1]


def _join(first, second, rng):
    """Puts `second` against `first`: random orientation, random side, as near as van der Waals radii allow."""
    table = Chem.GetPeriodicTable()
    radii = [np.array([table.GetRvdw(a.GetAtomicNum()) for a in m.GetAtoms()]) for m in (first, second)]
    fixed = first.GetConformer().GetPositions()
    moving = second.GetConformer().GetPositions()
    moving = (moving - moving.mean(0)) @ _random_rotation(rng).T
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    contact = 0.95 * (radii[0][:, None] + radii[1])
    far = np.abs(fixed - fixed.mean(0)).max() + np.abs(moving).max() + 10
    for step in np.arange(0, 2 * far, 0.1):
        placed = moving + fixed.mean(0) + step * direction
        if (np.linalg.norm(fixed[:, None] - placed, axis=-1) >= contact).all():
            break
    both = Chem.CombineMols(first, second)
    for i, position in enumerate(placed):
        both.GetConformer().SetAtomPosition(len(fixed) + i, Point3D(*position.tolist()))
    return both


def _component(mol, origin):
    """RDKit molecule with a conformer -> `Component` of its heavy atoms, its hydrogens beside them (of all atoms, if it has no
    others)."""
    has_heavy = any(atom.GetAtomicNum() > 1 for atom in mol.GetAtoms())
    kept = [a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() > 1 or not has_heavy]
    names = [f"{mol.GetAtomWithIdx(i).GetSymbol()}{mol.GetAtomWithIdx(i).GetIntProp('_index')}" for i in kept]
    bare = Chem.RemoveAllHs(mol) if has_heavy else mol
    elements = np.array([atom.GetAtomicNum() for atom in bare.GetAtoms()])
    charges = np.array([mol.GetAtomWithIdx(i).GetFormalCharge() for i in kept])
    positions, place = mol.GetConformer().GetPositions(), {atom: i for i, atom in enumerate(kept)}
    hydrogens = [atom for atom in mol.GetAtoms() if atom.GetIdx() not in place]
    heavy = [[n.GetIdx() for n in atom.GetNeighbors() if n.GetIdx() in place] for atom in hydrogens]
    nearest = lambda atom: int(np.linalg.norm(positions[kept] - positions[atom.GetIdx()], axis=1).argmin())  # noqa: E731
    parents = [place[bonded[0]] if bonded else nearest(atom) for atom, bonded in zip(hydrogens, heavy)]
    return Component(
        origin.name, elements, bare.GetConformer().GetPositions(), names, origin, bare, charges=charges,
        hydrogens=positions[[atom.GetIdx() for atom in hydrogens]].reshape(-1, 3), hydrogen_parents=np.array(parents, int),
    )  # fmt: skip


def _is_drawing(mol):
    positions = mol.GetConformer().GetPositions() if mol.GetNumConformers() else np.zeros((0, 3))
    return len(positions) > 4 and not mol.GetConformer().Is3D() and not positions[:, 2].any()


def structure_from_mol(mol, name: str | None = None) -> Structure:
    """RDKit molecule with 3D coordinates -> `Structure`; disconnected molecules are the segments of a complex.

    Raises:
        `StructureError`: without coordinates, with flat ones, or with atoms that are no element.
    """
    if name is None:
        name = mol.GetProp("_Name") if mol.HasProp("_Name") and mol.GetProp("_Name") else "molecule"
    _refuse_dummies(mol, name)
    if not mol.GetNumAtoms():
        raise StructureError("empty", f"{name}: a molecule without atoms.")
    if not mol.GetNumConformers():
        raise StructureError("no_coordinates", f"{name}: a molecule without coordinates; embed it, or give its SMILES.")
    check_positions(mol.GetConformer().GetPositions(), name, range(mol.GetNumAtoms()))
    if _is_drawing(mol):
        raise StructureError("flat_coordinates", f"{name}: coordinates of a drawing (all z are 0), expected three dimensions.")
    mol = Chem.Mol(mol)
    try:
        Chem.SanitizeMol(mol)
    except (Chem.MolSanitizeException, ValueError) as error:
        raise StructureError("chemistry", f"{name}: cannot be sanitised: {error}.") from error
    for atom in mol.GetAtoms():
        atom.SetIntProp("_index", atom.GetIdx())
    parts = Chem.GetMolFrags(mol, asMols=True, sanitizeFrags=False)
    return Structure(name, [[_component(part, Origin(f"molecule {i + 1}"))] for i, part in enumerate(parts)]).check()


def structure_from_mols(mols, name: str | None = None) -> Structure:
    """RDKit molecules with 3D coordinates in one frame -> the `Structure` of their complex."""
    for number, mol in enumerate(mols, 1):
        if not mol.GetNumConformers():
            raise StructureError(
                "no_coordinates", f"{name or 'complex'}: molecule {number} has no coordinates; embed it first."
            )
    both = mols[0]
    for mol in mols[1:]:
        both = Chem.CombineMols(both, mol)
    return structure_from_mol(both, name)


def structure_from_smiles(smiles, name: str | None = None, seed: int = 0) -> Structure:
    """SMILES -> `Structure` in 3D. Molecules that a dot separates (or several SMILES in a tuple) become a complex: each is put
    against those before it in a random orientation, and all are relaxed together. Such a pose is a plausible contact, not a
    measured or docked one.

    Raises:
        `StructureError`: if the SMILES cannot be read or built.
    """
    if not isinstance(smiles, str):
        smiles = ".".join(smiles)
    name = name or smiles
    return structure_from_graph(parse_smiles(smiles, name), name, seed)


def structure_from_graph(mol, name: str, seed: int = 0) -> Structure:
    """RDKit molecule without coordinates (or with those of a drawing) -> `Structure` in 3D, as `structure_from_smiles`."""
    rng, start = np.random.default_rng(seed), time.monotonic()
    built, *parts = Chem.GetMolFrags(mol, asMols=True)
    built = embed(built, seed, name)
    relaxed = AllChem.MMFFHasAllMoleculeParams(built) or AllChem.UFFHasAllMoleculeParams(built)
    for number, part in enumerate(parts, 2):
        if time.monotonic() - start > 2 * EMBEDDING_SECONDS or built.GetNumAtoms() > 2 * LARGEST_EMBEDDED:
            raise StructureError(
                "no_conformer",
                f"{name}: {number - 1} of {len(parts) + 1} molecules were built, expected all within {2 * EMBEDDING_SECONDS} s "
                f"and {2 * LARGEST_EMBEDDED} atoms.",
            )
        built = _join(built, embed(part, seed, name), rng)
    if parts:
        Chem.SanitizeMol(built)
        try:
            relaxed = _relax(built, interfragment=True)
        except (RuntimeError, ValueError):
            relaxed = False
    structure = structure_from_mol(built, name)
    if not relaxed:
        structure.notes["no_force_field"] += 1
    return structure


# records of files ---------------------------------------------------------------------------------------------------------


def _from_record(mol, name, kind, seed):
    if mol is None or not mol.GetNumAtoms():
        raise StructureError("unreadable_record", f"{name}: not a {kind} record that RDKit can read.")
    try:
        Chem.SanitizeMol(mol)
    except (Chem.MolSanitizeException, ValueError) as error:
        raise StructureError("chemistry", f"{name}: cannot be sanitised: {error}.") from error
    if _is_drawing(mol):
        _refuse_dummies(mol, name)
        structure = structure_from_graph(Chem.RemoveHs(mol), name, seed)
        structure.notes["drawing_built_in_3d"] += 1
    else:
        structure = structure_from_mol(mol, name)
    structure.properties = mol.GetPropsAsDict()
    return structure


def structure_from_sdf_record(name, record, seed: int = 0) -> Structure:
    """One SDF or MOL record -> `Structure`; its properties are kept. A drawing (all z are 0) is built in 3D, which is noted.

    Raises:
        `StructureError`: if RDKit cannot read, sanitise or build it.
    """
    supplier = Chem.SDMolSupplier()
    supplier.SetData(record, sanitize=False, removeHs=False)
    return _from_record(next(iter(supplier), None), name, "SDF", seed)


def structure_from_mol2_record(name, record, seed: int = 0) -> Structure:
    """One MOL2 record -> `Structure`.

    Raises:
        `StructureError`: as for SDF.
    """
    return _from_record(Chem.MolFromMol2Block(record, sanitize=False, removeHs=False), name, "MOL2", seed)


def structure_from_xyz_record(name, record, seed: int = 0) -> Structure:
    """One frame of an XYZ file -> `Structure`. Atoms of the elements of `ION_CHARGES` are these ions where they touch no other
    atom; of the first two groups, unless it is carbon or hydrogen. The bonds of the others are RDKit's if it finds some that
    leave no valence open, with a charge of -2 to 2, else those of `perceive_bonds`, which is noted.

    Raises:
        `StructureError`: if it is not such a frame, or no bonds fit its atoms.
    """
    mol = Chem.MolFromXYZBlock(record)
    if mol is None or not mol.GetNumAtoms():
        raise StructureError("unreadable_record", f"{name}: not an XYZ frame that RDKit can read.")
    positions = mol.GetConformer().GetPositions()
    check_positions(positions, name, range(len(positions)))
    elements = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    ions, touching = np.isin(elements, list(ION_CHARGES)), bonds_by_distance(elements, positions)
    salt = np.isin(elements, _SALTS)[touching].any(1) & ~np.isin(elements, (1, 6))[touching].any(1)
    ions[touching[~salt]] = False
    rest = Chem.RWMol(mol)
    for i in np.flatnonzero(ions)[::-1].tolist():
        rest.RemoveAtom(i)
    if 0 < rest.GetNumAtoms() <= 200:
        for charge in (0, 1, -1, 2, -2):
            candidate = Chem.Mol(rest)
            try:
                rdDetermineBonds.DetermineBonds(candidate, charge=charge, maxIterations=10_000)
                return structure_from_mol(_with_ions(candidate, elements, positions, ions), name)
            except (ValueError, RuntimeError):
                continue
    heavy = elements > 1 if (elements > 1).any() else elements > 0
    found = perceive_bonds(elements[heavy & ~ions], positions[heavy & ~ions]) if not ions.all() else Chem.Mol()
    if found is None:
        raise StructureError("no_bonds", f"{name}: no bonds between its {len(elements)} atoms make a molecule RDKit accepts.")
    structure = structure_from_mol(_with_ions(found, elements[heavy], positions[heavy], ions[heavy]), name)
    if not ions.all():
        structure.notes["bonds_perceived"] += 1
        _place_hydrogens(structure, positions[~heavy])
    return structure


def _with_ions(mol, elements, positions, ions):
    """The molecule of the other atoms and these `ions` `(num_atoms,)`, with all positions in the order of the file."""
    mol = Chem.Mol(mol)
    mol.RemoveAllConformers()
    for number in elements[ions]:
        mol = Chem.CombineMols(mol, lone_atom(number, ION_CHARGES[int(number)]))
    order = np.argsort(np.concatenate([np.flatnonzero(~ions), np.flatnonzero(ions)]))
    return with_positions(Chem.RenumberAtoms(mol, order.tolist()), positions)


def _place_hydrogens(structure, hydrogens):
    """Gives hydrogens, whose bonds are not known, to the nearest atoms."""
    parts = [part for segment in structure.segments for part in segment]
    nearest = cKDTree(np.concatenate([part.positions for part in parts])).query(hydrogens)[1].reshape(-1)
    for part in parts:
        inside = (nearest >= 0) & (nearest < len(part.elements))
        part.hydrogens, part.hydrogen_parents = hydrogens[inside], nearest[inside]
        nearest = nearest - len(part.elements)
        if inside.any() and not part.charges.any():
            part.charges = molecule_charges(part)


def sdf_records(text):
    """Records of an SDF or MOL file -> (title, text)."""
    for record in re.split(r"^\$\$\$\$.*\n?", text.replace("\r\n", "\n"), flags=re.MULTILINE):
        if record.strip():
            yield record.split("\n", 1)[0].strip(), record


def mol2_records(text):
    for record in re.split(r"(?=^@<TRIPOS>MOLECULE)", text.replace("\r\n", "\n"), flags=re.MULTILINE)[1:]:
        yield (record.split("\n") + [""])[1].strip(), record


def xyz_records(text):
    """Frames of an XYZ file; one that breaks off comes as far as it goes."""
    lines = text.replace("\r\n", "\n").split("\n")
    start = 0
    while start < len(lines):
        if not lines[start].strip():
            start += 1
            continue
        count = int(lines[start]) if lines[start].strip().isdigit() else len(lines)
        frame = lines[start : start + count + 2]
        yield (frame + [""])[1].strip(), "\n".join(frame) + "\n"
        start += count + 2


# bonds --------------------------------------------------------------------------------------------------------------------

_SALTS = (3, 11, 12, 19, 20, 37, 38, 55, 56)  # elements of the first two groups, without beryllium
METALS = frozenset(range(1, 119)) - {1, 2, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 32, 33, 34, 35, 36, 51, 52, 53, 54, 85, 86}
_VALENCE = {5: 3, 6: 4, 7: 3, 8: 2, 14: 4, 15: 3, 16: 2, 33: 3, 34: 2}
# a bond longer than this is single, angstrom
_LONGEST_DOUBLE = {(6, 6): 1.46, (6, 7): 1.405, (6, 8): 1.33, (6, 16): 1.70, (7, 7): 1.37, (7, 8): 1.30, (6, 34): 1.82}
_LONGEST_TRIPLE = {(6, 6): 1.26, (6, 7): 1.21, (7, 7): 1.13}


def bonds_by_distance(elements, positions, tolerance: float = 0.45):
    """Pairs of atoms nearer than the sum of their covalent radii plus `tolerance` angstrom, shape `(num_bonds, 2)`."""
    table = Chem.GetPeriodicTable()
    radii = np.array([table.GetRcovalent(int(number)) for number in elements])
    positions = np.asarray(positions, dtype=np.float64).reshape(-1, 3)
    pairs = cKDTree(positions).query_pairs(2 * radii.max(initial=0.0) + tolerance, output_type="ndarray")
    distances = np.linalg.norm(positions[pairs[:, 0]] - positions[pairs[:, 1]], axis=-1)
    near = (distances < radii[pairs[:, 0]] + radii[pairs[:, 1]] + tolerance) & (distances > 0.4)
    pairs = pairs[near]
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def perceive_bonds(elements, positions):
    """Molecule of heavy atoms without hydrogens -> RDKit molecule with bonds and their orders, from the geometry; None if RDKit
    accepts none.

    Bonds are pairs within covalent radii; metals have none. Multiple bonds go to short pairs whose atoms have valences left
    and are flat or straight: a matching of atoms that makes as many flat carbons unsaturated as it can, of the shortest pairs.
    Groups of S, P and N with terminal oxygens are written with the usual charges.
    """
    elements, positions = [int(number) for number in elements], np.asarray(positions, dtype=np.float64)
    bonds = [(int(a), int(b)) for a, b in bonds_by_distance(elements, positions) if not {elements[a], elements[b]} & METALS]
    neighbors = [[] for _ in elements]
    for a, b in bonds:
        neighbors[a].append(b)
        neighbors[b].append(a)
    order = dict.fromkeys(bonds, 1)
    charge = [0] * len(elements)
    free = [max(0, _VALENCE.get(number, 1) - len(found)) for number, found in zip(elements, neighbors)]
    key = lambda a, b: (a, b) if (a, b) in order else (b, a)
    length = lambda a, b: float(np.linalg.norm(positions[a] - positions[b]))

    def angles(i):
        for a, b in combinations(neighbors[i], 2):
            u, v = positions[a] - positions[i], positions[b] - positions[i]
            yield float(np.degrees(np.arccos(np.clip(u @ v / np.linalg.norm(u) / np.linalg.norm(v), -1, 1))))

    around = [list(angles(i)) for i in range(len(elements))]
    flat = [len(n) < 2 or (sum(a) > 350 if len(n) == 3 else a[0] > 95 if len(n) == 2 else False)
            for n, a in zip(neighbors, around)]  # fmt: skip
    straight = [len(n) < 2 or (len(n) == 2 and a[0] > 160) for n, a in zip(neighbors, around)]

    for i, number in enumerate(elements):  # acids and their like
        ends = sorted(
            (j for j in neighbors[i] if elements[j] in (8, 16) and len(neighbors[j]) == 1), key=lambda j: length(i, j)
        )
        doubles = 0
        if number == 16 and len(neighbors[i]) >= 3:
            doubles = min(len(ends), len(neighbors[i]) - 2)
        elif number in (15, 33) and len(neighbors[i]) == 4:
            doubles = min(len(ends), 1)
        elif number == 7 and len(neighbors[i]) == 3 and len(ends) == 2:
            doubles, charge[i] = 1, 1
            charge[ends[1]], free[ends[1]] = -1, 0
        elif number == 7 and len(neighbors[i]) == 4 or number == 8 and len(neighbors[i]) == 3:
            charge[i] = 1
        for j in ends[:doubles]:
            order[key(i, j)], free[j] = 2, 0
        if doubles or charge[i]:
            free[i] = 0

    for a, b in bonds:
        pair = tuple(sorted((elements[a], elements[b])))
        if min(free[a], free[b]) >= 2 and straight[a] and straight[b] and length(a, b) < _LONGEST_TRIPLE.get(pair, 0):
            order[a, b], free[a], free[b] = 3, 0, 0
    for chosen in (flat, straight):  # a second time for what is doubly bonded twice, as in CO2
        graph = networkx.Graph()
        for a, b in bonds:
            pair = tuple(sorted((elements[a], elements[b])))
            shorter = _LONGEST_DOUBLE.get(pair, 0) - length(a, b)
            if order[a, b] == 1 and free[a] and free[b] and chosen[a] and chosen[b] and shorter > 0:
                graph.add_edge(a, b, weight=pair.count(6) + 4 * shorter + 0.01)
        for a, b in networkx.max_weight_matching(graph):
            order[key(a, b)] = 2
            free[a], free[b] = free[a] - 1, free[b] - 1

    mol = Chem.RWMol()
    for number, charged in zip(elements, charge):
        atom = Chem.Atom(number)
        atom.SetFormalCharge(charged)
        atom.SetNoImplicit(number in METALS)
        mol.AddAtom(atom)
    kinds = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
    for (a, b), kind in order.items():
        mol.AddBond(a, b, kinds[kind])
    try:
        Chem.SanitizeMol(mol)
    except (Chem.MolSanitizeException, ValueError):
        return None
    return mol.GetMol()


def _graph(elements, bonds):
    graph = networkx.Graph()
    graph.add_nodes_from((i, {"element": int(number)}) for i, number in enumerate(elements))
    graph.add_edges_from(bonds)
    return graph


def fit_template(template, elements, positions):
    """The bonds of the molecule `template` on atoms at these positions, in their order; None if they do not fit."""
    bonds = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in template.GetBonds()]
    if sorted(atom.GetAtomicNum() for atom in template.GetAtoms()) != sorted(int(number) for number in elements):
        return None
    matcher = networkx.isomorphism.GraphMatcher(
        _graph([atom.GetAtomicNum() for atom in template.GetAtoms()], bonds),
        _graph(elements, bonds_by_distance(elements, positions).tolist()),
        node_match=lambda first, second: first["element"] == second["element"],
    )
    match = next(matcher.isomorphisms_iter(), None)
    if match is None:
        return None
    # built anew from elements, charges and bonds: stereochemistry, and hydrogens written as in [C@H], are not carried over
    template = Chem.Mol(template)
    Chem.Kekulize(template, clearAromaticFlags=True)
    mol = Chem.RWMol()
    for i in sorted(match, key=match.__getitem__):
        atom = Chem.Atom(template.GetAtomWithIdx(i).GetAtomicNum())
        atom.SetFormalCharge(template.GetAtomWithIdx(i).GetFormalCharge())
        mol.AddAtom(atom)
    for bond in template.GetBonds():
        mol.AddBond(match[bond.GetBeginAtomIdx()], match[bond.GetEndAtomIdx()], bond.GetBondType())
    Chem.SanitizeMol(mol)
    return mol.GetMol()


def lone_atom(number, charge: int = 0):
    """Molecule of one atom, without hydrogens."""
    mol = Chem.RWMol()
    atom = Chem.Atom(int(number))
    atom.SetNoImplicit(True)
    atom.SetFormalCharge(charge)
    mol.AddAtom(atom)
    mol = mol.GetMol()
    Chem.SanitizeMol(mol)
    return mol


def template_from_smiles(smiles, name):
    """Heavy-atom template of a ligand; raises as `parse_smiles`."""
    return Chem.RemoveAllHs(parse_smiles(smiles, name))


__all__ = [
    "bonds_by_distance", "embed", "fit_template", "lone_atom", "mol2_records", "perceive_bonds", "sdf_records",
    "structure_from_mol", "structure_from_mol2_record", "structure_from_mols", "structure_from_sdf_record",
    "structure_from_smiles", "structure_from_xyz_record", "template_from_smiles", "xyz_records",
]  # fmt: skip
