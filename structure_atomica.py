# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Files -> `Structure`: PDB, mmCIF, SDF, index CSV of complexes, and SMILES (built in 3D); or a reason why not.

A `Structure` is a list of segments (the partners of a complex; one for a lone molecule), a segment a list of `Component`s: a
residue (known by its name) or a molecule (known by its bonds). Positions are in angstrom. Hydrogens are left out.
"""

import csv
import gzip
import io
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import networkx
import numpy as np
from rdkit import Chem, RDLogger
from rdkit.Chem import AllChem
from rdkit.Geometry import Point3D
from scipy.spatial import cKDTree


try:
    import gemmi
except ImportError:
    gemmi = None


MACROMOLECULE_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
MOLECULE_SUFFIXES = (".sdf", ".sd", ".mol")
TABLE_SUFFIXES = (".smi", ".smiles", ".csv", ".tsv")
SMILES_COLUMNS = ("smiles", "canonical_smiles", "mol", "molecule")
INDEX_COLUMNS = ("pdb_path", "chain1", "chain2")
INTERFACE_DISTANCE = 8.0  # angstrom

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
    """Where a component came from: chain, residue number and name in a structure file, or the number of a molecule."""

    name: str = ""
    chain: str = ""
    number: int | None = None
    insertion: str = ""

    def __str__(self):
        if self.chain or self.number is not None:
            return f"{self.chain}:{self.name}:{'' if self.number is None else self.number}{self.insertion}"
        return self.name


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
    """

    name: str
    elements: np.ndarray
    positions: np.ndarray
    atom_names: list
    origin: Origin = field(default_factory=Origin)
    mol: Chem.Mol | None = None


@dataclass
class Structure:
    """One example: `segments` is a list of lists of `Component`; `properties` holds what else the file said of it. With
    `published_distance`, the segments are whole and the interface is still to be cut out of their blocks, ATOMICA's way."""

    name: str
    segments: list
    properties: dict = field(default_factory=dict)
    notes: Counter = field(default_factory=Counter)
    published_distance: float | None = None

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
                bad = ~np.isfinite(component.positions).all(-1)
                if bad.any():
                    i = int(bad.argmax())
                    raise StructureError(
                        "bad_coordinates",
                        f"{self.name}: atom {component.atom_names[i]} of {component.origin or component.name} is at "
                        f"{component.positions[i].tolist()}, expected finite coordinates in angstrom.",
                    )
        return self


@dataclass
class ReadReport:
    """What was read and what was left out, and why."""

    kept: int = 0
    rejected: list = field(default_factory=list)  # (name, code, message)
    notes: Counter = field(default_factory=Counter)  # things altered in structures that were kept

    def reject(self, name, error):
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


# molecules --------------------------------------------------------------------------------------------------------------


def _parse(smiles, name):
    mol = Chem.MolFromSmiles(smiles, sanitize=False) if len((smiles or "").split()) == 1 else None
    if mol is None or mol.GetNumAtoms() == 0:
        raise StructureError("smiles_syntax", f"{name}: {smiles!r} is not a SMILES string.")
    try:
        Chem.SanitizeMol(mol)
    except (Chem.MolSanitizeException, ValueError) as error:
        raise StructureError("smiles_chemistry", f"{name}: {smiles!r} cannot be sanitised: {error}.") from error
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
    if AllChem.MMFFHasAllMoleculeParams(mol):
        AllChem.MMFFOptimizeMolecule(mol, maxIters=1000, ignoreInterfragInteractions=not interfragment)
    elif AllChem.UFFHasAllMoleculeParams(mol):
        AllChem.UFFOptimizeMolecule(mol, maxIters=1000, ignoreInterfragInteractions=not interfragment)
    else:
        return False
    return True


