import gzip
import json
import pickle

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from atomica_hf import AtomicaProcessor, ReadReport, StructureError, read_structures
from atomica_hf.structure_atomica import (
    embed,
    read_interface,
    read_macromolecule,
    read_table,
    structure_from_mol,
    structure_from_mols,
    structure_from_smiles,
)


# two alanines and a serine in chain A, a zinc ion and a water; cytidine (RNA) in chain B; made by hand
PDB = """\
ATOM      1  N   ALA A   1       0.000   0.000   0.000  1.00  0.00           N
ATOM      2  CA  ALA A   1       1.458   0.000   0.000  1.00  0.00           C
ATOM      3  C   ALA A   1       2.009   1.420   0.000  1.00  0.00           C
ATOM      4  O   ALA A   1       1.251   2.390   0.000  1.00  0.00           O
ATOM      5  CB AALA A   1       1.988  -0.773  -1.199  0.30  0.00           C
ATOM      6  CB BALA A   1       1.900  -0.700  -1.250  0.70  0.00           C
ATOM      7  H   ALA A   1      -0.500  -0.800   0.000  1.00  0.00           H
ATOM      8  N   SER A   2A     3.332   1.536   0.000  1.00  0.00           N
ATOM      9  CA  SER A   2A     4.000   2.830   0.000  1.00  0.00           C
ATOM     10  C   SER A   2A     5.500   2.700   0.000  1.00  0.00           C
ATOM     11  O   SER A   2A     6.100   1.630   0.000  1.00  0.00           O
ATOM     12  CB  SER A   2A     3.500   3.600   1.200  1.00  0.00           C
ATOM     13  OG  SER A   2A     4.000   4.900   1.200  1.00  0.00           O
TER
END
ATOM     14  P     C B  -1       3.000   6.000   3.000  1.00  0.00           P
ATOM     15  O5'   C B  -1       3.500   7.200   3.800  1.00  0.00           O
ATOM     16  C1'   C B  -1       5.500   8.900   5.600  1.00  0.00           C
ATOM     17  C2'   C B  -1       5.600   9.800   4.400  1.00  0.00           C
ATOM     18  O2'   C B  -1       6.900  10.300   4.300  1.00  0.00           O
ATOM     19  N1    C B  -1       6.000   7.600   5.300  1.00  0.00           N
HETATM   20 ZN    ZN A 101       3.000   3.000   4.000  1.00  0.00          ZN
HETATM   21  O   HOH A 201       9.000   3.000   4.000  1.00  0.00           O
HETATM   22  C1  LIG A 301       2.000   6.000   0.000  1.00  0.00           C
HETATM   23  O1  LIG A 301       2.000   7.400   0.000  1.00  0.00           O
HETATM   24  C2  LIG A 301       0.700   5.300   0.000  1.00  0.00           C
END
"""


@pytest.fixture
def pdb(tmp_path):
    path = tmp_path / "made.pdb"
    path.write_text(PDB)
    return path


def tokens(structure, processor):
    return processor.tokenizer.convert_ids_to_tokens(processor.encode(structure)["input_ids"])


def test_chains_rna_alternate_locations_ions_and_what_is_left_out(pdb, processor):
    (structure,) = read_interface(pdb, "A", "B")
    assert tokens(structure, processor) == ["<global>", "ALA", "SER", "Zn", "<global>", "RC"]
    assert structure.notes["hydrogen"] == 1 and structure.notes["alternate_location"] == 1
    assert structure.notes["C_read_as_RC"] == 1 and structure.notes["molecule_left_out:LIG"] == 1
    alanine = structure.segments[0][0]
    assert alanine.positions[alanine.atom_names.index("CB")].tolist() == [1.9, -0.7, -1.25]
    example = processor.encode(structure)
    assert example["block_origins"] == ["", "A:ALA:1", "A:SER:2A", "A:ZN:101", "", "B:C:-1"]
    assert example["atom_origins"][1:6] == ["N", "CA", "C", "O", "CB"]


