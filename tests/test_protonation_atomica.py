"""Hydrogens and formal charges: `protonation_atomica.py`, and what the processor makes of them."""

from dataclasses import replace

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from atomica_hf import AtomicaPreTrainingCollator, AtomicaProcessor, StructureError
from atomica_hf.macromolecule_atomica import ReadOptions, read_file
from atomica_hf.molecule_atomica import structure_from_mol
from atomica_hf.protonation_atomica import residue_charges, with_hydrogens


@pytest.fixture(scope="module")
def all_atoms(tokenizer):
    return AtomicaProcessor(tokenizer, keep_hydrogens=True, return_charges=True)


def component(smiles):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    return structure_from_mol(mol).segments[0][0]


@pytest.mark.parametrize(
    "smiles, charge",
    [("c1cc[nH]c1", 0), ("CC(=O)[O-]", -1), ("[NH4+]", 1), ("C[N+](C)(C)CC(=O)[O-]", 0), ("[Cl-]", -1), ("[H+]", 1)],
)  # fmt: skip
def test_hydrogens_that_are_missing_are_those_that_were_there(smiles, charge):
    whole = component(smiles)
    assert with_hydrogens(whole, "x") is whole and whole.charges.sum() == charge
    for kept in (slice(0, 0), slice(1, None, 2)):
        part = replace(whole, hydrogens=whole.hydrogens[kept], hydrogen_parents=whole.hydrogen_parents[kept])
        found = with_hydrogens(part, "x")
        assert sorted(found.hydrogen_parents.tolist()) == sorted(whole.hydrogen_parents.tolist())
        lengths = np.linalg.norm(found.hydrogens - found.positions[found.hydrogen_parents], axis=1)
        assert ((lengths > 0.9) & (lengths < 1.2)).all()


SIDE_CHAINS = {  # atoms of a residue, hydrogens on each, charge with these hydrogens and with none in the file
    "ASP": (["CG", "OD1", "OD2"], [0, 0, 0], -1, -1),
    "GLU": (["CD", "OE1", "OE2"], [0, 0, 1], 0, -1),
    "LYS": (["CE", "NZ"], [2, 3], 1, 1),
    "ARG": (["NE", "CZ", "NH1", "NH2"], [1, 0, 2, 2], 1, 1),
    "HIS": (["ND1", "CE1", "NE2"], [1, 1, 1], 1, 0),
    "TYR": (["CZ", "OH"], [0, 1], 0, 0),
    "GLY": (["N", "CA", "C", "O"], [3, 2, 0, 0], 1, 0),
    "PRO": (["N", "CA", "C", "O"], [1, 1, 0, 0], 0, 0),
    "ALA": (["C", "O", "OXT", "CB"], [0, 0, 0, 3], -1, -1),
    "DA": (["P", "OP1", "OP2", "C5'"], [0, 0, 0, 2], -1, -1),
    "SER": (["P", "O1P", "O2P", "O3P", "CB"], [0, 0, 0, 0, 2], -2, -2),
}


@pytest.mark.parametrize("token", SIDE_CHAINS)
def test_residues_are_charged_by_their_hydrogens_or_else_as_in_water(token):
    names, hydrogens, charge, usual = SIDE_CHAINS[token]
    parents = np.repeat(np.arange(len(names)), hydrogens)
    if not len(parents):  # some hydrogen, elsewhere in the residue
        parents = np.array([0])
    assert residue_charges(token, names, parents).sum() == charge
    assert residue_charges(token, names, parents[:0]).sum() == usual


PDB = """\
ATOM      1  N   ALA A   1       0.000   0.000   0.000  1.00  0.00           N
ATOM      2  CA  ALA A   1       1.458   0.000   0.000  1.00  0.00           C
ATOM      3  C   ALA A   1       2.009   1.420   0.000  1.00  0.00           C
ATOM      4  O   ALA A   1       1.251   2.390   0.000  1.00  0.00           O
ATOM      5  CB  ALA A   1       1.988  -0.773  -1.199  1.00  0.00           C
ATOM      6  H1  ALA A   1      -0.400   0.900   0.200  1.00  0.00           H
ATOM      7  H2  ALA A   1      -0.400  -0.600   0.700  1.00  0.00           H
ATOM      8  H3  ALA A   1      -0.400  -0.300  -0.900  1.00  0.00           H
ATOM      9  HA  ALA A   1       1.800  -0.500   0.900  1.00  0.00           H
TER
HETATM   10 ZN    ZN B   1       0.000   3.000   1.000  1.00  0.00          ZN
HETATM   11  O   HOH C   1       0.500   3.500  -1.500  1.00  0.00           O
HETATM   12  H1  HOH C   1       0.500   4.400  -1.800  1.00  0.00           H
HETATM   13  H2  HOH C   1       1.300   3.300  -1.900  1.00  0.00           H
HETATM   14  N   NH4 D   1      -2.000   2.500   0.500  1.00  0.00           N
HETATM   15  H1  NH4 D   1      -2.000   3.500   0.500  1.00  0.00           H
HETATM   16  H2  NH4 D   1      -1.100   2.200   0.800  1.00  0.00           H
HETATM   17  H3  NH4 D   1      -2.700   2.200   1.200  1.00  0.00           H
HETATM   18  H4  NH4 D   1      -2.200   2.200  -0.400  1.00  0.00           H
END
"""


