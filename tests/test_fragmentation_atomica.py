import gzip
import json
import pickle
import random

import pytest
from conftest import shipped_smiles
from rdkit import Chem

from atomica_hf import ROOT, AtomicaTokenizer, tokenization_atomica
from atomica_hf import fragmentation_atomica as module
from atomica_hf.tokenization_atomica import ELEMENTS


AWKWARD = """
C[N+](C)(C)CC(=O)[O-] CN(=O)=O C[N+](=O)[O-] [13CH3]C(=O)O [CH3] C[CH]C [O][O] CC[O] [Fe+2] C[n+]1c[nH]cc1 [H][H] [H+] N#N
[NH3]->[Pt](Cl)(Cl)<-[NH3] [Pt](Cl)(Cl)(N)N C1=CC=C[CH-]1.[Fe+2].C1=CC=C[CH-]1 F[C@](Cl)(Br)I C/C=C\\C C[Si](C)(C)C [C-]#[O+]
B(O)(O)c1ccccc1 [se]1cccc1 c1cc[te]c1 CS(=O)(=O)C CP(=O)(O)O C12C3C4C1C5C2C3C45 C%10CCCCC%10 [Li]CCCC C[Mg]Br [Cu+2].[O-]C(=O)C
COC(C=Cc1ccccc1)=C[S](C)(=O)N(C)C [O-][n+]1ccccc1 [cH-]1cccc1 B1OC(C)(C)C(C)(C)O1 O=[Os](=O)(=O)=O [Xe] [U] CC(=O)[O-].[Na+]
N[C@@H](CC1=CNC=N1)C(O)=O Oc1ccc(cc1)C1CC1 C1CCCCCCCCCCCCCCCCCCCCCCCCCCC1
""".split()


def test_every_heavy_atom_is_in_exactly_one_connected_fragment(tokenizer):
    for smiles in shipped_smiles():
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        tokens, atoms = tokenizer.fragment(mol)
        heavy = [a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() > 1]
        assert sorted(i for part in atoms for i in part) == heavy
        for token, part in zip(tokens, atoms):
            assert token in tokenizer.get_vocab()
            assert "." not in Chem.MolFragmentToSmiles(mol, part)


def test_any_spelling_gives_the_same_fragments(tokenizer):
    shuffle = random.Random(0).shuffle
    for smiles in shipped_smiles()[::10]:
        mol = Chem.MolFromSmiles(smiles)
        order = list(range(mol.GetNumAtoms()))
        shuffle(order)
        again = Chem.RenumberAtoms(mol, order)
        assert tokenizer(smiles) == tokenizer(Chem.MolToSmiles(again, canonical=False))
        assert sorted(tokenizer.fragment(mol)[0]) == sorted(tokenizer.fragment(again)[0])


def test_fragments_equal_atomicas(shared, original_tokenizer):
    reference = json.load(gzip.open(shared / "parity/fragments_ps300.json.gz"))
    assert len(original_tokenizer) == 440 and len(reference) == 1200
    for item in reference:
        tokens, atoms = original_tokenizer.fragment(item["smiles"])
        found = sorted((token, sorted(part)) for token, part in zip(tokens, atoms))
        assert found == sorted((token, sorted(part)) for token, part in item["fragments"]), item["smiles"]


@pytest.mark.parametrize("atom_order", ["canonical", "input"])
def test_equal_to_the_straightforward_algorithm(tokenizer, tokenizer_benchmark, atom_order):
    ordered = AtomicaTokenizer.from_pretrained(ROOT, atom_order=atom_order)
    for smiles in [*shipped_smiles()[::2], *AWKWARD]:
        expected = tokenizer_benchmark.straightforward(smiles, tokenizer.fragment_counts, atom_order)
        assert ordered.fragment(smiles) == expected, smiles


@pytest.mark.parametrize("atom_order", ["canonical", "input"])
def test_equal_to_the_straightforward_algorithm_on_druglike_molecules(shared, tokenizer_benchmark, atom_order):
    with gzip.open(shared / "data/smiles/druglike_366k.smi.gz", "rt") as stream:
        lines = [line.split()[0] for line in stream]
    ps_500 = AtomicaTokenizer.from_fragment_vocabulary(shared / "data/original/ps_vocab_500.txt", atom_order=atom_order)
    molecules = lines[::1500]
    for smiles, found in zip(molecules, ps_500.fragment_batch(molecules)):
        assert found == tokenizer_benchmark.straightforward(smiles, ps_500.fragment_counts, atom_order), smiles


def test_what_a_process_remembers_changes_nothing(tokenizer, monkeypatch):
    """A small cache is emptied all the time, and an identity from before must not come back."""
    expected = tokenizer.fragment_batch(shipped_smiles())
    monkeypatch.setattr(module, "CACHE_SIZE", 7)
    monkeypatch.setattr(tokenization_atomica, "MOLECULE_CACHE_SIZE", 2)
    for name in ("_JOINED", "_NAMED"):
        monkeypatch.setattr(module, name, {})
    other = pickle.loads(pickle.dumps(tokenizer))
    assert not other._vocabulary.molecules and not other._vocabulary.bonds
    assert other.fragment_batch(shipped_smiles()) == expected
    assert len(module._JOINED) <= 7 and len(other._vocabulary.molecules) <= 2
    assert [other.fragment(smiles) for smiles in shipped_smiles()[:20]] == expected[:20]


