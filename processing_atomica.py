# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""`Structure` -> the tensors of the model: blocks, atoms, and which bonds of it can turn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem
from transformers import BatchFeature, ProcessorMixin

from .component_atomica import with_positions
from .macromolecule_atomica import gemmi, require_gemmi
from .protonation_atomica import with_hydrogens
from .structure_atomica import (
    AMINO_ACID_NAMES,
    INTERFACE_DISTANCE,
    MACROMOLECULE_SUFFIXES,
    MOLECULE_SUFFIXES,
    NUCLEOTIDE_NAMES,
    Origin,
    ReadOptions,
    Structure,
    StructureError,
    bonds_by_distance,
    read_interface,
    read_structures,
    structure_from_mol,
    structure_from_mols,
    structure_from_smiles,
    suffix_of,
)


ATOM_TOKENS = ("<pad>", "<mask>", "<global>")  # then the elements 1-118: token = atomic number + 2
ATOM_PAD, ATOM_MASK, ATOM_GLOBAL = range(3)

# names that are padded, with fill value and type
_PADDED = {
    "input_ids": (0, torch.long),
    "token_type_ids": (0, torch.long),
    "attention_mask": (0, torch.long),
    "atom_ids": (ATOM_PAD, torch.long),
    "atom_to_block": (-1, torch.long),
    "positions": (0.0, torch.float32),
    "atom_charges": (0, torch.long),
    "block_features": (0.0, torch.float32),
    "labels": (-100, torch.long),
    "atom_noise_labels": (0.0, torch.float32),
    "torsion_index": (-1, torch.long),
    "torsion_labels": (0.0, torch.float32),
}
MODEL_INPUTS = ("input_ids", "token_type_ids", "attention_mask", "atom_ids", "atom_to_block", "positions")


def pad_examples(examples, names=None, return_tensors="pt"):
    """List of examples (dictionaries of lists or arrays) -> batch, padded to the longest. Names without padding are stacked.

    Raises:
        `ValueError`: if the examples do not all have the same names.
    """
    names = list(names or examples[0])
    batch = {}
    for name in names:
        missing = [i for i, example in enumerate(examples) if name not in example]
        if missing:
            raise ValueError(f"Example {missing[0]} of the batch has no {name!r}; it has {', '.join(examples[missing[0]])}.")
        values = [np.asarray(example[name]) for example in examples]
        if name not in _PADDED:
            batch[name] = torch.from_numpy(np.stack(values))
            if batch[name].is_floating_point():
                batch[name] = batch[name].float()
            continue
        fill, dtype = _PADDED[name]
        tail = {"positions": (3,), "atom_noise_labels": (3,), "torsion_index": (2,)}.get(name, ())
        if name == "block_features":
            tail = (values[0].shape[-1],)
        width = max(len(value) for value in values)
        padded = np.full((len(values), width, *tail), fill, dtype=np.float32 if dtype.is_floating_point else np.int64)
        for row, value in zip(padded, values):
            row[: len(value)] = value.reshape(len(value), *tail)
        batch[name] = torch.from_numpy(padded)
    if return_tensors == "np":
        return {name: value.numpy() for name, value in batch.items()}
    return batch


def rotatable_bonds(num_atoms, bonds):
    """Bonds whose cutting leaves two parts of at least two atoms; bond orders are ignored.

    Returns:
        List of (u, v, atoms of the part of u, atoms of the part of v).
    """
    neighbors = [[] for _ in range(num_atoms)]
    for a, b in bonds:
        neighbors[a].append(b)
        neighbors[b].append(a)

    def part(start, cut_off):
        seen, stack = {start}, [start]
        while stack:
            node = stack.pop()
            for other in neighbors[node]:
                if other not in seen and not (node == start and other == cut_off):
                    seen.add(other)
                    stack.append(other)
        return seen

    found = []
    for u, v in bonds:
        if len(neighbors[u]) < 2 or len(neighbors[v]) < 2:
            continue
        of_v = part(v, u)
        if u not in of_v:
            found.append((u, v, sorted(part(u, v)), sorted(of_v)))
    return found


