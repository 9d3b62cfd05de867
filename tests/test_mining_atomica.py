import random

import pytest
from conftest import shipped_smiles
from rdkit import Chem

from atomica_hf import AtomicaTokenizer
from atomica_hf.structure_atomica import read_smiles
from atomica_hf.tokenization_atomica import BASE_TOKENS


@pytest.mark.parametrize("atom_order", ["canonical", "input"])
def test_equal_to_the_straightforward_algorithm(tokenizer_benchmark, atom_order):
    mined = AtomicaTokenizer(atom_order=atom_order).train_new_from_iterator(shipped_smiles(), len(BASE_TOKENS) + 80)
    expected = tokenizer_benchmark.straightforward_mining(shipped_smiles(), 80, atom_order)
    assert {f["token"]: f["count"] for f in mined.fragments if f["atoms"] > 1} == expected


@pytest.mark.slow
def test_the_shipped_vocabulary_is_what_the_miner_gives(shared, tokenizer):
    smiles = read_smiles(shared / "data/smiles/druglike_366k.smi.gz")
    mined = AtomicaTokenizer().train_new_from_iterator(random.Random(0).sample(smiles, 250_000), len(tokenizer), num_proc=2)
    assert mined.fragments == tokenizer.fragments


def test_mining_by_hand():
    """In C-C-O the pairs CC and CO are equally frequent: the alphabet decides, and one more C-O overrules it."""
    base = AtomicaTokenizer()
    assert base.train_new_from_iterator(["CCO", "CCO"], len(BASE_TOKENS) + 1).fragments[0] == {
        "token": "CC",
        "atoms": 2,
        "count": 2,
    }
    assert base.train_new_from_iterator(["CCO", "CCO", "CO"], len(BASE_TOKENS) + 1).fragments[0]["token"] == "CO"


@pytest.mark.parametrize("atom_order", ["canonical", "input"])
def test_mining_depends_neither_on_processes_nor_on_interruptions(tmp_path, atom_order):
    base, smiles, file = AtomicaTokenizer(atom_order=atom_order), shipped_smiles()[:60], tmp_path / "merges.json"
    mined = base.train_new_from_iterator(smiles, 200)
    assert len(mined) == 200
    assert base.train_new_from_iterator(smiles, 200, num_proc=3).fragments == mined.fragments
    assert base.train_new_from_iterator([smiles[:30], smiles[30:]], 200).fragments == mined.fragments
    first = base.train_new_from_iterator(smiles, 170, checkpoint_file=file)
    assert base.train_new_from_iterator(smiles, 200, checkpoint_file=file, num_proc=2).fragments == mined.fragments
    assert base.train_new_from_iterator(smiles, 170, checkpoint_file=file).fragments == first.fragments
    with pytest.raises(ValueError, match="other SMILES"):
        base.train_new_from_iterator(smiles[1:], 200, checkpoint_file=file)
    file.write_text("{}")
    with pytest.raises(ValueError, match="not a checkpoint"):
        base.train_new_from_iterator(smiles, 200, checkpoint_file=file)


def test_mining_depends_neither_on_order_nor_on_spelling():
    smiles, base = shipped_smiles()[:60], AtomicaTokenizer()
    spelled = [Chem.MolToSmiles(Chem.MolFromSmiles(s), doRandom=True) for s in reversed(smiles)]
    assert base.train_new_from_iterator(spelled, 190).fragments == base.train_new_from_iterator(smiles, 190).fragments


def test_mining_names_or_leaves_out_what_cannot_be_read():
    base, smiles = AtomicaTokenizer(), ["CCO", "CC*", "CCN", "c1ccccc"]
    for num_proc in (1, 2):
        with pytest.raises(ValueError, match=r"Atom 2 of 'CC\*'"):
            base.train_new_from_iterator(smiles, 152, num_proc=num_proc)
        rejected = []
        mined = base.train_new_from_iterator(smiles, 152, num_proc=num_proc, rejected=rejected)
        assert [text for text, _ in rejected] == ["CC*", "c1ccccc"]
        assert mined.fragments == base.train_new_from_iterator(["CCO", "CCN"], 152).fragments
    with pytest.raises(ValueError, match="`num_proc` is 0"):
        base.train_new_from_iterator(smiles, 152, num_proc=0)