def embed(mol, seed: int = 0, name: str = "molecule"):
    """A molecule without coordinates -> with hydrogens, in 3D (ETKDGv3, then MMFF), the same for the same seed.

    Raises:
        `StructureError`: if no conformer could be found.
    """
    mol = Chem.AddHs(mol)
    parameters = AllChem.ETKDGv3()
    parameters.randomSeed = seed
    if AllChem.EmbedMolecule(mol, parameters) < 0:
        parameters.useRandomCoords = True
        if AllChem.EmbedMolecule(mol, parameters) < 0:
            raise StructureError(
                "no_conformer", f"{name}: no 3D conformer of {Chem.MolToSmiles(Chem.RemoveHs(mol))!r} was found."
            )
    _relax(mol)
    return mol


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
    """RDKit molecule with a conformer -> `Component` of its heavy atoms (of all atoms, if it has no others)."""
    has_heavy = any(atom.GetAtomicNum() > 1 for atom in mol.GetAtoms())
    kept = [a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() > 1 or not has_heavy]
    names = [f"{mol.GetAtomWithIdx(i).GetSymbol()}{mol.GetAtomWithIdx(i).GetIntProp('_index')}" for i in kept]
    bare = Chem.RemoveAllHs(mol) if has_heavy else mol
    elements = np.array([atom.GetAtomicNum() for atom in bare.GetAtoms()])
    return Component(origin.name, elements, bare.GetConformer().GetPositions(), names, origin, bare)


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
    positions = mol.GetConformer().GetPositions()
    if not np.isfinite(positions).all():
        bad = int((~np.isfinite(positions)).any(-1).argmax())
        raise StructureError("bad_coordinates", f"{name}: atom {bad} is at {positions[bad].tolist()}, expected finite numbers.")
    if len(positions) > 4 and not mol.GetConformer().Is3D() and not positions[:, 2].any():
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
    mol = _parse(smiles, name)
    rng = np.random.default_rng(seed)
    built, relaxed = None, True
    for part in Chem.GetMolFrags(mol, asMols=True):
        part = embed(part, seed, name)
        if built is None:
            built = part
            relaxed = AllChem.MMFFHasAllMoleculeParams(part) or AllChem.UFFHasAllMoleculeParams(part)
        else:
            built = _join(built, part, rng)
            Chem.SanitizeMol(built)
            relaxed = _relax(built, interfragment=True)
    structure = structure_from_mol(built, name)
    if not relaxed:
        structure.notes["no_force_field"] += 1
    return structure


# macromolecules ---------------------------------------------------------------------------------------------------------

WATERS = frozenset(("HOH", "WAT", "DOD", "H2O"))
AMINO_ACID_NAMES = frozenset("GLY ALA VAL LEU ILE PHE TRP TYR ASP HIS ASN GLU LYS GLN MET ARG SER THR CYS PRO".split())
NUCLEOTIDE_NAMES = frozenset("DA DG DC DT RA RG RC RU".split())
PARENTS = {"MSE": "MET"}


def require_gemmi():
    if gemmi is None:
        raise ImportError("Reading PDB and mmCIF needs the package gemmi: pip install gemmi")


def _open_text(path):
    path = Path(path)
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig", errors="replace")
    except FileNotFoundError as error:
        raise StructureError("missing_file", f"{path}: no such file.") from error
    except (OSError, EOFError, gzip.zlib.error) as error:
        raise StructureError("unreadable_file", f"{path}: cannot be read: {error}.") from error


def _pdb_line(line):
    """Atom line without what old files have after column 76 in place of an element and a charge.

    Raises:
        `ValueError`: if its coordinates are no numbers; gemmi would read them as zero.
    """
    if line.startswith(("ATOM  ", "HETATM")):
        try:
            [float(line[i : i + 8]) for i in (30, 38, 46)]
        except ValueError:
            raise ValueError(f"coordinates expected in columns 31-54 of {line.rstrip()!r}") from None
    if line.startswith(("ATOM", "HETATM")) and len(line) > 76:
        if not line[76:78].strip().isalpha():
            return line[:76]
        charge = line[78:80].strip()
        if charge and not (len(charge) == 2 and charge[0].isdigit() and charge[1] in "+-"):
            return line[:78]
    return line


def read_model(path):
    """First model of a PDB or mmCIF file (`.gz` too), told apart by content.

    Raises:
        `StructureError`: if it cannot be read or has no atoms.
    """
    require_gemmi()
    text = _open_text(path)
    try:
        if text.lstrip()[:5].lower() == "data_" or "\nloop_" in text[:100000]:
            document = gemmi.cif.read_string(text)
            structure = gemmi.make_structure_from_block(document[0])
        else:
            # an END between two chains would hide all that follows it
            lines = (_pdb_line(line) for line in text.splitlines() if line[:6].strip() != "END")
            structure = gemmi.read_pdb_string("\n".join(lines) + "\n")
    except (ValueError, RuntimeError, IndexError) as error:
        raise StructureError("unreadable_file", f"{path}: not a PDB or mmCIF file that gemmi can read: {error}.") from error
    if not len(structure) or not structure[0].count_atom_sites():
        raise StructureError("no_atoms", f"{path}: no atoms were found in it.")
    return structure[0]