def is_backbone(name: str) -> bool:
    """Whether an atom of this name belongs to the backbone of a protein or nucleic acid, which never turns."""
    return name in ("N", "CA", "C", "O", "OXT", "P", "OP1", "OP2", "OP3", "O1P", "O2P", "O3P") or "'" in name or "*" in name


class _Block:
    """One block on its way to tensors: token id, and where its atoms and hydrogens stand in their component."""

    def __init__(self, token, component, atoms, index, with_hydrogens=False):
        self.token, self.component, self.atoms, self.index = token, component, atoms, index
        self.positions = component.positions[atoms]
        self.hydrogens = np.flatnonzero(with_hydrogens & np.isin(component.hydrogen_parents, atoms))

    def all_atoms(self):
        """Elements, positions, names and charges of its atoms, and then of its hydrogens."""
        component, hydrogens = self.component, self.hydrogens
        names = [f"H{n}" for n in (hydrogens + 1).tolist()]
        return (
            [int(component.elements[atom]) for atom in self.atoms] + [1] * len(hydrogens),
            np.concatenate([self.positions, component.hydrogens[hydrogens]]),
            [component.atom_names[atom] for atom in self.atoms] + names,
            component.charges[self.atoms].tolist() + [0] * len(hydrogens),
        )


def _near_as_published(blocks, others, distance):
    """Blocks some i-th atom of which is closer than `distance` to the i-th atom of a block of the other side: ATOMICA
    compares padded coordinate arrays atom by atom, not every atom with every other."""
    width = max(len(block.atoms) for block in blocks + others)

    def padded(side):
        array = np.full((len(side), width, 3), np.nan)
        for row, block in zip(array, side):
            row[: len(block.atoms)] = block.positions
        return array

    with np.errstate(invalid="ignore"):
        near = np.linalg.norm(padded(blocks)[:, None] - padded(others), axis=-1) < distance
    return [block for block, keep in zip(blocks, near.any(axis=(1, 2))) if keep]


