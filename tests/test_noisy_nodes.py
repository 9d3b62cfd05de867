import copy
import pickle

import numpy as np
import pytest
import torch
from conftest import VOCAB_SIZE, tiny_model

from atomica_hf import AtomicaCollator, AtomicaConfig, AtomicaForSequenceClassification, AtomicaForTokenClassification
from noisy_nodes import (
    DenoisingCollator,
    EpochOfNoise,
    NoisyExamples,
    attach_denoising_head,
    detach_denoising_head,
)


SIZES = {"hidden_size": 8, "atom_hidden_size": 8, "edge_size": 8, "num_hidden_layers": 2, "num_pooling_layers": 1}


@pytest.fixture
def labelled(examples):
    names = ("input_ids", "token_type_ids", "attention_mask", "atom_ids", "atom_to_block", "positions")
    return [{**{name: example[name] for name in names}, "labels": float(i)} for i, example in enumerate(examples)]


def make(cls=AtomicaForSequenceClassification, seed=0):
    torch.manual_seed(seed)
    return cls(AtomicaConfig(vocab_size=VOCAB_SIZE, num_labels=1, problem_type="regression", **SIZES))


def test_noise_depends_on_seed_epoch_and_index_only(labelled):
    noisy, same, other = (NoisyExamples(labelled, 0.1, seed) for seed in (0, 0, 1))
    assert np.array_equal(noisy[1]["positions"], same[1]["positions"])
    assert not np.allclose(noisy[1]["positions"], other[1]["positions"])
    twice = [NoisyExamples([labelled[1]] * 2, 0.1, 0)[i]["positions"] for i in (0, 1)]
    assert not np.allclose(*twice)
    before = noisy[1]["positions"]
    state = type("State", (), {"epoch": 2.9999999})()
    EpochOfNoise(noisy).on_epoch_begin(None, state, None)
    assert int(noisy.epoch) == 3 and not np.allclose(noisy[1]["positions"], before)
    assert int(pickle.loads(pickle.dumps(noisy)).epoch) == 3  # as a worker gets it


def test_noise_has_its_sigma_and_global_atoms_stay_central(labelled):
    noisy = NoisyExamples(labelled * 200, 0.2, 0)
    moves = []
    for index in range(len(noisy)):
        example, clean = noisy[index], labelled[index % len(labelled)]
        move = example["positions"] - clean["positions"]
        assert np.allclose(move, -0.2 * example["atom_noise_labels"], atol=1e-6)
        is_global, segments = clean["atom_ids"] == 2, clean["token_type_ids"][clean["atom_to_block"]]
        for segment in np.unique(segments):
            atoms = (segments == segment) & ~is_global
            assert np.allclose(move[(segments == segment) & is_global], move[atoms].mean(0), atol=1e-6)
        moves.append(move[~is_global])
    moves = np.concatenate(moves)
    assert abs(moves.std() - 0.2) < 0.01 and np.abs(moves.mean(0)).max() < 0.01


def test_the_noise_loss_is_that_of_pretrainings_head(labelled):
    """The same weights in `AtomicaForPreTraining` give the same prediction; the loss by hand, padding aside."""
    model = attach_denoising_head(make()).eval()
    noisy = NoisyExamples(labelled, 0.1, 0)
    batch = DenoisingCollator()([noisy[i] for i in range(len(noisy))])
    pretraining = tiny_model(
        dtype=torch.float32, use_atom_noise=True, use_masking=False, use_torsion_noise=False, use_rotation_noise=False,
        use_translation_noise=False, **SIZES,
    )  # fmt: skip
    pretraining.atomica.load_state_dict(model.atomica.state_dict())
    pretraining.atom_noise_head.load_state_dict(model.atom_noise_head.state_dict())
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "atom_noise_labels")}
    with torch.no_grad():
        output, prediction = model(**batch), pretraining(**inputs).atom_prediction
    error = (prediction - batch["atom_noise_labels"]).pow(2).sum(-1)
    atoms = [len(example["atom_ids"]) for example in labelled]
    expected = np.mean([float(row[:count].mean()) for row, count in zip(error, atoms)])
    assert output["noise_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert 2 < output["noise_baseline"].item() < 4


@pytest.mark.parametrize("cls", [AtomicaForSequenceClassification, AtomicaForTokenClassification])
def test_without_noise_the_model_is_as_it_was(cls, labelled):
    model = make(cls).eval()
    batch = AtomicaCollator()([{k: v for k, v in example.items() if k != "labels"} for example in labelled])
    names, before = list(model.state_dict()), model(**batch).logits
    attach_denoising_head(model)
    output = model(**batch)
    assert torch.equal(output.logits, before) and "noise_loss" not in output
    assert any(name.startswith("atom_noise_head.") for name in model.state_dict())
    detach_denoising_head(model)
    assert type(model) is cls and list(model.state_dict()) == names and torch.equal(model(**batch).logits, before)
    assert detach_denoising_head(model) is model


def test_the_noise_is_learnt(labelled):
    """One puzzle again and again: the loss falls far under predicting nothing, and every parameter of the head learns."""
    model, noisy = attach_denoising_head(make()), NoisyExamples(labelled[:3], 0.3, 0)
    batch = DenoisingCollator()([noisy[i] for i in range(3)])
    start, losses = copy.deepcopy(model.atom_noise_head.state_dict()), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(120):
        output = model(**batch)
        losses.append(output["noise_loss"].item())
        output["noise_loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.6 * output["noise_baseline"].item(), (losses[-1], output["noise_baseline"])
    assert not any(torch.equal(value, start[name]) for name, value in model.atom_noise_head.state_dict().items())