def residue_token(name, atom_names):
    """Block token of a residue, from its name and, where names are ambiguous, its atoms; None for what is no residue."""
    name = PARENTS.get(name, name)
    if name in AMINO_ACID_NAMES or name in ("DA", "DG", "DC", "DT"):
        return name
    if name in ("A", "G", "C", "U", "T") and ("C1'" in atom_names or "C1*" in atom_names):
        ribose = name == "U" or (name != "T" and ("O2'" in atom_names or "O2*" in atom_names))
        return ("R" if ribose else "D") + name
    return None


def _residue(residue, chain, notes):
    """gemmi residue -> `Component` without hydrogens, of each atom the location with the highest occupancy; None if empty."""
    chosen = {}
    for atom in residue:
        if atom.element.atomic_number <= 1 and atom.element.name in ("H", "D"):
            notes["hydrogen"] += 1
            continue
        if atom.element.atomic_number < 1:
            notes["atom_of_unknown_element"] += 1
            continue
        best = chosen.get(atom.name)
        if best is not None:
            notes["alternate_location"] += 1
        if best is None or atom.occ > best.occ:
            chosen[atom.name] = atom
    if not chosen:
        return None
    atoms = list(chosen.values())
    names = [atom.name for atom in atoms]
    token = residue_token(residue.name, names)
    if token is not None and token != residue.name:
        notes[f"{residue.name}_read_as_{token}"] += 1
    return Component(
        name=token or residue.name,
        elements=np.array([atom.element.atomic_number for atom in atoms]),
        positions=np.array([atom.pos.tolist() for atom in atoms], dtype=np.float64),
        atom_names=names,
        origin=Origin(residue.name, chain, residue.seqid.num, residue.seqid.icode.strip()),
    )


def _has_backbone(component):
    names = set(component.atom_names)
    return {"N", "CA", "C"} <= names or {"C1'", "C3'", "C4'"} <= names or {"C1*", "C3*", "C4*"} <= names


def _as_ion(component):
    mol = Chem.RWMol()
    atom = Chem.Atom(int(component.elements[0]))
    atom.SetNoImplicit(True)
    mol.AddAtom(atom)
    component.mol = mol.GetMol()
    Chem.SanitizeMol(component.mol)
    return component


def _chain_components(model, chains, notes, as_published=False, without=None):
    """Residues of the named chains, in that order.

    Waters are left out. What is neither residue nor ion is left out and noted, and so is the residue `without`. With
    `as_published`, as ATOMICA does: everything but water stays, under its name, up to the last residue that has a token.
    """
    components = []
    for name in chains:
        found = []
        for chain in (c for c in model if c.name == name):
            for residue in chain:
                if residue.name in WATERS:
                    notes["water"] += 1
                    continue
                component = _residue(residue, name, notes)
                if component is None:
                    continue
                known = residue_token(residue.name, component.atom_names) is not None
                if as_published:
                    found.append((component, known or component.name in _ELEMENT_SYMBOLS))
                elif component.origin == without:
                    continue
                elif known or _has_backbone(component):
                    if not known:
                        notes[f"unknown_residue:{residue.name}"] += 1
                    found.append((component, True))
                elif len(component.elements) == 1:
                    found.append((_as_ion(component), True))
                else:
                    notes[f"molecule_left_out:{residue.name}"] += 1
        while found and not found[-1][1]:
            found.pop()
        components += [component for component, _ in found]
    return components


_ELEMENT_SYMBOLS = frozenset(Chem.GetPeriodicTable().GetElementSymbol(i) for i in range(1, 119))


def bonds_by_distance(elements, positions, tolerance: float = 0.45):
    """Pairs of atoms nearer than the sum of their covalent radii plus `tolerance` angstrom, shape `(num_bonds, 2)`."""
    table = Chem.GetPeriodicTable()
    radii = np.array([table.GetRcovalent(int(number)) for number in elements])
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
    near = (distances < radii[:, None] + radii + tolerance) & (distances > 0.4)
    return np.argwhere(np.triu(near, 1))