def test_ligands_by_name_with_and_without_bonds(pdb, processor):
    (structure,) = read_interface(pdb, "A_B", "A:LIG:301", ligand_smiles="COC")
    assert structure.notes["ligand_smiles_does_not_fit:LIG"] == 1
    (structure,) = read_interface(pdb, "A", "A:LIG", ligand_smiles="CCO")
    assert tokens(structure, processor)[-2:] == ["<global>", "CCO"]
    assert not any(note.startswith("ligand") for note in structure.notes)
    (structure,) = read_interface(pdb, "A", "A:LIG:301")
    assert tokens(structure, processor)[-2:] == ["<global>", "CCO"]
    assert structure.notes["bonds_perceived:LIG"] == 1
    (structure,) = read_interface(pdb, "A", "A:ZN:101")
    assert tokens(structure, processor) == ["<global>", "ALA", "SER", "<global>", "Zn"]


def test_a_far_copy_of_a_ligand_does_not_lose_the_near_one(tmp_path):
    far = "\n".join(
        line.replace("LIG A 301", "LIG A 302").replace("   0.000  1.00", "  90.000  1.00")
        for line in PDB.splitlines()
        if " LIG " in line
    )
    (tmp_path / "two.pdb").write_text(PDB.removesuffix("END\n") + far + "\nEND\n")
    (structure,) = read_interface(tmp_path / "two.pdb", "A", "A:LIG", ligand_smiles="CCO")
    assert structure.segments[1][0].origin.number == 301 and structure.notes["ligand_that_touches_nothing"] == 1
    assert structure.notes["water"] == 1
    with pytest.raises(StructureError, match="within 8.0 angstrom"):
        read_interface(tmp_path / "two.pdb", "A", "A:LIG:302")


def test_gzip_and_mmcif_read_like_pdb(pdb, tmp_path, processor):
    gemmi = pytest.importorskip("gemmi")
    with gzip.open(tmp_path / "made.pdb.gz", "wt") as stream:
        stream.write(PDB)
    structure = gemmi.read_pdb_string(PDB.replace("TER\nEND\n", ""))
    structure.setup_entities()
    structure.make_mmcif_document().write_file(str(tmp_path / "made.cif"))
    plain = processor.encode(read_interface(pdb, "A", "B")[0])
    for name in ("made.pdb.gz", "made.cif"):
        other = processor.encode(read_interface(tmp_path / name, "A", "B")[0])
        assert np.array_equal(plain["input_ids"], other["input_ids"])
        assert np.allclose(plain["positions"], other["positions"])


@pytest.mark.parametrize(
    "sides, code, words",
    [
        (("X", "B"), "no_such_chain", ["'X'", "A, B"]),
        (("A", ""), "no_such_chain", ["A, B"]),
        (("A", "A:XYZ"), "no_such_ligand", ["A:XYZ", "ZN:101", "LIG:301"]),
        (("A", "A:LIG:abc"), "bad_side", ["A:LIG:abc", "chain:component:number"]),
        (("A", "A_B"), "bad_side", ["share a chain"]),
        (("A_A", "B"), "bad_side", ["twice", "A, A"]),
        (("A", "A:HOH:201"), "no_such_ligand", ["A:HOH:201"]),
        ((1, "B"), "bad_side", ["strings", "1"]),
    ],
)
def test_sides_that_are_not_there(pdb, sides, code, words):
    with pytest.raises(StructureError) as error:
        read_interface(pdb, *sides)
    assert error.value.code == code and all(word in str(error.value) for word in [*words, "made.pdb"])


def test_coordinates_that_are_no_numbers_are_not_read_as_zero(tmp_path):
    (tmp_path / "stars.pdb").write_text(PDB.replace("   3.332   1.536", "********   1.536"))
    with pytest.raises(StructureError, match=r"columns 31-54 of .*\*\*\*\*\*\*\*\*"):
        read_interface(tmp_path / "stars.pdb", "A", "B")


def test_nothing_touches(tmp_path):
    (tmp_path / "far.pdb").write_text(PDB.replace("B  -1       ", "B  -1     99"))
    with pytest.raises(StructureError, match="within 8.0 angstrom") as error:
        read_interface(tmp_path / "far.pdb", "A", "B")
    assert error.value.code == "no_interface"


