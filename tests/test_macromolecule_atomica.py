"""Macromolecules: oddities of real files, one by one, in small files made here; and real files, every atom accounted for."""

import gzip

import numpy as np
import pytest
from conftest import ROOT, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rdkit import Chem

from atomica_hf import StructureError, molecule_atomica
from atomica_hf.macromolecule_atomica import WATERS, Classified, ReadOptions, list_interfaces, read_all_interfaces, read_file
from atomica_hf.molecule_atomica import embed
from atomica_hf.structure_atomica import list_inputs, read_interface, read_macromolecule


gemmi = pytest.importorskip("gemmi")
SIDE = {"N": (0, 0, 0), "CA": (1.46, 0, 0), "C": (2.0, 1.42, 0), "O": (1.25, 2.39, 0), "CB": (1.99, -0.77, -1.2)}


def atom(serial, name, residue, chain, number, place, element=None, alt=" ", icode=" ", occ=1.0, kind="ATOM", shift=(0, 0, 0)):
    x, y, z = (a + b for a, b in zip(place, shift))
    element = name[0] if element is None else element
    name = f"{name:<4}" if len(element) == 2 or len(name) == 4 else f" {name:<3}"
    number = f"{number:>4}" if len(str(number)) < 5 else str(number)
    return (
        f"{kind:<6}{serial:>5} {name}{alt}{residue:>3} {chain}{number}{icode if len(str(number)) < 5 else ''}   "
        f"{x:8.3f}{y:8.3f}{z:8.3f}{occ:6.2f}{10.0:6.2f}          {element.upper():>2}"
    )


def residue(name, chain, number, shift=(0, 0, 0), atoms=SIDE, kind="ATOM", serial=1, **options):
    return [
        atom(serial + i, a, name, chain, number, p, kind=kind, shift=shift, **options) for i, (a, p) in enumerate(atoms.items())
    ]


def chain(names, letter, shift=(0, 0, 0), first=1, **options):
    """Residues 3.8 angstrom apart along y, whose C and next N are 1.4 apart."""
    lines = []
    for i, name in enumerate(names):
        atoms = {k: (x * 0.9, y * 0.9 + 3.2 * i, z) for k, (x, y, z) in SIDE.items()}
        atoms["C"] = (0.9, 3.2 * i + 2.0, 0.3)
        lines += residue(name, letter, first + i, shift, atoms, **options)
    return lines


@pytest.fixture
def read(tmp_path):
    def write(*lines, name="made.pdb"):
        text = "\n".join(line for part in lines for line in ([part] if isinstance(part, str) else part)) + "\n"
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def names(structure, segment=0):
    return [component.name for component in structure.segments[segment]]


def test_one_conformation_throughout(read):
    mixed = []
    for number in (1, 2):
        for a, place in SIDE.items():
            if a in ("N", "CA", "C", "O"):
                mixed.append(atom(1, a, "SER", "A", number, place, shift=(0, 4 * number, 0)))
            else:
                first, second = (0.5, 0.5) if number == 1 else (0.4, 0.6)
                mixed.append(atom(1, a, "SER", "A", number, place, alt="A", occ=first, shift=(0, 4 * number, 0)))
                mixed.append(atom(1, a, "SER", "A", number, place, alt="B", occ=second, shift=(1, 4 * number, 0)))
    structure = read_macromolecule(read(mixed))
    assert structure.notes["alternate_location"] == 2
    shifted = [c.positions[c.atom_names.index("CB"), 0] > 2.5 for c in structure.segments[0]]
    assert shifted == [True, True]  # B has more in all: the tie of the first residue follows it


def test_two_residue_names_at_one_number(read):
    lines = residue("SER", "A", 1, alt="A", occ=0.3) + residue("THR", "A", 1, alt="B", occ=0.7)
    structure = read_macromolecule(read(lines))
    assert names(structure) == ["THR"] and structure.notes["microheterogeneity"] == 1
    assert structure.notes["alternate_location"] == 5


