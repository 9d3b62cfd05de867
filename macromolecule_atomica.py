# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""PDB, mmCIF and BinaryCIF -> `Structure`, with gemmi: residues, ligands, ions, one conformation, sides of interfaces."""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
from rdkit import Chem
from scipy.spatial import cKDTree

from .component_atomica import Component, Origin, Structure, StructureError, check_positions, read_bytes
from .molecule_atomica import fit_template, lone_atom, perceive_bonds, template_from_smiles
from .protonation_atomica import molecule_charges, residue_charges


try:
    import gemmi
except ImportError:
    gemmi = None


INTERFACE_DISTANCE = 8.0  # angstrom
PEPTIDE_LENGTH = 30  # protein chains of at most so many residues are called peptides
WATERS = frozenset(("HOH", "WAT", "DOD", "H2O", "TIP", "TIP3", "SOL", "HHO", "OH2"))
# solvents, cryoprotectants, buffers and precipitants of crystallisation; ions are not among them
BUFFERS = frozenset(
    "SO4 PO4 PI SUL GOL EDO PEG PGE PG4 P6G 1PE PE4 PE8 2PE 7PE P33 P4C XPE 15P 12P 16P M2M PEU ACT ACY FMT FOR CIT FLC TRS "
    "MES EPE BTB B3P BCN HEZ MPD MRD DMS DMF IPA IOH EOH MOH POL PGO PGR BU1 BU3 BO3 BME DTT DTV TLA TAR SIN MLI MLA MLT OXL "
    "NO3 NH4 CO3 BCT AZI SCN IMD CAC CXS NHE BOG LDA C8E SDS DIO ETX".split()
)
AMINO_ACID_NAMES = frozenset("GLY ALA VAL LEU ILE PHE TRP TYR ASP HIS ASN GLU LYS GLN MET ARG SER THR CYS PRO".split())
NUCLEOTIDE_NAMES = frozenset("DA DG DC DT RA RG RC RU".split())
PARENTS = {"MSE": "MET"}
# names of force fields and old files
ALIASES = {
    **dict.fromkeys(("HID", "HIE", "HIP", "HSD", "HSE", "HSP"), "HIS"), **dict.fromkeys(("CYX", "CYM", "CYS2"), "CYS"),
    "ASH": "ASP", "GLH": "GLU", "LYN": "LYS", "ARN": "ARG", "TYM": "TYR",
    "ADE": "A", "GUA": "G", "CYT": "C", "THY": "T", "URA": "U", "URI": "U", **{f"+{base}": base for base in "ACGTU"},
    **{f"D{base}{end}": f"D{base}" for base in "ACGT" for end in "53N"},
    **{f"R{base}{end}": f"R{base}" for base in "ACGU" for end in ("", "5", "3", "N")},
    **{f"{base}{end}": base for base in "ACGU" for end in "53"},
}  # fmt: skip
MODALITIES = {  # ATOMICA's numbers
    "protein-protein": 0, "protein-ligand": 1, "protein-ion": 2, "protein-peptide": 3, "protein-RNA": 4, "protein-DNA": 5,
    "RNA-ligand": 6, "DNA-ligand": 6, "ligand-ligand": 7,
}  # fmt: skip
_ELEMENT_SYMBOLS = frozenset(Chem.GetPeriodicTable().GetElementSymbol(i) for i in range(1, 119))
_CODES = {
    "G": "GLY", "A": "ALA", "V": "VAL", "L": "LEU", "I": "ILE", "F": "PHE", "W": "TRP", "Y": "TYR", "D": "ASP", "H": "HIS",
    "N": "ASN", "E": "GLU", "K": "LYS", "Q": "GLN", "M": "MET", "R": "ARG", "S": "SER", "T": "THR", "C": "CYS", "P": "PRO",
}  # fmt: skip


@dataclass(frozen=True)
class ReadOptions:
    """How structures are read.

    Args:
        distance (`float`): what is closer than this to the other side belongs to an interface, in angstrom.
        as_published (`bool`): read complexes as ATOMICA does; see `read_interface`.
        seed (`int`): of conformers built from SMILES.
        num_conformers (`int`): conformers of each SMILES, each an example of its own.
        interfaces (`str`): `"all"` for every interface of a PDB or mmCIF file; by default the two chains with most contacts.
        model (`int`): number of the model to read.
        assembly (`str`, *optional*): biological assembly to build first.
        keep_waters, keep_buffers (`bool`): keep waters, and what is in `BUFFERS`, where they are near.
        ccd (`str`, *optional*): file of chemical components in mmCIF, for bonds of ligands and parents of residues.
    """

    distance: float = INTERFACE_DISTANCE
    as_published: bool = False
    seed: int = 0
    num_conformers: int = 1
    interfaces: str | None = None
    model: int = 1
    assembly: str | None = None
    keep_waters: bool = False
    keep_buffers: bool = False
    ccd: str | None = None

    def __post_init__(self):
        problems = []
        if not self.distance > 0:
            problems.append(f"`distance` is {self.distance}, expected a positive length in angstrom")
        if self.interfaces not in (None, "all"):
            problems.append(f"`interfaces` is {self.interfaces!r}, expected 'all' or None")
        if self.model < 1 or self.num_conformers < 1 or self.seed < 0:
            given = f"`model` {self.model}, `num_conformers` {self.num_conformers}, `seed` {self.seed}"
            problems.append(f"{given}: expected at least 1, 1 and 0")
        if problems:
            raise StructureError("usage", "; ".join(problems) + ".")


def require_gemmi():
    if gemmi is None:
        raise ImportError("Reading PDB and mmCIF needs the package gemmi: pip install gemmi")


# files ----------------------------------------------------------------------------------------------------------------------