def _graph(elements, bonds):
    graph = networkx.Graph()
    graph.add_nodes_from((i, {"element": int(number)}) for i, number in enumerate(elements))
    graph.add_edges_from(bonds)
    return graph


def _fit_template(template, component):
    """The molecule `template` with the atoms of `component` in their order; None if it does not fit."""
    bonds = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in template.GetBonds()]
    near = bonds_by_distance(component.elements, component.positions).tolist()
    matcher = networkx.isomorphism.GraphMatcher(
        _graph([atom.GetAtomicNum() for atom in template.GetAtoms()], bonds),
        _graph(component.elements, near + [[b, a] for a, b in near]),
        node_match=lambda first, second: first["element"] == second["element"],
    )
    match = next(matcher.isomorphisms_iter(), None)
    if match is None:
        return None
    # built anew from elements, charges and bonds: stereochemistry, and hydrogens written as in [C@H], are not carried over
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


def _ligand(component, smiles, notes):
    """Residue -> molecule with the bonds of `smiles`, matched to its atoms; without a match, one block per atom."""
    if len(component.elements) == 1:
        return [_as_ion(component)]
    if smiles:
        template = Chem.RemoveAllHs(_parse(smiles, str(component.origin)))
        component.mol = _fit_template(template, component)
        if component.mol is not None:
            return [component]
        notes[f"ligand_smiles_does_not_fit:{component.name}"] += 1
    else:
        notes[f"ligand_without_bonds:{component.name}"] += 1
    split = []
    for i, name in enumerate(component.atom_names):
        one = Component(component.name, component.elements[i : i + 1], component.positions[i : i + 1], [name], component.origin)
        split.append(_as_ion(one))
    return split


def _near(side, other, distance):
    """Components of `side` with an atom closer than `distance` to an atom of `other`."""
    tree = cKDTree(np.concatenate([component.positions for component in other]))
    found = tree.query(np.concatenate([c.positions for c in side]), distance_upper_bound=distance)[0] < distance
    ends = np.cumsum([len(c.positions) for c in side])
    return [c for c, part in zip(side, np.split(found, ends[:-1])) if part.any()]


def _split_chains(text):
    return [part for part in text.replace(",", "_").split("_") if part]


def _check_chains(path, model, chains):
    present = [chain.name for chain in model]
    for chain in chains:
        if chain not in present:
            raise StructureError("no_such_chain", f"{path}: no chain {chain!r}; it has {', '.join(sorted(set(present)))}.")
    if not chains:
        raise StructureError("no_such_chain", f"{path}: no chain was named; it has {', '.join(sorted(set(present)))}.")
    if len(set(chains)) < len(chains):
        raise StructureError("bad_side", f"{path}: a side names a chain twice: {', '.join(chains)}.")