def test_insertion_codes_negative_and_long_numbers(read):
    lines = residue("ALA", "A", -3) + residue("GLY", "A", 52, (0, 5, 0)) + residue("SER", "A", 52, (0, 10, 0), icode="A")
    structure = read_macromolecule(read(lines))
    assert [str(c.origin) for c in structure.segments[0]] == ["A:ALA:-3", "A:GLY:52", "A:SER:52A"]
    wide = residue("ALA", "A", 9999) + [line.replace("A9999 ", "A10000") for line in residue("GLY", "A", 9999, (0, 5, 0))]
    assert [c.origin.number for c in read_macromolecule(read(wide)).segments[0]] == [9999, 10000]


def test_models_hydrogens_zero_occupancy_waters(read):
    body = residue("ALA", "A", 1) + [atom(9, "H", "ALA", "A", 1, (0, 0, 1), "H"), atom(9, "D", "ALA", "A", 1, (0, 0, -1), "D")]
    body += [atom(9, "OG", "ALA", "A", 1, (3, 3, 3), "O", occ=0.0), atom(9, "O", "HOH", "A", 90, (3, 0, 4), kind="HETATM")]
    path = read("MODEL        1", body, "ENDMDL", "MODEL        2", residue("GLY", "A", 1), "ENDMDL")
    structure = read_macromolecule(path)
    assert names(structure) == ["ALA"] and len(structure.segments[0][0].elements) == 6
    expected = {"hydrogen": 2, "zero_occupancy": 1, "water": 1}
    assert {key: structure.notes[key] for key in expected} == expected
    second = read_macromolecule(path, options=ReadOptions(model=2))
    assert names(second) == ["GLY"] and str(second.segments[0][0].origin) == "2/A:GLY:1"
    with pytest.raises(StructureError, match="no model 3; it has 2"):
        read_macromolecule(path, options=ReadOptions(model=3))
    kept = read_macromolecule(path, options=ReadOptions(keep_waters=True))
    assert names(kept) == ["ALA", "HOH"]


@pytest.mark.parametrize(
    "name, atoms, token",
    [
        ("MSE", SIDE, "MET"), ("SEP", SIDE, "SER"), ("TPO", SIDE, "THR"), ("HYP", SIDE, "PRO"), ("HSD", SIDE, "HIS"),
        ("CYX", SIDE, "CYS"), ("DAL", SIDE, "ALA"),
    ],
)  # fmt: skip
def test_modified_residues_are_read_as_their_parents(read, name, atoms, token):
    structure = read_macromolecule(
        read(chain(["GLY"], "A"), chain([name], "A", (0, 3.2, 0), 2, kind="HETATM"), chain(["GLY"], "A", (0, 6.4, 0), 3))
    )
    assert names(structure) == ["GLY", token, "GLY"] and structure.notes[f"{name}_read_as_{token}"] == 1


def nucleotide(name, deoxy, number=1, shift=(0, 0, 0), **options):
    atoms = {"P": (0, 0, 0), "O5'": (1.6, 0, 0), "C5'": (2.2, 1.3, 0), "C4'": (3.7, 1.2, 0), "O4'": (4.2, 0, 0.6),
             "C1'": (5.5, 0.2, 0.9), "C3'": (4.4, 2.3, 0.7), "O3'": (4.0, 3.6, 0.4), "C2'": (5.7, 1.7, 1.0),
             "N1": (6.4, -0.8, 0.5)}  # fmt: skip
    if not deoxy:
        atoms["O2'"] = (6.7, 2.4, 0.5)
    return residue(name, "B", number, shift, atoms, **options)


@pytest.mark.parametrize(
    "name, deoxy, token",
    [("A", False, "RA"), ("A", True, "DA"), ("DA", True, "DA"), ("U", False, "RU"), ("T", True, "DT"), ("ADE", False, "RA"),
     ("GUA", True, "DG"), ("+C", False, "RC"), ("DG5", True, "DG"), ("PSU", False, "RU"), ("5CM", True, "DC")],
)  # fmt: skip
def test_nucleotides_by_name_and_atoms(read, name, deoxy, token):
    structure = read_macromolecule(read(nucleotide(name, deoxy)))
    assert names(structure) == [token]


