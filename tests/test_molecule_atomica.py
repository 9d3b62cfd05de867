"""Molecules: formats, bonds from geometry, conformers."""

import contextlib
import gzip
import time

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem

from atomica_hf import ReadReport, StructureError, molecule_atomica, read_structures
from atomica_hf.molecule_atomica import bonds_by_distance, embed, fit_template, perceive_bonds, template_from_smiles
from atomica_hf.structure_atomica import ReadOptions, format_of, list_inputs, structure_from_smiles


SMILES = [
    "CC(=O)Oc1ccccc1C(=O)O", "Cn1cnc2c1c(=O)n(C)c(=O)n2C", "C#CCN", "N#Cc1ccncc1", "CN=C=O", "CS(=O)(=O)c1ccc(N)cc1",
    "O=[N+]([O-])c1ccc(F)cc1", "OP(=O)(O)OCC", "c1ccc2[nH]ccc2c1", "C/C=C/C=O", "NC(=N)NCCC", "C1CCCCC1", "c1ccsc1", "CC(C)=NO",
    "Clc1ccc(Br)cc1", "OB(O)c1ccccc1", "FC(F)(F)C(=O)N", "C[N+](C)(C)CCO",
]  # fmt: skip


def without_charges(mol):
    mol = Chem.RWMol(Chem.RemoveHs(mol))
    for atom in mol.GetAtoms():
        atom.SetFormalCharge(0)
        atom.SetNoImplicit(True)
        atom.SetNumExplicitHs(0)
        atom.SetNumRadicalElectrons(0)
    return Chem.MolToSmiles(mol, isomericSmiles=False)


@pytest.mark.parametrize("smiles", SMILES)
def test_bonds_are_perceived_from_the_geometry(smiles):
    mol = Chem.RemoveHs(embed(Chem.MolFromSmiles(smiles)))
    found = perceive_bonds([atom.GetAtomicNum() for atom in mol.GetAtoms()], mol.GetConformer().GetPositions())
    assert without_charges(found) == without_charges(mol)


def test_bonds_of_posed_ligands_are_perceived(shared):
    same = total = 0
    for path in sorted((shared / "data/complexes/protein_ligand").rglob("*.sdf*")):
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
            for mol in filter(None, Chem.ForwardSDMolSupplier(stream)):
                mol, total = Chem.RemoveAllHs(mol), total + 1
                found = perceive_bonds([a.GetAtomicNum() for a in mol.GetAtoms()], mol.GetConformer().GetPositions())
                same += found is not None and without_charges(found) == without_charges(mol)
    assert total > 300 and same >= 0.98 * total


def test_metals_have_no_bonds_and_what_overlaps_is_none():
    found = perceive_bonds([26, 7, 6], [[0, 0, 0], [2.0, 0, 0], [3.3, 0, 0]])
    assert found.GetNumBonds() == 1 and found.GetAtomWithIdx(0).GetDegree() == 0
    crowded = np.random.default_rng(0).normal(size=(9, 3)) * 0.5
    assert perceive_bonds([6] * 9, crowded) is None


def test_a_template_fits_only_its_own_atoms():
    mol = Chem.RemoveHs(embed(Chem.MolFromSmiles("CCO")))
    elements, positions = [a.GetAtomicNum() for a in mol.GetAtoms()], mol.GetConformer().GetPositions()
    order = [2, 0, 1]
    fitted = fit_template(template_from_smiles("OCC", "x"), [elements[i] for i in order], positions[order])
    assert Chem.MolToSmiles(fitted) == "CCO" and fitted.GetAtomWithIdx(0).GetSymbol() == "O"
    assert fit_template(template_from_smiles("COC", "x"), elements, positions) is None
    assert fit_template(template_from_smiles("CCN", "x"), elements, positions) is None
    assert bonds_by_distance(elements, positions).tolist() == [[0, 1], [1, 2]]


