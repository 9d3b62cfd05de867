"""Interaction energies as sums over pairs of atoms: `energy_atomica.py`, `elements_atomica.py`, and the head that has them."""

import numpy as np
import pytest
import torch
from conftest import random_rotation, tiny_config
from rdkit import Chem

from atomica_hf import AtomicaCollator, AtomicaForSequenceClassification, AtomicaProcessor
from atomica_hf.component_atomica import with_positions
from atomica_hf.configuration_atomica import ENERGY_UNITS
from atomica_hf.elements_atomica import element_descriptors, period_and_group
from atomica_hf.energy_atomica import COULOMB, ENERGY_TERMS, smooth_cutoff
from atomica_hf.graph_atomica import batch_graph
from atomica_hf.molecule_atomica import structure_from_mols
from atomica_hf.processing_atomica import pad_examples


SETTINGS = {"pooling": "pair_energy", "num_labels": 1, "use_atom_charges": True, "use_element_descriptors": True}
PAIRS = [("CC(=O)[O-]", "O"), ("c1ccccc1", "N"), ("[Na+]", "[Cl-]"), ("OCC", "O", "[Cl-]"), "CCO"]


@pytest.fixture(scope="module")
def all_atoms(tokenizer):
    return AtomicaProcessor(tokenizer, keep_hydrogens=True, return_charges=True)


@pytest.fixture(scope="module")
def pairs(all_atoms):
    return [all_atoms.encode(all_atoms.read(item)[0]) for item in PAIRS]


def energies(dtype=torch.float64, **changes):
    """A model whose constants differ from atom to atom."""
    torch.manual_seed(0)
    model = AtomicaForSequenceClassification(tiny_config(**{**SETTINGS, **changes}))
    for layer in (model.pair_energy.constants, model.pair_energy.vectors, model.pair_energy.tensors):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return model.to(dtype).eval()


def to_inputs(examples, dtype=torch.float64):
    names = [name for name in examples[0] if name.startswith(("input", "token", "atten", "atom_i", "atom_t", "atom_c", "posi"))]
    batch = pad_examples(examples, names)
    return {**batch, "positions": batch["positions"].to(dtype)}


def ions(all_atoms, distance, charges=(1, -1)):
    mols = [
        with_positions(Chem.MolFromSmiles(f"[{symbol}{charge:+d}]" if charge else f"[{symbol}]"), [[x, 0.0, 0.0]])
        for symbol, x, charge in (("Na", 0.0, charges[0]), ("Cl", distance, charges[1]))
    ]
    return to_inputs([all_atoms.encode(structure_from_mols(mols, "ions"))])


def test_it_is_the_sum_of_its_terms_and_of_what_its_blocks_add(pairs):
    output = energies()(**to_inputs(pairs))
    assert output.energy_terms.shape == (5, len(ENERGY_TERMS)) and output.logits.shape == (5, 1)
    assert torch.allclose(output.energy_terms.sum(1, keepdim=True), output.logits)
    assert torch.allclose(output.block_logits.sum(1), output.logits)
    assert not output.logits[4].any() and (output.logits[:4].abs() > 1e-3).all()  # a lone molecule has none
    electrostatics, induction, dispersion, exchange, transfer = output.energy_terms[:4].unbind(1)
    assert (induction < 0).all() and (dispersion < 0).all() and (exchange > 0).all() and (transfer < 0).all()


def test_turned_alone_or_with_partners_exchanged_it_is_the_same(pairs):
    model, inputs = energies(), to_inputs(pairs)
    with torch.no_grad():
        terms = model(**inputs).energy_terms
        turned = {**inputs, "positions": inputs["positions"] @ random_rotation(3).T + 2.0}
        assert (model(**turned).energy_terms - terms).abs().max() < 1e-9 * terms.abs().max()
        mirrored = model(**{**inputs, "positions": -inputs["positions"]}).energy_terms
        assert (mirrored - terms).abs().max() < 1e-9 * terms.abs().max()
        alone = torch.cat([model(**to_inputs([pair])).energy_terms for pair in pairs])
        assert (alone - terms).abs().max() < 1e-9 * terms.abs().max()
        swapped = dict(to_inputs(pairs[:3]))
        swapped["token_type_ids"] = torch.where(swapped["attention_mask"] == 1, 1 - swapped["token_type_ids"], 0)
        assert (model(**swapped).energy_terms - terms[:3]).abs().max() < 1e-9 * terms.abs().max()


@pytest.mark.parametrize("unit", ENERGY_UNITS)
def test_far_ions_attract_as_coulomb_says(unit, all_atoms):
    """With charges that are told, nothing that is learnt matters far away."""
    model = energies(energy_unit=unit, energy_cutoff=200.0, cross_segment_edges=False)
    with torch.no_grad():
        for distance in (40.0, 100.0):
            for charges in ((1, -1), (2, -1), (1, 0)):
                found = model(**ions(all_atoms, distance, charges)).logits.item()
                expected = COULOMB * charges[0] * charges[1] / distance * ENERGY_UNITS[unit]
                assert abs(found - expected) < 0.02 * COULOMB / distance * ENERGY_UNITS[unit]
    assert np.isclose(COULOMB * ENERGY_UNITS["eV"], 14.3996, rtol=1e-5)
    assert np.isclose(COULOMB * ENERGY_UNITS["hartree"], 0.529177, rtol=1e-5)


