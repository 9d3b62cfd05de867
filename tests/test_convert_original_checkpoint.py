"""The numbers of ATOMICA. `tests/parity` holds three of the reference files, the rest is beside the repository."""

import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import run, tiny_config
from safetensors.torch import load_file, save_file

import atomica_hf
from atomica_hf import AtomicaForMaskedLM, AtomicaForPreTraining, AtomicaForSequenceClassification, AtomicaModel
from atomica_hf.tokenization_atomica import BASE_TOKENS
from convert_original_checkpoint import (
    convert_config,
    convert_state_dict,
    convert_tensors,
    original_batch_to_inputs,
    original_config,
    original_outputs,
    original_state_dict,
)
from convert_original_checkpoint import main as convert_main


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


@pytest.mark.parametrize("name", [*PRETRAINING, "regression"])
def test_single_precision_is_near(name, request):
    original, groups = load(name, request, torch.float32)
    config, state_dict = convert_state_dict(groups["state_dict"], original)
    model = getattr(atomica_hf, config.architectures[0])(config)
    model.load_state_dict(state_dict)
    found, expected = original_outputs(model, groups["input"]), load(name, request)[1]["output"]
    compared = [key for key in found if key in expected]
    assert {"loss"} < set(compared)
    for key in compared:
        assert close(found[key], expected[key], 1e-5), key


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


# Other kinds of models --------------------------------------------------------------------------------------------------

FEATURES = (5, 3)


def small(tensors, vocab_size=240):
    """The reference checkpoint with the first tokens only."""
    tensors = dict(tensors)
    for prefix in ("", "prot_model.", "cmplx_model."):
        name = f"{prefix}block_embedding.block_embedding.weight"
        if name in tensors:
            tensors[name] = tensors[name][:vocab_size]
    classes = vocab_size - 4
    for name in ("4.weight", "4.bias", "7.weight", "7.bias"):
        if f"masked_ffn.{name}" in tensors:
            tensor = tensors[f"masked_ffn.{name}"][:classes]
            tensors[f"masked_ffn.{name}"] = tensor[:, :classes] if name == "7.weight" else tensor
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}