@dataclass
class MacromoleculeFile:
    """One model of a file: gemmi's model, and what the file says of bonds: `bonds` component -> {(atom, atom): order}, and
    `conect` pairs of atom serial numbers -> how often they are listed."""

    path: str
    model: object
    number: int = 1
    bonds: dict = field(default_factory=dict)
    conect: dict = field(default_factory=dict)
    preferred: str = ""  # labels of alternate locations, the one with the highest occupancy first

    def chains(self):
        return list(dict.fromkeys(chain.name for chain in self.model))


def _hybrid_36(number):
    """A residue number beyond 9999 in four characters."""
    number += 10 * 36**3 - 10_000
    return "".join("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number // 36**i % 36] for i in (3, 2, 1, 0))


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
        if line[26:27].isdigit() and line[22:26].strip().isdigit():  # a number of five digits -> hybrid-36, which gemmi reads
            line = f"{line[:22]}{_hybrid_36(int(line[22:27]))} {line[27:]}"
    if line.startswith(("ATOM", "HETATM")) and len(line) > 76:
        if not line[76:78].strip().isalpha():
            return line[:76]
        charge = line[78:80].strip()
        if charge and not (len(charge) == 2 and charge[0].isdigit() and charge[1] in "+-"):
            return line[:78]
    return line


_ORDERS = {"SING": 1, "DOUB": 2, "TRIP": 3, "AROM": 4}


def _component_bonds(block):
    """`_chem_comp_bond` of a CIF block -> component -> {(atom, atom): order}."""
    table = block.find("_chem_comp_bond.", ["comp_id", "atom_id_1", "atom_id_2", "value_order"])
    found = {}
    for row in table:
        name, first, second, order = (row.str(i) for i in range(4))
        found.setdefault(name, {})[first, second] = _ORDERS.get(order.upper()[:4], 1)
    return found


def _binary_cif(data, path):
    """BinaryCIF -> gemmi's CIF block, with the tables that are read."""
    try:
        from biotite.structure.io.pdbx import BinaryCIFFile
    except ImportError as error:
        raise ImportError(f"{path}: reading BinaryCIF needs the package biotite: pip install biotite") from error
    import io

    try:
        source = BinaryCIFFile.read(io.BytesIO(data)).block
        block = gemmi.cif.Block("bcif")
        for category in (
            "atom_site",
            "chem_comp_bond",
            "cell",
            "pdbx_struct_assembly",
            "pdbx_struct_assembly_gen",
            "pdbx_struct_oper_list",
        ):
            if category in source:
                columns = {name: column.as_array(str, masked_value="?") for name, column in source[category].items()}
                loop = block.init_loop(f"_{category}.", list(columns))
                for row in zip(*columns.values()):
                    loop.add_row([gemmi.cif.quote(str(value)) if value not in ("?", ".", "") else "?" for value in row])
        return block
    except Exception as error:  # whatever a decoder raises for bytes that are no BinaryCIF
        raise StructureError(
            "unreadable_file", f"{path}: not BinaryCIF that can be decoded: {type(error).__name__}: {error}."
        ) from error


def read_file(path, options: ReadOptions = ReadOptions()) -> MacromoleculeFile:
    """One model of a PDB, mmCIF or BinaryCIF file (`.gz` too), told apart by content.

    Raises:
        `StructureError`: if it cannot be read, has no atoms, or not this model or assembly.
    """
    require_gemmi()
    data, bonds = read_bytes(path), {}
    try:
        if data[:1] in (b"\x82", b"\x83", b"\x84", b"\x85", b"\xde") and b"dataBlocks" in data[:4096]:
            block = _binary_cif(data, path)
        else:
            # columns are cut by bytes: letters of several bytes would break
            text = data.decode("utf-8-sig", errors="replace").encode("ascii", "replace").decode().replace("\0", " ")
            is_cif = text.lstrip()[:5].lower() == "data_" or "\nloop_" in text[:100000]
            block = gemmi.cif.read_string(text)[0] if is_cif else None
        if block is not None:
            structure, bonds = gemmi.make_structure_from_block(block), _component_bonds(block)
        else:
            # an END between two chains would hide all that follows it
            lines = (_pdb_line(line) for line in text.splitlines() if line[:6].strip() != "END")
            structure = gemmi.read_pdb_string("\n".join(lines) + "\n")
    except (ValueError, RuntimeError, IndexError) as error:
        if isinstance(error, StructureError):
            raise
        raise StructureError("unreadable_file", f"{path}: not a PDB or mmCIF file that gemmi can read: {error}.") from error
    if not len(structure) or not any(model.count_atom_sites() for model in structure):
        raise StructureError("no_atoms", f"{path}: no atoms were found in it.")
    if options.model > len(structure):
        raise StructureError("no_such_model", f"{path}: no model {options.model}; it has {len(structure)}.")
    model = structure[options.model - 1]
    if not model.count_atom_sites():
        raise StructureError("no_atoms", f"{path}: no atoms in model {options.model}.")
    structure.setup_entities()
    conect = Counter()
    for serial, others in structure.conect_map.items():
        conect.update(tuple(sorted((serial, other))) for other in others)
    if options.assembly is not None:
        names = [assembly.name for assembly in structure.assemblies]
        if options.assembly not in names:
            found = ", ".join(names) or "none"
            raise StructureError("no_such_assembly", f"{path}: no assembly {options.assembly!r}; it describes {found}.")
        assembly = structure.assemblies[names.index(options.assembly)]
        model, conect = gemmi.make_assembly(assembly, model, gemmi.HowToNameCopiedChain.AddNumber), {}
    occupancy = Counter()
    for site in model.all():
        if site.atom.has_altloc():
            occupancy[site.atom.altloc] += site.atom.occ
    preferred = "".join(sorted(occupancy, key=lambda label: (-round(occupancy[label], 2), label)))
    return MacromoleculeFile(str(path), model, options.model, bonds, conect, preferred)


def component_dictionary(path):
    """File of chemical components in mmCIF (the PDB's components.cif, also `.gz`) -> function of a name that gives (bonds,
    parent or None), or None. Only the components that are asked for are parsed.

    Raises:
        `StructureError`: if it holds no components.
    """
    try:
        return _component_dictionary(str(path), Path(path).stat().st_mtime_ns)
    except OSError as error:
        raise StructureError("missing_file", f"{path}: no such file of chemical components.") from error


@lru_cache(maxsize=2)
def _component_dictionary(path, _changed):
    text = read_bytes(path).decode("utf-8", errors="replace")
    places = {match[1].upper(): match.start() for match in re.finditer(r"^data_(?:comp_)?(\S+)", text, re.MULTILINE)}
    starts = sorted(places.values())
    if not places:
        raise StructureError("not_components", f"{path}: no chemical components (data_...) were found in it.")

    @cache
    def find(name):
        start = places.get(name.upper())
        if start is None:
            return None
        end = starts[starts.index(start) + 1] if start != starts[-1] else len(text)
        try:
            block = gemmi.cif.read_string(text[start:end])[0]
        except (ValueError, RuntimeError):
            return None
        parent = block.find_value("_chem_comp.mon_nstd_parent_comp_id")
        return _component_bonds(block).get(name, {}), parent if parent and parent not in ("?", ".") else None

    return find


# residues -------------------------------------------------------------------------------------------------------------------


def _backbone(atom_names):
    """ "protein", "nucleotide" or None, by the atoms of a residue."""
    names = set(atom_names)
    if {"N", "CA", "C"} <= names:
        return "protein"
    sugar = {"C1'", "C3'", "C4'"} <= names or {"C1*", "C3*", "C4*"} <= names
    return "nucleotide" if sugar and ("O3'" in names or "O3*" in names or "O5'" in names or "O5*" in names) else None


def residue_token(name, atom_names, parents=None):
    """Block token of a residue, from its name and, where names are ambiguous, its atoms; None for what is no residue.

    `parents` is a function from the name of a modified residue to the name of the standard one, or None.
    """
    name = PARENTS.get(name, name)
    if parents is not None:
        name = ALIASES.get(name, name)
        if len(name) == 4 and name[0] in "NC" and name[1:] in AMINO_ACID_NAMES:  # ends of a chain in Amber's names
            name = name[1:]
    if name in AMINO_ACID_NAMES or name in NUCLEOTIDE_NAMES and name not in ("RA", "RG", "RC", "RU"):
        return name
    if name in NUCLEOTIDE_NAMES and parents is not None:
        return name
    if name in ("A", "G", "C", "U", "T") and ("C1'" in atom_names or "C1*" in atom_names):
        ribose = name == "U" or (name != "T" and ("O2'" in atom_names or "O2*" in atom_names))
        return ("R" if ribose else "D") + name
    parent = parents(name) if parents is not None else None
    return residue_token(parent, atom_names) if parent else None


def parent_of(name, atom_names, ccd=None):
    """Standard residue that a modified one comes from, by gemmi's table or a file of components; None if there is none."""
    known = ccd(name) if ccd is not None else None
    if known is not None and known[1]:
        return known[1].split(",")[0]
    entry = gemmi.find_tabulated_residue(name)
    code = entry.one_letter_code
    if not entry.found() or not code.islower():
        return None
    if entry.is_amino_acid():
        return _CODES.get(code.upper()) if _backbone(atom_names) == "protein" else None
    if entry.is_nucleic_acid() and _backbone(atom_names) == "nucleotide":
        deoxy = entry.kind == gemmi.ResidueKind.DNA
        letter = "T" if deoxy and code == "u" else code.upper()
        return f"D{letter}" if deoxy else {"A": "A", "G": "G", "C": "C", "U": "U"}.get(letter)
    return None


def _one_conformation(residues, preferred, notes):
    """Atoms of one place in a chain: of several residue names the one with the highest occupancy, and of alternate locations
    one label throughout (highest occupancy, then the one preferred in the whole model)."""
    if len(residues) > 1:
        occupancy = lambda residue: sum(atom.occ for atom in residue) / max(1, len(residue))
        residues = sorted(residues, key=lambda residue: -occupancy(residue))
        for other in residues[1:]:
            notes["microheterogeneity"] += 1
            notes["alternate_location"] += len(other)
    residue = residues[0]
    labels = {}
    for atom in residue:
        if atom.altloc != "\0":
            labels.setdefault(atom.altloc, []).append(atom.occ)
    if not labels and len({atom.name for atom in residue}) == len(residue):
        return residue, list(residue)
    atoms, names = [], {}
    label = None
    if labels:
        rank = {label: i for i, label in enumerate(preferred)}
        label = min(labels, key=lambda x: (-round(sum(labels[x]) / len(labels[x]), 3), rank.get(x, 99), x))
    for atom in residue:
        if atom.has_altloc() and atom.altloc != label:
            notes["alternate_location"] += 1
        elif atom.name in names:
            notes["atom_twice"] += 1
        else:
            names[atom.name] = atom
            atoms.append(atom)
    return residue, atoms


def _published_conformation(residue, notes):
    """Atoms of a residue as ATOMICA takes them: of each name the first with the highest occupancy."""
    chosen = {}
    for atom in residue:
        best = chosen.get(atom.name)
        if best is not None:
            notes["alternate_location"] += 1
        if best is None or atom.occ > best.occ:
            chosen[atom.name] = atom
    return list(chosen.values())


def _without_hydrogens(atoms, notes):
    """Atoms without hydrogens and without what is no element, and the hydrogens."""
    kept, hydrogens = [], []
    for atom in atoms:
        if atom.element.name in ("H", "D"):
            notes["hydrogen"] += 1
            hydrogens.append(atom)
        elif atom.element.atomic_number < 1:
            notes["atom_of_unknown_element"] += 1
        else:
            if atom.occ == 0:
                notes["zero_occupancy"] += 1
            kept.append(atom)
    return kept, hydrogens


def _component(file, chain, residue, atoms, token, hydrogens=()):
    coordinates = lambda atoms: np.array([a.pos.tolist() for a in atoms], dtype=np.float64).reshape(-1, 3)  # noqa: E731
    component = Component(
        name=token or residue.name,
        elements=np.array([atom.element.atomic_number for atom in atoms]),
        positions=coordinates(atoms),
        atom_names=[atom.name for atom in atoms],
        origin=Origin(residue.name, chain, residue.seqid.num, residue.seqid.icode.strip(), file.number),
        charges=np.array([atom.charge for atom in atoms], dtype=np.int64),
        hydrogens=coordinates(hydrogens),
        hydrogen_parents=np.zeros(len(hydrogens), dtype=np.int64),
    )
    check_positions(component.positions, file.path, component.atom_names, component.origin)
    check_positions(component.hydrogens, file.path, [atom.name for atom in hydrogens], component.origin)
    if hydrogens:
        component.hydrogen_parents = cKDTree(component.positions).query(component.hydrogens)[1].astype(np.int64)
    if token is not None and not component.charges.any():
        component.charges = residue_charges(token, component.atom_names, component.hydrogen_parents)
    return component


def _published_components(file, chains, notes):
    """Residues of the named chains as ATOMICA takes them: everything but water, under its name, up to the last residue that has
    a token."""
    components = []
    for name in chains:
        found = []
        for residue in (residue for chain in file.model if chain.name == name for residue in chain):
            if residue.name in ("HOH", "WAT", "DOD", "H2O"):
                notes["water"] += 1
                continue
            atoms = _published_conformation(_without_hydrogens(residue, notes)[0], notes)
            if atoms:
                token = residue_token(residue.name, [atom.name for atom in atoms])
                if token is not None and token != residue.name:
                    notes[f"{residue.name}_read_as_{token}"] += 1
                component = _component(file, name, residue, atoms, token)
                found.append((component, token is not None or component.name in _ELEMENT_SYMBOLS))
        while found and not found[-1][1]:
            found.pop()
        components += [component for component, _ in found]
    return components


class Classified:
    """The components of one model, sorted: `chains` chain -> its residues, in order, `molecules` (ligands and ions, chain by
    chain); `notes` counts what was altered. With `only`, of these chains."""

    def __init__(self, file: MacromoleculeFile, options: ReadOptions, only=None):
        self.file, self.options, self.notes = file, options, Counter()
        self.ccd = component_dictionary(options.ccd) if options.ccd else None
        self.chains, self.molecules = {name: [] for name in file.chains()}, []
        self.serials = {}  # id of a component -> serial numbers of its atoms
        for chain in file.model:
            if only is not None and chain.name not in only:
                continue
            places = {}
            for residue in chain:
                places.setdefault((residue.seqid.num, residue.seqid.icode, residue.segment), []).append(residue)
            places = list(places.values())
            for i, residues in enumerate(places):
                beside = [other for place in (*places[max(0, i - 1) : i], *places[i + 1 : i + 2]) for other in place]
                self._place(chain.name, residues, beside)

    def _place(self, chain, residues, beside):
        if len({residue.name for residue in residues}) == len(residues) > 1 and not any(
            a.has_altloc() for r in residues for a in r
        ):
            for residue in residues:  # not alternatives, only numbered alike
                self._add(chain, [residue], beside)
        else:
            self._add(chain, residues, beside)

    def _add(self, chain, residues, beside):
        notes, options = self.notes, self.options
        name = residues[0].name
        if name in WATERS:
            notes["water"] += len(residues)
            if not options.keep_waters:
                return
        residue, atoms = _one_conformation(residues, self.file.preferred, notes)
        atoms, hydrogens = _without_hydrogens(atoms, notes)
        if not atoms:
            return
        names = [atom.name for atom in atoms]
        alone = residue.het_flag == "H" and residue.entity_type in (gemmi.EntityType.NonPolymer, gemmi.EntityType.Branched)
        token = residue_token(residue.name, names, lambda name: parent_of(name, names, self.ccd))
        backbone = _backbone(names)
        if alone and not (token is not None and residue.name in AMINO_ACID_NAMES | NUCLEOTIDE_NAMES and backbone is None):
            token = token if _bonded_to(residue, beside) else None
        component = _component(self.file, chain, residue, atoms, token, hydrogens)
        self.serials[id(component)] = [atom.serial for atom in atoms]
        if token is not None:
            if token != residue.name:
                notes[f"{residue.name}_read_as_{token}"] += 1
            component.kind = "protein" if token in AMINO_ACID_NAMES else "rna" if token.startswith("R") else "dna"
            self.chains[chain].append(component)
        elif len(atoms) == 1 and not _bonded_to(residue, beside):
            self.with_bonds(component)
            component.kind = "water" if name in WATERS else "ion"
            self.molecules.append(component)
        elif not alone or _bonded_to(residue, beside):  # modified beyond its parents, or a cap of the chain
            component.kind = "rna" if {"O2'", "O2*"} & set(names) else "dna" if backbone == "nucleotide" else "protein"
            notes[f"unknown_residue_fragmented:{residue.name}"] += 1
            self.chains[chain] += self.with_bonds(component, links=_links(component, beside))
        else:
            component.kind = "buffer" if name in BUFFERS else "ligand"
            self.molecules.append(component)

    def with_bonds(self, component, smiles=None, links=0):
        """The component as a molecule: with the bonds of a SMILES, of the file, of the dictionary of components, or perceived;
        where none of these fits, one component per atom, without charges. Every way but the first two is noted. Charges that
        the file does not say follow from bonds (also `links`, of each atom to other components) and hydrogens."""
        said, found = component.charges.any(), self._find_bonds(component, smiles)
        if not said and len(found) == 1:
            found[0].charges = molecule_charges(found[0], links)
        return found

    def _find_bonds(self, component, smiles):
        notes, name, count = self.notes, component.origin.name, len(component.elements)
        if component.mol is not None:
            return [component]
        if count == 1:
            component.mol = lone_atom(component.elements[0])
            return [component]
        if smiles:
            component.mol = fit_template(
                template_from_smiles(smiles, str(component.origin)), component.elements, component.positions
            )
            if component.mol is not None:
                return [component]
            notes[f"ligand_smiles_does_not_fit:{name}"] += 1
        known = self.ccd(name) if self.ccd is not None else None
        for source, bonds in (
            ("file", self.file.bonds.get(name)),
            ("dictionary", known and known[0]),
            ("conect", self._conect(component)),
        ):
            component.mol = _bonded(component, bonds) if bonds else None
            if component.mol is not None:
                if source != "file":
                    notes[f"bonds_from_{source}:{name}"] += 1
                return [component]
        component.mol = perceive_bonds(component.elements, component.positions) if count <= 1000 else None
        if component.mol is not None:
            notes[f"bonds_perceived:{name}"] += 1
            return [component]
        notes[f"ligand_without_bonds:{name}"] += 1
        split = []
        for i, atom in enumerate(component.atom_names):
            part = slice(i, i + 1)
            mol = lone_atom(component.elements[i])
            split.append(
                Component(
                    name,
                    component.elements[part],
                    component.positions[part],
                    [atom],
                    component.origin,
                    mol,
                    component.kind,
                    component.charges[part],
                    component.hydrogens[component.hydrogen_parents == i],
                    np.zeros((component.hydrogen_parents == i).sum(), dtype=np.int64),
                )
            )
        return split

    def _conect(self, component):
        """Bonds of CONECT records, if some are listed twice: that is how orders are written in PDB files. Without any, orders
        are not known."""
        names = dict(zip(self.serials.get(id(component), ()), component.atom_names))
        inside = {pair: count for pair, count in self.file.conect.items() if pair[0] in names and pair[1] in names}
        orders = {pair: count // 2 for pair, count in inside.items()}
        if not orders or max(orders.values()) < 2:
            return None
        return {(names[a], names[b]): max(1, order) for (a, b), order in orders.items()}

    def side(self, chains, without=()):
        """Components of the named chains: residues, and ions. Other molecules are left out and noted."""
        found = []
        for name in chains:
            found += self.chains[name]
            for component in self.molecules:
                if component.origin.chain != name or component.origin in without:
                    continue
                if (
                    component.kind == "ion"
                    or component.kind == "water"
                    or (component.kind == "buffer" and self.options.keep_buffers)
                ):
                    found += self.with_bonds(component)
                else:
                    self.notes[
                        f"{'buffer' if component.kind == 'buffer' else 'molecule'}_left_out:{component.origin.name}"
                    ] += 1
        return found

    def ligand_groups(self):
        """Ligands; molecules that are bonded to each other, as the sugars of a glycan, are one ligand."""
        ligands = [c for c in self.molecules if c.kind == "ligand"]
        if not ligands:
            return []
        owner = np.repeat(np.arange(len(ligands)), [len(c.elements) for c in ligands])
        pairs = cKDTree(np.concatenate([c.positions for c in ligands])).query_pairs(1.9, output_type="ndarray")
        group = list(range(len(ligands)))

        def root(i):
            while group[i] != i:
                i = group[i]
            return i

        for a, b in owner[pairs]:
            if a != b:
                group[root(a)] = root(b)
        groups = {}
        for i, ligand in enumerate(ligands):
            groups.setdefault(root(i), []).append(ligand)
        return list(groups.values())


_ENDS = ("N", "C", "P", "O3'", "O3*")  # atoms by which residues are linked


def _bonded_to(residue, others):
    """Whether a residue is linked to one of its neighbours in the chain (a modified one), rather than lying beside them."""
    ends = [atom.pos for atom in residue if atom.name in _ENDS]
    return any(atom.pos.dist(end) < 2.0 for other in others for atom in other if atom.name in _ENDS for end in ends)


def _links(component, others):
    """Number of bonds of each atom to neighbours in the chain, shape `(num_atoms,)`."""
    ends = [atom.pos.tolist() for other in others for atom in other if atom.name in _ENDS]
    near = np.linalg.norm(component.positions[:, None] - np.reshape(ends, (-1, 3)), axis=-1) < 2.0
    return near.sum(1) * np.isin(component.atom_names, list(_ENDS))


def _bonded(component, bonds):
    """Molecule of the atoms of a component with bonds between atom names; None if RDKit does not accept it."""
    place = {name: i for i, name in enumerate(component.atom_names)}
    kinds = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE, 4: Chem.BondType.AROMATIC}
    mol = Chem.RWMol()
    for number in component.elements:
        mol.AddAtom(Chem.Atom(int(number)))
    degree = [0] * len(component.elements)
    for (first, second), order in bonds.items():
        if first in place and second in place and mol.GetBondBetweenAtoms(place[first], place[second]) is None:
            mol.AddBond(place[first], place[second], kinds[order])
            for name in (first, second):
                degree[place[name]] += 1.5 if order == 4 else order
    if len(component.elements) > 1 and not mol.GetNumBonds():
        return None
    for atom, valence in zip(mol.GetAtoms(), degree):
        if (atom.GetAtomicNum() == 7 and valence == 4) or (atom.GetAtomicNum() == 8 and valence == 3):
            atom.SetFormalCharge(1)
        if any(bond.GetBondType() == Chem.BondType.AROMATIC for bond in atom.GetBonds()):
            atom.SetIsAromatic(True)
    try:
        Chem.SanitizeMol(mol)
    except (Chem.MolSanitizeException, ValueError):
        return None
    return mol.GetMol()


# interfaces -----------------------------------------------------------------------------------------------------------------


def _near(side, other, distance):
    """Components of `side` with an atom closer than `distance` to an atom of `other`."""
    tree = cKDTree(np.concatenate([component.positions for component in other]))
    found = tree.query(np.concatenate([c.positions for c in side]), distance_upper_bound=distance)[0] < distance
    ends = np.cumsum([len(c.positions) for c in side])
    return [c for c, part in zip(side, np.split(found, ends[:-1])) if part.any()]


def _split_chains(text):
    return [part for part in text.replace(",", "_").split("_") if part]


def _sides(text, present):
    """Chain names of one side; a name that itself has an underscore or comma is taken as it is if there is such a chain."""
    return [text.strip()] if text.strip() in present else _split_chains(text)


def _check_chains(file, chains):
    present = file.chains()
    for chain in chains:
        if chain not in present:
            raise StructureError("no_such_chain", f"{file.path}: no chain {chain!r}; it has {', '.join(sorted(present))}.")
    if not chains:
        raise StructureError("no_such_chain", f"{file.path}: no chain was named; it has {', '.join(sorted(present))}.")
    if len(set(chains)) < len(chains):
        raise StructureError("bad_side", f"{file.path}: a side names a chain twice: {', '.join(chains)}.")


def _options(options, changes):
    options = options or ReadOptions()
    return replace(options, **{name: value for name, value in changes.items() if value is not None})


def read_interface(
    path, side_a: str, side_b: str, ligand_smiles: str | None = None, distance: float | None = None,
    name: str | None = None, as_published: bool | None = None, options: ReadOptions | None = None,
):  # fmt: skip
    """The interface of two sides of a PDB, mmCIF or BinaryCIF file.

    Args:
        path (`str` or `Path`): `.pdb .ent .cif .mmcif .bcif`, also `.gz`.
        side_a, side_b (`str`): chains, `"A"` or `"A_B"`; or a ligand, `"A:UDP"` or `"A:UDP:900"` (chain, component, number;
            several molecules as one ligand with `+` between them).
        ligand_smiles (`str`): bonds of the ligand; without it, those of the file, of `options.ccd`, or perceived.
        distance (`float`): residues with an atom closer than this to the other side are kept, in angstrom.
        as_published (`bool`): read as ATOMICA does. Hetero residues of a chain stay, as `<unk>` unless their name is a token,
            also the ligand itself (by default ions stay as elements, other molecules and the ligand do not). Blocks count as
            near if their i-th atoms are, for some i (by default: any two atoms), which `AtomicaProcessor` decides.
        options (`ReadOptions`): everything else; `distance` and `as_published` go before it.

    Returns:
        List of `Structure`, one for each ligand that fits the description, one for two sides of chains.

    Raises:
        `StructureError`: if the file, a chain or the ligand is not there, or nothing of the two sides touches.
    """
    if not isinstance(side_a, str) or not isinstance(side_b, str):
        raise StructureError(
            "bad_side", f"{path}: sides are named by strings such as 'A_B' or 'A:UDP:900', got {side_a!r}, {side_b!r}."
        )
    options = _options(options, {"distance": distance, "as_published": as_published})
    file = read_file(path, options)
    stem = name or f"{Path(path).name.split('.')[0]}_{side_a.replace(':', '_')}_{side_b.replace(':', '_')}"
    if ":" in side_a and ":" not in side_b:
        side_a, side_b = side_b, side_a
    present = file.chains()
    if ":" in side_b:
        partners = None
    else:
        partners = _sides(side_b, present)
        _check_chains(file, partners)
        if ligand_smiles:
            raise StructureError(
                "bad_side", f"{path}: a ligand SMILES was given, but {side_b!r} is no ligand (chain:component)."
            )
    if ":" not in side_a:
        chains = _sides(side_a, present)
        _check_chains(file, chains)
        if partners is not None and set(chains) & set(partners):
            raise StructureError("bad_side", f"{path}: the sides {side_a!r} and {side_b!r} share a chain.")
    elif options.as_published:
        raise StructureError("bad_side", f"{path}: both sides are ligands ({side_a}, {side_b}), which ATOMICA does not read.")
    ligands = [text.split(":")[0] for side in (side_a, side_b) if ":" in side for text in side.split("+")]
    classified = Classified(file, options, {*(chains if ":" not in side_a else ()), *(partners or ()), *ligands})
    if partners is not None:
        sides = [(None, frozenset())]
    else:
        sides = _find_ligands(classified, side_b, ligand_smiles)
    structures, apart = [], 0
    for number, (partner, origins) in enumerate(sides):
        label = stem if len(sides) == 1 else f"{stem}_{number}"
        if options.as_published:
            notes = Counter()
            receptor = _published_components(file, chains, notes)
            if partner is None:
                partner = _published_components(file, partners, notes)
            whole = Structure(label, [receptor, partner], notes=notes + _of_molecules(classified.notes))
            whole.published_distance = options.distance
        else:
            classified.notes, before = Counter(classified.notes), classified.notes
            if ":" in side_a:
                receptor = [c for found, _ in _find_ligands(classified, side_a, None)[:1] for c in found]
            else:
                receptor = classified.side(chains, without=origins)
            partner = classified.side(partners) if partner is None else partner
            whole, classified.notes = Structure(label, [receptor, partner], notes=classified.notes), before
        if not receptor or not partner:
            empty = side_a if not receptor else side_b
            raise StructureError("empty_side", f"{path}: {empty!r} has no residues that can be read.")
        whole.check()
        if not options.as_published:
            near = _near(partner, receptor, options.distance)
            whole.segments = [
                _near(receptor, partner, options.distance) if ":" not in side_a else receptor,
                partner if origins else near,  # a ligand stays whole
            ]
            if not near or not all(whole.segments):
                apart += 1
                continue
        structures.append(whole)
    if not structures:
        raise StructureError(
            "no_interface", f"{path}: no atoms of {side_a!r} and {side_b!r} are within {options.distance} angstrom."
        )
    if apart:
        structures[0].notes["ligand_that_touches_nothing"] = apart
    return structures


def _of_molecules(notes):
    """Notes about the bonds of ligands only."""
    return Counter({note: n for note, n in notes.items() if note.startswith(("ligand_", "bonds_"))})


def _find_ligands(classified, side, smiles):
    """Ligands that fit `chain:component[:number]`, several joined by `+` -> list of (components, origins)."""
    path, model = classified.file.path, classified.file.model
    joined = []
    for text in side.split("+"):
        fields = text.split(":")
        number = re.fullmatch(r"(-?[0-9]+)([A-Za-z]?)", fields[2]) if len(fields) == 3 else None
        if len(fields) not in (2, 3) or (len(fields) == 3 and number is None):
            raise StructureError("bad_side", f"{path}: {text!r} is not chain:component or chain:component:number.")
        place = None if number is None else (int(number[1]), number[2])
        _check_chains(classified.file, fields[:1])
        present, found = [], []
        for residue in (r for chain in model if chain.name == fields[0] for r in chain):
            if residue.name in WATERS or (place is None and residue.het_flag != "H"):
                continue
            if residue.het_flag == "H":
                present.append(f"{residue.name}:{residue.seqid}")
            if residue.name == fields[1] and place in (None, (residue.seqid.num, residue.seqid.icode.strip())):
                found.append(residue)
        if not found:
            what = ", ".join(dict.fromkeys(present)) or "none"
            raise StructureError("no_such_ligand", f"{path}: no {text!r}; the ligands of chain {fields[0]} are {what}.")
        joined.append([(fields[0], residue) for residue in found])
    alternatives = [[pair] for pair in joined[0]] if len(joined) == 1 else [[pairs[0] for pairs in joined]]
    ligands = []
    for pairs in alternatives:
        components, origins = [], set()
        for chain, residue in pairs:
            if classified.options.as_published:
                atoms, hydrogens = _without_hydrogens(residue, classified.notes)
                atoms = _published_conformation(atoms, classified.notes)
            else:
                label_notes = Counter()
                _, atoms = _one_conformation([residue], classified.file.preferred, label_notes)
                atoms, hydrogens = _without_hydrogens(atoms, label_notes)
            if atoms:
                component = _component(classified.file, chain, residue, atoms, None, hydrogens)
                component.kind = "ion" if len(atoms) == 1 else "ligand"
                classified.serials[id(component)] = [atom.serial for atom in atoms]
                origins.add(component.origin)
                components += classified.with_bonds(component, smiles if len(pairs) == 1 else None)
        if components:
            ligands.append((components, frozenset(origins)))
    if not ligands:
        raise StructureError("empty_side", f"{path}: {side!r} has no atoms but hydrogens.")
    return ligands


@dataclass(frozen=True)
class Interface:
    """Two partners of a file that touch.

    Args:
        name (`str`): file, and both sides.
        kind (`str`): `protein-protein`, `protein-peptide`, `protein-DNA`, `protein-RNA`, `protein-ligand`, `protein-ion`,
            `RNA-ligand`, `DNA-ligand`, `ligand-ligand`, ...
        side_a, side_b (`str`): as `read_interface` takes them.
        distance (`float`): nearest two atoms, in angstrom.
        blocks_a, blocks_b (`int`): residues or molecules within reach of the other side.
    """

    name: str
    kind: str
    side_a: str
    side_b: str
    distance: float
    blocks_a: int
    blocks_b: int

    @property
    def modality(self):
        """ATOMICA's number of this kind of complex; None where it has none."""
        return MODALITIES.get(self.kind)


_ORDER = ("protein", "RNA", "DNA", "peptide", "ligand", "ion", "water")


def _kind_of(components):
    kinds = Counter(component.kind for component in components)
    kind = kinds.most_common(1)[0][0]
    if kind == "protein" and len(components) <= PEPTIDE_LENGTH:
        return "peptide"
    return {"rna": "RNA", "dna": "DNA"}.get(kind, kind)


def _boxes_apart(a, b, distance):
    return (a[0] > b[1] + distance).any() or (b[0] > a[1] + distance).any()


def _interfaces(classified):
    """Every interface -> (`Interface`, components of side a, components of side b), whole sides that touch."""
    options, stem = classified.options, Path(classified.file.path).name.split(".")[0]
    partners = []  # (text, kind, components)
    for chain, components in classified.chains.items():
        if components:
            partners.append((chain, _kind_of(components), components))
    num_chains = len(partners)
    text = lambda c: f"{c.origin.chain}:{c.origin.name}:{c.origin.number}{c.origin.insertion}"
    for group in classified.ligand_groups():
        partners.append(("+".join(map(text, group)), "ligand", group))
    for component in classified.molecules:
        if component.kind == "ion" or (component.kind == "water" and options.keep_waters):
            partners.append((text(component), component.kind, [component]))
        elif component.kind == "buffer" and options.keep_buffers:
            partners.append((text(component), "ligand", [component]))
    positions = [np.concatenate([c.positions for c in components]) for _, _, components in partners]
    boxes = [(p.min(0), p.max(0)) for p in positions]
    trees = [cKDTree(p) for p in positions]

    def nearest(i, j):
        if _boxes_apart(boxes[i], boxes[j], options.distance):
            return np.inf
        small, large = (i, j) if len(positions[i]) <= len(positions[j]) else (j, i)
        return float(trees[large].query(positions[small], distance_upper_bound=options.distance)[0].min())

    def interface(a, b, kinds, distance):
        (text_a, whole_a), (text_b, whole_b) = a, b
        near_a, near_b = _near(whole_a, whole_b, options.distance), _near(whole_b, whole_a, options.distance)
        sizes = [len({c.origin for c in near}) for near in (near_a, near_b)]
        name = f"{stem}_{text_a}_{text_b}".replace(":", "_").replace("+", "_")
        return Interface(name, "-".join(kinds), text_a, text_b, round(distance, 2), *sizes), near_a, near_b

    for i, j in combinations(range(num_chains), 2):
        if (distance := nearest(i, j)) < options.distance:
            first, second = sorted((i, j), key=lambda k: (_ORDER.index(partners[k][1]), k))
            kinds = [partners[first][1], partners[second][1]]
            if "peptide" in kinds and "protein" not in kinds:
                kinds = [
                    "protein" if kind == "peptide" and i == kinds.index("peptide") else kind for i, kind in enumerate(kinds)
                ]
                kinds.sort(key=_ORDER.index)
            yield interface(partners[first][::2], partners[second][::2], kinds, distance)
    lonely = []
    for j in range(num_chains, len(partners)):
        label, kind, components = partners[j]
        touching = [(nearest(i, j), i) for i in range(num_chains)]
        touching = [(distance, i) for distance, i in touching if distance < options.distance]
        if not touching:
            lonely.append(j)
            continue
        chains = [partners[i] for _, i in sorted(touching, key=lambda pair: pair[1])]
        receptor = [component for _, _, found in chains for component in found]
        kinds = {"peptide": "protein"}
        main = Counter()
        for _, of, found in chains:
            main[kinds.get(of, of)] += len(_near(found, components, options.distance))
        of = min(main, key=lambda k: (-main[k], _ORDER.index(k)))
        yield interface(("_".join(c[0] for c in chains), receptor), (label, components), [of, kind], min(touching)[0])
    for a, b in combinations(lonely, 2):
        if (distance := nearest(a, b)) < options.distance and "ligand" in (partners[a][1], partners[b][1]):
            first, second = sorted((a, b), key=lambda k: (_ORDER.index(partners[k][1]), k))
            yield interface(partners[first][::2], partners[second][::2], [partners[first][1], partners[second][1]], distance)


def list_interfaces(path, options: ReadOptions | None = None):
    """Every pair of chains, every ligand and every ion of a file that touches something -> list of `Interface`.

    Raises:
        `StructureError`: if the file cannot be read.
    """
    options = options or ReadOptions()
    return [found for found, _, _ in _interfaces(Classified(read_file(path, options), options))]


def read_all_interfaces(path, options: ReadOptions | None = None):
    """Every interface of a file -> list of `Structure`, with the property `kind`, and their modality.

    Raises:
        `StructureError`: if the file cannot be read, or nothing in it touches anything.
    """
    options = options or ReadOptions()
    classified = Classified(read_file(path, options), options)
    structures = []
    for interface, near_a, near_b in _interfaces(classified):
        before, classified.notes = classified.notes, Counter()
        segments = [[c for component in near for c in _as_blocks(classified, component)] for near in (near_a, near_b)]
        notes, classified.notes = classified.notes, before
        properties = {"kind": interface.kind}
        structures.append(Structure(interface.name, segments, properties, notes, modality=interface.modality).check())
    if not structures:
        raise StructureError(
            "no_interface", f"{path}: nothing in it is within {options.distance} angstrom of anything else of another kind."
        )
    structures[0].notes.update(classified.notes)
    return structures


def _as_blocks(classified, component):
    return [component] if component.kind in ("protein", "dna", "rna") else classified.with_bonds(component)


def read_macromolecule(
    path, distance: float | None = None, as_published: bool | None = None, options: ReadOptions | None = None
):
    """A PDB, mmCIF or BinaryCIF file whose sides are not named: the interface of the two chains with the most contacts, the
    whole chain if there is only one with residues, or its ligands if there is none. With `options.interfaces="all"`, every
    interface.

    Returns:
        `Structure`, or a list of them for all interfaces.

    Raises:
        `StructureError`: if nothing in it can be read.
    """
    options = _options(options, {"distance": distance, "as_published": as_published})
    if options.interfaces == "all":
        return read_all_interfaces(path, options)
    file = read_file(path, options)
    name, notes = Path(path).name.split(".")[0], Counter()
    if options.as_published:
        chains = {chain: _published_components(file, [chain], notes) for chain in file.chains()}
        chains = {chain: found for chain, found in chains.items() if found}
    else:
        classified = Classified(file, options)
        chains = {chain: classified.side([chain]) for chain, residues in classified.chains.items() if residues}
        notes = classified.notes
        if not chains:
            groups = classified.ligand_groups() or [[c] for c in classified.molecules]
            if not groups:
                raise StructureError("no_residues", f"{path}: no residues and no molecules were found in it.")
            molecules = [[c for component in group for c in classified.with_bonds(component)] for group in groups]
            return Structure(name, molecules, notes=notes).check()
    if not chains:
        raise StructureError("no_residues", f"{path}: no protein or nucleic acid chain; name a ligand with an index CSV.")
    if len(chains) == 1:
        return Structure(name, list(chains.values()), notes=notes).check()
    Structure(name, list(chains.values())).check()
    best, contacts = None, 0
    boxes = {}
    for chain, components in chains.items():
        positions = np.concatenate([c.positions for c in components])
        boxes[chain] = positions.min(0), positions.max(0)
    for a, b in combinations(chains, 2):
        if _boxes_apart(boxes[a], boxes[b], options.distance):
            continue
        near = len(_near(chains[a], chains[b], options.distance))
        if near > contacts:
            best, contacts = (a, b), near
    if best is None:
        raise StructureError(
            "no_interface", f"{path}: no two of the chains {', '.join(chains)} are within {options.distance} angstrom."
        )
    a, b = (chains[chain] for chain in best)
    label = f"{name}_{best[0]}_{best[1]}"
    if options.as_published:
        return Structure(label, [a, b], notes=notes, published_distance=options.distance)
    return Structure(label, [_near(a, b, options.distance), _near(b, a, options.distance)], notes=notes)


__all__ = [
    "AMINO_ACID_NAMES", "BUFFERS", "INTERFACE_DISTANCE", "MODALITIES", "NUCLEOTIDE_NAMES", "Interface", "ReadOptions",
    "list_interfaces", "read_all_interfaces", "read_interface", "read_macromolecule",
]  # fmt: skip
