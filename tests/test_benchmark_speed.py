import pytest
import torch
from conftest import load_script, tiny_model

from atomica_hf import AtomicaPreTrainingCollator
from atomica_hf.geometry_atomica import to_channel_major


@pytest.fixture(scope="module")
def baseline():
    pytest.importorskip("e3nn", reason="e3nn is the baseline")
    with torch.jit.optimized_execution(False):  # e3nn's scripts would be compiled anew at every first call
        yield load_script("benchmarks/e3nn_baseline.py")


def watch(model):
    """Irreps of both encoders and of every layer, filled by the next forward pass."""
    found = {}
    for level in ("atom_encoder", "block_encoder"):
        for depth, layer in enumerate(getattr(model.atomica, level).layers, 1):
            layer.register_forward_hook(lambda *call, key=(level, depth): found.__setitem__(key, call[-1]))
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 4},
        {"num_hidden_layers": 1, "global_message_passing": False, "atom_global_message_passing": True,
         "direction_softening": 0.0, "block_long_range_cutoff": 20.0},
    ],
    ids=lambda changes: f"{changes['num_hidden_layers']} layers",
)  # fmt: skip
def test_baseline_gives_the_same_outputs_and_gradients(baseline, examples, changes):
    ours = tiny_model(hidden_size=4, atom_hidden_size=4, edge_size=4, num_neighbors=4, **changes)
    theirs = baseline.E3nnForPreTraining.from_atomica(ours)
    batch = AtomicaPreTrainingCollator()(examples)
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    irreps, expected_irreps = watch(ours), watch(theirs)
    found, expected = ours(**batch), theirs(**batch)

    assert set(found) == set(expected)
    for name in expected:
        assert (found[name] - expected[name]).abs().max() < 1e-8, name
    assert len(irreps) == 2 * changes["num_hidden_layers"] == len(expected_irreps)
    for key, value in irreps.items():
        layer = getattr(ours.atomica, key[0]).layers[key[1] - 1]
        assert (to_channel_major(value, layer.message.norm.irreps) - expected_irreps[key]).abs().max() < 1e-8, key

    found.loss.backward()
    expected.loss.backward()
    gradients = baseline.rename(ours, {name: parameter.grad for name, parameter in ours.named_parameters()})
    parameters = dict(theirs.named_parameters())
    assert set(gradients) == set(parameters)
    for name, parameter in parameters.items():
        assert (gradients[name] - parameter.grad).abs().max() < 1e-8, name