def original_checkpoint(kind, request):
    """(ATOMICA's configuration, state dict in float32) of each of its models, with a hidden size of 8."""
    source = "dimers_pretrain" if kind.startswith(("Denoise", "Masked")) else "dimers_embedding"
    config, groups = load(source, request, torch.float32)
    kind, _, variant = kind.partition("-")
    config, weights = {**config, "model_type": kind}, small(groups["state_dict"])
    generator = torch.Generator().manual_seed(0)

    def perceptron(name, sizes, first=2, step=3):
        for i, (a, b) in enumerate(zip(sizes, sizes[1:])):
            weights[f"{name}.{first + step * i}.weight"] = torch.randn(b, a, generator=generator) / a**0.5
            weights[f"{name}.{first + step * i}.bias"] = torch.randn(b, generator=generator) / 3

    hidden = config["block_hidden_size"]
    if config.get("num_masked_block_classes"):
        config["num_masked_block_classes"] = 236
    if kind == "MaskedNodeModel":
        noise = ("denoise", "torsion", "tor_", "_tor.", "_scale_ffn")
        weights = {name: w for name, w in weights.items() if not any(word in name for word in noise)}
        config = {k: v for k, v in config.items() if not k.endswith(("_noise", "_weight")) and k != "modality_embedding"}
    if kind in ("AffinityPredictor", "DenoisePretrainModelWithBlockEmbedding"):
        config.update(num_projector_layers=3, projector_hidden_size=7, projector_dropout=0.1)
        sizes = {"": FEATURES[0]} if variant == "one" else {"0": FEATURES[0], "1": FEATURES[1]} if variant == "two" else {}
        config.update({f"block_embedding{i}_size": sizes.get(i) for i in ("", "0", "1")})
        for when in ("pre", "post") if kind == "AffinityPredictor" else ("pre",):
            for number, size in sizes.items():
                perceptron(f"{when}_projector{number}", (size, 7, 7, hidden))
                perceptron(f"{when}_mixing_ffn{number}", (2 * hidden,) * 3 + (hidden,))
    if kind == "AffinityPredictor":
        config.update(nonlinearity="relu", num_affinity_pred_layers=4, affinity_pred_dropout=0.2, affinity_pred_hidden_size=6)
        perceptron("energy_ffn", (hidden, 6, 6, 6, 1))
    if kind == "RegressionPredictor":
        perceptron("energy_ffn", (hidden, hidden, hidden, 1))
    if kind == "ClassifierModel":
        config.update(nonlinearity="gelu", num_pred_layers=2, pred_dropout=0.1, pred_hidden_size=5)
        perceptron("classifier_ffn", (hidden, 5, 1))
    if kind == "MultiClassClassifierModel":
        config["num_classes"] = 3
        perceptron("classifier_ffn", (hidden, hidden, hidden, hidden // 2, 3), first=1, step=2)
    if kind == "ProteinInterfaceModel":
        inner = {**config, "model_type": "PredictionModel"}
        config = {"model_type": kind, "prot_model": inner}
        twin = {f"cmplx_model.{n}": w + 0.01 * (w.ndim == 2) for n, w in weights.items() if not n.endswith("offset")}
        twin.update({f"cmplx_model.{n}": w for n, w in weights.items() if n.endswith("offset")})
        weights = {**{f"prot_model.{n}": w for n, w in weights.items()}, **twin}
        perceptron("prot_ffn", (hidden,) * 4, first=1, step=2)
        perceptron("cmplx_ffn", (hidden,) * 4, first=1, step=2)
    if variant == "far":
        config.update(top_max_edge_length=5, top_long_range_edge_length=24.0)
        far = "top_encoder.encoder.edge_embedder_lr"
        weights[f"{far}.0.offset"] = torch.linspace(5, 24, 8)
        perceptron(far, (8, 8, 8), first=1)
        weights["top_encoder.encoder.lr_gate"] = torch.tensor(0.7)
    return config, weights


KINDS = [
    "DenoisePretrainModel", "DenoisePretrainModel-far", "DenoisePretrainModelWithBlockEmbedding-one",
    "DenoisePretrainModelWithBlockEmbedding-two", "PredictionModel", "MaskedNodeModel", "MaskedNodeModel-far",
    "ClassifierModel", "MultiClassClassifierModel", "RegressionPredictor", "AffinityPredictor", "AffinityPredictor-one",
    "AffinityPredictor-two", "ProteinInterfaceModel",
]  # fmt: skip


def converted(kind, request, dtype=torch.float64):
    config, weights = original_checkpoint(kind, request)
    ours, state_dict = convert_state_dict(weights, config)
    model = getattr(atomica_hf, ours.architectures[0])(ours).to(dtype).eval()
    model.load_state_dict(state_dict)
    return model, config, {name: w.double() for name, w in weights.items()}


def batch_of(request, vocab_size=240):
    """ATOMICA's flat batch of the reference, with tokens of the small vocabulary, and features of another model."""
    batch = dict(load("dimers_embedding", request)[1]["input"])
    batch["B"] = torch.where(batch["B"] < vocab_size, batch["B"], 150)
    return batch


def plain_inputs(batch):
    return {name: value for name, value in original_batch_to_inputs(batch).items() if name in (*INPUTS, "block_features")}


def original_perceptron(weights, name, activation=torch.nn.ReLU, first=2, step=3):
    """The layers as ATOMICA builds them, with its weights."""
    layers = []
    for i in range(10):
        if f"{name}.{first + step * i}.weight" in weights:
            shape = weights[f"{name}.{first + step * i}.weight"].shape
            between = [torch.nn.Dropout(0.3)] if step == 3 else []
            layers += [activation(), *between, torch.nn.Linear(shape[1], shape[0])]
    perceptron = torch.nn.Sequential(*layers).double().eval()
    start = len(f"{name}.")
    perceptron.load_state_dict({key[start:]: w for key, w in weights.items() if key.startswith(f"{name}.")}, strict=True)
    return perceptron


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_bit_identical(kind, request, tmp_path):
    config, weights = original_checkpoint(kind, request)
    ours, state_dict = convert_state_dict(weights, config)
    model = getattr(atomica_hf, ours.architectures[0])(ours)
    model.load_state_dict(state_dict)
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path)
    assert original_config(model.config) == config
    back = original_state_dict(model.state_dict(), model.config)
    assert set(back) == set(weights)
    for name, tensor in weights.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape and torch.equal(back[name], tensor), name


@pytest.mark.parametrize("name", [*PRETRAINING, *EMBEDDING, "regression"])
def test_reference_checkpoints_come_back_bit_identical(name, request):
    original, groups = load(name, request, torch.float32)
    config, state_dict = convert_state_dict(groups["state_dict"], original)
    back = original_state_dict(state_dict, config)
    assert set(back) == set(groups["state_dict"]) and original_config(config) == original
    assert all(torch.equal(back[key], tensor) for key, tensor in groups["state_dict"].items())


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_regression_gives_the_same_numbers(dtype, tolerance, request):
    original, groups = load("regression", request, dtype)
    config, state_dict = convert_state_dict(groups["state_dict"], original)
    model = AtomicaForSequenceClassification(config).to(dtype).eval()
    model.load_state_dict(state_dict)
    output = model(**plain_inputs(groups["input"]), labels=groups["input"]["label"])
    assert close(output.logits.squeeze(-1).detach(), groups["output"]["prediction"], tolerance)
    assert close(output.loss.detach(), groups["output"]["loss"], tolerance)


@pytest.mark.parametrize("name", EMBEDDING)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_invariants_of_all_channels_give_the_same_numbers(name, dtype, tolerance, request):
    original, groups = load(name, request, dtype)
    config, state_dict = convert_state_dict(groups["state_dict"], original)
    model = AtomicaModel(config).to(dtype).eval()
    model.load_state_dict(state_dict)
    inputs = plain_inputs(groups["input"])
    for pooling in ("mean_std_global", "mean_component_normalized"):
        found = model.get_representations(["z_atom", "z_block", "z_graph"], pooling=pooling, **inputs)
        assert close(found["z_atom"][inputs["atom_to_block"] >= 0].detach(), groups["output"]["z_atom"], tolerance)
        assert close(found["z_block"][inputs["attention_mask"].bool()].detach(), groups["output"]["z_block"], tolerance)
        assert close(found["z_graph"].detach(), groups["output"][f"z_graph_{pooling}"], tolerance)
        widths = model.representation_widths(pooling)
        assert all(found[key].shape[-1] == widths[key] for key in found)


def test_heads_on_the_vector_of_a_complex(request):
    inputs = plain_inputs(batch_of(request))
    for kind, first, step, activation in (
        ("RegressionPredictor", 2, 3, torch.nn.ReLU),
        ("ClassifierModel", 2, 3, torch.nn.GELU),
        ("MultiClassClassifierModel", 1, 2, torch.nn.ReLU),
    ):
        model, _, weights = converted(kind, request)
        output = model(**inputs)
        head = original_perceptron(
            weights, "energy_ffn" if kind == "RegressionPredictor" else "classifier_ffn", activation, first, step
        )
        assert close(output.logits.detach(), head(output.pooler_output).detach(), 1e-12), kind


@pytest.mark.parametrize("kind", ["AffinityPredictor", "AffinityPredictor-one", "AffinityPredictor-two"])
@pytest.mark.parametrize("global_message_passing", [True, False])
def test_affinity_is_the_sum_over_blocks(kind, global_message_passing, request):
    config, weights = original_checkpoint(kind, request)
    config["global_message_passing"] = global_message_passing
    ours, state_dict = convert_state_dict(weights, config)
    model = AtomicaForSequenceClassification(ours).double().eval()
    model.load_state_dict(state_dict)
    weights = {name: w.double() for name, w in weights.items()}
    batch = batch_of(request)
    generator = torch.Generator().manual_seed(1)
    # one vector per token, so that mixing before the encoder is another table of block embeddings
    tables = [torch.randn(240, size, generator=generator, dtype=torch.float64) for size in FEATURES]
    sizes, segments = ours.block_feature_sizes, batch["segment_ids"]
    if len(sizes) == 1:
        batch["block_embeddings"] = tables[0][batch["B"]]
    if len(sizes) == 2:
        batch.update({f"block_embeddings{i}": tables[i][batch["B"][segments == i]] for i in (0, 1)})
    inputs = plain_inputs(batch)
    output = model(**inputs)

    # a plain encoder with 480 tokens: 0-239 as segment 0 sees them, 240-479 as segment 1
    embeddings = weights["block_embedding.block_embedding.weight"]
    rows = [embeddings, embeddings]
    for segment in range(2 if sizes else 0):
        number = "" if len(sizes) == 1 else segment
        table = tables[0 if len(sizes) == 1 else segment]
        projected = original_perceptron(weights, f"pre_projector{number}")(table)
        rows[segment] = original_perceptron(weights, f"pre_mixing_ffn{number}")(torch.cat([embeddings, projected], dim=1))
    plain = {n: w for n, w in weights.items() if not n.startswith(("pre_", "post_", "energy_ffn"))}
    base, state_dict = convert_state_dict(
        {**plain, "block_embedding.block_embedding.weight": torch.cat(rows)},
        {k: config[k] for k in ("atom_hidden_size", "block_hidden_size", "edge_size", "n_layers", "k_neighbors",
                                "global_message_passing", "bottom_global_message_passing")} | {"model_type": "PredictionModel"},
    )  # fmt: skip
    encoder = AtomicaModel(base).double().eval()
    with torch.no_grad():
        encoder.load_state_dict(state_dict)
        shifted = inputs["input_ids"] + 240 * (inputs["token_type_ids"] == 1) * (inputs["input_ids"] > 3)
        # a global block keeps its token, which the graph knows it by: give segment 1 its own through the table of segment 0
        same_globals = torch.equal(rows[0][3], rows[1][3])
        h_block = encoder(**{**inputs, "input_ids": shifted, "block_features": None}).last_hidden_state
        after = []
        for i in range(len(sizes)):
            number = i if len(sizes) == 2 else ""
            projected = original_perceptron(weights, f"post_projector{number}")(tables[i][inputs["input_ids"]])
            after.append(original_perceptron(weights, f"post_mixing_ffn{number}")(torch.cat([h_block, projected], dim=-1)))
        if sizes:
            h_block = torch.where((inputs["token_type_ids"] == 0)[..., None], after[0], after[-1])
        energies = original_perceptron(weights, "energy_ffn")(h_block)[..., 0] * inputs["attention_mask"]
        if not global_message_passing:
            energies = energies * (inputs["input_ids"] != 3)
    if same_globals or not global_message_passing:
        assert close(output.logits.squeeze(-1).detach(), energies.sum(1), 1e-10)
    assert close(output.block_logits.sum((1, 2)).detach(), output.logits.squeeze(-1).detach(), 1e-10)


def test_pretraining_with_block_features(request):
    model, _, weights = converted("DenoisePretrainModelWithBlockEmbedding-one", request)
    batch = batch_of(request)
    batch["block_embeddings"] = torch.randn(len(batch["B"]), FEATURES[0], dtype=torch.float64)
    inputs = plain_inputs(batch)
    output = model(**inputs)
    other = model(**{**inputs, "block_features": inputs["block_features"] * 2})
    assert not torch.allclose(output.last_hidden_state, other.last_hidden_state)
    assert torch.allclose(output.atom_hidden_state, other.atom_hidden_state)  # blocks hear of them, atoms do not
    with pytest.raises(ValueError, match="block_features.*needed"):
        model(**{**inputs, "block_features": None})


def test_the_second_distance_perceptron(request):
    model, _, weights = converted("MaskedNodeModel-far", request)
    distances = torch.linspace(0.5, 40, 60, dtype=torch.float64)
    centres = torch.linspace(5, 24, 8, dtype=torch.float64)
    basis = torch.exp(-0.5 * ((distances[:, None] - centres) / (centres[1] - centres[0])) ** 2)
    far = "top_encoder.encoder.edge_embedder_lr"
    inner = torch.relu(basis @ weights[f"{far}.1.weight"].T + weights[f"{far}.1.bias"])
    expected = 0.7 * (inner @ weights[f"{far}.4.weight"].T + weights[f"{far}.4.bias"])
    encoder = model.base_model.block_encoder
    assert torch.allclose(encoder.long_range_embedding(distances), expected, atol=1e-6)
    inputs = plain_inputs(batch_of(request))
    with torch.no_grad():
        changed = model(**inputs).logits
        encoder.long_range_embedding.reset_parameters()
        fresh = model(**inputs).logits
        encoder.long_range_embedding = None
        assert torch.equal(fresh, model(**inputs).logits) and not torch.allclose(changed, fresh)


def test_hidden_blocks_are_named_as_in_pretraining(request):
    _, groups = load("dimers_pretrain", request)
    original = {**load("dimers_pretrain", request)[0], "model_type": "MaskedNodeModel"}
    for key in [k for k in original if k.endswith(("_noise", "_weight"))]:
        del original[key]
    words = ("denoise", "torsion", "tor_", "_tor.", "_scale_ffn")
    weights = {n: w for n, w in groups["state_dict"].items() if not any(word in n for word in words)}
    config, state_dict = convert_state_dict(weights, original)
    model = AtomicaForMaskedLM(config).double().eval()
    model.load_state_dict(state_dict)
    inputs = original_batch_to_inputs(groups["input"])
    labels = inputs["labels"]
    output = model(**{key: value for key, value in inputs.items() if key in (*INPUTS, "labels")})
    assert output.logits.shape == (*labels.shape, 440)
    probabilities = output.logits[labels >= 0].softmax(-1).detach()
    assert (probabilities[:, :4] == 0).all() and close(probabilities[:, 4:], groups["output"]["pred_blocks"])
    assert close(output.loss.detach(), groups["output"]["masked_loss"])


def test_interfaces_are_contrasted_by_the_published_formula(request):
    model, _, weights = converted("ProteinInterfaceModel", request)
    inputs = plain_inputs(batch_of(request))
    first = inputs["token_type_ids"] == 0
    width, atoms = int(first.sum(1).max()), inputs["atom_to_block"]
    of_first = (atoms >= 0) & (inputs["token_type_ids"].gather(1, atoms.clamp_min(0)) == 0)
    side = {
        "input_ids": (inputs["input_ids"] * first)[:, :width],
        "attention_mask": (inputs["attention_mask"] * first)[:, :width],
        "token_type_ids": inputs["token_type_ids"][:, :width] * 0,
        "atom_ids": inputs["atom_ids"] * of_first,
        "atom_to_block": torch.where(of_first, atoms, -1),
        "positions": inputs["positions"],
    }
    output = model(**side, **{f"complex_{name}": value for name, value in inputs.items()})
    vectors = []
    for name, base, batch in (("prot", model.atomica, side), ("cmplx", model.complex_atomica, inputs)):
        h_graph = base(**batch).pooler_output
        vectors.append(F.normalize(original_perceptron(weights, f"{name}_ffn", first=1, step=2)(h_graph), dim=-1))
    a, b = vectors
    assert close(output.side_embeds.detach(), a.detach(), 1e-12) and close(output.complex_embeds.detach(), b.detach(), 1e-12)

    def direction(a, b):
        ab, aa, off = (a @ b.T / 0.5).exp(), (a @ a.T / 0.5).exp(), ~torch.eye(len(a), dtype=torch.bool)
        return -(ab.diagonal() / ((aa * off).sum(1) + ab.sum(1))).log()

    assert close(output.loss.detach(), torch.cat([direction(a, b), direction(b, a)]).mean().detach(), 1e-12)
    output.loss.backward()
    assert all(p.grad is None for p in model.complex_atomica.parameters())
    assert model.atomica.block_embeddings.weight.grad.abs().sum() > 0
    alone = model(**{name: value[:1] for name, value in side.items()})
    assert alone.loss is None and alone.complex_embeds is None


def test_without_attention_to_padding_batches_do_not_matter(request):
    original, groups = load("dimers_embedding", request)
    config, state_dict = convert_state_dict(groups["state_dict"], original)
    inputs = plain_inputs(groups["input"])
    for attend, same in ((True, False), (False, True)):
        config.attend_to_padding = attend
        model = AtomicaModel(config).double().eval()
        model.load_state_dict(state_dict)
        names, arguments = ("z_block", "z_graph", "h_graph", "h_interface"), {"pooling": "mean_std_global", "segment": 1}
        batch = model.get_representations(names, **arguments, **inputs)
        worst = 0.0
        for i in range(len(inputs["input_ids"])):
            blocks, atoms = int(inputs["attention_mask"][i].sum()), int((inputs["atom_to_block"][i] >= 0).sum())
            lengths = {"input_ids": blocks, "attention_mask": blocks, "token_type_ids": blocks}
            single = {name: value[i : i + 1, : lengths.get(name, atoms)] for name, value in inputs.items()}
            alone = model.get_representations(names, **arguments, **single)
            for name in names:
                got = batch[name][i, :blocks] if name == "z_block" else batch[name][i]
                worst = max(worst, float((got - alone[name][0]).abs().max().detach()))
        assert (worst < 1e-9) == same, worst


# The command line, and bad input ----------------------------------------------------------------------------------------


@pytest.fixture
def files(request, tmp_path, tokenizer):
    """ATOMICA's files of a small checkpoint, with the repository's vocabulary."""
    lines = ['{"kekulize": false}', *("\t".join(map(str, f.values())) for f in tokenizer.fragments[: 240 - len(BASE_TOKENS)])]
    (tmp_path / "vocabulary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def write(kind, weights=None, **changes):
        config, tensors = original_checkpoint(kind, request)
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
        torch.save(tensors if weights is None else weights(tensors), tmp_path / "weights.pt")
        return ("--config", tmp_path / "config.json", "--weights", tmp_path / "weights.pt",
                "--fragment_vocabulary", tmp_path / "vocabulary.txt", "--output_dir", tmp_path / "model")  # fmt: skip

    return write


def error_of(*command):
    with pytest.raises((ValueError, OSError)) as caught:
        convert_main([str(part) for part in command])
    return str(caught.value)


def test_the_command_makes_a_folder_that_opens_anywhere_and_goes_back(files, tmp_path, request):
    done = run("convert_original_checkpoint.py", *files("AffinityPredictor"))
    assert done.returncode == 0, done.stderr
    code = """
import sys
from transformers import AutoModel, AutoModelForSequenceClassification, AutoProcessor
folder = sys.argv[1]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert processor.as_published and processor.tokenizer.atom_order == "input"
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
batch = processor([("CCO", "c1ccccc1O"), "CC(=O)N"], return_tensors="pt")
print(model(**batch).logits.shape, AutoModel.from_pretrained(folder, trust_remote_code=True)(**batch).pooler_output.shape)
"""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model").rename(tmp_path / "elsewhere" / "m")
    opened = run("-c", code, tmp_path / "elsewhere" / "m", HF_HOME=str(tmp_path / "cache"), PYTHONPATH="")
    assert opened.returncode == 0, opened.stderr[-2000:]
    assert "[2, 1]) torch.Size([2, 8])" in opened.stdout
    card = (tmp_path / "elsewhere" / "m" / "README.md").read_text()
    assert "mims-harvard/ATOMICA" in card and "licence" in card and "AffinityPredictor" in card

    back = run("convert_original_checkpoint.py", "--reverse", tmp_path / "elsewhere" / "m", "--output_dir", tmp_path / "back")
    assert back.returncode == 0, back.stderr
    config, weights = original_checkpoint("AffinityPredictor", request)
    assert json.loads((tmp_path / "back/model_config.json").read_text()) == config
    found = torch.load(tmp_path / "back/model_weights.pt", weights_only=True)
    assert set(found) == set(weights) and all(torch.equal(found[name], weights[name]) for name in weights)
    assert (tmp_path / "back/fragment_vocabulary.txt").read_text() == (tmp_path / "vocabulary.txt").read_text()


def test_check_reports_differences(request, tmp_path, capsys):
    original = {**load("dimers_embedding", request)[0]}
    shared = request.getfixturevalue("shared")
    (tmp_path / "config.json").write_text(json.dumps(original))
    command = ["--config", tmp_path / "config.json", "--weights", HERE / "dimers_embedding.safetensors",
               "--fragment_vocabulary", shared / "data/original/ps_vocab_300.txt"]  # fmt: skip
    check = ["--check", HERE / "dimers_embedding.safetensors"]
    convert_main([str(part) for part in (*command, *check, "--output_dir", tmp_path / "model")])
    text = capsys.readouterr().out
    assert "z_graph_mean_std_global" in text and "Largest relative difference" in text
    worse = load_file(HERE / "dimers_embedding.safetensors")
    worse["output.block_repr"] = worse["output.block_repr"] + 0.01
    save_file(worse, tmp_path / "worse.safetensors")
    message = error_of(*command, "--check", tmp_path / "worse.safetensors", "--output_dir", tmp_path / "other")
    assert "--tolerance" in message and not (tmp_path / "other").exists()


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickled_objects_are_refused_and_nothing_runs(files, tmp_path):
    command = files("PredictionModel")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "weights.pt")
    message = error_of(*command)
    assert "torch.nn.modules.linear.Linear" in message and "state dict" in message
    torch.save({"a": Malicious(tmp_path / "ran")}, tmp_path / "weights.pt")
    assert "runs whatever code" in error_of(*command)
    with open(tmp_path / "weights.pt", "wb") as stream:
        pickle.dump(Malicious(tmp_path / "ran"), stream)
    error_of(*command)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "model").exists()