class AtomicaProcessor(ProcessorMixin):
    """
    SMILES, RDKit molecules, SDF, PDB and mmCIF -> the inputs of Atomica.

    ```python
    processor("CC(=O)Oc1ccccc1C(=O)O")                                # a molecule, built in 3D
    processor([("CCO", "O"), "c1ccccc1"])                             # a pair and a molecule
    processor("complex.cif", side_a="A", side_b="B_C")                # two sides of an interface
    processor("complex.cif", side_a="A", side_b="A:UDP:900", ligand_smiles="...")
    ```

    Args:
        tokenizer (`AtomicaTokenizer`): block vocabulary and fragments.
        interface_distance (`float`): residues with an atom closer than this to the other side are kept, in angstrom.
        as_published (`bool`): read complexes as ATOMICA does, for its weights; see `read_interface`.
        seed (`int`): of the conformers built from SMILES.
        keep_waters, keep_buffers (`bool`): keep waters, and buffer components, where they are near.
        ccd (`str`): file of chemical components in mmCIF, for bonds of ligands and parents of residues.
        keep_hydrogens (`bool`): make hydrogens atoms of the blocks that they belong to. A molecule gets those that it lacks;
            residues need them in the file.
        return_charges (`bool`): also give `atom_charges`, the formal charge of each atom.
    """

    def __init__(
        self, tokenizer, interface_distance=INTERFACE_DISTANCE, as_published=False, seed=0, keep_waters=False,
        keep_buffers=False, ccd=None, keep_hydrogens=False, return_charges=False, **kwargs,
    ):  # fmt: skip
        if not interface_distance > 0:
            raise ValueError(f"`interface_distance` is {interface_distance}, expected a positive length in angstrom.")
        if seed < 0:
            raise ValueError(f"`seed` is {seed}, expected zero or more.")
        if as_published and (keep_hydrogens or return_charges):
            raise ValueError("`as_published` reads complexes as ATOMICA does, which has neither hydrogens nor charges.")
        self.interface_distance = interface_distance
        self.as_published = as_published
        self.seed = seed
        self.keep_waters, self.keep_buffers, self.ccd = keep_waters, keep_buffers, ccd
        self.keep_hydrogens, self.return_charges = keep_hydrogens, return_charges
        super().__init__(tokenizer, **kwargs)

    @property
    def read_options(self) -> ReadOptions:
        """How this processor reads structures; what belongs to one reading (`model`, `interfaces`, ...) is at its default."""
        return ReadOptions(
            distance=self.interface_distance, as_published=self.as_published, seed=self.seed, keep_waters=self.keep_waters,
            keep_buffers=self.keep_buffers, ccd=self.ccd,
        )  # fmt: skip

    @property
    def model_input_names(self):
        return [*MODEL_INPUTS, *(["atom_charges"] if self.return_charges else [])]

    def read(self, item, side_a=None, side_b=None, ligand_smiles=None, **options):
        """One input -> list of `Structure` (a file may hold several). `options` are those of `ReadOptions` that belong to one
        reading: `interfaces="all"`, `model`, `assembly`.

        Raises:
            `StructureError`: naming what is wrong with it.
        """
        is_file = isinstance(item, Path) or (
            isinstance(item, str) and suffix_of(item) in MACROMOLECULE_SUFFIXES + MOLECULE_SUFFIXES
        )
        if (side_a is None) != (side_b is None):
            raise StructureError("bad_side", f"{item}: `side_a` and `side_b` belong together, got {side_a!r}, {side_b!r}.")
        if (side_a is not None or ligand_smiles is not None) and not (is_file and suffix_of(item) in MACROMOLECULE_SUFFIXES):
            raise StructureError("bad_side", f"Sides and ligands can be named in PDB and mmCIF files only, not in {item!r}.")
        if ligand_smiles is not None and side_a is None:
            raise StructureError("bad_side", f"{item}: a ligand SMILES needs the sides named, for example side_b='A:UDP:900'.")
        if isinstance(item, Structure):
            return [item.check()]
        if isinstance(item, Chem.Mol):
            return [structure_from_mol(item)]
        if isinstance(item, (tuple, list)) and item:
            if all(isinstance(part, str) for part in item):
                return [structure_from_smiles(tuple(item), seed=self.seed)]
            if all(isinstance(part, Chem.Mol) for part in item):
                return [structure_from_mols(item)]
        if is_file and side_a is None:
            return list(read_structures(item, options=replace(self.read_options, **options)))
        if is_file:
            return read_interface(item, side_a, side_b, ligand_smiles, options=replace(self.read_options, **options))
        if isinstance(item, str):
            return [structure_from_smiles(item, seed=self.seed)]
        raise StructureError(
            "unknown_input",
            "Expected SMILES, an RDKit molecule, a Structure, a path, or a tuple of molecules; got "
            f"{type(item).__name__}: {item!r}.",
        )

    def _complete(self, structure):
        """The structure with all its hydrogens, if they are wanted; notes say what was done about them."""
        if not self.keep_hydrogens:
            return structure
        segments = [[with_hydrogens(part, structure.name) for part in segment] for segment in structure.segments]
        count = lambda segments: sum(len(part.hydrogens) for segment in segments for part in segment)  # noqa: E731
        structure.notes.pop("hydrogen", None)
        if count(segments) > count(structure.segments):
            structure.notes["hydrogens_added"] = count(segments) - count(structure.segments)
        return replace(structure, segments=segments)

    def _blocks(self, segment):
        blocks, hydrogens = [], self.keep_hydrogens
        vocabulary = self.tokenizer.get_vocab()
        for index, component in enumerate(segment):
            if component.mol is None:
                token = vocabulary.get(component.name, self.tokenizer.unk_token_id)
                blocks.append(_Block(token, component, list(range(len(component.elements))), index, hydrogens))
            else:
                for token, atoms in zip(*self.tokenizer.fragment(component.mol)):
                    blocks.append(_Block(vocabulary[token], component, list(atoms), index, hydrogens))
        return blocks

    def encode(self, structure):
        """`Structure` -> one example, a dictionary of arrays and lists:

        name, input_ids, token_type_ids, attention_mask `(num_blocks,)`; atom_ids, atom_to_block `(num_atoms,)`; positions
        `(num_atoms, 3)`; block_origins, atom_origins (where each came from, as text); and for the torsion puzzle
        torsion_bonds `(num_torsions, 2)` (the atom that stays, the atom that turns), torsion_atoms (per bond, the atoms that
        turn) and segment_is_polymer (per segment, whether only its side chains turn). Where the structure has them, also label
        and modality_ids (a number each); with `return_charges` also atom_charges `(num_atoms,)`.

        Raises:
            `StructureError`: if the structure is empty, has positions that are not finite, no interface, or residues without
                the hydrogens that are to be kept.
        """
        structure = self._complete(structure.check())
        segments = [self._blocks(segment) for segment in structure.segments]
        if structure.published_distance is not None:
            first, second = segments
            segments = [
                _near_as_published(first, second, structure.published_distance),
                _near_as_published(second, first, structure.published_distance),
            ]
            if not all(segments):
                raise StructureError(
                    "no_interface", f"{structure.name}: no blocks are within {structure.published_distance} angstrom."
                )
        example = {name: [] for name in (*MODEL_INPUTS, "atom_charges")}
        example.update(block_origins=[], atom_origins=[], torsion_bonds=[], torsion_atoms=[], segment_is_polymer=[])

        def add_block(token, segment, origin, elements, positions, names, charges):
            example["atom_to_block"] += [len(example["input_ids"])] * len(names)
            example["input_ids"].append(token)
            example["token_type_ids"].append(segment)
            example["block_origins"].append(str(origin))
            example["atom_ids"] += elements
            example["positions"] += positions
            example["atom_origins"] += names
            example["atom_charges"] += charges

        for segment, blocks in enumerate(segments):
            parts = [block.all_atoms() for block in blocks]
            centre = np.concatenate([positions for _, positions, _, _ in parts]).mean(0)
            add_block(self.tokenizer.global_token_id, segment, "", [ATOM_GLOBAL], [centre.tolist()], [""], [0])
            where, hydrogens = {}, {}  # (component, atom of it) -> atom of the example, and those of its hydrogens
            for block, (elements, positions, names, charges) in zip(blocks, parts):
                start = len(example["atom_ids"])
                where.update({(block.index, atom): start + i for i, atom in enumerate(block.atoms)})
                parents = block.component.hydrogen_parents[block.hydrogens].tolist()
                for i, parent in enumerate(parents, start + len(block.atoms)):
                    hydrogens.setdefault((block.index, parent), []).append(i)
                tokens = [number + len(ATOM_TOKENS) - 1 for number in elements]
                add_block(block.token, segment, block.component.origin, tokens, positions.tolist(), names, charges)
            is_polymer = any(block.component.mol is None for block in blocks)
            example["segment_is_polymer"].append(int(is_polymer))
            atoms_of = {}
            for index, atom in where:
                atoms_of.setdefault(index, []).append(atom)
            for index, component in {block.index: block.component for block in blocks}.items():
                atoms = atoms_of[index]
                for stays, turns, moving in _turns(component, atoms, is_polymer):
                    example["torsion_bonds"].append([where[index, stays], where[index, turns]])
                    turning = [i for atom in moving for i in (where[index, atom], *hydrogens.get((index, atom), ()))]
                    example["torsion_atoms"].append(turning)
        example["attention_mask"] = [1] * len(example["input_ids"])
        if not self.return_charges:
            del example["atom_charges"]
        for name in self.model_input_names:
            example[name] = np.array(example[name], dtype=np.float32 if name == "positions" else np.int64)
        for name, value in (("label", structure.label), ("modality_ids", structure.modality)):
            if value is not None:
                example[name] = value
        return {"name": structure.name, **example}

    def __call__(
        self, inputs, side_a=None, side_b=None, ligand_smiles=None, return_tensors=None, padding=True, return_origins=False,
        **options,
    ):  # fmt: skip
        """Inputs of the model for one input, or for a list of them.

        Args:
            inputs: SMILES, an RDKit molecule with 3D coordinates, a tuple of either (a complex), a `Structure`, a path to a
                structure file; or a list of these. A file with several records gives several examples.
            side_a, side_b (`str`): sides of an interface, for PDB and mmCIF: chains (`"A"`, `"B_C"`) or a ligand
                (`"A:UDP"`, `"A:UDP:900"`).
            ligand_smiles (`str`): bonds of the ligand.
            return_tensors (`str`): `"pt"` or `"np"`; None for lists.
            padding (`bool`): pad to the longest; without it, several examples come as lists of arrays.
            return_origins (`bool`): also return names, block_origins and atom_origins.
            options: `interfaces="all"` for every interface of a PDB or mmCIF file, `model` (number), `assembly` (name).

        Raises:
            `StructureError`: for the first input that cannot be read.
        """
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f"`return_tensors` is {return_tensors!r}, expected 'pt', 'np' or None.")
        if isinstance(inputs, list) and not inputs:
            raise ValueError("No inputs were given.")
        items = inputs if isinstance(inputs, list) else [inputs]
        structures = [s for item in items for s in self.read(item, side_a, side_b, ligand_smiles, **options)]
        examples = [self.encode(structure) for structure in structures]
        if return_tensors is not None and (padding or len(examples) == 1):
            batch = pad_examples(examples, self.model_input_names, return_tensors)
        elif return_tensors is not None:
            raise ValueError("Examples of different sizes need `padding=True` to become one tensor.")
        else:
            batch = {name: [example[name].tolist() for example in examples] for name in self.model_input_names}
            if len(examples) == 1 and not isinstance(inputs, list):
                batch = {name: value[0] for name, value in batch.items()}
        if return_origins:
            for key, name in (("names", "name"), ("block_origins", "block_origins"), ("atom_origins", "atom_origins")):
                batch[key] = [example[name] for example in examples]
        return BatchFeature(batch)

    def to_pdb(self, example, values=None, path=None) -> str:
        """An example back as PDB (mmCIF, if `path` ends in `.cif`), with one value per atom or per block as B-factors.

        Args:
            example (`dict`): as `encode` gives it; global blocks are left out.
            values (array of shape `(num_atoms,)` or `(num_blocks,)`): 0 by default.
            path (`str` or `Path`): file to write.

        Returns:
            The text of the file.

        Raises:
            `ValueError`: if there are as many values neither as atoms nor as blocks, or they do not fit into a B-factor.
        """
        require_gemmi()
        values = per_atom(example, values)
        if not np.isfinite(values).all() or values.min() <= -100 or values.max() >= 1000:
            raise ValueError(
                f"{example['name']}: values from {values.min()} to {values.max()}, expected numbers between -99.99 and 999.99, "
                "as a B-factor holds; scale them first."
            )
        structure, model = gemmi.Structure(), gemmi.Model(1)
        structure.name = example["name"]
        chains, residues = {}, {}
        for i, block in enumerate(np.asarray(example["atom_to_block"]).tolist()):
            if example["atom_ids"][i] == ATOM_GLOBAL:
                continue
            origin, segment = Origin.from_text(example["block_origins"][block]), int(example["token_type_ids"][block])
            letter = origin.chain or "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[segment % 26]
            key = (segment, letter, example["block_origins"][block])
            if key not in residues:
                chain = chains.setdefault((segment, letter), gemmi.Chain(letter))
                residue = gemmi.Residue()
                known = origin.chain or origin.number is not None
                residue.name = origin.name if known else "LIG"
                number = len(residues) + 1 if origin.number is None else origin.number
                residue.seqid = gemmi.SeqId(number, origin.insertion or " ")
                token = self.tokenizer.convert_ids_to_tokens(int(example["input_ids"][block]))
                residue.het_flag = "A" if token in AMINO_ACID_NAMES | NUCLEOTIDE_NAMES else "H"
                residues[key] = (chain, residue)
            atom = gemmi.Atom()
            atom.element = gemmi.Element(max(0, int(example["atom_ids"][i]) - len(ATOM_TOKENS) + 1))
            atom.name = example["atom_origins"][i] or atom.element.name
            atom.pos = gemmi.Position(*map(float, example["positions"][i]))
            atom.b_iso, atom.occ = float(values[i]), 1.0
            residues[key][1].add_atom(atom)
        for chain, residue in residues.values():
            chain.add_residue(residue)
        for chain in chains.values():
            model.add_chain(chain)
        structure.add_model(model)
        structure.setup_entities()
        cif = path is not None and suffix_of(path) in (".cif", ".mmcif")
        text = structure.make_mmcif_document().as_string() if cif else structure.make_pdb_string()
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def to_sdf(self, structure, values=None, path=None, name="value") -> str:
        """The molecules of a `Structure` as one SDF record, with one value per atom or per block of its example as a list of
        atom properties, `atom.dprop.NAME`, which RDKit reads back. Hydrogens are left out.

        Raises:
            `ValueError`: if there are as many values neither as atoms nor as blocks, or the structure has residues, whose bonds
                are not known.
        """
        values = per_atom(self.encode(structure), values)
        blocks = [self._blocks(segment) for segment in self._complete(structure).segments]
        record, start = None, 0
        for segment in blocks:
            start, of = start + 1, {}  # the global atom comes first
            for block in segment:
                if block.component.mol is None:
                    raise ValueError(f"{structure.name}: {block.component.origin} is a residue without bonds; use `to_pdb`.")
                of.setdefault(block.index, (block.component, {}))[1].update(
                    {atom: float(values[start + i]) for i, atom in enumerate(block.atoms)}
                )
                start += len(block.atoms) + len(block.hydrogens)
            for component, found in of.values():
                mol = with_positions(component.mol, component.positions)
                for atom in mol.GetAtoms():
                    atom.SetDoubleProp(name, found[atom.GetIdx()])
                record = mol if record is None else Chem.CombineMols(record, mol)
        record.SetProp("_Name", structure.name)
        Chem.CreateAtomDoublePropertyList(record, name)
        text = Chem.SDWriter.GetText(record, kekulize=True)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def pad(self, examples, return_tensors="pt"):
        """Examples of `encode` -> a padded batch of the model's inputs."""
        return BatchFeature(pad_examples(examples, self.model_input_names, return_tensors))


