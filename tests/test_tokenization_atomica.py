import json
import pickle

import pytest
from conftest import run, shipped_smiles
from torch.utils.data import DataLoader

from atomica_hf import ROOT, AtomicaTokenizer
from atomica_hf.structure_atomica import AMINO_ACID_NAMES, NUCLEOTIDE_NAMES
from atomica_hf.tokenization_atomica import AMINO_ACIDS, ELEMENTS, NUCLEOTIDES


def test_vocabulary_starts_as_designed(tokenizer):
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4, 23, 24, 31, 32, 37, 149]) == [
        "<pad>", "<mask>", "<unk>", "<global>", "GLY", "PRO", "DA", "RU", "H", "C", "Og"
    ]  # fmt: skip
    assert tokenizer.global_token_id == 3 and tokenizer.mask_token_id == 1 and tokenizer.pad_token_id == 0
    assert len(set(tokenizer.get_vocab().values())) == len(tokenizer) == 450
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


def test_saved_opened_and_sent_to_a_worker(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "vocab.json").read_text())
    assert {"token", "atoms", "count"} == set(data["fragments"][0])
    for again in (AtomicaTokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert again.get_vocab() == tokenizer.get_vocab() and again.atom_order == "canonical"
        assert again("CC(=O)Oc1ccccc1C(=O)O") == tokenizer("CC(=O)Oc1ccccc1C(=O)O")


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


@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation_leaves_no_bare_global(side):
    tokenizer = AtomicaTokenizer.from_pretrained(ROOT, truncation_side=side)
    aspirin = "CC(=O)Oc1ccccc1C(=O)O"
    for texts in ((aspirin,), (aspirin + ".CCN.O",), ("O.CCN." + aspirin,), (aspirin, "CCCCCCN"), ("CCN", aspirin + ".O")):
        whole = tokenizer(*texts, return_atoms=True)
        for length in range(3, len(whole["input_ids"])):
            item = tokenizer(*texts, truncation=True, max_length=length, return_atoms=True)
            ids = item["input_ids"]
            assert 2 <= len(ids) <= length and len(item["atoms"]) == len(item["token_type_ids"]) == len(ids)
            for i, token in enumerate(ids):
                if token == tokenizer.global_token_id:
                    assert i + 1 < len(ids) and ids[i + 1] != tokenizer.global_token_id, (texts, length, ids)
            kept = [(token, tuple(atoms)) for token, atoms in zip(ids, item["atoms"])]
            assert set(kept) <= {(token, tuple(atoms)) for token, atoms in zip(whole["input_ids"], whole["atoms"])}
    with pytest.raises(ValueError, match="leaves no block"):
        tokenizer(aspirin, truncation=True, max_length=1)


def test_atoms_of_blocks(tokenizer):
    batch = tokenizer(["CCN.O", "CC(=O)Oc1ccccc1C(=O)O"], padding=True, return_atoms=True)
    assert [len(atoms) for atoms in batch["atoms"]] == [len(ids) for ids in batch["input_ids"]]
    assert [sorted(i for part in atoms for i in part) for atoms in batch["atoms"]] == [list(range(4)), list(range(13))]
    pairs = tokenizer(["CCN", "O"], ["O", "CCN"], padding="max_length", max_length=9, return_atoms=True)
    assert pairs["atoms"][0][-1] == [] and pairs["atoms"][0][0] == [] and len(pairs["atoms"][0]) == 9
    for options in ({"return_offsets_mapping": True}, {"return_atoms": True, "return_tensors": "pt"}):
        with pytest.raises(ValueError, match="return_atoms"):
            tokenizer("CCN", **options)


def test_added_tokens_never_split_a_smiles(tmp_path):
    tokenizer = AtomicaTokenizer.from_pretrained(ROOT)
    before = tokenizer("CC(C)CC(N)C(=O)O")
    assert tokenizer.add_tokens(["CC", "SEP", "C(N)"]) >= 2
    assert tokenizer("CC(C)CC(N)C(=O)O") == before
    assert tokenizer.convert_ids_to_tokens(tokenizer.convert_tokens_to_ids("SEP")) == "SEP"
    tokenizer.save_pretrained(tmp_path)
    again = AtomicaTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab() and again("CC(C)CC(N)C(=O)O") == before
    assert tokenizer.tokenize("<mask>") == ["<mask>"]


def test_auto_tokenizer_opens_a_saved_folder_in_a_fresh_process(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "saved")
    lines = (tmp_path / "saved" / "vocab.json").read_text().splitlines()
    assert lines[0] == '{"fragments": [' and all(
        set(json.loads(line.rstrip(","))) == {"token", "atoms", "count"} for line in lines[1:-1]
    )
    code = """
import sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
print(tokenizer.decode(tokenizer("CC(=O)Oc1ccccc1C(=O)O")["input_ids"]))
"""
    done = run("-c", code, tmp_path / "saved", HF_HOME=str(tmp_path / "home"), PYTHONPATH="")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == tokenizer.decode(tokenizer("CC(=O)Oc1ccccc1C(=O)O")["input_ids"])


def test_data_loader_workers(tokenizer):
    smiles = shipped_smiles()[:12]
    loader = DataLoader(smiles, batch_size=4, num_workers=2, collate_fn=tokenizer.fragment_batch)
    assert [item for batch in loader for item in batch] == tokenizer.fragment_batch(smiles)