def test_damaged_and_other_files_are_named(files, tmp_path):
    command = files("PredictionModel")
    whole = (tmp_path / "weights.pt").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"hello", whole[:10]):
        (tmp_path / "weights.pt").write_bytes(content)
        assert "weights.pt: not a file of weights" in error_of(*command)
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "weights.pt")
    assert "epoch, state_dict" in error_of(*command)
    (tmp_path / "weights.pt").write_bytes(whole)
    (tmp_path / "config.json").write_text("{")
    assert "config.json: not JSON" in error_of(*command)
    (tmp_path / "vocabulary.txt").write_text('{"kekulize": false}\n')
    command = files("PredictionModel")
    assert "block tokens" in error_of(*command[:4], "--output_dir", tmp_path / "model")
    assert "--config and --weights" in error_of("--output_dir", tmp_path / "model")


def test_weights_that_do_not_fit_are_listed(files, tmp_path):
    def lacking(weights):
        del weights["attention_pooling.graph_repr_fc.bias"]
        return {**weights, "strange.weight": torch.zeros(1)}

    message = error_of(*files("PredictionModel", lacking))
    assert "missing: attention_pooling.graph_repr_fc.bias" in message and "unknown: strange.weight" in message
    message = error_of(*files("PredictionModel", edge_size=16))
    assert "edge_embedding_top.weight (4, 8), expected (4, 16)" in message
    assert "missing: encoder.encoder.layers.4" in error_of(*files("PredictionModel", n_layers=5))
    assert "Gaussians from 0 to 5" in error_of(*files("MaskedNodeModel", top_max_edge_length=12.0))
    message = error_of(*files("MaskedNodeModel", masked_affine=True, top_pair_geom=False))
    assert "masked_affine=True" in message and "pair_geom" not in message
    assert "num_masked_block_classes" in error_of(*files("MaskedNodeModel", num_masked_block_classes=436))
    assert "'Else'" in error_of(*files("PredictionModel", model_type="Else"))
    assert "--nonlinearity" in error_of(*files("ClassifierModel", nonlinearity=None))
    convert_main([str(part) for part in (*files("ClassifierModel", nonlinearity=None), "--nonlinearity", "gelu")])
    assert json.loads((tmp_path / "model/config.json").read_text())["classifier_activation"] == "gelu"
    assert "exists already" in error_of(*files("ClassifierModel", nonlinearity="gelu"))