def test_positions_that_are_no_numbers(tmp_path, processor):
    two = embed(Chem.MolFromSmiles("CCO"))
    two.GetConformer().SetAtomPosition(1, two.GetConformer().GetAtomPosition(0))
    with pytest.raises(StructureError, match="two atoms at the same place"):
        processor(two)
    (tmp_path / "nan.pdb").write_text(PDB.replace("   3.332", "     nan"))
    with pytest.raises(StructureError, match="nan"):
        read_interface(tmp_path / "nan.pdb", "A", "B")
    mol = embed(Chem.MolFromSmiles("CCO"))
    mol.GetConformer().SetAtomPosition(1, (float("nan"), 0.0, 0.0))
    with pytest.raises(StructureError, match="atom 1 is at .nan") as error:
        processor(mol)
    assert error.value.code == "bad_coordinates"


def test_files_without_named_sides(pdb, tmp_path):
    assert [len(segment) for segment in read_macromolecule(pdb).segments] == [3, 1]
    (tmp_path / "one.pdb").write_text(PDB.split("TER")[0])
    assert len(read_macromolecule(tmp_path / "one.pdb").segments) == 1
    (tmp_path / "none.pdb").write_text("HEADER    NOTHING\nEND\n")
    with pytest.raises(StructureError) as error:
        read_macromolecule(tmp_path / "none.pdb")
    assert error.value.code == "no_atoms"


def test_smiles_are_built_in_3d_the_same_each_time():
    one, two = structure_from_smiles("CC(=O)Oc1ccccc1", seed=3), structure_from_smiles("CC(=O)Oc1ccccc1", seed=3)
    other = structure_from_smiles("CC(=O)Oc1ccccc1", seed=4)
    positions = [s.segments[0][0].positions for s in (one, two, other)]
    assert np.array_equal(positions[0], positions[1]) and not np.allclose(positions[0], positions[2])
    assert set(one.segments[0][0].elements) == {6, 8}
    bonds = [
        np.linalg.norm(np.subtract(*positions[0][[b.GetBeginAtomIdx(), b.GetEndAtomIdx()]]))
        for b in one.segments[0][0].mol.GetBonds()
    ]
    assert 1.15 < min(bonds) and max(bonds) < 1.6


def test_molecules_of_a_complex_touch_but_do_not_clash():
    structure = structure_from_smiles(("CC(=O)Oc1ccccc1C(=O)O", "O", "CCO"))
    parts = [segment[0].positions for segment in structure.segments]
    assert len(parts) == 3
    nearest = [np.linalg.norm(a[:, None] - b, axis=-1).min() for i, a in enumerate(parts) for b in parts[:i]]
    assert min(nearest) > 2.3 and sorted(nearest)[1] < 6


def test_sdf_records_complexes_and_reasons(tmp_path):
    mol, pair = (
        embed(Chem.MolFromSmiles("CCO")),
        Chem.CombineMols(embed(Chem.MolFromSmiles("C")), embed(Chem.MolFromSmiles("O"))),
    )
    flat = Chem.MolFromSmiles("CCCCCC")
    AllChem.Compute2DCoords(flat)
    with Chem.SDWriter(str(tmp_path / "some.sdf")) as writer:
        for name, record in (("ethanol", mol), ("pair", pair), ("drawing", flat)):
            record.SetProp("_Name", name)
            record.SetProp("energy", "1.5")
            writer.write(record)
    text = (tmp_path / "some.sdf").read_text()
    broken = Chem.MolToMolBlock(Chem.MolFromSmiles("C[N+](C)(C)C")).replace("M  CHG  1   2   1\n", "")
    with gzip.open(tmp_path / "some.sdf.gz", "wt") as stream:
        stream.write(text.replace("$$$$\n", "$$$$ \r\n", 1) + "pentavalent" + broken + "$$$$\nnot a record\n$$$$\n")
    report = ReadReport()
    found = list(read_structures(tmp_path / "some.sdf.gz", report))
    assert [s.name for s in found] == ["ethanol", "pair", "drawing"] and len(found[1].segments) == 2
    assert found[2].notes["drawing_built_in_3d"] == 1 and np.ptp(found[2].segments[0][0].positions[:, 2]) > 0.1
    assert found[0].properties["energy"] == 1.5
    assert [(name, code) for name, code, _ in report.rejected] == [
        ("pentavalent", "chemistry"), ("not a record", "unreadable_record"),
    ]  # fmt: skip
    assert "3 kept, 2 left out" in report.summary()
    with pytest.raises(StructureError):
        list(read_structures(tmp_path / "some.sdf.gz"))