def read_interface(
    path, side_a: str, side_b: str, ligand_smiles: str | None = None, distance: float = INTERFACE_DISTANCE,
    name: str | None = None, as_published: bool = False,
):  # fmt: skip
    """The interface of two sides of a PDB or mmCIF file.

    Args:
        path (`str` or `Path`): `.pdb .ent .cif .mmcif`, also `.gz`.
        side_a, side_b (`str`): chains, `"A"` or `"A_B"`; or a ligand, `"A:UDP"` or `"A:UDP:900"` (chain, component, number).
        ligand_smiles (`str`): bonds of the ligand; without it, every atom is a block.
        distance (`float`): residues with an atom closer than this to the other side are kept, in angstrom.
        as_published (`bool`): read as ATOMICA does. Hetero residues of a chain stay, as `<unk>` unless their name is a token,
            also the ligand itself (by default ions stay as elements, other molecules and the ligand do not). Blocks count as
            near if their i-th atoms are, for some i (by default: any two atoms), which `AtomicaProcessor` decides.

    Returns:
        List of `Structure`, one for each ligand that fits the description, one for two sides of chains.

    Raises:
        `StructureError`: if the file, a chain or the ligand is not there, or nothing of the two sides touches.
    """
    if not isinstance(side_a, str) or not isinstance(side_b, str):
        raise StructureError(
            "bad_side", f"{path}: sides are named by strings such as 'A_B' or 'A:UDP:900', got {side_a!r}, {side_b!r}."
        )
    model = read_model(path)
    stem = name or f"{Path(path).name.split('.')[0]}_{side_a.replace(':', '_')}_{side_b.replace(':', '_')}"
    if ":" in side_a:
        if ":" in side_b:
            raise StructureError(
                "bad_side", f"{path}: both sides are ligands ({side_a}, {side_b}), expected one side of chains."
            )
        side_a, side_b = side_b, side_a
    notes = Counter()
    chains = _split_chains(side_a)
    _check_chains(path, model, chains)
    if ":" not in side_b:
        others = _split_chains(side_b)
        _check_chains(path, model, others)
        if set(chains) & set(others):
            raise StructureError("bad_side", f"{path}: the sides {side_a!r} and {side_b!r} share a chain.")
        if ligand_smiles:
            raise StructureError(
                "bad_side", f"{path}: a ligand SMILES was given, but {side_b!r} is no ligand (chain:component)."
            )
        sides = [(_chain_components(model, others, notes, as_published), None)]
    else:
        sides = _find_ligands(path, model, side_b, ligand_smiles, notes)
    structures, apart, num_apart = [], None, 0
    for number, (partner, origin) in enumerate(sides):
        these = Counter(notes)
        receptor = _chain_components(model, chains, these, as_published, without=origin)
        if not receptor or not partner:
            empty = side_a if not receptor else side_b
            raise StructureError("empty_side", f"{path}: {empty!r} has no residues that can be read.")
        label = stem if len(sides) == 1 else f"{stem}_{number}"
        whole = Structure(label, [receptor, partner], notes=these).check()
        if as_published:
            whole.published_distance = distance
        else:
            near_partner = _near(partner, receptor, distance)  # a ligand stays whole
            whole.segments = [_near(receptor, partner, distance), near_partner if origin is None else partner]
            if not all(whole.segments):
                apart = StructureError(
                    "no_interface", f"{path}: no atoms of {side_a!r} and {side_b!r} are within {distance} angstrom."
                )
                num_apart += 1
                continue
        structures.append(whole)
    if not structures:
        raise apart
    if num_apart:
        structures[0].notes["ligand_that_touches_nothing"] = num_apart
    return structures


def _find_ligands(path, model, side, smiles, notes):
    """Ligands that fit `chain:component[:number]` -> list of (components, origin)."""
    fields = side.split(":")
    number = re.fullmatch(r"(-?[0-9]+)([A-Za-z]?)", fields[2]) if len(fields) == 3 else None
    if len(fields) not in (2, 3) or (len(fields) == 3 and number is None):
        raise StructureError("bad_side", f"{path}: {side!r} is not chain:component or chain:component:number.")
    place = None if number is None else (int(number[1]), number[2])
    _check_chains(path, model, fields[:1])
    present, found = [], []
    for chain in (c for c in model if c.name == fields[0]):
        for residue in chain:
            if residue.name in WATERS or (place is None and residue.het_flag != "H"):
                continue
            if residue.het_flag == "H":
                present.append(f"{residue.name}:{residue.seqid}")
            if residue.name == fields[1] and place in (None, (residue.seqid.num, residue.seqid.icode.strip())):
                component = _residue(residue, chain.name, notes)
                if component is not None:
                    found.append((_ligand(component, smiles, notes), component.origin))
    if not found:
        raise StructureError(
            "no_such_ligand", f"{path}: no {side!r}; the ligands of chain {fields[0]} are {', '.join(present) or 'none'}."
        )
    return found


