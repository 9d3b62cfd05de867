"""Half precision and `torch.compile` of the whole model."""

import pytest
import torch
from conftest import VOCAB_SIZE, tiny_config, tiny_model

from atomica_hf import (
    AtomicaConfig,
    AtomicaForPreTraining,
    AtomicaForSequenceClassification,
    AtomicaPreTrainingCollator,
)
from atomica_hf.configuration_atomica import POOLINGS
from atomica_hf.graph_atomica import batch_graph
from atomica_hf.processing_atomica import MODEL_INPUTS


EMBEDDINGS = ("last_hidden_state", "pooler_output", "atom_hidden_state")


@pytest.fixture(scope="module")
def batch(examples):
    return AtomicaPreTrainingCollator(max_blocks=256, seed=0)(examples)


def run(model, batch, autocast=None):
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        output = model(**batch)
    output.loss.backward()
    gradient = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
    return {name: value.detach().double() for name, value in output.items()}, gradient


# Twice the largest length of a difference of unit vectors, and the relative difference of the loss, that were measured
@pytest.mark.parametrize(
    "autocast, weights, embedding, loss",
    [
        (torch.bfloat16, torch.float32, 1.4e-2, 8e-4),
        (torch.float16, torch.float32, 1.7e-3, 6e-5),
        (None, torch.bfloat16, 2.6e-2, 1.6e-3),
        (None, torch.float16, 2.6e-3, 1.1e-4),
    ],
    ids=["autocast to bfloat16", "autocast to float16", "bfloat16 weights", "float16 weights"],
)
def test_half_precision_stays_near_double(batch, autocast, weights, embedding, loss):
    torch.manual_seed(0)
    model = AtomicaForPreTraining(AtomicaConfig(vocab_size=VOCAB_SIZE, num_hidden_layers=3)).eval()
    state = model.state_dict()
    found, gradient = run(model.to(weights), batch, autocast)
    reference = AtomicaForPreTraining(model.config).double().eval()
    reference.load_state_dict(state)
    expected, direction = run(reference, batch)
    for name in EMBEDDINGS:
        assert (found[name] - expected[name]).norm(dim=-1).max() < embedding, name
    assert (found["loss"] - expected["loss"]).abs() < loss * expected["loss"]
    assert (found["loss"] - expected["loss"]).abs() > 1e-7 * expected["loss"]  # it was computed in less than double precision
    assert torch.cosine_similarity(gradient, direction, dim=0) > 0.999


@pytest.mark.parametrize("weights", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_heads_in_half_precision_stay_near_double(pooling, weights, batch):
    torch.manual_seed(0)
    model = AtomicaForSequenceClassification(tiny_config(num_labels=1, pooling=pooling)).to(weights)
    given = {name: value for name, value in batch.items() if name in MODEL_INPUTS}
    given["labels"] = torch.zeros(len(batch["input_ids"]), 1)
    model(**given).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        found = model.eval()(**given).logits
        expected = model.double()(**given).logits
    assert (found - expected).abs().max() < 0.05 * expected.abs().max().clamp_min(0.1)


def test_compiles_as_one_graph_when_the_collator_found_the_neighbours(batch):
    model = tiny_model(hidden_size=4, atom_hidden_size=4, edge_size=4, num_hidden_layers=1, num_neighbors=4)
    given = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    given["graph"] = batch_graph(model.config, given)
    expected, direction = run(model, given)
    model.zero_grad()
    found, gradient = run(torch.compile(model, fullgraph=True, backend="aot_eager"), given)
    assert set(found) == set(expected)
    assert all((found[name] - expected[name]).abs().max() < 1e-12 for name in expected)
    assert (gradient - direction).abs().max() < 1e-12