def per_atom(example, values):
    """Values per atom or per block of an example, or None for zeros -> one per atom, `(num_atoms,)`."""
    num_blocks, num_atoms = len(example["input_ids"]), len(example["atom_ids"])
    if values is None:
        return np.zeros(num_atoms)
    values = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float64)
    if values.shape == (num_atoms,):
        return values
    if values.shape == (num_blocks,):
        return values[np.asarray(example["atom_to_block"])]
    raise ValueError(
        f"{example['name']}: values of shape {values.shape}, expected one per atom ({num_atoms}) or per block ({num_blocks})."
    )


def _turns(component, atoms, is_polymer):
    """Bonds of a component that the torsion puzzle may turn: (atom that stays, atom that turns, turning atoms). Of residues
    side chains turn, about their backbone; of molecules the smaller part; molecules among residues do not turn."""
    if is_polymer:
        if component.mol is not None or component.name not in AMINO_ACID_NAMES | NUCLEOTIDE_NAMES:
            return []
        bonds = bonds_by_distance(component.elements, component.positions).tolist()
        backbone = {i for i in range(len(component.atom_names)) if is_backbone(component.atom_names[i])}
    else:
        kept = set(atoms)
        ends = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in component.mol.GetBonds()]
        bonds = [(a, b) for a, b in ends if a in kept and b in kept]
        backbone = None
    turns = []
    for u, v, of_u, of_v in rotatable_bonds(len(component.elements), bonds):
        if backbone is None:
            turns.append((u, v, of_v) if len(of_v) <= len(of_u) else (v, u, of_u))
        elif not backbone.intersection(of_v):
            turns.append((u, v, of_v))
        elif not backbone.intersection(of_u):
            turns.append((v, u, of_u))
    return turns


__all__ = ["ATOM_GLOBAL", "ATOM_MASK", "ATOM_PAD", "MODEL_INPUTS", "AtomicaProcessor", "pad_examples"]