def test_it_ends_smoothly_at_the_cutoff(all_atoms):
    distances = torch.linspace(7.0, 11.0, 401, dtype=torch.float64, requires_grad=True)
    within = smooth_cutoff(distances, 10.0)
    (slope,) = torch.autograd.grad(within.sum(), distances)
    assert within[0] == 1 and within[-1] == 0 and (slope <= 1e-12).all() and (slope.diff().abs() < 0.05).all()
    model = energies(energy_cutoff=10.0)
    with torch.no_grad():
        near, far = (model(**ions(all_atoms, distance)).logits.item() for distance in (9.5, 10.01))
    assert near < -0.1 and far == 0


def test_where_a_charge_is_drawn_makes_no_difference(all_atoms):
    (pair,) = all_atoms.read(("CC(=O)[O-]", "O"))
    example = all_atoms.encode(pair)
    other, (place,) = dict(example), np.flatnonzero(example["atom_charges"])
    oxygens = np.flatnonzero(example["atom_ids"] == 10)  # that of the water is the last one
    other["atom_charges"] = np.zeros_like(example["atom_charges"])
    other["atom_charges"][oxygens[oxygens != place][0]] = -1
    model = energies()
    with torch.no_grad():
        first, second = (model(**to_inputs([e])).logits for e in (example, other))
        neutral = model(**to_inputs([{**example, "atom_charges": np.zeros_like(example["atom_charges"])}])).logits
    assert torch.equal(first, second) and abs(first - neutral) > 0.01


def test_partners_are_encoded_as_if_alone_without_edges_between_them(all_atoms, pairs):
    model, inputs = energies(cross_segment_edges=False, global_message_passing=True), to_inputs(pairs[:2])
    moved = {**inputs, "positions": inputs["positions"].clone()}
    second = inputs["token_type_ids"].gather(1, inputs["atom_to_block"].clamp_min(0)) == 1
    moved["positions"][second] += 3.0
    inside = (inputs["atom_to_block"] >= 0).unsqueeze(-1)
    with torch.no_grad():
        for cross, same in ((False, True), (True, False)):
            model.config.cross_segment_edges = cross
            before, after = (model.atomica(**x) for x in (inputs, moved))
            differs = (before.atom_hidden_state - after.atom_hidden_state) * inside
            assert (differs.abs().max() < 1e-10) == same
            assert ((before.last_hidden_state - after.last_hidden_state).abs().max() < 1e-10) == same


def test_the_collator_finds_the_pairs(pairs):
    model = energies(torch.float32)
    batch = AtomicaCollator(model.config)(pairs)
    without = AtomicaCollator()(pairs)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, model(**without).logits)
    assert batch["graph"]["interacting_atoms"].shape[0] == 2
    nearer = batch_graph(tiny_config(**SETTINGS, energy_cutoff=3.0), without)
    assert 0 < nearer["interacting_atoms"].shape[1] < batch["graph"]["interacting_atoms"].shape[1]
    with pytest.raises(ValueError, match="energy_cutoff is 3.0, expected 20.0"):
        model(**{**without, "graph": nearer})


def test_it_learns_energies_and_starts_small(pairs):
    torch.manual_seed(0)
    model = AtomicaForSequenceClassification(tiny_config(**SETTINGS, regression_loss="huber")).train()
    inputs, labels = to_inputs(pairs[:4], torch.float32), torch.tensor([-12.0, -1.5, -120.0, -9.0])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        output = model(**inputs, labels=labels)
        if output.loss < 0.01:
            break
        output.loss.backward()
        optimizer.step()
    assert output.loss < 0.01


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_labels": 2}, "'pair_energy' with 2 labels"),
        ({"num_labels": 1, "problem_type": "multi_label_classification"}, "expected one label of a regression"),
        ({"energy_unit": "cal"}, "`energy_unit` is 'cal', expected one of kcal/mol, kJ/mol, eV, hartree"),
        ({"energy_cutoff": 0.0}, "`energy_cutoff` is 0.0, expected a positive length"),
    ],
)
def test_what_cannot_be_an_energy_is_an_error(changes, words):
    with pytest.raises(ValueError, match=words):
        AtomicaForSequenceClassification(tiny_config(**{**SETTINGS, **changes}))


def test_charges_go_to_models_that_take_them(pairs):
    inputs = to_inputs(pairs)
    with pytest.raises(ValueError, match="`atom_charges` are needed; a processor with `return_charges` gives them"):
        energies()(**{name: value for name, value in inputs.items() if name != "atom_charges"})
    with pytest.raises(ValueError, match="`atom_charges` were given to a model without"):
        energies(use_atom_charges=False)(**inputs)


def test_elements_stand_where_they_are_in_the_periodic_table():
    known = {1: (1, 1), 2: (1, 18), 3: (2, 1), 5: (2, 13), 9: (2, 17), 26: (4, 8), 34: (4, 16), 52: (5, 16), 58: (6, 3),
             72: (6, 4), 86: (6, 18), 92: (7, 3), 118: (7, 18)}  # fmt: skip
    assert {number: period_and_group(number) for number in known} == known
    table = element_descriptors(121, 3)
    assert table.shape == (121, 21) and not table[:3].any() and (table[3:, :18].sum(1) == 1).all()
    assert table[3 + 8 - 1, -1] == pytest.approx(3.44 - 2.55) and table[3 + 2 - 1, -1] == 0
    torch.manual_seed(0)
    model = AtomicaForSequenceClassification(tiny_config(**SETTINGS))
    vectors = model.atomica.atom_embeddings(torch.arange(121))
    sulfur, selenium, tellurium, iron = (vectors[number + 2] for number in (16, 34, 52, 26))
    assert (selenium - tellurium).norm() < (selenium - iron).norm() and (sulfur - selenium).norm() > 0