def read_macromolecule(path, distance: float = INTERFACE_DISTANCE, as_published: bool = False) -> Structure:
    """A PDB or mmCIF file whose sides are not named: the interface of the two chains with the most contacts, or the whole
    chain if there is only one with residues.

    Raises:
        `StructureError`: if no chain has residues.
    """
    model = read_model(path)
    name = Path(path).name.split(".")[0]
    notes = Counter()
    chains = {}
    for chain in dict.fromkeys(c.name for c in model):
        components = _chain_components(model, [chain], notes, as_published)
        if any(component.mol is None for component in components):
            chains[chain] = components
    if not chains:
        raise StructureError("no_residues", f"{path}: no protein or nucleic acid chain; name a ligand with an index CSV.")
    if len(chains) == 1:
        return Structure(name, list(chains.values()), notes=notes).check()
    Structure(name, list(chains.values())).check()
    best, contacts = None, 0
    labels = list(chains)
    for i, a in enumerate(labels):
        for b in labels[i + 1 :]:
            near = len(_near(chains[a], chains[b], distance))
            if near > contacts:
                best, contacts = (a, b), near
    if best is None:
        raise StructureError(
            "no_interface", f"{path}: no two of the chains {', '.join(labels)} are within {distance} angstrom."
        )
    a, b = (chains[label] for label in best)
    label = f"{name}_{best[0]}_{best[1]}"
    if as_published:
        return Structure(label, [a, b], notes=notes, published_distance=distance)
    return Structure(label, [_near(a, b, distance), _near(b, a, distance)], notes=notes)


# files of many ----------------------------------------------------------------------------------------------------------


