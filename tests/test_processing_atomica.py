import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import INPUTS
from rdkit import Chem

from atomica_hf import AtomicaProcessor, StructureError
from atomica_hf.processing_atomica import MODEL_INPUTS, rotatable_bonds
from atomica_hf.structure_atomica import Component, Structure, embed, read_interface


def test_tensors_arrays_lists_and_padding(processor):
    batch = processor(list(INPUTS), return_tensors="pt")
    assert set(batch) == set(MODEL_INPUTS) and batch["positions"].dtype == torch.float32
    assert batch["token_type_ids"].max() == 2 and (batch["atom_to_block"] == -1).any()
    assert ((batch["atom_ids"] == 0) == (batch["atom_to_block"] == -1)).all()
    arrays = processor(list(INPUTS), return_tensors="np")
    assert all(np.array_equal(arrays[name], batch[name].numpy()) for name in MODEL_INPUTS)
    lists = processor(list(INPUTS))
    assert [len(ids) for ids in lists["input_ids"]] == batch["attention_mask"].sum(1).tolist()
    assert processor("CCO")["input_ids"] == processor.tokenizer("CCO")["input_ids"]
    with pytest.raises(ValueError, match="padding=True"):
        processor(["CCO", "O"], return_tensors="pt", padding=False)
    with pytest.raises(ValueError, match="'tf'"):
        processor("CCO", return_tensors="tf")
    with pytest.raises(ValueError, match="No inputs"):
        processor([])


def test_globals_stand_at_the_mean_and_tokens_are_those_of_the_tokenizer(processor):
    example = processor.encode(processor.read(("CC(=O)Oc1ccccc1C(=O)O", "CCN"))[0])
    assert example["input_ids"].tolist() == processor.tokenizer("CC(=O)Oc1ccccc1C(=O)O", "CCN")["input_ids"]
    segment = example["token_type_ids"][example["atom_to_block"]]
    for i in (0, 1):
        (central,) = np.flatnonzero((example["atom_ids"] == 2) & (segment == i))
        others = (example["atom_ids"] > 2) & (segment == i)
        assert np.allclose(example["positions"][central], example["positions"][others].mean(0), atol=1e-4)


def test_every_block_and_atom_knows_where_it_came_from(processor):
    mol = embed(Chem.MolFromSmiles("NCc1ccccc1"))
    found = processor(mol, return_tensors="pt", return_origins=True)
    names = found["atom_origins"][0]
    for token, name, position in zip(found["atom_ids"][0].tolist(), names, found["positions"][0]):
        if token > 2:
            symbol, index = name.rstrip("0123456789"), int(name.lstrip("CN"))
            atom = mol.GetAtomWithIdx(index)
            assert atom.GetSymbol() == symbol and atom.GetAtomicNum() == token - 2
            assert np.allclose(position, list(mol.GetConformer().GetAtomPosition(index)), atol=1e-4)
    assert sorted(names[1:]) == sorted(f"{a.GetSymbol()}{a.GetIdx()}" for a in mol.GetAtoms() if a.GetAtomicNum() > 1)
    assert set(found["block_origins"][0]) == {"", "molecule 1"}


def test_settings_survive_saving_and_are_used(tmp_path, tokenizer, shared):
    path = shared / "data/complexes/protein_protein/1AY7_target.pdb.gz"
    sizes = []
    for distance in (4.0, 8.0):
        AtomicaProcessor(tokenizer, interface_distance=distance, seed=3).save_pretrained(tmp_path / str(distance))
        processor = AtomicaProcessor.from_pretrained(tmp_path / str(distance))
        assert (processor.interface_distance, processor.seed, processor.as_published) == (distance, 3, False)
        named, unnamed = processor(path, side_a="A", side_b="B"), processor(path)
        assert named["input_ids"] == unnamed["input_ids"]
        sizes.append(len(named["input_ids"]))
    assert sizes[0] < sizes[1]
    one, two = (AtomicaProcessor(tokenizer, seed=seed)("CCOC(=O)CCN", return_tensors="np")["positions"] for seed in (1, 2))
    assert not np.allclose(one, two)