def test_what_would_take_too_long_to_build_has_a_reason(monkeypatch):
    with pytest.raises(StructureError, match="1202 atoms with hydrogens, expected at most 600") as error:
        structure_from_smiles("C" * 400)
    assert error.value.code == "no_conformer"
    relaxed = []
    monkeypatch.setattr(molecule_atomica, "_relax", lambda mol, interfragment=False: relaxed.append(interfragment))
    assert len(structure_from_smiles(".".join("O" * 20)).segments) == 20 and relaxed.count(True) == 1
    monkeypatch.setattr(molecule_atomica, "LARGEST_EMBEDDED", 5)
    with pytest.raises(StructureError, match="4 of 5 molecules were built, expected all within 20 s and 10 atoms"):
        structure_from_smiles("O.O.O.O.O")
    monkeypatch.setattr(molecule_atomica, "EMBEDDING_SECONDS", 0)
    with pytest.raises(StructureError, match="1 of 3 molecules were built"):
        structure_from_smiles("O.O.O")


def test_no_second_start_after_the_time_is_up(monkeypatch):
    seconds, starts = [0.0, 0.95], []

    def fails(mol, parameters):
        starts.append(parameters.useRandomCoords)
        time.sleep(seconds[-1])
        return -1

    monkeypatch.setattr(molecule_atomica, "EMBEDDING_SECONDS", 1)
    monkeypatch.setattr(molecule_atomica.AllChem, "EmbedMolecule", fails)
    for reason in ("none was found in 1 s", "RDKit's attempts from two starts failed"):
        with pytest.raises(StructureError, match=reason):
            structure_from_smiles("CCO")
        seconds.pop()
    assert starts == [False, False, True]


@pytest.mark.slow
def test_no_large_molecule_takes_a_minute(shared, processor):
    letters = np.random.default_rng(0).choice(list("ACDEFGHIKLMNPQRSTVWY"), 60)
    large = [Chem.MolToSmiles(Chem.MolFromSequence(sequence)) for sequence in ("".join(letters), "G" * 60, "W" * 60)]
    for name in ("HIV.csv.gz", "sider.csv"):
        rows = pd.read_csv(shared / "data/moleculenet" / name)["smiles"]
        large += sorted(rows, key=lambda text: sum(letter.isalpha() for letter in text))[-5:]
    slowest = 0.0
    for smiles in large:
        start = time.monotonic()
        with contextlib.suppress(StructureError):
            processor(smiles)
        slowest = max(slowest, time.monotonic() - start)
    assert slowest < 60


def xyz(smiles):
    return Chem.MolToXYZBlock(embed(Chem.MolFromSmiles(smiles)))


