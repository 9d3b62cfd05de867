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
SOME_HYDROGENS = {  # files with few of them: no charge that no such residue has
    "LYS": (["CA", "CD", "NZ"], [1, 0, 0], 1),
    "ARG": (["CA", "CD", "NE", "NH1", "NH2"], [0, 2, 1, 0, 1], 0),
    "HIS": (["CB", "ND1", "NE2"], [2, 0, 0], 0),
    "TYR": (["N", "CA", "CB", "OH"], [1, 1, 0, 0], 0),
    "GLU": (["CB", "OE1", "OE2"], [2, 0, 2], 0),
}


@pytest.mark.parametrize("token", SIDE_CHAINS)
def test_residues_are_charged_by_their_hydrogens_or_else_as_in_water(token):
    names, hydrogens, charge, usual = SIDE_CHAINS[token]
    parents = np.repeat(np.arange(len(names)), hydrogens)
    if not len(parents):  # some hydrogen, elsewhere in the residue
        parents = np.array([0])
    assert residue_charges(token, names, parents).sum() == charge
    assert residue_charges(token, names, parents[:0]).sum() == usual


@pytest.mark.parametrize("token", SOME_HYDROGENS)
def test_residues_with_few_hydrogens_get_charges_that_exist(token):
    names, hydrogens, charge = SOME_HYDROGENS[token]
    assert residue_charges(token, names, np.repeat(np.arange(len(names)), hydrogens)).sum() == charge


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
    with pytest.raises(StructureError, match=r"A:ALA:1 has no hydrogens for 5 atoms, expected all of them in the file; pro"):
        processor.encode(processor.read(path, side_a="A", side_b="B")[0])
    assert read_file(path, ReadOptions()).chains() == ["A", "B", "C", "D"]


@pytest.mark.parametrize(
    "smiles",
    ["[NH3+]CC(=O)[O-]", "CC(=O)[O-]", "CS(=O)(=O)[O-]", "c1ccccc1[O-]", "COP(=O)([O-])[O-]", "CC[S-]", "C[n+]1ccccc1", "OCC"],
)
def test_ligands_of_a_file_without_bonds_keep_its_hydrogens_and_get_the_charges_they_tell(tmp_path, all_atoms, smiles):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    lines = Chem.MolToPDBBlock(mol).replace("UNL     1", "LIG B   9").split("\n")
    path = tmp_path / "x.pdb"
    path.write_text(PDB.split("HETATM")[0] + "\n".join(line for line in lines if "HETATM" in line and "CONECT" not in line))
    heavy, count = mol.GetNumHeavyAtoms(), mol.GetNumAtoms()
    (structure,) = all_atoms.read(path, side_a="A", side_b="B:LIG")
    ligand = structure.segments[1][0]
    kept = with_hydrogens(ligand, "x")
    assert kept is ligand and (len(ligand.elements), len(ligand.hydrogens)) == (heavy, count - heavy)
    if smiles != "C[n+]1ccccc1":  # bonds of heavy atoms alone do not tell that this is not its dihydro form
        assert ligand.charges.sum() == Chem.GetFormalCharge(mol)
    polar = (ligand.elements != 6)[ligand.hydrogen_parents]
    part = replace(ligand, hydrogens=ligand.hydrogens[polar], hydrogen_parents=ligand.hydrogen_parents[polar])
    if polar.any():
        assert sorted(with_hydrogens(part, "x").hydrogen_parents) == sorted(ligand.hydrogen_parents)
    bare = replace(part, hydrogens=part.hydrogens[:0], hydrogen_parents=part.hydrogen_parents[:0])
    if smiles in ("[NH3+]CC(=O)[O-]", "CC(=O)[O-]", "OCC"):
        assert sorted(with_hydrogens(bare, "x").hydrogen_parents) == sorted(ligand.hydrogen_parents)


def test_caps_of_a_chain_are_not_charged_for_the_hydrogen_that_a_bond_takes(tmp_path, all_atoms):
    cap = [("N", 3.338, 1.540, 0, "N"), ("C", 4.020, 2.820, 0, "C"), ("H", 3.85, 0.69, 0, "H"), ("H1", 5.09, 2.65, 0, "H"),
           ("H2", 3.74, 3.38, 0.89, "H"), ("H3", 3.74, 3.38, -0.89, "H")]  # fmt: skip
    atom = "ATOM     20  {:<3} NME A   2    {:8.3f}{:8.3f}{:8.3f}  1.00  0.00          {:>2}\n"
    first, rest = PDB.split("TER\n")
    (tmp_path / "x.pdb").write_text(first + "".join(atom.format(*values) for values in cap) + "TER\n" + rest)
    (structure,) = all_atoms.read(tmp_path / "x.pdb", side_a="A", side_b="B")
    assert [(part.name, int(part.charges.sum())) for part in structure.segments[0]] == [("ALA", 1), ("NME", 0)]


def test_single_atoms_of_a_molecule_without_bonds_are_no_ions(tmp_path, all_atoms):
    path = tmp_path / "x.pdb"
    atom = "HETATM   20  {:<3} LIG B   9    {:8.3f}{:8.3f}{:8.3f}  1.00  0.00          {:>2}\n"
    atoms = [("C1", 0, 5, 0, "C"), ("B1", 1.6, 5, 0, "B")] + [(f"F{i}", 2.2, 5 + y, z, "F") for i, (y, z) in enumerate(
        ((1.2, 0), (-0.6, 1.0), (-0.6, -1.0)))]  # fmt: skip
    path.write_text(PDB.split("HETATM")[0] + "".join(atom.format(*values) for values in atoms))
    (structure,) = all_atoms.read(path, side_a="A", side_b="B:LIG")
    assert sum(part.charges.sum() for part in structure.segments[1]) == 0
    path.write_text(PDB.split("HETATM")[0] + atom.format("N1", 0, 5, 0, "N"))
    with pytest.raises(StructureError, match="B:LIG:9 has no hydrogens for 1 atoms"):
        all_atoms.encode(all_atoms.read(path, side_a="A", side_b="B:LIG")[0])


@pytest.mark.parametrize(
    "atoms, charges, hydrogens",
    [
        ("Na 0 0 0|O 2.3 0 0|H 2.8 .8 0|H 2.8 -.8 0", [1, 0], 2), ("Na 0 0 0|Cl 6 0 0", [1, -1], 0), ("F 0 0 0", [-1], 0),
        ("Li 0 0 0|H 1.6 0 0", [0], 1), ("Ar 0 0 0", [0], 0), ("O 0 0 0|H .96 0 0|H -.24 .93 0", [0], 2),
        ("Fe 0 0 0|S 2.2 0 0|H 3.4 .5 0|S 0 2.2 0|H .5 3.4 0", [0, -1, -1], 2),
    ],
)  # fmt: skip
def test_hydrogens_and_ions_of_xyz_files(tmp_path, all_atoms, atoms, charges, hydrogens):
    path, lines = tmp_path / "x.xyz", atoms.split("|")
    path.write_text(f"{len(lines)}\n\n" + "\n".join(lines) + "\n")
    (structure,) = all_atoms.read(path)
    assert [int(part.charges.sum()) for segment in structure.segments for part in segment] == charges
    example = all_atoms.encode(structure)
    assert (example["atom_ids"] == 3).sum() == hydrogens
    written = np.array([line.split()[1:] for line in lines if line[0] == "H"], float).reshape(-1, 3)
    found = example["positions"][example["atom_ids"] == 3]
    assert np.allclose(sorted(found.tolist()), sorted(written.tolist()), atol=1e-4)


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
