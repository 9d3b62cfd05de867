"""The numbers of ATOMICA. `tests/parity` holds three of the reference files, the rest is beside the repository."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from atomica_hf import AtomicaForPreTraining, AtomicaModel
from convert_original_checkpoint import convert_config, convert_state_dict, convert_tensors, original_batch_to_inputs


HERE = Path(__file__).parent / "parity"
PRETRAINING = ["dimers_pretrain", "dimers_gaussian", "pretrain_torsion_masking", "pretrain_gaussian",
               "pretrain_sizes_noglobal", "pretrain_sizes_atomglobal"]  # fmt: skip
EMBEDDING = ["dimers_embedding", "embedding", "embedding_single"]
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "atom_ids", "atom_to_block", "positions")


def load(name, request, dtype=torch.float64):
    folder = HERE if name.startswith("dimers") else request.getfixturevalue("shared") / "parity"
    groups = {"input": {}, "output": {}, "state_dict": {}, "grad": {}}
    for key, tensor in load_file(folder / f"{name}.safetensors").items():
        group, rest = key.split(".", 1)
        groups[group][rest] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return json.loads((folder / f"{name}.json").read_text())["config"], groups


def close(found, expected, tolerance=1e-6):
    return (found.double() - expected.double()).abs().max() <= tolerance * expected.abs().max().clamp_min(1e-30)


def flat_outputs(output, inputs):
    blocks, atoms = inputs["attention_mask"].bool(), inputs["atom_to_block"] >= 0
    return {
        "unit_repr": output.atom_hidden_state[atoms],
        "block_repr": output.last_hidden_state[blocks],
        "graph_repr": output.pooler_output,
    }


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_gives_the_same_numbers_and_gradients(name, request):
    original, groups = load(name, request)
    config, state_dict = convert_state_dict(groups["state_dict"], original)
    model = AtomicaForPreTraining(config).double()
    model.load_state_dict(state_dict)
    inputs = original_batch_to_inputs(groups["input"])
    output = model(**inputs)
    found = flat_outputs(output, inputs)
    found.update(
        loss=output.loss, atom_loss=output.atom_loss, tor_loss=output.torsion_loss, translation_loss=output.translation_loss,
        rotation_loss=output.rotation_loss, masked_loss=output.mask_loss, translation_base=output.translation_baseline,
        rotation_base=output.rotation_baseline,
    )  # fmt: skip
    if config.use_masking:
        found["pred_blocks"] = output.prediction_logits[inputs["labels"] >= 0].softmax(-1)
    compared = {key for key in found if found[key] is not None and key in groups["output"]}
    assert {"unit_repr", "block_repr", "graph_repr", "loss", "translation_loss", "rotation_loss"} <= compared
    for key in compared:
        assert close(found[key].detach(), groups["output"][key]), key

    output.loss.backward()
    expected = convert_tensors(groups["grad"], config)
    largest = max(gradient.abs().max() for gradient in expected.values())
    parameters = dict(model.named_parameters())
    assert len(expected) > 100
    for key, gradient in expected.items():
        assert (parameters[key].grad - gradient).abs().max() <= 1e-6 * largest, key


@pytest.mark.parametrize("name", EMBEDDING)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_embedding_gives_the_same_numbers(name, dtype, tolerance, request):
    original, groups = load(name, request)
    config, state_dict = convert_state_dict(groups["state_dict"], original)
    model = AtomicaModel(config).to(dtype)
    model.load_state_dict(state_dict)
    inputs = {key: value for key, value in original_batch_to_inputs(groups["input"]).items() if key in INPUTS}
    inputs["positions"] = inputs["positions"].to(dtype)
    output = model(**inputs, output_irreps=True)
    found = flat_outputs(output, inputs)
    if dtype == torch.float64:
        found["atom_irreps"] = output.atom_irreps[inputs["atom_to_block"] >= 0]
        found["block_irreps"] = output.block_irreps[inputs["attention_mask"].bool()]
    for key, value in found.items():
        assert close(value.detach(), groups["output"][key], tolerance), key


def test_names_and_shapes_that_do_not_fit_are_listed(request):
    original, groups = load("dimers_embedding", request)
    with pytest.raises(ValueError, match="strange.weight"):
        convert_state_dict({**groups["state_dict"], "strange.weight": torch.zeros(1)}, original)
    with pytest.raises(ValueError, match="'Else'.*DenoisePretrainModel"):
        convert_config({**original, "model_type": "Else"})
    with pytest.raises(ValueError, match="block_lengths.*expected"):
        original_batch_to_inputs({**groups["input"], "block_lengths": groups["input"]["block_lengths"] + 1})
