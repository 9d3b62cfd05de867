import csv
import gzip
import json
import pickle
import random

import pytest
from rdkit import Chem

from atomica_hf import ROOT, AtomicaTokenizer
from atomica_hf.structure_atomica import AMINO_ACID_NAMES, NUCLEOTIDE_NAMES
from atomica_hf.tokenization_atomica import AMINO_ACIDS, BASE_TOKENS, ELEMENTS, NUCLEOTIDES


def shipped_smiles():
    with open(ROOT / "examples" / "molecules.csv", newline="", encoding="utf-8") as stream:
        return [row["smiles"] for row in csv.DictReader(stream)]


def test_vocabulary_starts_as_designed(tokenizer):
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4, 23, 24, 31, 32, 37, 149]) == [
        "<pad>", "<mask>", "<unk>", "<global>", "GLY", "PRO", "DA", "RU", "H", "C", "Og"
    ]  # fmt: skip
    assert tokenizer.global_token_id == 3 and tokenizer.mask_token_id == 1 and tokenizer.pad_token_id == 0
    assert len(set(tokenizer.get_vocab().values())) == len(tokenizer) == 240
    assert tokenizer.convert_tokens_to_ids("nonsense") == tokenizer.unk_token_id == 2
    assert set(AMINO_ACIDS) == AMINO_ACID_NAMES and set(NUCLEOTIDES) == NUCLEOTIDE_NAMES and len(ELEMENTS) == 118


def test_molecules_and_pairs(tokenizer):
    one = tokenizer("c1ccccc1O")
    assert one["input_ids"][0] == 3 and set(one["token_type_ids"]) == {0}
    pair = tokenizer("c1ccccc1O", "CCN")
    assert pair["input_ids"] == one["input_ids"] + tokenizer("CCN")["input_ids"]
    assert pair["token_type_ids"] == [0] * len(one["input_ids"]) + [1] * (len(pair["input_ids"]) - len(one["input_ids"]))
    assert tokenizer("c1ccccc1O.CCN") == pair
    batch = tokenizer(["O", "c1ccccc1O"], padding=True, return_tensors="pt")
    assert batch["attention_mask"][0].tolist() == [1, 1] + [0] * (len(one["input_ids"]) - 2)
    assert tokenizer.decode(tokenizer("O")["input_ids"]) == "<global> O"
    assert tokenizer("O", return_special_tokens_mask=True)["special_tokens_mask"] == [1, 0]


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


def test_saved_opened_and_sent_to_a_worker(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "vocab.json").read_text())
    assert {"token", "atoms", "count"} == set(data["fragments"][0])
    for again in (AtomicaTokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert again.get_vocab() == tokenizer.get_vocab() and again.atom_order == "canonical"
        assert again("CC(=O)Oc1ccccc1C(=O)O") == tokenizer("CC(=O)Oc1ccccc1C(=O)O")


def test_the_shipped_vocabulary_is_what_the_miner_gives(tokenizer):
    mined = tokenizer.train_new_from_iterator(shipped_smiles(), len(tokenizer), min_count=4)
    assert mined.fragments == tokenizer.fragments
    assert len(mined) == len(tokenizer)


def test_mining_by_hand():
    """In C-C-O the pairs CC and CO are equally frequent: the alphabet decides, and one more C-O overrules it."""
    base = AtomicaTokenizer()
    assert base.train_new_from_iterator(["CCO", "CCO"], len(BASE_TOKENS) + 1).fragments[0] == {
        "token": "CC",
        "atoms": 2,
        "count": 2,
    }
    assert base.train_new_from_iterator(["CCO", "CCO", "CO"], len(BASE_TOKENS) + 1).fragments[0]["token"] == "CO"


@pytest.mark.parametrize("bad", ["c1ccccc", "C(C)(C)(C)(C)C", "*CC", "", "CCO CCN"])
def test_bad_smiles_are_named(tokenizer, bad):
    for call in (tokenizer.fragment, tokenizer):
        with pytest.raises(ValueError) as error:
            call(bad)
        assert repr(bad) in str(error.value)


def test_bad_vocabulary_files_are_named(tmp_path):
    for text, words in (("CCO\t3\tmany\n", "line 1"), ('{"kekulize": true}\nC\t1\t1\n', "kekulised")):
        (tmp_path / "v.txt").write_text(text)
        with pytest.raises(ValueError, match=words):
            AtomicaTokenizer.from_fragment_vocabulary(tmp_path / "v.txt")
    (tmp_path / "v.json").write_text("[1, 2")
    with pytest.raises(ValueError, match="not a fragment vocabulary"):
        AtomicaTokenizer(tmp_path / "v.json")
    with pytest.raises(ValueError, match="'other'.*canonical"):
        AtomicaTokenizer(atom_order="other")
    with pytest.raises(ValueError, match="150"):
        AtomicaTokenizer().train_new_from_iterator(["CC"], 150)