def test_spellings_give_the_same_fragments_on_the_same_atoms(tokenizer, tokenizer_benchmark):
    rng = random.Random(0)
    for smiles in [*shipped_smiles()[::3], *AWKWARD]:
        if "." in smiles or smiles in ("[H][H]", "[H+]"):
            continue
        assert tokenizer_benchmark.same_fragments(tokenizer, *tokenizer_benchmark.spellings(smiles, 6, rng)), smiles
        mol = Chem.MolFromSmiles(smiles)
        kekulised = Chem.Mol(mol)
        Chem.Kekulize(kekulised, clearAromaticFlags=True)
        expected = sorted(tokenizer.fragment(smiles)[0])
        for other in (kekulised, Chem.AddHs(kekulised), Chem.AddHs(mol)):
            assert sorted(tokenizer.fragment(other)[0]) == expected, smiles


def test_input_order_depends_on_the_spelling(tokenizer, tokenizer_benchmark):
    ordered, rng = AtomicaTokenizer.from_pretrained(ROOT, atom_order="input"), random.Random(0)
    assert not all(
        tokenizer_benchmark.same_fragments(ordered, *tokenizer_benchmark.spellings(smiles, 3, rng))
        for smiles in shipped_smiles()[:20]
    )


def test_stereochemistry_isotopes_and_atom_maps_are_forgotten(tokenizer):
    plain = tokenizer.fragment("CC(N)C(=O)OC")
    assert tokenizer.fragment("C[C@H](N)C(=O)OC") == tokenizer.fragment("[13CH3][C@@H](N)C(=O)OC") == plain
    assert tokenizer.fragment("[CH3:7]C([NH2:1])C(=O)OC") == plain
    assert tokenizer("C/C=C/C") == tokenizer("C/C=C\\C") == tokenizer("CC=CC")


def test_awkward_chemistry_is_cut_into_known_blocks(tokenizer):
    for smiles in AWKWARD:
        mol = Chem.MolFromSmiles(smiles)
        tokens, atoms = tokenizer.fragment(mol)
        assert sorted(i for part in atoms for i in part) == [a.GetIdx() for a in mol.GetAtoms()], smiles
        assert tokenizer.unk_token_id not in tokenizer(smiles)["input_ids"]
        for token, part in zip(tokens, atoms):
            assert token in ELEMENTS if len(part) == 1 else token in tokenizer.fragment_counts
            assert token not in ELEMENTS or token == mol.GetAtomWithIdx(part[0]).GetSymbol()


def test_mixtures_are_cut_molecule_by_molecule(tokenizer):
    tokens, atoms = tokenizer.fragment("CC(=O)[O-].[Na+].c1ccccc1O")
    molecule = {
        atom: i for i, part in enumerate(Chem.GetMolFrags(Chem.MolFromSmiles("CC(=O)[O-].[Na+].c1ccccc1O"))) for atom in part
    }
    assert all(len({molecule[atom] for atom in part}) == 1 for part in atoms)
    parts = ("CC(=O)[O-]", "[Na+]", "c1ccccc1O")
    assert sorted(tokens) == sorted(token for part in parts for token in tokenizer.fragment(part)[0])
    assert tokenizer("CC(=O)[O-].[Na+].c1ccccc1O")["token_type_ids"][-1] == 2


def test_large_molecules(tokenizer):
    peptide = "N[C@@H](C)C(=O)" * 100 + "O"
    mol = Chem.MolFromSmiles(peptide)
    tokens, atoms = tokenizer.fragment(peptide)
    assert mol.GetNumAtoms() == 501 and sorted(i for part in atoms for i in part) == list(range(501))
    assert len(tokens) < 300


@pytest.mark.parametrize("smiles, atom", [("CC*", 2), ("*CC", 0), ("C[#0]C", 1)])
def test_dummy_atoms_are_named(tokenizer, smiles, atom):
    for atom_order in ("canonical", "input"):
        with pytest.raises(ValueError, match=rf"^Atom {atom} of '.*expected an element"):
            AtomicaTokenizer(atom_order=atom_order).fragment(smiles)


def test_query_atoms_and_other_things_are_named(tokenizer):
    with pytest.raises(ValueError, match=r"Atom 1 of .* is the query '\[N,O\]'"):
        block = Chem.MolFromSmiles("CC")
        block = Chem.RWMol(block)
        block.ReplaceAtom(1, Chem.AtomFromSmarts("[N,O]"))
        tokenizer.fragment(block)
    with pytest.raises(ValueError, match="without atoms"):
        tokenizer.fragment(Chem.Mol())
    with pytest.raises(ValueError, match="got int: 7"):
        tokenizer.fragment(7)


def test_cut_molecules_are_put_together_again(tokenizer):
    for smiles in [*shipped_smiles()[::2], *AWKWARD, "OC1CC[C@H](C)C[C@@H]1/C=C/C(=N\\O)C", "C/C=C/CO.C/C=C\\C"]:
        fragments = tokenizer.cut(smiles)
        assert tokenizer.to_smiles(fragments) == Chem.CanonSmiles(smiles)
        tokens, atoms = tokenizer.fragment(smiles)
        assert sorted(fragments.tokens) == sorted(tokens) and sorted(map(sorted, fragments.atoms)) == sorted(map(sorted, atoms))
    fragments = tokenizer.cut("c1ccccc1CCN")
    assert all(len(bond) == 4 for bond in fragments.bonds_between)
    fragments.atoms[0] = fragments.atoms[0][1:]
    with pytest.raises(ValueError, match="not in exactly one fragment"):
        tokenizer.to_smiles(fragments)