def test_tables_keep_the_good_and_name_the_bad(tmp_path):
    (tmp_path / "m.csv").write_text(
        "name,SMILES,y\nethanol,CCO,1\nopen ring,c1ccccc,2\npentavalent,C(C)(C)(C)(C)C,3\nstar,*C,4\n,CCN,5\nempty,,6\n"
    )
    report = ReadReport()
    found = list(read_structures(tmp_path / "m.csv", report))
    assert [s.name for s in found] == ["ethanol", "CCN"] and found[0].properties["y"] == "1"
    assert [code for _, code, _ in report.rejected] == ["smiles_syntax", "smiles_chemistry", "not_an_element", "smiles_syntax"]
    assert all(word in report.rejected[0][0] for word in ("m.csv", "row 2", "open ring"))
    (tmp_path / "odd.csv").write_bytes("\ufeffsmiles , name \r\nCCO,caf\u00e9 \u2028 one\r\nCCO CCN,two words\r\n".encode())
    report = ReadReport()
    assert [s.name for s in read_structures(tmp_path / "odd.csv", report)] == ["caf\u00e9 \u2028 one"]
    assert [code for _, code, _ in report.rejected] == ["smiles_syntax"]
    (tmp_path / "m.smi").write_text("CCO ethanol\nCCN\n")
    assert [s.name for s in read_structures(tmp_path / "m.smi")] == ["ethanol", "CCN"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
def test_tables_say_their_encoding_by_a_byte_order_mark(tmp_path, encoding):
    text = "smiles,name\r\nCCO,\u00e9thanol \u4e59\u9187\r\nCCN,amine\r\n"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    for name, content in (("t.csv", text), ("t.tsv", text.replace(",", "\t"))):
        (tmp_path / name).write_bytes(mark + content.encode(encoding))
        expected = [{"smiles": "CCO", "name": "\u00e9thanol \u4e59\u9187"}, {"smiles": "CCN", "name": "amine"}]
        assert read_table(tmp_path / name) == expected
        assert [structure.name for structure in read_structures(tmp_path / name)] == ["\u00e9thanol \u4e59\u9187", "amine"]
    (tmp_path / "t.smi").write_bytes(mark + "CCO \u00e9thanol\n".encode(encoding))
    assert read_table(tmp_path / "t.smi") == [{"smiles": "CCO", "name": "\u00e9thanol"}]


@pytest.mark.parametrize(
    "content, words",
    [
        ("smiles,name\nCCO,ethanol\nCCN,\u00e9thylamine\n".encode("cp1252"), "Windows-1252.*0xE9 in line 3.*expected UTF-8"),
        ("smiles,name\nCCO,ethanol\n".encode("utf-16-le"), "UTF-16 without a byte order mark.*expected UTF-8"),
        ("smiles,name\nCCO,ethanol\n".encode("utf-16")[:-1], "UTF-16 .damaged or cut short., expected UTF-8"),
    ],
)
def test_other_encodings_are_an_error(tmp_path, content, words):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(StructureError, match=f"t.csv.*{words}"):
        read_table(tmp_path / "t.csv")


def test_columns_of_one_name_are_numbered(tmp_path):
    (tmp_path / "t.csv").write_text("smiles,y,y.1,y,y\nCCO,1,2,3,4\n")
    with pytest.warns(UserWarning, match="y: more than once in the header; the later ones are called y.2, y.3"):
        rows = read_table(tmp_path / "t.csv")
    assert rows == [{"smiles": "CCO", "y": "1", "y.1": "2", "y.2": "3", "y.3": "4"}]
    (tmp_path / "t.csv").write_text("smiles,y,y,y.1\nCCO,1,2,3\n")
    assert read_table(tmp_path / "t.csv", []) == [{"smiles": "CCO", "y": "1", "y.2": "2", "y.1": "3"}]
    notes = []
    (tmp_path / "wide.csv").write_text("smiles,y\nCCO,1\nCCN,2,5\nCCC,3,,\n")
    assert len(read_table(tmp_path / "wide.csv", notes)) == 3
    assert len(notes) == 1 and "1 rows have more cells than the header" in notes[0] and "line 3" in notes[0]
    with pytest.raises(StructureError, match="line 3 has 3 cells, expected 2"):
        read_table(tmp_path / "wide.csv", strict=True)


@pytest.mark.parametrize(
    "name, text, code",
    [
        ("gone.csv", None, "missing_file"),
        ("empty.smi", "", "empty_file"),
        ("header.csv", "smiles\n", "empty_file"),
        ("other.csv", "a,b\n1,2\n", "no_smiles_column"),
        ("what.xyz9", "1", "unknown_format"),
        ("empty.sdf", "", "empty_file"),
        ("quote.csv", 'smiles,name\nCCO,"a\nCCN,b\n', "bad_table"),
        ("twice.csv", "smiles,smiles\nCCO,CCN\n", "bad_table"),
        ("noise.pdb", "this is no structure", "no_atoms"),
        ("noise.cif", "data_x\nloop_\n_a\n", "no_atoms"),
        ("torn.cif", "data_x\nloop_\n_atom_site.id\n_atom_site.type_symbol\n1\n", "unreadable_file"),
        ("broken.pdb.gz", "\x1f\x8b broken", "unreadable_file"),
    ],
)
def test_bad_files_have_a_reason(tmp_path, name, text, code):
    if text is not None:
        (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(StructureError) as error:
        list(read_structures(tmp_path / name))
    assert error.value.code == code and name in str(error.value)
    again = pickle.loads(pickle.dumps(error.value))
    assert again.code == code and str(again) == str(error.value)


def test_molecules_given_directly(processor):
    with pytest.raises(StructureError) as error:
        structure_from_mol(Chem.MolFromSmiles("CCO"))
    assert error.value.code == "no_coordinates"
    mols = [embed(Chem.MolFromSmiles(s)) for s in ("CCO", "O")]
    assert len(structure_from_mols(mols).segments) == 2
    assert processor([mols[0], tuple(mols)], return_tensors="pt")["token_type_ids"].max() == 1


def test_structures_equal_atomicas(shared, original_tokenizer):
    """Blocks, atoms, positions and segments of 16 files as published; RNA, which the published code misreads, aside."""
    processor = AtomicaProcessor(original_tokenizer, as_published=True)
    reference = json.load(gzip.open(shared / "parity/structures.json.gz"))
    assert len(reference) == 16
    for item in reference:
        path = next((shared / "data/complexes").glob(f"*/{item['file']}*"))
        side_b = item["chain2"]
        if item["lig_code"]:
            side_b = f"{side_b}:{item['lig_code']}:{item['lig_resi']}"
        (structure,) = processor.read(path, item["chain1"], side_b, item["lig_smiles"])
        example = processor.encode(structure)
        rna = item["id"].startswith(("3i5x", "4yaz"))
        if not rna:
            assert example["input_ids"].tolist() == item["B"], item["id"]
        else:
            names = processor.tokenizer.convert_ids_to_tokens(example["input_ids"])
            wrong = [i for i, token in enumerate(item["B"]) if token != example["input_ids"][i]]
            assert wrong and all(names[i] in ("RA", "RG", "RC", "RU") for i in wrong)
        assert example["atom_ids"].tolist() == item["A"], item["id"]
        assert example["token_type_ids"].tolist() == item["segment_ids"], item["id"]
        assert np.bincount(example["atom_to_block"]).tolist() == item["block_lengths"], item["id"]
        assert np.abs(example["positions"] - np.array(item["X"])).max() < 5.1e-5, item["id"]  # given to four decimals


def test_index_of_complexes_and_both_chains_of_1azs(shared, processor):
    report = ReadReport()
    found = list(read_structures(shared / "data/complexes/atomica_examples/example_inputs.csv", report))
    assert report.kept == 7 and not report.rejected
    assert [s.name for s in found] == [
        "6llw_A_A_UDP_900",
        "3i5x_A_B",
        "5kl2_A_BC",
        "6d1u_A_D",
        "2uxq_A_B",
        "6hrg_A_A_ZN_301",
        "4yaz_A_A_4BW_103",
    ]
    for structure in found:
        example = processor.encode(structure)
        assert 2 not in example["input_ids"] and example["token_type_ids"].max() == 1
    rna = processor.tokenizer.convert_ids_to_tokens(processor.encode(found[1])["input_ids"])
    assert rna.count("RU") == 10
    (structure,) = read_interface(shared / "data/complexes/protein_protein/1AZS_target.pdb.gz", "A", "B")
    assert all(len(segment) > 10 for segment in structure.segments)