def test_unknown_residues_in_a_chain_are_cut_like_ligands(read, processor):
    strange = {"N": (0, 3.2, 0), "CA": (1.4, 3.2, 0), "C": (0.9, 5.2, 0.3), "O": (0.2, 6.0, 1.0), "S1": (3.0, 3.0, 0.6)}
    lines = (
        chain(["GLY"], "A") + residue("XYZ", "A", 2, (0, 0, 0), strange, kind="HETATM") + chain(["GLY"], "A", (0, 6.4, 0), 3)
    )
    structure = read_macromolecule(read(lines))
    assert structure.notes["unknown_residue_fragmented:XYZ"] == 1
    tokens = processor.tokenizer.convert_ids_to_tokens(processor.encode(structure)["input_ids"])
    assert tokens[1] == tokens[-1] == "GLY" and "<unk>" not in tokens and any("S" in token for token in tokens[2:-1])


def test_end_and_ter_between_chains_hide_nothing(read):
    path = read(chain(["ALA", "GLY"], "A"), "TER", "END", chain(["SER", "GLY"], "B", (6, 0, 0)), "END")
    assert [len(segment) for segment in read_macromolecule(path).segments] == [2, 2]
    blank = read(residue("ALA", " ", 1), name="blank.pdb")
    assert len(read_macromolecule(blank).segments[0]) == 1


def test_missing_elements_and_old_columns(read):
    lines = [line[:76] for line in residue("ALA", "A", 1)] + [line[:72] + "1ABC" for line in residue("GLY", "A", 2, (0, 5, 0))]
    structure = read_macromolecule(read(lines))
    assert [c.elements.tolist() for c in structure.segments[0]] == [[7, 6, 6, 8, 6]] * 2


def test_segments_that_number_alike_are_all_read(read):
    first, second = ([f"{line[:72]}{segment}{line[76:]}" for line in residue("ALA", " ", 1, (0, y, 0))]
                     for y, segment in ((0, "PROA"), (5, "PROB")))  # fmt: skip
    structure = read_macromolecule(read(first, second))
    assert names(structure) == ["ALA", "ALA"] and not structure.notes


SULFATE = {"S": (0, 0, 0), "O1": (1.45, 0, 0), "O2": (-0.48, 1.37, 0), "O3": (-0.48, -0.68, 1.18), "O4": (-0.48, -0.68, -1.18)}


def test_buffers_ions_and_ligands_beside_a_chain(read):
    lines = chain(["ALA", "GLY"], "A") + residue("SO4", "A", 200, (5, 0, 0), SULFATE, kind="HETATM")
    lines += [atom(90, "ZN", "ZN", "A", 201, (-4, 0, 0), "ZN", kind="HETATM")]
    path = read(lines, chain(["SER"], "B", (0, 0, 5)))
    (structure,) = read_interface(path, "A", "B")
    assert names(structure) == ["ALA", "GLY", "ZN"] and structure.notes["buffer_left_out:SO4"] == 1
    (kept,) = read_interface(path, "A", "B", options=ReadOptions(keep_buffers=True))
    assert "SO4" in names(kept)
    kinds = [(i.kind, i.side_a, i.side_b) for i in list_interfaces(path)]
    assert kinds == [("protein-peptide", "A", "B"), ("protein-ion", "A_B", "A:ZN:201")]
    with_buffer = list_interfaces(path, ReadOptions(keep_buffers=True))
    assert "protein-ligand" in [i.kind for i in with_buffer]


BENZENE = {f"C{i + 1}": (1.39 * np.cos(i * np.pi / 3), 1.39 * np.sin(i * np.pi / 3), 0.0) for i in range(6)}


