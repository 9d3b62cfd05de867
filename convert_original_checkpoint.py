# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Published ATOMICA weights and batches -> this model's.

    config, state_dict = convert_state_dict(original_state_dict, original_config)
    model = AtomicaForPreTraining(config)
    model.load_state_dict(state_dict)
    output = model(**original_batch_to_inputs(original_batch))

The names on the left are those of github.com/mims-harvard/ATOMICA, commit 2904342.
"""

import re

import torch

from atomica_hf import AtomicaConfig
from atomica_hf.configuration_atomica import NUM_SPECIAL_BLOCKS
from atomica_hf.geometry_atomica import BOND_HARMONICS, HARMONICS, Irrep
from atomica_hf.modeling_atomica import encoder_irreps


MODEL_TYPES = {"DenoisePretrainModel": "AtomicaForPreTraining", "PredictionModel": "AtomicaModel"}

_BASE = [  # (pattern of ATOMICA's name, our name)
    (r"block_embedding\.block_embedding\.weight", "block_embeddings.weight"),
    (r"block_embedding\.atom_embedding\.weight", "atom_embeddings.weight"),
    (r"modality_embedding\.weight", "modality_embeddings.weight"),
    (r"edge_embedding_bottom\.weight", "atom_encoder.edge_type_embeddings.weight"),
    (r"edge_embedding_top\.weight", "block_encoder.edge_type_embeddings.weight"),
    (r"{encoder}\.edge_embedder\.1\.(\w+)", r"{ours}.distance_embedding.dense_in.\1"),
    (r"{encoder}\.edge_embedder\.4\.(\w+)", r"{ours}.distance_embedding.dense_out.\1"),
    (r"{encoder}\.layers\.(\d+)\.(fc|norm_layer)\.(.+)", r"{ours}.layers.\1.message.\2.\3"),
    (r"{encoder}\.out_ffn\.0\.(\w+)", r"{ours}.readout_in.\1"),
    (r"{encoder}\.out_ffn\.3\.(\w+)", r"{ours}.readout_out.\1"),
    (r"atom_block_attn\.(query|key|value|output)_proj\.(\w+)", r"atom_to_block_attention.\1.\2"),
    (r"atom_block_attn_norm\.(\w+)", r"atom_to_block_attention.norm.\1"),
    (r"attention_pooling\.attention_layers\.(\d+)\.in_proj_(\w+)", r"pooler.layers.\1.query_key_value.\2"),
    (r"attention_pooling\.attention_layers\.(\d+)\.out_proj\.(\w+)", r"pooler.layers.\1.output.\2"),
    (r"attention_pooling\.norms\.(\d+)\.(\w+)", r"pooler.layers.\1.norm.\2"),
    (r"attention_pooling\.graph_repr_fc\.(\w+)", r"pooler.dense.\1"),
]
_HEADS = [
    (r"encoder\.encoder\.local_denoise_edge_embedder\.1\.(\w+)", r"atom_noise_head.distance_embedding.dense_in.\1"),
    (r"encoder\.encoder\.local_denoise_edge_embedder\.4\.(\w+)", r"atom_noise_head.distance_embedding.dense_out.\1"),
    (r"encoder\.encoder\.local_denoise_predictor\.(fc|norm_layer)\.(.+)", r"atom_noise_head.message.\1.\2"),
    (r"top_scale_noise_ffn\.2\.(\w+)", r"atom_noise_head.scale.layers.0.\1"),
    (r"top_scale_noise_ffn\.5\.(\w+)", r"atom_noise_head.scale.layers.1.\1"),
    (r"encoder\.encoder\.global_denoise_edge_embedder\.1\.(\w+)", r"rigid_head.distance_embedding.dense_in.\1"),
    (r"encoder\.encoder\.global_denoise_edge_embedder\.4\.(\w+)", r"rigid_head.distance_embedding.dense_out.\1"),
    (r"encoder\.encoder\.global_denoise_predictor\.(fc|norm_layer)\.(.+)", r"rigid_head.\1.\2"),
    (r"top_(translation|rotation)_scale_ffn\.2\.(\w+)", r"rigid_head.\1_scale.layers.0.\2"),
    (r"top_(translation|rotation)_scale_ffn\.5\.(\w+)", r"rigid_head.\1_scale.layers.1.\2"),
    (r"encoder\.encoder\.torsion_edge_embedder\.1\.(\w+)", r"torsion_head.distance_embedding.dense_in.\1"),
    (r"encoder\.encoder\.torsion_edge_embedder\.4\.(\w+)", r"torsion_head.distance_embedding.dense_out.\1"),
    (r"encoder\.encoder\.tor_bond_conv\.(fc|norm_layer)\.(.+)", r"torsion_head.\1.\2"),
    (r"encoder\.encoder\.tor_final_layer\.0\.(\w+)", r"torsion_head.dense.\1"),
    (r"encoder\.encoder\.tor_final_layer\.3\.(\w+)", r"torsion_head.output.\1"),
    (r"masked_ffn\.1\.(\w+)", r"mask_head.layers.0.\1"),
    (r"masked_ffn\.4\.(\w+)", r"mask_head.layers.1.\1"),
    (r"masked_ffn\.7\.(\w+)", r"mask_head.layers.2.\1"),
]
# e3nn's constants, and centres of the Gaussians
_CONSTANT = re.compile(r".*(\.tp\.|\.final_tp_tor\.|embedder\.0\.offset$|\.output_mask$).*|.*norm_layer\.affine_bias$")


def _names():
    pairs = []
    for pattern, ours in _BASE:
        if "{encoder}" in pattern:
            for theirs, level in ((r"encoder\.encoder", "atom_encoder"), (r"top_encoder\.encoder", "block_encoder")):
                pairs.append((pattern.replace("{encoder}", theirs), "atomica." + ours.replace("{ours}", level)))
        else:
            pairs.append((pattern, "atomica." + ours))
    return [(re.compile(pattern), ours) for pattern, ours in pairs + _HEADS]


def _convolution_irreps(name, config):
    """Irreps in, of the edge and out of the convolution that owns the parameter of this (our) name."""
    if match := re.match(r"atomica\.(atom|block)_encoder\.layers\.(\d+)\.", name):
        size = config.atom_hidden_size if match[1] == "atom" else config.hidden_size
        return encoder_irreps(int(match[2]), size), HARMONICS, encoder_irreps(int(match[2]) + 1, size)
    irreps_in, size = encoder_irreps(config.num_hidden_layers, config.atom_hidden_size), config.atom_hidden_size
    if name.startswith("torsion_head."):
        return irreps_in, BOND_HARMONICS, (Irrep(size, 0, -1), Irrep(size, 0, 1))
    channels = 1 if name.startswith("atom_noise_head.") else 2
    return irreps_in, HARMONICS, (Irrep(channels, 1, -1), Irrep(channels, 1, 1))


def _split_paths(name, tensor, config):
    """Second layer of the weight perceptron: rows in the order (input, harmonic, output) -> one tensor per output."""
    irreps_in, irreps_edge, irreps_out = _convolution_irreps(name, config)
    kind = name.rsplit(".", 1)[1]
    prefix = name.rsplit(".fc.", 1)[0] + ".convolution"
    parts, start = {out.name: [] for out in irreps_out}, 0
    for first in irreps_in:
        for second in irreps_edge:
            for out in irreps_out:
                reached = abs(first.degree - second.degree) <= out.degree <= first.degree + second.degree
                if reached and first.parity * second.parity == out.parity:
                    size = first.multiplicity * out.multiplicity
                    part = tensor[start : start + size].view(first.multiplicity, out.multiplicity, *tensor.shape[1:])
                    parts[out.name].append(part.movedim(1, -1))
                    start += size
    if start != len(tensor):
        raise ValueError(f"{name}: {len(tensor)} path weights, expected {start} for these irreps.")
    return {f"{prefix}.{kind}_{out}": torch.cat(part).contiguous() for out, part in parts.items()}


def convert_tensors(tensors, config):
    """Tensors under ATOMICA's parameter names (weights, or their gradients; any subset) -> under ours.

    Raises:
        `ValueError`: listing the names that are not known.
    """
    names, found, unknown = _names(), {}, []
    for theirs, tensor in tensors.items():
        ours = next((pattern.sub(new, theirs) for pattern, new in names if pattern.fullmatch(theirs)), None)
        if ours is None or (ours.endswith("norm_layer.affine_bias") and tensor.numel() == 0):
            if not _CONSTANT.fullmatch(theirs):
                unknown.append(theirs)
        elif ".fc.3." in ours:
            found.update(_split_paths(ours, tensor, config))
        else:
            if ours == "torsion_head.fc.0.weight":  # theirs [distance, sender, bond], ours [distance, bond, sender]
                size, edge = config.atom_hidden_size, config.edge_size
                tensor = torch.cat([tensor[:, :edge], tensor[:, edge + size :], tensor[:, edge : edge + size]], dim=1)
            ours = ours.replace(".fc.0.", ".convolution.edge_dense.").replace(".norm_layer.affine_", ".norm.")
            found[ours] = tensor
    if unknown:
        raise ValueError(f"Not parameters of an ATOMICA model known here: {', '.join(sorted(unknown))}.")
    return found


def convert_config(config, vocab_size: int = 440, num_modalities: int = 0):
    """ATOMICA's configuration (a dict, its `model_type` included) -> `AtomicaConfig` that computes the same.

    Raises:
        `ValueError`: for a `model_type` that is not known.
    """
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(f"`model_type` is {model_type!r}, expected one of {', '.join(MODEL_TYPES)}.")
    pretraining = model_type == "DenoisePretrainModel"
    weights = {"atom": 1.0, "torsion": 1.0, "translation": 1.0, "rotation": 0.1, "mask": 1.0}
    return AtomicaConfig(
        vocab_size=vocab_size,
        hidden_size=config["block_hidden_size"],
        atom_hidden_size=config["atom_hidden_size"],
        edge_size=config["edge_size"],
        num_hidden_layers=config["n_layers"],
        num_neighbors=config["k_neighbors"],
        hidden_dropout_prob=float(config.get("dropout", 0.0)),
        global_message_passing=config["global_message_passing"],
        atom_global_message_passing=config.get("bottom_global_message_passing", False),
        num_modalities=num_modalities,
        direction_softening=0.0,
        attend_to_padding=True,
        unknown_as_global=True,
        use_atom_noise=pretraining and bool(config.get("atom_noise")),
        use_torsion_noise=pretraining and bool(config.get("torsion_noise")),
        use_translation_noise=pretraining and bool(config.get("translation_noise")),
        use_rotation_noise=pretraining and bool(config.get("rotation_noise")),
        use_masking=pretraining and bool(config.get("num_masked_block_classes")),
        architectures=[MODEL_TYPES[model_type]],
        **{f"{name}_loss_weight": float(config.get(f"{name}_weight", value)) for name, value in weights.items()},
    )


def convert_state_dict(state_dict, config):
    """ATOMICA's weights and configuration (a dict) -> (`AtomicaConfig`, state dict of the model for its `model_type`).

    Raises:
        `ValueError`: for an unknown `model_type` or parameter name.
    """
    modalities = len(state_dict["modality_embedding.weight"]) if "modality_embedding.weight" in state_dict else 0
    ours = convert_config(config, len(state_dict["block_embedding.block_embedding.weight"]), modalities)
    converted = convert_tensors(state_dict, ours)
    if config["model_type"] == "PredictionModel":
        converted = {name.removeprefix("atomica."): tensor for name, tensor in converted.items()}
    return ours, converted


def original_batch_to_inputs(batch):
    """ATOMICA's flat batch (tensors X, A, B, block_lengths, lengths, segment_ids, and the labels of pretraining where they
    are) -> padded keyword arguments of our models, labels included.

    Raises:
        `ValueError`: if the lengths do not add up.
    """
    blocks_per_complex, atoms_per_block = batch["lengths"], batch["block_lengths"]
    for what, lengths, total in (
        ("lengths", blocks_per_complex, len(batch["B"])),
        ("block_lengths", atoms_per_block, len(batch["A"])),
    ):
        if int(lengths.sum()) != total:
            raise ValueError(f"`{what}` add up to {int(lengths.sum())}, expected {total}.")
    complex_of_block = torch.arange(len(blocks_per_complex)).repeat_interleave(blocks_per_complex)
    block_of_atom = torch.arange(len(atoms_per_block)).repeat_interleave(atoms_per_block)
    complex_of_atom = complex_of_block[block_of_atom]

    def pad(values, complex_id, fill):
        rows = [values[complex_id == i] for i in range(len(blocks_per_complex))]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)

    first_block = blocks_per_complex.cumsum(0) - blocks_per_complex
    first_atom = torch.bincount(complex_of_atom).cumsum(0) - torch.bincount(complex_of_atom)
    inputs = {
        "input_ids": pad(batch["B"], complex_of_block, 0),
        "attention_mask": pad(torch.ones_like(batch["B"]), complex_of_block, 0),
        "token_type_ids": pad(batch["segment_ids"], complex_of_block, 0),
        "atom_ids": pad(batch["A"], complex_of_atom, 0),
        "atom_to_block": pad(block_of_atom - first_block[complex_of_atom], complex_of_atom, -1),
        "positions": pad(batch["X"], complex_of_atom, 0.0),
    }
    renamed = {
        "modality": "modality_ids", "noisy_segment": "perturbed_segment", "tr_score": "translation_labels",
        "tr_eps": "translation_sigma", "rot_score": "rotation_labels", "atom_eps": "atom_noise_sigma",
    }  # fmt: skip
    inputs.update({new: batch[old] for old, new in renamed.items() if batch.get(old) is not None})
    if batch.get("atom_score") is not None:
        inputs["atom_noise_labels"] = pad(batch["atom_score"], complex_of_atom, 0.0)
    if batch.get("tor_edges") is not None:
        bonds = (batch["tor_edges"] - first_atom[batch["tor_batch"]]).T
        inputs["torsion_index"] = pad(bonds, batch["tor_batch"], -1)
        inputs["torsion_labels"] = pad(batch["tor_score"], batch["tor_batch"], 0.0)
    if batch.get("masked_blocks") is not None:
        labels = torch.full_like(batch["B"], -100)
        labels[batch["masked_blocks"]] = batch["masked_labels"] + NUM_SPECIAL_BLOCKS
        inputs["labels"] = pad(labels, complex_of_block, -100)
    return inputs