def test_models_that_atomica_does_not_have_cannot_go_back(tmp_path, tokenizer):
    for changes, architecture, words in (
        ({}, "AtomicaForTokenClassification", "no model like"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "AtomicaForSequenceClassification", "3 labels"),
        ({"num_labels": 1, "num_pooling_layers": 2}, "AtomicaForSequenceClassification", "num_pooling_layers"),
    ):
        folder = tmp_path / architecture / str(len(changes))
        getattr(atomica_hf, architecture)(tiny_config(**changes)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        assert words in error_of("--reverse", folder, "--output_dir", tmp_path / "back")
    assert "no Atomica model" in error_of("--reverse", tmp_path / "nowhere", "--output_dir", tmp_path / "back")


def test_a_model_trained_here_goes_there(tmp_path, tokenizer, capsys):
    folder = tmp_path / "ours"
    model = atomica_hf.AtomicaForPreTraining(tiny_config(num_hidden_layers=2))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    convert_main(["--reverse", str(folder), "--output_dir", str(tmp_path / "back")])
    assert "attend_to_padding=False" in capsys.readouterr().err
    config = json.loads((tmp_path / "back/model_config.json").read_text())
    weights = torch.load(tmp_path / "back/model_weights.pt", weights_only=True)
    assert config["model_type"] == "DenoisePretrainModel" and config["num_masked_block_classes"] == len(tokenizer) - 4
    ours, state_dict = convert_state_dict(weights, config)
    assert all(torch.equal(state_dict[name], tensor) for name, tensor in model.state_dict().items())
    assert ours.attend_to_padding and ours.direction_softening == 0


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"n_layers": "4"}, "`n_layers` is '4', expected a whole number"),
        ({"n_layers": 4.0}, "`n_layers` is 4.0"),
        ({"k_neighbors": 8.5}, "`k_neighbors` is 8.5"),
        ({"k_neighbors": None}, "no k_neighbors"),
        ({"global_message_passing": "false"}, "`global_message_passing` is 'false', expected true or false"),
        ({"dropout": "x"}, "`dropout` is 'x', expected a number"),
        ({"block_hidden_size": {}}, "`block_hidden_size` is {}"),
        ({"model_type": []}, "`model_type` is []"),
    ],
)
def test_values_of_a_wrong_kind_are_named(changes, words, files):
    assert words in error_of(*files("PredictionModel", **changes))