def test_bonds_of_ligands_from_conect_dictionary_or_geometry(read, tmp_path, processor):
    ligand = residue("BNZ", "A", 300, (5, 0, 0), BENZENE, kind="HETATM", serial=100)
    pairs = [(100 + i, 100 + (i + 1) % 6, 2 - i % 2) for i in range(6)]
    conect = [f"CONECT{a:5}{b:5}" for a, b, order in pairs for a, b in [(a, b), (b, a)] for _ in range(order)]
    smiles = "c1ccccc1"

    def fragments(path, **options):
        (structure,) = read_interface(path, "A", "A:BNZ", options=ReadOptions(**options))
        tokens = processor.tokenizer.convert_ids_to_tokens(processor.encode(structure)["input_ids"])
        return tokens[tokens.index("<global>", 1) + 1 :], structure.notes

    tokens, notes = fragments(read(chain(["ALA"], "A"), ligand, conect, "END"))
    assert tokens == [smiles] and notes["bonds_from_conect:BNZ"] == 1
    tokens, notes = fragments(read(chain(["ALA"], "A"), ligand))
    assert tokens == [smiles] and notes["bonds_perceived:BNZ"] == 1
    rows = "\n".join(f"BNZ C{i + 1} C{(i + 1) % 6 + 1} {'DOUB' if i % 2 else 'SING'}" for i in range(6))
    loop = "loop_\n_chem_comp_bond.comp_id\n_chem_comp_bond.atom_id_1\n_chem_comp_bond.atom_id_2\n_chem_comp_bond.value_order\n"
    with gzip.open(tmp_path / "components.cif.gz", "wt") as stream:
        stream.write(f"data_AAA\n_chem_comp.id AAA\ndata_BNZ\n_chem_comp.id BNZ\n{loop}{rows}\n")
    tokens, notes = fragments(read(chain(["ALA"], "A"), ligand), ccd=str(tmp_path / "components.cif.gz"))
    assert tokens == [smiles] and notes["bonds_from_dictionary:BNZ"] == 1
    structure = gemmi.read_structure(str(read(chain(["ALA"], "A"), ligand)))
    structure.setup_entities()
    (tmp_path / "made.cif").write_text(structure.make_mmcif_document().as_string() + loop + rows + "\n")
    tokens, notes = fragments(tmp_path / "made.cif")
    assert tokens == [smiles] and not any(note.startswith("bonds") for note in notes)
    flat = {name: (x * 0.3, y * 0.3, z) for name, (x, y, z) in BENZENE.items()}  # too near: no bonds
    tokens, notes = fragments(read(chain(["ALA"], "A"), residue("BNZ", "A", 300, (5, 0, 0), flat, kind="HETATM")))
    assert tokens == ["C"] * 6 and notes["ligand_without_bonds:BNZ"] == 1


def test_a_parent_from_a_dictionary_of_components(read, tmp_path):
    (tmp_path / "ccd.cif").write_text("data_XYZ\n_chem_comp.id XYZ\n_chem_comp.mon_nstd_parent_comp_id TRP\n")
    path = read(chain(["GLY"], "A"), chain(["XYZ"], "A", (0, 3.2, 0), 2, kind="HETATM"), chain(["GLY"], "A", (0, 6.4, 0), 3))
    structure = read_macromolecule(path, options=ReadOptions(ccd=str(tmp_path / "ccd.cif")))
    assert names(structure) == ["GLY", "TRP", "GLY"]
    (tmp_path / "ccd.cif").write_text("nothing")
    with pytest.raises(StructureError, match="no chemical components"):
        read_macromolecule(read(residue("ALA", "A", 1), name="other.pdb"), options=ReadOptions(ccd=str(tmp_path / "ccd.cif")))


def test_a_chain_of_sugars_is_one_ligand(read):
    first = residue("NAG", "A", 400, (5, 0, 0), BENZENE, kind="HETATM")
    second = residue("BMA", "A", 401, (5 + 2 * 1.39 + 1.5, 0, 0), BENZENE, kind="HETATM")
    path = read(chain(["ALA", "GLY"], "A"), first, second)
    (found,) = list_interfaces(path)
    assert (found.kind, found.side_b, found.modality) == ("protein-ligand", "A:NAG:400+A:BMA:401", 1)
    (structure,) = read_interface(path, found.side_a, found.side_b)
    assert {c.origin.name for c in structure.segments[1]} == {"NAG", "BMA"}
    (whole,) = read_all_interfaces(path)
    assert (whole.properties, whole.modality) == ({"kind": "protein-ligand"}, 1) and len(whole.segments[1]) == 2