def test_every_format_gives_the_same_molecule(tmp_path, processor):
    mol = embed(Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O"))
    mol.SetProp("_Name", "aspirin")
    (tmp_path / "a.sdf").write_text(Chem.MolToMolBlock(mol) + "$$$$\n")
    (tmp_path / "a.mol").write_text(Chem.MolToV3KMolBlock(mol))
    (tmp_path / "a.xyz").write_text(Chem.MolToXYZBlock(mol))
    with gzip.open(tmp_path / "b.sdf.gz", "wt") as stream:
        stream.write(Chem.MolToMolBlock(mol).replace("\n", "\r\n"))
    (tmp_path / "wrong.pdb").write_text(Chem.MolToMolBlock(mol))
    expected = None
    for path in sorted(tmp_path.iterdir()):
        (structure,) = read_structures(path)
        ids = processor.encode(structure)["input_ids"].tolist()
        expected = expected or ids
        assert sorted(ids) == sorted(expected), path.name
    assert format_of(tmp_path / "wrong.pdb") == "sdf"


MOL2 = """@<TRIPOS>MOLECULE
ethanol
3 2
SMALL
NO_CHARGES

@<TRIPOS>ATOM
1 C1 0.0 0.0 0.1 C.3
2 C2 1.5 0.0 0.0 C.3
3 O1 2.0 1.3 0.0 O.3
@<TRIPOS>BOND
1 1 2 1
2 2 3 1
"""


def test_several_records_and_one_bad_one(tmp_path):
    (tmp_path / "two.mol2").write_text(MOL2 + MOL2.replace("ethanol", "other").replace("2 2 3 1", "2 2 9 1"))
    (tmp_path / "two.xyz").write_text(xyz("CCO") + "2\nbroken\nC 0 0\n")
    report = ReadReport()
    names = [s.name for s in read_structures(tmp_path, report)]
    assert names[0] == "ethanol" and report.kept == 2 and len(report.rejected) == 2
    assert {code for _, code, _ in report.rejected} == {"unreadable_record"}
    with pytest.raises(StructureError, match="MOL2 record"):
        list(read_structures(tmp_path / "two.mol2", ReadReport(strict=True)))


def test_tables_of_parquet_and_several_conformers(tmp_path):
    pd.DataFrame({"smiles": ["CCO", "c1ccccc1", None], "name": ["a", "b", "c"], "y": [1.5, None, 2]}).to_parquet(
        tmp_path / "t.parquet"
    )
    report = ReadReport()
    found = list(read_structures(tmp_path / "t.parquet", report, ReadOptions(num_conformers=2, seed=5)))
    assert [s.name for s in found] == ["a", "a #2", "b", "b #2"] and len(report.rejected) == 1
    assert found[0].properties == {"smiles": "CCO", "name": "a", "y": "1.5"}
    zero, one = (
        s.segments[0][0].positions for s in read_structures(tmp_path / "t.parquet", report, num_conformers=2) if "a" in s.name
    )
    assert not np.allclose(zero, one)
    first, second = (s.segments[0][0].positions for s in found[:2])
    assert not np.allclose(first, second)
    again = list(read_structures(tmp_path / "t.parquet", report, num_conformers=2, seed=5))
    assert np.allclose(again[1].segments[0][0].positions, second)


def test_what_is_no_table_or_molecule_has_a_reason(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 but not really")
    (tmp_path / "t.xyz").write_text("two\natoms\n")
    (tmp_path / "unknown.dat").write_bytes(bytes(range(256)))
    for name, code in (("t.parquet", "bad_table"), ("unknown.dat", "unknown_format")):
        with pytest.raises(StructureError) as error:
            list_inputs(tmp_path / name)
        assert error.value.code == code
    (work,) = list_inputs(tmp_path / "t.xyz")
    with pytest.raises(StructureError, match="XYZ"):
        work[1](*work[2])
    with pytest.raises(StructureError, match="no such file"):
        list_inputs(tmp_path / "missing.pdb")


def test_a_folder_goes_on_after_a_file_that_cannot_be_opened(tmp_path):
    (tmp_path / "bad.sdf.gz").write_bytes(b"\x1f\x8b broken")
    (tmp_path / "good.mol2").write_text(MOL2)
    report = ReadReport()
    assert len(list(read_structures(tmp_path, report))) == 1
    assert [(name, code) for name, code, _ in report.rejected] == [("bad.sdf.gz", "unreadable_file")]


def test_binary_cif(shared):
    pytest.importorskip("biotite")
    (binary,) = read_structures(shared / "data/awkward/biopython/3jqh.bcif.gz")
    (text,) = read_structures(shared / "data/awkward/biopython/3JQH.cif")
    assert [str(c.origin) for c in binary.segments[0]] == [str(c.origin) for c in text.segments[0]]


def test_molecules_with_many_double_bonds_are_built(processor):
    """Without their stereo set beforehand RDKit looks for a minute for one of these."""
    (structure,) = processor.read(r"CC/C=C\C/C=C\C/C=C\C/C=C\C/C=C\C/C=C\CCC(=O)O")
    example = processor.encode(structure)
    assert len(example["atom_ids"]) == 25