@pytest.mark.parametrize(
    "item, options, words",
    [
        (3.5, {}, ["float", "3.5"]),
        (("CCO", Chem.MolFromSmiles("O")), {}, ["tuple"]),
        ("gone.pdb", {"side_a": "A", "side_b": "B"}, ["gone.pdb", "no such file"]),
        (Path("gone.cif"), {}, ["gone.cif"]),
        ("some.pdb", {"side_a": "A"}, ["side_a", "side_b", "belong together"]),
        ("c1ccc", {}, ["'c1ccc'"]),
        ("CCO CCN", {}, ["'CCO CCN'"]),
        ("CCO", {"side_a": "A", "side_b": "B"}, ["PDB and mmCIF", "'CCO'"]),
        ("some.pdb", {"ligand_smiles": "CCO"}, ["needs the sides named"]),
        ((Chem.MolFromSmiles("CC"), Chem.MolFromSmiles("O")), {}, ["molecule 1", "no coordinates"]),
    ],
)
def test_what_cannot_be_read_is_named(processor, item, options, words):
    with pytest.raises(StructureError) as error:
        processor(item, **options)
    assert all(word in str(error.value) for word in words), str(error.value)


LIGAND = """\
ATOM      1  N   GLY A   1       0.000   0.000   0.000  1.00  0.00           N
ATOM      2  CA  GLY A   1       1.458   0.000   0.000  1.00  0.00           C
HETATM    3  C1  LIG A   9       2.000   4.000   0.000  1.00  0.00           C
HETATM    4  O1  LIG A   9       {place}   4.000   0.000  1.00  0.00           O
END
"""
SDF = (
    "\n\n\n  0  0  0     0  0            999 V3000\nM  V30 BEGIN CTAB\nM  V30 COUNTS 2 1 0 0 0\nM  V30 BEGIN ATOM\n"
    "M  V30 1 C 0 0 1 0\nM  V30 2 O {place} 0 0 0\nM  V30 END ATOM\nM  V30 BEGIN BOND\nM  V30 1 1 1 2\nM  V30 END BOND\n"
    "M  V30 END CTAB\nM  END\n"
)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("place", ["1e7", "1e19", "1e39", "1e200", "1e308", "-inf", "nan"])
def test_coordinates_that_no_tensor_holds_are_a_reason(processor, tmp_path, place):
    """Also those that overflow in float32, or in a distance, never come as far as that."""
    gemmi = pytest.importorskip("gemmi")
    structure = gemmi.read_pdb_string(LIGAND.format(place="  3.400"))
    structure.setup_entities()
    text = structure.make_mmcif_document().as_string()
    assert text.count(" 3.4 ") == 1
    (tmp_path / "x.cif").write_text(text.replace(" 3.4 ", f" {place} "))
    (tmp_path / "x.sdf").write_text(SDF.format(place=place))
    (tmp_path / "x.xyz").write_text(f"2\nCO\nC 0.0 0.0 0.0\nO {float(place):f} 0.0 0.0\n")
    carbon = Component("", np.array([6]), np.array([[0.0, 0.0, float(place)]]), ["C1"])
    sides = {"side_a": "A", "side_b": "A:LIG:9"}
    inputs = [(tmp_path / "x.cif", {}), (tmp_path / "x.cif", sides), (tmp_path / "x.cif", {**sides, "ligand_smiles": "CO"}),
              (tmp_path / "x.cif", {"interfaces": "all"}), (tmp_path / "x.sdf", {}), (tmp_path / "x.xyz", {}),
              (Structure("x", [[carbon]]), {})]  # fmt: skip
    for item, options in inputs:
        with pytest.raises(StructureError) as error:
            processor(item, **options)
        assert error.value.code == "bad_coordinates" or (item == tmp_path / "x.xyz" and place in ("-inf", "nan")), str(item)


def test_rotatable_bonds_equal_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(2, 12))
        bonds = [(int(rng.integers(i)), i) for i in range(1, n)]  # a tree, and a few rings
        bonds += [tuple(sorted(map(int, rng.choice(n, 2, replace=False)))) for _ in range(int(rng.integers(0, 3)))]
        bonds = sorted(set(bonds))
        expected = set()
        for cut in bonds:
            group = list(range(n))
            for _ in range(n):
                for a, b in bonds:
                    if (a, b) != cut:
                        group[a] = group[b] = min(group[a], group[b])
            parts = [frozenset(i for i in range(n) if group[i] == group[end]) for end in cut]
            if parts[0] != parts[1] and min(map(len, parts)) > 1:
                expected.add((cut, *parts))
        found = {((u, v), frozenset(of_u), frozenset(of_v)) for u, v, of_u, of_v in rotatable_bonds(n, bonds)}
        assert found == expected