def test_every_kind_of_interface_is_named(read, processor):
    protein = chain(["ALA"] * 31, "A", (0, -40, 0))
    lines = protein + chain(["SER"] * 3, "C", (6, 0, 0)) + nucleotide("DA", True, shift=(-8, 0, 0))
    lines += [atom(900, "MG", "MG", "A", 500, (0, 0, 6), "MG", kind="HETATM")]
    lines += residue("BNZ", "D", 1, (60, 0, 0), BENZENE, kind="HETATM") + residue(
        "BNZ", "D", 2, (60, 0, 4), BENZENE, kind="HETATM"
    )
    path = read(lines)
    kinds = {i.kind: i.modality for i in list_interfaces(path)}
    assert (
        kinds["protein-peptide"] == 3
        and kinds["protein-DNA"] == 5
        and kinds["protein-ion"] == 2
        and kinds["ligand-ligand"] == 7
    )
    structures = processor.read(path, interfaces="all")
    assert len(structures) == len(list_interfaces(path))
    assert {processor.encode(s).get("modality_ids") for s in structures} >= {2, 3, 5, 7}
    done = run("list_interfaces.py", path, "--output_file", path.parent / "index.csv")
    assert done.returncode == 0, done.stderr
    work = list_inputs(path.parent / "index.csv")
    assert len(work) == sum(":" not in i.side_a for i in list_interfaces(path)) and all(f(*a) for _, f, a in work)
    table = run("list_interfaces.py", path).stdout.splitlines()
    assert table[0].split()[:2] == ["file", "kind"] and len(table) == 1 + len(structures)


def test_assemblies(tmp_path):
    path = tmp_path / "one.cif"
    lines = chain(["ALA", "GLY"], "A")
    structure = gemmi.read_pdb_string("\n".join(lines) + "\n")
    structure.setup_entities()
    text = (
        structure.make_mmcif_document().as_string()
        + """
loop_
_pdbx_struct_assembly.id
_pdbx_struct_assembly.details
_pdbx_struct_assembly.method_details
_pdbx_struct_assembly.oligomeric_details
_pdbx_struct_assembly.oligomeric_count
1 author_defined_assembly ? dimeric 2
loop_
_pdbx_struct_assembly_gen.assembly_id
_pdbx_struct_assembly_gen.oper_expression
_pdbx_struct_assembly_gen.asym_id_list
1 1,2 Axp
loop_
_pdbx_struct_oper_list.id
_pdbx_struct_oper_list.type
_pdbx_struct_oper_list.matrix[1][1]
_pdbx_struct_oper_list.matrix[1][2]
_pdbx_struct_oper_list.matrix[1][3]
_pdbx_struct_oper_list.vector[1]
_pdbx_struct_oper_list.matrix[2][1]
_pdbx_struct_oper_list.matrix[2][2]
_pdbx_struct_oper_list.matrix[2][3]
_pdbx_struct_oper_list.vector[2]
_pdbx_struct_oper_list.matrix[3][1]
_pdbx_struct_oper_list.matrix[3][2]
_pdbx_struct_oper_list.matrix[3][3]
_pdbx_struct_oper_list.vector[3]
1 'identity operation' 1 0 0 0 0 1 0 0 0 0 1 0
2 'crystal symmetry operation' 1 0 0 6 0 1 0 0 0 0 1 0
"""
    )
    path.write_text(text)
    assert len(read_macromolecule(path).segments) == 1
    both = read_macromolecule(path, options=ReadOptions(assembly="1"))
    assert [len(segment) for segment in both.segments] == [2, 2]
    with pytest.raises(StructureError, match="no assembly '7'; it describes 1"):
        read_macromolecule(path, options=ReadOptions(assembly="7"))


@pytest.mark.parametrize(
    "changes", [{"distance": 0}, {"interfaces": "some"}, {"model": 0}, {"num_conformers": 0}, {"seed": -1}]
)
def test_options_that_make_no_sense(changes):
    with pytest.raises(StructureError, match=next(iter(changes))):
        ReadOptions(**changes)


# damaged files ------------------------------------------------------------------------------------------------------------