def suffix_of(path) -> str:
    """Lower-case ending, `.gz` aside."""
    suffixes = [s.lower() for s in Path(path).suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_structure_file(path) -> bool:
    return suffix_of(path) in MACROMOLECULE_SUFFIXES + MOLECULE_SUFFIXES


def sdf_records(path):
    """(name, text) of every record of an SDF or MOL file."""
    text = _open_text(path).replace("\r\n", "\n")
    for number, record in enumerate(re.split(r"^\$\$\$\$.*\n?", text, flags=re.MULTILINE), 1):
        if record.strip():
            title = record.split("\n", 1)[0].strip()
            yield title or f"{Path(path).name} record {number}", record


def structure_from_sdf_record(name, record) -> Structure:
    """One SDF record -> `Structure`; its properties are kept.

    Raises:
        `StructureError`: if RDKit cannot read or sanitise it, or it is not in 3D.
    """
    supplier = Chem.SDMolSupplier()
    supplier.SetData(record, sanitize=False, removeHs=False)
    mol = next(iter(supplier), None)
    if mol is None:
        raise StructureError("unreadable_record", f"{name}: not an SDF record that RDKit can read.")
    try:
        Chem.SanitizeMol(mol)
    except (Chem.MolSanitizeException, ValueError) as error:
        raise StructureError("chemistry", f"{name}: cannot be sanitised: {error}.") from error
    structure = structure_from_mol(mol, name)
    structure.properties = mol.GetPropsAsDict()
    return structure


def read_table(path):
    """Rows of a `.smi`, `.csv` or `.tsv` file as dictionaries; `.smi` gives the columns `smiles` and `name`.

    Raises:
        `StructureError`: if it has no rows.
    """
    text = _open_text(path)
    kind = suffix_of(path)
    if kind in (".smi", ".smiles"):
        rows = []
        for line in text.split("\n"):
            fields = line.split(None, 1)
            if fields:
                rows.append({"smiles": fields[0], "name": fields[1].strip() if len(fields) > 1 else ""})
    else:
        try:
            lines = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t" if kind == ".tsv" else ",", strict=True))
        except csv.Error as error:
            raise StructureError("bad_table", f"{path}: not a table that can be read: {error}.") from error
        header = [column.strip() for column in lines[0]] if lines else []
        column = smiles_column(header)
        if column is not None and header.count(column) > 1:
            raise StructureError(
                "bad_table", f"{path}: the column {column!r} stands {header.count(column)} times in its header."
            )
        rows = [dict(zip(header, line)) for line in lines[1:] if any(field.strip() for field in line)]
    if not rows:
        raise StructureError("empty_file", f"{path}: no rows were found in it.")
    return rows


def smiles_column(columns):
    """The column that holds SMILES, by its name; None if there is none."""
    lower = {column.lower(): column for column in reversed(list(columns))}
    return next((lower[name] for name in SMILES_COLUMNS if name in lower), None)


def index_file(path, row) -> Path:
    """The structure file that a row of an index CSV names; relative paths are relative to the CSV."""
    file = Path((row.get("pdb_path") or "").strip())
    return file if file.is_absolute() else Path(path).parent / file


def _index_row(path, row, distance, as_published):
    """One row of ATOMICA's index CSV -> list of `Structure`."""
    value = lambda key: (row.get(key) or "").strip()  # noqa: E731
    file = index_file(path, row)
    side_b = value("chain2")
    code = value("lig_code")
    chains = ["".join(_split_chains(side)) for side in (value("chain1"), side_b)]
    name = "_".join([value("pdb_id") or file.name.split(".")[0], *chains])
    if code:
        name = f"{name}_{code}"
        number = value("lig_resi").removesuffix(".0")
        side_b = ":".join([side_b, code] + ([number] if number else []))
    structures = read_interface(
        file, value("chain1"), side_b, value("lig_smiles") or None, distance, name=name, as_published=as_published
    )
    for structure in structures:
        structure.properties = {"label": value("label")} if value("label") else {}
    return structures


def list_inputs(path, distance: float = INTERFACE_DISTANCE, as_published: bool = False, seed: int = 0):
    """Everything a path holds, as work to be done. A folder is searched for structure files; tables and SDF files are split
    into rows and records.

    Returns:
        List of (name, function, arguments); each call gives a `Structure` or a list of them, or raises `StructureError`, and
        can be made in another process.

    Raises:
        `StructureError`: if the path is missing, empty, or of a kind that is not known.
    """
    path = Path(path)
    if not path.exists():
        raise StructureError("missing_file", f"{path}: no such file or folder.")
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and is_structure_file(p))
        if not files:
            known = " ".join(MACROMOLECULE_SUFFIXES + MOLECULE_SUFFIXES)
            raise StructureError("empty_folder", f"{path}: no structure files in it ({known}, also .gz).")
        return [work for file in files for work in list_inputs(file, distance, as_published, seed)]
    kind = suffix_of(path)
    if kind in MACROMOLECULE_SUFFIXES:
        return [(path.name, read_macromolecule, (str(path), distance, as_published))]
    if kind in MOLECULE_SUFFIXES:
        work = [(name, structure_from_sdf_record, (name, record)) for name, record in sdf_records(path)]
        if not work:
            raise StructureError("empty_file", f"{path}: no records were found in it.")
        return work
    if kind in TABLE_SUFFIXES:
        rows = read_table(path)
        if all(column in rows[0] for column in INDEX_COLUMNS):
            return [
                (f"{path.name} row {i}", _index_row, (str(path), row, distance, as_published)) for i, row in enumerate(rows, 1)
            ]
        column = smiles_column(rows[0])
        if column is None:
            raise StructureError(
                "no_smiles_column",
                f"{path}: the columns are {', '.join(map(str, rows[0]))}; expected one of {', '.join(SMILES_COLUMNS)}, or an "
                f"index of complexes with {', '.join(INDEX_COLUMNS)}.",
            )
        title = next((c for c in ("name", "id", "ID", "Name") if c in rows[0]), None)
        work = []
        for i, row in enumerate(rows, 1):
            smiles = row.get(column, "").strip()
            name = (title and row.get(title, "").strip()) or smiles or f"row {i}"
            work.append((f"{path.name} row {i}: {name}", _smiles_row, (smiles, name, row, seed)))
        return work
    known = " ".join(MACROMOLECULE_SUFFIXES + MOLECULE_SUFFIXES + TABLE_SUFFIXES)
    raise StructureError("unknown_format", f"{path}: files ending in {kind or 'nothing'!r} are not known; expected {known}.")


def _smiles_row(smiles, name, row, seed):
    structure = structure_from_smiles(smiles, name, seed)
    structure.properties = {key: value for key, value in row.items() if key and value}
    return structure


def read_structures(
    path, report: ReadReport | None = None, distance: float = INTERFACE_DISTANCE, as_published: bool = False, seed: int = 0
):
    """Yields every `Structure` of a file or folder; what cannot be read goes into `report`, or raises without one."""
    for name, function, arguments in list_inputs(path, distance, as_published, seed):
        try:
            found = function(*arguments)
        except StructureError as error:
            if report is None:
                raise
            report.reject(name, error)
            continue
        for structure in found if isinstance(found, list) else [found]:
            if report is not None:
                report.keep(structure.notes)
            yield structure


__all__ = [
    "Component", "Origin", "ReadReport", "Structure", "StructureError", "embed", "is_structure_file", "list_inputs",
    "read_interface", "read_macromolecule", "read_structures", "structure_from_mol", "structure_from_mols",
    "structure_from_smiles",
]  # fmt: skip