def test_side_chains_turn_and_backbones_do_not(processor, shared):
    (structure,) = read_interface(shared / "data/complexes/protein_protein/1AY7_target.pdb.gz", "A", "B")
    example = processor.encode(structure)
    assert example["segment_is_polymer"] == [1, 1] and len(example["torsion_bonds"]) > 50
    names, blocks = example["atom_origins"], example["atom_to_block"]
    for (stays, turns), moving in zip(example["torsion_bonds"], example["torsion_atoms"]):
        assert turns in moving and stays not in moving
        assert len({int(blocks[i]) for i in [stays, turns, *moving]}) == 1
        assert not {names[i] for i in moving} & {"N", "CA", "C", "O"}
    chi = {tuple(names[i] for i in bond) for bond in example["torsion_bonds"]}
    assert ("CA", "CB") in chi and ("CB", "CG") in chi and not any("N" in bond for bond in itertools.chain(chi))


def test_values_go_back_into_pdb_and_cif(shared, processor, tmp_path):
    path = shared / "data/complexes/atomica_examples/6llw.cif"
    (structure,) = processor.read(path, "A", "A:UDP:900")
    example = processor.encode(structure)
    per_block = np.arange(len(example["input_ids"])) / 2
    for name in ("back.pdb", "back.cif"):
        processor.to_pdb(example, per_block, tmp_path / name)
        again = processor.encode(processor.read(tmp_path / name, "A", "A:UDP:900")[0])
        assert again["input_ids"].tolist() == example["input_ids"].tolist()
        assert again["block_origins"] == example["block_origins"]
        # oxygens of one phosphate may change places: which of them has the double bond is perceived anew
        moved = [i for i, pair in enumerate(zip(again["atom_origins"], example["atom_origins"])) if pair[0] != pair[1]]
        assert len(moved) <= 2 and all("UDP" in str(example["block_origins"][example["atom_to_block"][i]]) for i in moved)
        same = np.setdiff1d(np.arange(len(example["atom_ids"])), moved)
        assert np.abs(again["positions"][same] - example["positions"][same]).max() < 2e-3
        found, expected = ({item["atom_origins"][i]: item["positions"][i] for i in moved} for item in (again, example))
        assert found.keys() == expected.keys() and all(np.abs(found[k] - expected[k]).max() < 2e-3 for k in found)
        assert again["atom_ids"].tolist() == example["atom_ids"].tolist()
    lines = [line for line in processor.to_pdb(example, per_block).splitlines() if line.startswith(("ATOM", "HETATM"))]
    real = np.array(example["atom_ids"]) != 2
    assert np.allclose([float(line[60:66]) for line in lines], per_block[np.array(example["atom_to_block"])][real], atol=0.006)


def test_values_go_back_into_sdf(processor):
    (structure,) = processor.read(("CC(=O)Oc1ccccc1C(=O)O", "OCC"))
    example = processor.encode(structure)
    values = torch.arange(len(example["atom_ids"])) / 8
    text = processor.to_sdf(structure, values, name="score")
    supplier = Chem.SDMolSupplier()
    supplier.SetData(text)
    mol = next(iter(supplier))
    assert Chem.MolToSmiles(mol) == "CC(=O)Oc1ccccc1C(=O)O.CCO"
    positions, found = mol.GetConformer().GetPositions(), []
    for i, place in enumerate(example["positions"]):
        if example["atom_ids"][i] != 2:
            nearest = int(np.linalg.norm(positions - place, axis=1).argmin())
            found.append((mol.GetAtomWithIdx(nearest).GetDoubleProp("score"), float(values[i])))
    assert len(found) == 16 and all(a == b for a, b in found)
    assert processor.to_pdb(example, values).count("LIG") > 16


def test_values_that_do_not_fit_are_named(processor):
    (structure,) = processor.read("CCO")
    example = processor.encode(structure)
    with pytest.raises(ValueError, match=r"\(7,\), expected one per atom \(4\)"):
        processor.to_pdb(example, np.zeros(7))
    with pytest.raises(ValueError, match="scale them"):
        processor.to_pdb(example, np.full(4, 5000.0))
    with pytest.raises(ValueError, match="scale them"):
        processor.to_pdb(example, np.full(4, np.nan))