def test_constants_of_e3nn_are_compared(files, tmp_path):
    def flipped(weights):
        return {name: -w if "layers.1.tp." in name and name.endswith("w3j_1_1_1") else w for name, w in weights.items()}

    message = error_of(*files("PredictionModel", flipped))
    assert "constants of other values: encoder.encoder.layers.1.tp" in message


def test_half_precision_comes_as_it_is_and_mixed_is_widened(files, tmp_path):
    for dtype in (torch.float16, torch.bfloat16):
        command = files("PredictionModel", lambda weights, dtype=dtype: {n: w.to(dtype) for n, w in weights.items()})
        convert_main([str(x) for x in command])
        assert AtomicaModel.from_pretrained(tmp_path / "model", dtype="auto").dtype == dtype
        (tmp_path / "model").rename(tmp_path / str(dtype))
    half = "block_embedding.block_embedding.weight"
    convert_main([str(x) for x in files("PredictionModel", lambda weights: {**weights, half: weights[half].half()})])
    assert AtomicaModel.from_pretrained(tmp_path / "model", dtype="auto").dtype == torch.float32


def test_check_notices_what_is_not_a_number_and_files_of_other_kinds(request, tmp_path):
    shared = request.getfixturevalue("shared")
    (tmp_path / "config.json").write_text(json.dumps(load("dimers_embedding", request)[0]))
    command = ["--config", tmp_path / "config.json", "--weights", HERE / "dimers_embedding.safetensors",
               "--fragment_vocabulary", shared / "data/original/ps_vocab_300.txt",
               "--output_dir", tmp_path / "model"]  # fmt: skip
    tensors = load_file(HERE / "dimers_embedding.safetensors")
    nan = tensors["output.block_repr"].clone()
    nan[3] = torch.nan
    wrong = {
        "--tolerance": {"output.block_repr": nan},
        "input.B must be": {"input.B": tensors["input.B"] + 1000},
        "input.X has shape": {"input.X": tensors["input.X"][:5]},
        "its input cannot be used": {"input.segment_ids": tensors["input.segment_ids"][:5]},
    }
    for words, changes in wrong.items():
        save_file({**tensors, **changes}, tmp_path / "wrong.safetensors")
        message = error_of(*command, "--check", tmp_path / "wrong.safetensors")
        assert words in message and "wrong.safetensors" in message and not (tmp_path / "model").exists()
    for text in ("[1]", '"x"', "null", '{"input": [1], "output": {}}', '{"input": {"X": "text"}, "output": {"a": 1}}'):
        (tmp_path / "wrong.json").write_text(text)
        assert "wrong.json" in error_of(*command, "--check", tmp_path / "wrong.json")