def test_residues_ions_and_waters_of_a_file(tmp_path, tokenizer):
    path = tmp_path / "x.pdb"
    path.write_text(PDB)
    processor = AtomicaProcessor(tokenizer, keep_hydrogens=True, return_charges=True, keep_waters=True)
    (structure,) = processor.read(path, side_a="A", side_b="B_C")
    example = processor.encode(structure)
    charge = np.bincount(example["atom_to_block"], example["atom_charges"], len(example["input_ids"]))
    names = tokenizer.convert_ids_to_tokens(example["input_ids"].tolist())
    assert dict(zip(names, charge)) == {"<global>": 0, "ALA": 1, "Zn": 2, "O": 0}
    assert (example["atom_ids"] == 3).sum() == 6 and "hydrogen" not in structure.notes
    (ammonium,) = processor.read(path, side_a="A", side_b="D:NH4")
    example = processor.encode(ammonium)
    assert example["atom_charges"][example["atom_to_block"] == len(example["input_ids"]) - 1].tolist() == [1, 0, 0, 0, 0]
    bare = AtomicaProcessor(tokenizer, keep_waters=True)
    example = bare.encode(bare.read(path, side_a="A", side_b="B_C")[0])
    assert 3 not in example["atom_ids"] and "atom_charges" not in example
    path.write_text("\n".join(line for line in PDB.split("\n") if line[12:14] not in (" H", "H1", "H2", "H3")))
    with pytest.raises(StructureError, match=r"A:ALA:1 has no hydrogens, expected them in the file; programs such as PDBFixer"):
        processor.encode(processor.read(path, side_a="A", side_b="B")[0])
    assert read_file(path, ReadOptions()).chains() == ["A", "B", "C", "D"]


def test_hydrogens_belong_to_the_block_of_their_atom_and_turn_with_it(all_atoms, processor):
    smiles = ("OC(=O)CCc1ccccc1", "C[NH3+]")
    full, heavy = (p.encode(p.read(smiles)[0]) for p in (all_atoms, processor))
    assert (full["input_ids"] == heavy["input_ids"]).all() and len(full["torsion_bonds"]) == len(heavy["torsion_bonds"]) > 0
    is_hydrogen = full["atom_ids"] == 3
    assert is_hydrogen.sum() == 10 + 6 and (full["atom_ids"][~is_hydrogen] == heavy["atom_ids"]).all()
    assert np.allclose(full["positions"][~is_hydrogen & (full["atom_ids"] > 3)], heavy["positions"][heavy["atom_ids"] > 3])
    first = full["positions"][full["token_type_ids"][full["atom_to_block"]] == 0]
    assert np.allclose(first[0], first[1:].mean(0), atol=1e-5)
    positions = full["positions"].astype(float)
    near = np.linalg.norm(positions[is_hydrogen][:, None] - positions[None, ~is_hydrogen & (full["atom_ids"] != 2)], axis=-1)
    parents = np.flatnonzero(~is_hydrogen & (full["atom_ids"] != 2))[near.argmin(1)]
    assert (full["atom_to_block"][parents] == full["atom_to_block"][is_hydrogen]).all()
    for atoms in full["torsion_atoms"]:
        assert (np.isin(np.flatnonzero(is_hydrogen), atoms) == np.isin(parents, atoms)).all()
    assert full["atom_charges"].tolist().count(1) == 1 and full["atom_charges"].sum() == 1


def test_puzzles_carry_charges_and_hide_those_of_hidden_blocks(all_atoms):
    example = all_atoms.encode(all_atoms.read(("C[NH3+]", "CC(=O)[O-]"))[0])
    collate = AtomicaPreTrainingCollator(mask_proportion=1.0)
    batch = collate([{**example, "example_index": 0, "epoch": 0}])
    assert batch["atom_charges"].shape == batch["atom_ids"].shape and not batch["atom_charges"].any()
    shown = AtomicaPreTrainingCollator(task="pretrain_torsion")([{**example, "example_index": 0, "epoch": 0}])
    assert shown["atom_charges"][0].tolist() == example["atom_charges"].tolist()


def test_what_atomica_does_not_have_is_not_read_its_way(tokenizer):
    with pytest.raises(ValueError, match="neither hydrogens nor charges"):
        AtomicaProcessor(tokenizer, as_published=True, keep_hydrogens=True)


def test_saved_processors_remember_it(tmp_path, all_atoms):
    all_atoms.save_pretrained(tmp_path)
    again = AtomicaProcessor.from_pretrained(tmp_path)
    inputs = again([("CCO", "[Cl-]"), "O"], return_tensors="pt")
    assert inputs["atom_charges"].shape == inputs["atom_ids"].shape and inputs["atom_charges"].sum() == -1
    assert (inputs["atom_ids"][1] == 3).sum() == 2 and again.model_input_names[-1] == "atom_charges"