TEXT = "\n".join(
    chain(["ALA", "GLY", "SER"], "A") + nucleotide("DA", True, shift=(-8, 0, 0)) + residue("BNZ", "A", 9, (5, 0, 0), BENZENE)
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    structure = gemmi.read_pdb_string(TEXT + "\n")
    structure.setup_entities()
    texts = {
        "a.pdb": TEXT,
        "a.cif": structure.make_mmcif_document().as_string(),
        "a.sdf": Chem.MolToMolBlock(embed(Chem.MolFromSmiles("CCO"))) + "$$$$\n",
        "a.mol2": "@<TRIPOS>MOLECULE\nm\n2 1\nSMALL\nNO_CHARGES\n@<TRIPOS>ATOM\n1 C1 0 0 0.5 C.3\n2 O1 1.4 0 0 O.3\n"
        "@<TRIPOS>BOND\n1 1 2 1\n",
        "a.xyz": "3\nwater\nO 0.0 0.0 0.0\nH 0.96 0.0 0.0\nH -0.24 0.93 0.0\n",
        "a.csv": "smiles,name\nCCO,x\nc1ccccc1,y\n",
    }
    return folder, {name: text.encode() for name, text in texts.items()}


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_give_reasons_and_nothing_else(sources, processor, data):
    folder, texts = sources
    name = data.draw(st.sampled_from(sorted(texts)))
    content = bytearray(texts[name])
    kind = data.draw(st.sampled_from(["cut", "flip", "shuffle", "crlf", "encoding", "gzip", "other ending", "drop"]))
    where = data.draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        content = content[:where]
    elif kind == "flip":
        for _ in range(data.draw(st.integers(1, 20))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    elif kind == "shuffle":
        lines = bytes(content).split(b"\n")
        content = bytearray(b"\n".join(data.draw(st.permutations(lines))))
    elif kind == "crlf":
        content = bytearray(bytes(content).replace(b"\n", b"\r\n"))
    elif kind == "encoding":
        content = bytearray(bytes(content).decode().encode(data.draw(st.sampled_from(["utf-16", "utf-8-sig", "latin-1"]))))
    elif kind == "gzip":
        content = bytearray(gzip.compress(bytes(content))[: where + 1])
    elif kind == "drop":
        del content[where : where + data.draw(st.integers(1, 200))]
    path = folder / (data.draw(st.sampled_from(["b.pdb", "b.sdf", "b.cif", "b"])) if kind == "other ending" else name)
    path.write_bytes(bytes(content))
    try:
        work = list_inputs(path)
    except StructureError as error:
        assert error.code and str(error)
        return
    for _, function, arguments in work[:5]:
        try:
            found = function(*arguments)
            for structure in found if isinstance(found, list) else [found]:
                assert np.isfinite(processor.encode(structure)["positions"]).all()
        except StructureError as error:
            assert error.code and str(error)


# real files -----------------------------------------------------------------------------------------------------------------


def test_every_atom_of_real_files_is_accounted_for(shared):
    suffixes = (".pdb", ".cif", ".ent", ".pdb.gz", ".cif.gz")
    folders = [shared / "data" / "awkward", *(shared / "data/complexes" / name for name in ("atomica_examples", "mixed"))]
    files = sorted(p for folder in folders for p in folder.rglob("*") if p.name.endswith(suffixes))
    compared = 0
    for path in files:
        try:
            file = read_file(path)
        except StructureError:
            continue
        found = Classified(file, ReadOptions())
        kept = sum(len(c.elements) for residues in found.chains.values() for c in residues)
        kept += sum(len(c.elements) for c in found.molecules)
        water = sum(len(r) for c in file.model for r in c if r.name in WATERS)
        noted = sum(found.notes[key] for key in ("hydrogen", "alternate_location", "atom_twice", "atom_of_unknown_element"))
        assert kept + water + noted == file.model.count_atom_sites(), path.name
        compared += 1
    assert compared > 60


def with_biopython(path):
    """Heavy atoms of the first model as Bio.PDB reads them -> (those without alternatives, those with), sets of keys."""
    from Bio.PDB import MMCIFParser, PDBParser

    parser = (MMCIFParser if ".cif" in path.name else PDBParser)(QUIET=True)
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as stream:
        model = next(iter(parser.get_structure("x", stream)))
    found = set(), set()
    for child in (child for chain in model for child in chain):
        for residue in child.disordered_get_list() if child.is_disordered() == 2 else [child]:
            for atom in residue.get_unpacked_list():
                if atom.element not in ("H", "D"):
                    alternative = atom.get_altloc() != " " or child.is_disordered() == 2
                    place = (residue.get_parent().id.strip(), residue.id[1], residue.id[2].strip(), residue.resname.strip())
                    found[alternative].add((*place, atom.name.strip(), atom.element, *np.round(atom.coord.astype(float), 3)))
    return found


BIOPYTHON = {  # what Bio.PDB reads otherwise
    "1AZS_target.pdb.gz": "stops at END, which stands between two chains",
    "2PCC_target.pdb.gz": "the nitrogens of a heme, ' N A' to ' N D' in a file without elements, have the element X",
}


@pytest.mark.slow
def test_atoms_are_those_of_biopython(shared):
    """Ours are Bio.PDB's, but for alternate locations: of those it keeps all, and we keep one."""
    pytest.importorskip("Bio.PDB", reason="compares with biopython: pip install biopython")
    files = [p for name in ("awkward", "complexes") for p in (shared / "data" / name).rglob("*")]
    files = sorted(p for p in files if p.name.removesuffix(".gz").endswith((".pdb", ".cif", ".ent")))
    compared, different, unread = 0, {}, set()
    for path in files:
        try:
            single, alternative = with_biopython(path)
        except (KeyError, ValueError, StopIteration):  # no atoms, or not all columns
            unread.add(path.name)
            continue
        found = Classified(read_file(path), ReadOptions(keep_waters=True))
        ours = set()
        for c in [*(c for residues in found.chains.values() for c in residues), *found.molecules]:
            place = (c.origin.chain, c.origin.number, c.origin.insertion, c.origin.name)
            for name, element, position in zip(c.atom_names, c.elements, c.positions):
                ours.add((*place, name.strip(), gemmi.Element(int(element)).name.upper(), *np.round(position, 3)))
        compared += 1
        if not single <= ours or not ours <= single | alternative:
            different[path.name] = sorted(single - ours)[:3], sorted(ours - single - alternative)[:3]
    assert unread == {"1MOM_min.cif", "4Q9R_min.cif", "d256ba_.ent", "header.pdb", "empty.pdb", "non-pdb.pdb"}
    assert compared > 360 and set(different) == set(BIOPYTHON), different


def test_awkward_files_are_input_or_a_reason(shared, processor, monkeypatch):
    monkeypatch.setattr(molecule_atomica, "EMBEDDING_SECONDS", 1)
    read, reasons = 0, 0
    for path in sorted((shared / "data" / "awkward").glob("*/*")):
        try:
            work = list_inputs(path)
        except StructureError:
            reasons += 1
            continue
        for _, function, arguments in work[:20]:
            try:
                found = function(*arguments)
                for structure in found if isinstance(found, list) else [found]:
                    assert np.isfinite(processor.encode(structure)["positions"]).all(), path.name
                    read += 1
            except StructureError as error:
                assert error.code != "unexpected_error"
                reasons += 1
    assert read > 50 and reasons > 10


def test_1azs_keeps_both_chains(shared):
    (path,) = (shared / "data" / "complexes" / "protein_protein").glob("1AZS*")
    assert [len(s) > 5 for s in read_macromolecule(path).segments] == [True, True]


def test_complexes_have_interfaces_of_known_kinds(shared):
    folder = shared / "data" / "complexes" / "atomica_examples"
    kinds = {path.stem: {i.kind for i in list_interfaces(path)} for path in folder.glob("*.cif")}
    expected = {"6llw": "ligand", "3i5x": "RNA", "5kl2": "DNA", "6d1u": "peptide", "2uxq": "protein", "6hrg": "ion"}
    for name, kind in {**{k: f"protein-{v}" for k, v in expected.items()}, "4yaz": "RNA-ligand"}.items():
        assert kind in kinds[name], (name, kinds[name])


def test_an_amide_at_the_end_of_a_peptide_belongs_to_its_chain(shared):
    path = shared / "data" / "complexes" / "atomica_examples" / "6d1u.cif"
    sides = {i.side_b for i in list_interfaces(path) if i.kind == "protein-ion"}
    assert sides == {"A:NA:2202", "C:NA:2202", "C:NA:2203", "C:NA:2204"}
    (structure,) = read_interface(path, "A", "D")
    assert structure.segments[1][-1].origin.name == "NH2" and structure.notes["unknown_residue_fragmented:NH2"] == 1
    assert structure.segments[1][-1].mol.GetAtomWithIdx(0).GetSymbol() == "N"


def test_the_folder_of_the_clone_has_no_structures():
    with pytest.raises(StructureError, match="no structure files"):
        list_inputs(ROOT / "docs")