def test_what_reverse_cannot_say_is_an_error(tmp_path, tokenizer):
    def folder(name, architecture, with_tokenizer=True, **changes):
        model = getattr(atomica_hf, architecture)(tiny_config(**changes))
        model.save_pretrained(tmp_path / name)
        if with_tokenizer:
            tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    back = ("--output_dir", tmp_path / "back")
    sequence = "AtomicaForSequenceClassification"
    assert "the tokenizer beside it" in error_of("--reverse", folder("a", "AtomicaModel", False), *back)
    assert "num_modalities" in error_of("--reverse", folder("b", "AtomicaModel", num_modalities=8), *back)
    assert "takes none" in error_of("--reverse", folder("c", "AtomicaForMaskedLM", block_feature_size=5), *back)
    different = {"num_labels": 1, "pooling": "block_sum", "block_feature_size": 5, "classifier_activation": "gelu"}
    assert "block_feature_activation" in error_of("--reverse", folder("d", sequence, **different), *back)
    unknown = folder("f", sequence, num_labels=1, pooling="mean_std_global")
    assert "pooling 'mean_std_global'" in error_of("--reverse", unknown, *back)
    path = folder("e", sequence, num_labels=1)
    weights = load_file(path / "model.safetensors")
    save_file(
        {n: w for n, w in weights.items() if not n.startswith("classifier")}, path / "model.safetensors", {"format": "pt"}
    )
    assert "weights are missing: classifier.layers.0.bias" in error_of("--reverse", path, *back)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    assert "'bert'" in error_of("--reverse", path, *back)
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": "x"}))
    assert "no Atomica model" in error_of("--reverse", path, *back)
    assert not (tmp_path / "back").exists()


def test_masked_padding_of_a_masked_node_model_goes_back(tmp_path, tokenizer, request):
    config, weights = original_checkpoint("MaskedNodeModel", request)
    ours, _ = convert_state_dict(weights, {**config, "attn_pad_mask": True})
    assert not ours.attend_to_padding and original_config(ours)["attn_pad_mask"] is True
    ours.attend_to_padding = True
    assert original_config(ours)["attn_pad_mask"] is False
