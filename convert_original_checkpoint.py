# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Published ATOMICA checkpoints (github.com/mims-harvard/ATOMICA) <-> folders that the Auto classes open.

python convert_original_checkpoint.py --config C.json --weights W.pt --fragment_vocabulary ps_vocab_300.txt --output_dir D
python convert_original_checkpoint.py --reverse D --output_dir back

From Python:

    config, state_dict = convert_state_dict(original_state_dict, original_config)
    model = AtomicaForPreTraining(config)
    model.load_state_dict(state_dict)
    output = model(**original_batch_to_inputs(original_batch))
"""

import functools
import hashlib
import json
import os
import pickle
import re
import shutil
import sys
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.hf_argparser import HfArg

import atomica_hf
from atomica_hf import AtomicaConfig, AtomicaProcessor, AtomicaTokenizer
from atomica_hf.configuration_atomica import NUM_SPECIAL_BLOCKS
from atomica_hf.geometry_atomica import BOND_HARMONICS, HARMONICS, Irrep, wigner_3j
from atomica_hf.modeling_atomica import REPRESENTATION_POOLINGS, encoder_irreps
from script_arguments import ScriptParser, run_script


MODEL_TYPES = {  # ATOMICA's class -> ours
    "DenoisePretrainModel": "AtomicaForPreTraining",
    "DenoisePretrainModelWithBlockEmbedding": "AtomicaForPreTraining",
    "PredictionModel": "AtomicaModel",
    "MaskedNodeModel": "AtomicaForMaskedLM",
    "ClassifierModel": "AtomicaForSequenceClassification",
    "MultiClassClassifierModel": "AtomicaForSequenceClassification",
    "RegressionPredictor": "AtomicaForSequenceClassification",
    "AffinityPredictor": "AtomicaForSequenceClassification",
    "ProteinInterfaceModel": "AtomicaForInterfaceContrast",
}
SOURCE = "https://github.com/mims-harvard/ATOMICA"

_REQUIRED = ("atom_hidden_size", "block_hidden_size", "edge_size", "n_layers", "k_neighbors")
_NOISES = {"atom": "atom_noise", "torsion": "torsion_noise", "translation": "translation_noise", "rotation": "rotation_noise"}
_WEIGHTS = {name: f"{name}_weight" for name in ("atom", "torsion", "translation", "rotation", "mask")}
_KNOWN = {
    *_REQUIRED, *_NOISES.values(), *_WEIGHTS.values(), "model_type", "dropout", "global_message_passing",
    "bottom_global_message_passing", "fragmentation_method", "modality_embedding", "num_masked_block_classes",
    "num_projector_layers", "projector_hidden_size", "projector_dropout", "block_embedding_size", "block_embedding0_size",
    "block_embedding1_size", "nonlinearity", "num_pred_layers", "pred_dropout", "pred_hidden_size",
    "num_affinity_pred_layers", "affinity_pred_dropout", "affinity_pred_hidden_size", "num_classes", "top_max_edge_length",
    "top_long_range_edge_length", "attn_pad_mask", "na_loss_weight", "focal_gamma", "loss_type",
}  # fmt: skip
_KINDS = {
    bool: {*_NOISES.values(), "global_message_passing", "bottom_global_message_passing", "modality_embedding", "attn_pad_mask"},
    int: {
        key for key in _KNOWN if key in _REQUIRED or key.startswith("num_") or key.endswith(("hidden_size", "embedding_size"))
    }
    | {"block_embedding0_size", "block_embedding1_size"},
    (int, float): {key for key in _KNOWN if key.endswith(("dropout", "_weight", "edge_length"))},
}
_DEFAULTS = {  # what ATOMICA takes where a configuration is silent
    **dict.fromkeys(_NOISES.values(), True), **dict.fromkeys(_WEIGHTS.values(), 1.0), "dropout": 0.0,
    **dict.fromkeys(("global_message_passing", "bottom_global_message_passing", "modality_embedding"), False),
    **dict.fromkeys(("fragmentation_method", "num_masked_block_classes", "top_long_range_edge_length"), None),
    **dict.fromkeys(("block_embedding_size", "block_embedding0_size", "block_embedding1_size"), None),
}  # fmt: skip
_FIXED = {"num_attention_heads": 4, "num_pooling_layers": 4, "atom_cutoff": 5.0, "rigid_cutoff": 20.0, "torsion_cutoff": 5.0}
_LONG_RANGE = {"embedder": "long_range_edge_embedder", "gate": "long_range_gate", "gate_shape": [1]}


class ConversionError(ValueError):
    """A checkpoint that cannot be converted; the message says what was found and what was expected."""


# Names ------------------------------------------------------------------------------------------------------------------


class Layout:
    """Which tensor of ATOMICA's state dict is which of ours, for one configuration.

    `copies`: theirs -> (ours, order of columns or None); `paths`: theirs -> (prefix of ours, irreps in, of the edge, out);
    `constants`: theirs -> (function of a dtype that makes the tensor, which e3nn or a Gaussian basis stores).
    """

    def __init__(self, config):
        self.config, self.copies, self.paths, self.constants = config, {}, {}, {}
        architecture = config.architectures[0]
        if architecture == "AtomicaForInterfaceContrast":
            self.model("prot_model.", "atomica.")
            self.model("cmplx_model.", "complex_atomica.")
            self.mlp("prot_ffn", "side_projection", 3, first=1, step=2)
            self.mlp("cmplx_ffn", "complex_projection", 3, first=1, step=2)
            return
        self.model("", "" if architecture == "AtomicaModel" else "atomica.")
        if architecture == "AtomicaForPreTraining":
            self.denoising_heads()
        if architecture == "AtomicaForMaskedLM" or (architecture == "AtomicaForPreTraining" and config.use_masking):
            self.mlp("masked_ffn", "mask_head", 3, first=1, step=3)
        if architecture == "AtomicaForSequenceClassification":
            kind, layers = original_model_type(config), len(classifier_sizes(config)) + 1
            multi = kind == "MultiClassClassifierModel"
            name = "classifier_ffn" if kind in ("ClassifierModel", "MultiClassClassifierModel") else "energy_ffn"
            self.mlp(name, "classifier", layers, first=1 if multi else 2, step=2 if multi else 3)

    def linear(self, theirs, ours, bias=True):
        for kind in ("weight", "bias")[: 1 + bias]:
            self.copies[f"{theirs}.{kind}"] = (f"{ours}.{kind}", None)

    def mlp(self, theirs, ours, layers, first=2, step=3, last_bias=True):
        for i in range(layers):
            self.linear(f"{theirs}.{first + step * i}", f"{ours}.layers.{i}", bias=last_bias or i < layers - 1)

    def distances(self, theirs, ours, start, stop):
        self.linear(f"{theirs}.1", f"{ours}.dense_in")
        self.linear(f"{theirs}.4", f"{ours}.dense_out")
        size = self.config.edge_size
        as_float64 = (self.config.original or {}).get("float64_constants")
        self.constants[f"{theirs}.0.offset"] = lambda dtype: torch.linspace(
            start, stop, size, dtype=torch.float64 if as_float64 else dtype
        ).to(dtype)

    def convolution(self, theirs, ours, irreps_in, irreps_edge, irreps_out, columns=None):
        self.linear(f"{theirs}.fc.0", f"{ours}.convolution.edge_dense")
        self.copies[f"{theirs}.fc.0.weight"] = (f"{ours}.convolution.edge_dense.weight", columns)
        for kind in ("weight", "bias"):
            self.paths[f"{theirs}.fc.3.{kind}"] = (f"{ours}.convolution.{kind}_", irreps_in, irreps_edge, irreps_out)
        self.copies[f"{theirs}.norm_layer.affine_weight"] = (f"{ours}.norm.weight", None)
        if any(irrep.name == "0e" for irrep in irreps_out):
            self.copies[f"{theirs}.norm_layer.affine_bias"] = (f"{ours}.norm.bias", None)
        else:
            self.constants[f"{theirs}.norm_layer.affine_bias"] = lambda dtype: torch.zeros(0, dtype=dtype)
        couplings = {
            (a.degree, b.degree, c.degree)
            for a, b, c in paths(irreps_in, irreps_edge, irreps_out)
            if 0 not in (a.degree, b.degree, c.degree)
        }
        self.e3nn_constants(f"{theirs}.tp", couplings, sum(irrep.size for irrep in irreps_out))

    def e3nn_constants(self, theirs, couplings, size):
        for degrees in couplings:
            name = f"{theirs}._compiled_main_left_right._w3j_{'_'.join(map(str, degrees))}"
            self.constants[name] = lambda dtype, degrees=degrees: wigner_3j(*degrees).to(dtype)
        self.constants[f"{theirs}.output_mask"] = lambda dtype: torch.ones(size, dtype=dtype)
        self.constants[f"{theirs}.weight"] = lambda dtype: torch.zeros(0, dtype=dtype)

    def encoder(self, theirs, ours, size, cutoff):
        self.distances(f"{theirs}.edge_embedder", f"{ours}.distance_embedding", 0.0, cutoff)
        for i in range(self.config.num_hidden_layers):
            irreps = encoder_irreps(i, size), HARMONICS, encoder_irreps(i + 1, size)
            self.convolution(f"{theirs}.layers.{i}", f"{ours}.layers.{i}.message", *irreps)
        self.linear(f"{theirs}.out_ffn.0", f"{ours}.readout_in")
        self.linear(f"{theirs}.out_ffn.3", f"{ours}.readout_out")

    def model(self, theirs, ours):
        config = self.config
        for name, own in (
            ("block_embedding.block_embedding", "block_embeddings"),
            ("block_embedding.atom_embedding", "atom_embeddings"),
            ("edge_embedding_bottom", "atom_encoder.edge_type_embeddings"),
            ("edge_embedding_top", "block_encoder.edge_type_embeddings"),
        ):
            self.linear(theirs + name, ours + own, bias=False)
        if config.num_modalities:
            self.linear(f"{theirs}modality_embedding", f"{ours}modality_embeddings", bias=False)
        self.encoder(f"{theirs}encoder.encoder", f"{ours}atom_encoder", config.atom_hidden_size, config.atom_cutoff)
        self.encoder(f"{theirs}top_encoder.encoder", f"{ours}block_encoder", config.hidden_size, config.block_cutoff)
        if config.block_long_range_cutoff is not None:
            names = (config.original or {}).get("long_range", _LONG_RANGE)
            far, own = f"{theirs}top_encoder.encoder.{names['embedder']}", f"{ours}block_encoder.long_range_embedding"
            self.distances(far, own, config.block_cutoff, config.block_long_range_cutoff)
            self.copies[f"{theirs}top_encoder.encoder.{names['gate']}"] = (f"{own}.gate", None)
        for name in ("query", "key", "value", "output"):
            self.linear(f"{theirs}atom_block_attn.{name}_proj", f"{ours}atom_to_block_attention.{name}")
        self.linear(f"{theirs}atom_block_attn_norm", f"{ours}atom_to_block_attention.norm")
        for i in range(config.num_pooling_layers):
            attention, own = f"{theirs}attention_pooling.attention_layers.{i}", f"{ours}pooler.layers.{i}"
            for kind in ("weight", "bias"):
                self.copies[f"{attention}.in_proj_{kind}"] = (f"{own}.query_key_value.{kind}", None)
            self.linear(f"{attention}.out_proj", f"{own}.output")
            self.linear(f"{theirs}attention_pooling.norms.{i}", f"{own}.norm")
        self.linear(f"{theirs}attention_pooling.graph_repr_fc", f"{ours}pooler.dense")
        sizes = config.block_feature_sizes
        for when, own in (("pre", "block_features_before"), ("post", "block_features_after"))[: 1 + config.block_feature_after]:
            for i in range(len(sizes)):
                number = i if len(sizes) > 1 else ""
                self.mlp(f"{theirs}{when}_projector{number}", f"{ours}{own}.projectors.{i}", config.block_feature_layers)
                self.mlp(f"{theirs}{when}_mixing_ffn{number}", f"{ours}{own}.mixers.{i}", config.block_feature_layers)

    def denoising_heads(self):
        config, encoder = self.config, "encoder.encoder"
        size, edge = config.atom_hidden_size, config.edge_size
        irreps_in = encoder_irreps(config.num_hidden_layers, size)
        if config.use_atom_noise:
            self.distances(
                f"{encoder}.local_denoise_edge_embedder", "atom_noise_head.distance_embedding", 0.0, config.atom_cutoff
            )
            irreps_out = (Irrep(1, 1, -1), Irrep(1, 1, 1))
            self.convolution(f"{encoder}.local_denoise_predictor", "atom_noise_head.message", irreps_in, HARMONICS, irreps_out)
            self.mlp("top_scale_noise_ffn", "atom_noise_head.scale", 2, last_bias=False)
        if config.use_translation_noise or config.use_rotation_noise:
            self.distances(f"{encoder}.global_denoise_edge_embedder", "rigid_head.distance_embedding", 0.0, config.rigid_cutoff)
            irreps_out = (Irrep(2, 1, -1), Irrep(2, 1, 1))
            self.convolution(f"{encoder}.global_denoise_predictor", "rigid_head", irreps_in, HARMONICS, irreps_out)
        if config.use_translation_noise:
            self.mlp("top_translation_scale_ffn", "rigid_head.translation_scale", 2, last_bias=False)
        if config.use_rotation_noise:
            self.mlp("top_rotation_scale_ffn", "rigid_head.rotation_scale", 2, last_bias=False)
        if config.use_torsion_noise:
            self.distances(f"{encoder}.torsion_edge_embedder", "torsion_head.distance_embedding", 0.0, config.torsion_cutoff)
            irreps_out = (Irrep(size, 0, -1), Irrep(size, 0, 1))
            # theirs [distance, sender, bond], ours [distance, bond, sender]
            columns = [*range(edge), *range(edge + size, edge + 2 * size), *range(edge, edge + size)]
            self.convolution(f"{encoder}.tor_bond_conv", "torsion_head", irreps_in, BOND_HARMONICS, irreps_out, columns)
            couplings = {(a, 2, c) for a in range(3) for c in range(abs(a - 2), a + 3)}
            self.e3nn_constants(f"{encoder}.final_tp_tor", couplings, sum(2 * c + 1 for _, _, c in couplings))
            self.linear(f"{encoder}.tor_final_layer.0", "torsion_head.dense", bias=False)
            self.linear(f"{encoder}.tor_final_layer.3", "torsion_head.output", bias=False)

    def shapes(self):
        """Expected shapes of `copies` and `paths`, by ATOMICA's names."""
        with torch.device("meta"):
            ours = getattr(atomica_hf, self.config.architectures[0])(self.config).state_dict()
        found = {theirs: tuple(ours[name].shape) for theirs, (name, _) in self.copies.items()}
        for theirs, (prefix, *irreps) in self.paths.items():
            rows = sum(first.multiplicity * out.multiplicity for first, _, out in paths(*irreps))
            width = [ours[f"{prefix}{irreps[2][0].name}"].shape[1]] if theirs.endswith(".weight") else []
            found[theirs] = (rows, *width)
        if self.config.block_long_range_cutoff is not None:
            for theirs, (name, _) in self.copies.items():
                if name.endswith("long_range_embedding.gate"):
                    found[theirs] = tuple((self.config.original or {}).get("long_range", _LONG_RANGE)["gate_shape"])
        return found


def paths(irreps_in, irreps_edge, irreps_out):
    """Paths of a fully connected tensor product in e3nn's order: (input, harmonic, output)."""
    for first in irreps_in:
        for second in irreps_edge:
            for out in irreps_out:
                reached = abs(first.degree - second.degree) <= out.degree <= first.degree + second.degree
                if reached and first.parity * second.parity == out.parity:
                    yield first, second, out


def classifier_sizes(config):
    sizes = config.classifier_hidden_sizes
    return [config.hidden_size] * 2 if sizes is None else list(sizes)


# Tensors ----------------------------------------------------------------------------------------------------------------


def convert_tensors(tensors, config):
    """Tensors under ATOMICA's parameter names (weights, or their gradients; any subset) -> under ours.

    Raises:
        `ConversionError`: listing the names that are not known.
    """
    layout, found, unknown = Layout(config), {}, []
    for theirs, tensor in tensors.items():
        if theirs in layout.copies:
            ours, columns = layout.copies[theirs]
            found[ours] = tensor if columns is None else tensor[:, columns]
            if ours.endswith("long_range_embedding.gate"):
                found[ours] = tensor.reshape(1)
        elif theirs in layout.paths:
            prefix, *irreps = layout.paths[theirs]
            parts, start = {out.name: [] for out in irreps[2]}, 0
            for first, _, out in paths(*irreps):
                rows = tensor[start : start + first.multiplicity * out.multiplicity]
                parts[out.name].append(rows.view(first.multiplicity, out.multiplicity, *tensor.shape[1:]).movedim(1, -1))
                start += len(rows)
            found.update({prefix + out: torch.cat(part).contiguous() for out, part in parts.items()})
        elif theirs not in layout.constants and not _E3NN.search(theirs):
            unknown.append(theirs)
    if unknown:
        raise ConversionError(f"Not parameters of an ATOMICA model of this configuration: {', '.join(sorted(unknown))}.")
    return found


_E3NN = re.compile(r"(\.tp|\.final_tp_tor)\._compiled_")  # the constants vary with the version of e3nn


def original_state_dict(state_dict, config):
    """Our state dict -> ATOMICA's, with the constants its strict loading asks for.

    Raises:
        `ConversionError`: if ATOMICA has no such model.
    """
    original_config(config)  # refuses what ATOMICA cannot compute
    layout, found = Layout(config), OrderedDict()
    for theirs, (ours, columns) in layout.copies.items():
        tensor = state_dict[ours]
        if columns is not None:
            inverse = torch.tensor(columns).argsort()
            tensor = tensor[:, inverse]
        found[theirs] = tensor
        if ours.endswith("long_range_embedding.gate"):
            found[theirs] = tensor.reshape((config.original or {}).get("long_range", _LONG_RANGE)["gate_shape"])
    for theirs, (prefix, *irreps) in layout.paths.items():
        rows, used = [], {out.name: 0 for out in irreps[2]}
        for first, _, out in paths(*irreps):
            start = used[out.name]
            part = state_dict[prefix + out.name][start : start + first.multiplicity].movedim(-1, 1)
            rows.append(part.reshape(first.multiplicity * out.multiplicity, *part.shape[2:]))
            used[out.name] += first.multiplicity
        found[theirs] = torch.cat(rows)
    dtype = next(iter(found.values())).dtype
    found.update({theirs: make(dtype) for theirs, make in layout.constants.items()})
    return OrderedDict((name, found[name].detach().clone().contiguous()) for name in sorted(found))


# Configurations ---------------------------------------------------------------------------------------------------------


def convert_config(config, state_dict=None, nonlinearity: str | None = None):
    """ATOMICA's configuration (a dict, its `model_type` included) -> `AtomicaConfig` that computes the same.

    Args:
        config (`dict`): as ATOMICA's `*_config.json`.
        state_dict (`dict`): ATOMICA's weights, for what only they tell: the vocabulary, the ranges of the Gaussians, the
            layers of a head.
        nonlinearity (`str`): `"relu"`, `"gelu"` or `"elu"` of a head whose configuration leaves it open.

    Raises:
        `ConversionError`: for an unknown `model_type`, missing values, or options that are switched on but not known.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise ConversionError(f"`model_type` is {model_type!r}, expected one of {', '.join(MODEL_TYPES)}.")
    weights = state_dict or {}
    original = {"model_type": model_type, "config": config}
    if model_type == "ProteinInterfaceModel":
        inner = config.get("prot_model")
        if not isinstance(inner, dict) or inner.get("model_type") != "PredictionModel":
            raise ConversionError("ProteinInterfaceModel: `prot_model` must hold the configuration of a PredictionModel.")
        mine = {name.removeprefix("prot_model."): w for name, w in weights.items() if name.startswith("prot_model.")}
        config = {**inner, "model_type": model_type}
    else:
        mine = weights
    for key, value in config.items():
        kind = next((kind for kind, keys in _KINDS.items() if key in keys), None)
        if (
            value is not None
            and kind is not None
            and (isinstance(value, bool) != (kind is bool) or not isinstance(value, kind))
        ):
            wanted = {int: "a whole number", bool: "true or false"}.get(kind, "a number")
            raise ConversionError(f"{model_type}: `{key}` is {value!r}, expected {wanted}.")
    missing = [name for name in _REQUIRED if config.get(name) is None]
    if missing:
        raise ConversionError(f"{model_type}: the configuration has no {', '.join(missing)}.")
    unknown = [f"{key}={value!r}" for key, value in config.items() if key not in _KNOWN and value not in (False, 0, None)]
    if config.get("loss_type") not in (None, "cross_entropy", "binary_cross_entropy"):
        unknown.append(f"loss_type={config['loss_type']!r}")
    if unknown:
        raise ConversionError(f"{model_type}: the configuration switches on options that are not known: {', '.join(unknown)}.")

    def stop(name, default):
        offset = mine.get(f"{name}.0.offset")
        return default if offset is None or not len(offset) else round(float(offset[-1]), 4)

    values = {
        "vocab_size": len(mine.get("block_embedding.block_embedding.weight", range(440))),
        "hidden_size": config["block_hidden_size"],
        "atom_hidden_size": config["atom_hidden_size"],
        "edge_size": config["edge_size"],
        "num_hidden_layers": config["n_layers"],
        "num_neighbors": config["k_neighbors"],
        "hidden_dropout_prob": float(config.get("dropout") or 0.0),
        "global_message_passing": bool(config.get("global_message_passing", False)),
        "atom_global_message_passing": bool(config.get("bottom_global_message_passing", False)),
        "num_modalities": len(mine.get("modality_embedding.weight", range(8))) if config.get("modality_embedding") else 0,
        "atom_cutoff": stop("encoder.encoder.edge_embedder", 5.0),
        "block_cutoff": float(config.get("top_max_edge_length") or stop("top_encoder.encoder.edge_embedder", 5.0)),
        "rigid_cutoff": stop("encoder.encoder.global_denoise_edge_embedder", 20.0),
        "torsion_cutoff": stop("encoder.encoder.torsion_edge_embedder", 5.0),
        "direction_softening": 0.0,
        "attend_to_padding": not config.get("attn_pad_mask", False),
        "unknown_as_global": True,
        "architectures": [MODEL_TYPES[model_type]],
    }
    if config.get("top_long_range_edge_length"):
        values["block_long_range_cutoff"] = float(config["top_long_range_edge_length"])
        original["long_range"] = _long_range_names(mine)
    pretraining = model_type.startswith("DenoisePretrainModel")
    for name, key in _NOISES.items():
        values[f"use_{name}_noise"] = pretraining and bool(config.get(key, True))
    classes = config.get("num_masked_block_classes")
    values["use_masking"] = classes is not None and (pretraining or model_type == "MaskedNodeModel")
    if values["use_masking"] and classes != values["vocab_size"] - NUM_SPECIAL_BLOCKS:
        raise ConversionError(
            f"{model_type}: `num_masked_block_classes` is {classes}, but the weights have {values['vocab_size']} block tokens: "
            f"expected {values['vocab_size'] - NUM_SPECIAL_BLOCKS}, all tokens but the {NUM_SPECIAL_BLOCKS} special ones."
        )
    for name, key in _WEIGHTS.items():
        values[f"{name}_loss_weight"] = 1.0 if config.get(key) is None else float(config[key])
    values.update(_head_values(model_type, config, mine, nonlinearity))
    offset = mine.get("encoder.encoder.edge_embedder.0.offset")
    if offset is not None:
        single, double = (torch.linspace(0, values["atom_cutoff"], len(offset), dtype=d).float() for d in (None, torch.float64))
        if torch.equal(offset.float(), double) and not torch.equal(offset.float(), single):
            original["float64_constants"] = True
    return AtomicaConfig(original=original, **values)


def _linears(weights, name):
    """Weights of the linear layers of one of ATOMICA's perceptrons, in order."""
    found = {int(m[1]): w for key, w in weights.items() if (m := re.fullmatch(rf"{re.escape(name)}\.(\d+)\.weight", key))}
    return [found[i] for i in sorted(found)]


def _head_values(model_type, config, weights, nonlinearity):
    """Values of the configuration that only one of ATOMICA's models has."""
    values = {}
    hidden = config["block_hidden_size"]
    if model_type in ("ClassifierModel", "AffinityPredictor"):
        name = config.get("nonlinearity") or nonlinearity
        if name is None and "nonlinearity" in config:
            raise ConversionError(
                f"{model_type}: `nonlinearity` is null, which ATOMICA writes for GELU and for ELU alike; say which it was: "
                "--nonlinearity gelu, or elu."
            )
        values["classifier_activation"] = name or "relu"
    if model_type in ("DenoisePretrainModelWithBlockEmbedding", "AffinityPredictor"):
        sizes = [config.get(f"block_embedding{i}_size") for i in (0, 1)]
        values["block_feature_size"] = config.get("block_embedding_size") or (sizes if all(sizes) else 0)
        number = "" if config.get("block_embedding_size") else "0"
        layers = _linears(weights, f"pre_projector{number}")
        values["block_feature_layers"] = len(layers) or max(2, config.get("num_projector_layers", 3))
        values["block_feature_hidden_size"] = len(layers[0]) if layers else config.get("projector_hidden_size", 32)
        values["block_feature_dropout"] = float(config.get("projector_dropout") or 0.0)
        values["block_feature_activation"] = values.get("classifier_activation", "relu")
        # the constructor of the pretraining model makes no layers for after the block encoder
        values["block_feature_after"] = model_type == "AffinityPredictor" or any(n.startswith("post_proj") for n in weights)
    if MODEL_TYPES[model_type] != "AtomicaForSequenceClassification":
        return values
    head = _linears(weights, "classifier_ffn" if "Classifier" in model_type else "energy_ffn")
    values["num_labels"] = 1
    if model_type == "MultiClassClassifierModel":
        values.update(num_labels=config.get("num_classes") or len(head[-1]), problem_type="single_label_classification")
        values.update(classifier_dropout=0.0, classifier_hidden_sizes=[hidden, hidden, hidden // 2])
    elif model_type == "RegressionPredictor":
        values.update(problem_type="regression", classifier_hidden_sizes=[hidden, hidden])
    else:
        kind = "affinity_pred" if model_type == "AffinityPredictor" else "pred"
        layers = max(2, config.get(f"num_{kind}_layers", 3))
        values["classifier_hidden_sizes"] = [config.get(f"{kind}_hidden_size", hidden)] * (layers - 1)
        values["classifier_dropout"] = float(config.get(f"{kind}_dropout") or 0.0)
        affinity = model_type == "AffinityPredictor"
        values["problem_type"] = "regression" if affinity else "multi_label_classification"
        values["pooling"] = "block_sum" if affinity else "graph"
    if head:
        values["classifier_hidden_sizes"] = [len(layer) for layer in head[:-1]]
    return values


def _long_range_names(weights):
    """How the second distance perceptron of the block encoder and its gate are called in these weights."""
    prefix = "top_encoder.encoder."
    usual = re.compile(r"(edge_embedder|layers|out_ffn)\.")
    rest = [n.removeprefix(prefix) for n in weights if n.startswith(prefix) and not usual.match(n.removeprefix(prefix))]
    embedders = {name.rsplit(".1.", 1)[0] for name in rest if name.endswith(".1.weight")}
    gates = [name for name in rest if weights[prefix + name].numel() == 1 and not re.search(r"\.\d+\.", name)]
    if not weights:
        return dict(_LONG_RANGE)
    if len(embedders) != 1 or len(gates) != 1:
        raise ConversionError(
            "The configuration has `top_long_range_edge_length`, but the weights of the block encoder do not have one second "
            f"distance perceptron and one gate; beside the usual they have: {', '.join(rest) or 'nothing'}."
        )
    return {"embedder": embedders.pop(), "gate": gates[0], "gate_shape": list(weights[prefix + gates[0]].shape)}


def original_model_type(config) -> str:
    """The class of ATOMICA that computes what a model of this configuration does.

    Raises:
        `ConversionError`: if there is none.
    """
    architecture = config.architectures[0] if config.architectures else None
    if architecture == "AtomicaForPreTraining":
        return "DenoisePretrainModelWithBlockEmbedding" if config.block_feature_sizes else "DenoisePretrainModel"
    simple = {
        "AtomicaModel": "PredictionModel",
        "AtomicaForMaskedLM": "MaskedNodeModel",
        "AtomicaForInterfaceContrast": "ProteinInterfaceModel",
    }
    if architecture in simple:
        return simple[architecture]
    if architecture != "AtomicaForSequenceClassification":
        raise ConversionError(f"ATOMICA has no model like {architecture}.")
    hidden, sizes = config.hidden_size, classifier_sizes(config)
    problem = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
    as_read = (config.original or {}).get("model_type") == "MultiClassClassifierModel"  # older ones have other layers
    relu, even, graph = config.classifier_activation == "relu", len(set(sizes)) == 1, config.pooling == "graph"
    number, yes_or_no = (config.num_labels == 1 and problem == kind for kind in ("regression", "multi_label_classification"))
    classes = problem == "single_label_classification"
    fits = {
        "RegressionPredictor": number and graph and relu and sizes == [hidden, hidden],
        "AffinityPredictor": number and config.pooling == "block_sum" and even,
        "ClassifierModel": yes_or_no and graph and even,
        "MultiClassClassifierModel": classes and graph and relu and (sizes == [hidden, hidden, hidden // 2] or as_read),
    }
    found = next((name for name, fit in fits.items() if fit), None)
    if found is None:
        raise ConversionError(
            f"ATOMICA has no model for {config.num_labels} labels of {problem} with pooling {config.pooling!r} and a head of "
            f"hidden layers {sizes} ({config.classifier_activation}). It has: one number of a complex (regression, 'graph', "
            f"[{hidden}, {hidden}], relu), one number summed over blocks (regression, 'block_sum', layers of one width), yes "
            "or no (multi_label_classification, 'graph', one label, layers of one width), and classes "
            f"(single_label_classification, 'graph', [{hidden}, {hidden}, {hidden // 2}], relu)."
        )
    return found


def original_config(config) -> dict:
    """`AtomicaConfig` -> ATOMICA's configuration.

    Raises:
        `ConversionError`: if ATOMICA has no such model or setting.
    """
    model_type = original_model_type(config)
    expected = {**_FIXED, "atom_vocab_size": 121}
    if config.num_modalities:
        expected["num_modalities"] = 8
    other = [f"`{n}` is {getattr(config, n)}, {v} there" for n, v in expected.items() if getattr(config, n) != v]
    with_features = model_type in ("DenoisePretrainModelWithBlockEmbedding", "AffinityPredictor")
    if config.block_feature_sizes and not with_features:
        other.append(f"`block_feature_size` is {config.block_feature_size}, its {model_type} takes none")
    if config.block_feature_sizes and with_features:
        activation = config.classifier_activation if model_type == "AffinityPredictor" else "relu"
        if config.block_feature_activation != activation:
            other.append(f"`block_feature_activation` is {config.block_feature_activation!r}, {activation!r} there")
        if model_type == "AffinityPredictor" and not config.block_feature_after:
            other.append("`block_feature_after` is False, True there")
    if config.num_modalities and not model_type.startswith("DenoisePretrainModel"):
        other.append(f"`num_modalities` is {config.num_modalities}, its {model_type} has none")
    if len(config.block_feature_sizes) > 2:
        other.append(f"`block_feature_size` has {len(config.block_feature_sizes)} widths, at most 2 there")
    if other:
        raise ConversionError(f"ATOMICA cannot be set to these values: {'; '.join(other)}.")
    remembered = config.original or {}
    before = remembered.get("config", {})
    if remembered.get("model_type") == "ProteinInterfaceModel":
        before = before["prot_model"]
    if model_type == "ProteinInterfaceModel":
        memory = {"model_type": "PredictionModel", "config": before}
        encoder = AtomicaConfig(**{**config.to_dict(), "architectures": ["AtomicaModel"], "original": memory})
        return {"model_type": model_type, "prot_model": original_config(encoder)}
    values = {
        "atom_hidden_size": config.atom_hidden_size,
        "block_hidden_size": config.hidden_size,
        "edge_size": config.edge_size,
        "n_layers": config.num_hidden_layers,
        "dropout": config.hidden_dropout_prob,
        "k_neighbors": config.num_neighbors,
        "global_message_passing": config.global_message_passing,
        "bottom_global_message_passing": config.atom_global_message_passing,
        "fragmentation_method": before.get("fragmentation_method"),
    }
    if model_type.startswith("DenoisePretrainModel"):
        values.update({key: getattr(config, f"use_{name}_noise") for name, key in _NOISES.items()})
        values.update({key: getattr(config, f"{name}_loss_weight") for name, key in _WEIGHTS.items()})
        values["modality_embedding"] = config.num_modalities > 0
        values["num_masked_block_classes"] = config.vocab_size - NUM_SPECIAL_BLOCKS if config.use_masking else None
    if model_type == "MaskedNodeModel":
        values["num_masked_block_classes"] = config.vocab_size - NUM_SPECIAL_BLOCKS
    if model_type == "MaskedNodeModel" and (not config.attend_to_padding or "attn_pad_mask" in before):
        values["attn_pad_mask"] = not config.attend_to_padding
    if config.block_cutoff != 5.0 or "top_max_edge_length" in before:
        values["top_max_edge_length"] = config.block_cutoff
    if config.block_long_range_cutoff is not None:
        values["top_long_range_edge_length"] = config.block_long_range_cutoff
    if model_type in ("DenoisePretrainModelWithBlockEmbedding", "AffinityPredictor"):
        sizes = config.block_feature_sizes
        values["block_embedding_size"] = sizes[0] if len(sizes) == 1 else None
        values["block_embedding0_size"], values["block_embedding1_size"] = sizes if len(sizes) == 2 else (None, None)
        values["num_projector_layers"] = config.block_feature_layers
        values["projector_hidden_size"] = config.block_feature_hidden_size
        values["projector_dropout"] = config.block_feature_dropout
    dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
    head = {"hidden_size": classifier_sizes(config)[0], "dropout": dropout}
    if model_type == "AffinityPredictor":
        values.update({f"affinity_pred_{key}": value for key, value in head.items()})
        values.update(nonlinearity=config.classifier_activation, num_affinity_pred_layers=len(classifier_sizes(config)) + 1)
    if model_type == "ClassifierModel":
        values.update({f"pred_{key}": value for key, value in head.items()})
        values.update(nonlinearity=config.classifier_activation, num_pred_layers=len(classifier_sizes(config)) + 1)
    if model_type == "MultiClassClassifierModel":
        values["num_classes"] = config.num_labels
    values["model_type"] = model_type
    return _updated(before if remembered.get("model_type") == model_type else {}, values)


def _updated(before, values):
    """`values` in the order of `before`, with what it has beside; what is equal stays as it was written, or left out."""
    merged = dict(before)
    for key, value in values.items():
        if before and key not in before and value == _DEFAULTS.get(key, key):
            continue
        if key not in merged or (merged[key] != value and not (key == "nonlinearity" and merged[key] is None)):
            merged[key] = value
    return merged


def other_behaviour(config) -> list[str]:
    """What a model of this configuration computes otherwise than ATOMICA will with its weights."""
    differences = []
    if not config.attend_to_padding and original_model_type(config) != "MaskedNodeModel":
        differences.append("attend_to_padding=False: ATOMICA's attention will see padding")
    if not config.unknown_as_global:
        differences.append("unknown_as_global=False: ATOMICA will treat <unk> blocks as global ones")
    if config.direction_softening:
        differences.append(f"direction_softening={config.direction_softening}: ATOMICA has none")
    if config.use_composition:
        differences.append("use_composition=True: ATOMICA has no such head, which is left out")
    return differences


# Whole checkpoints ------------------------------------------------------------------------------------------------------


def convert_state_dict(state_dict, config, nonlinearity: str | None = None):
    """ATOMICA's weights and configuration (a dict) -> (`AtomicaConfig`, state dict of our model for its `model_type`).

    Raises:
        `ConversionError`: for an unknown `model_type` or option, and if weights and configuration do not fit: it lists what is
            missing, what is unknown and what has another shape.
    """
    ours = convert_config(config, state_dict, nonlinearity)
    layout = Layout(ours)
    problems, shapes = [], layout.shapes()
    missing = sorted(name for name in shapes if name not in state_dict)
    known = {**shapes, **layout.constants}
    unknown = sorted(name for name in state_dict if name not in known and not _E3NN.search(name))
    other = [
        f"{name} {tuple(state_dict[name].shape)}, expected {shape}"
        for name, shape in shapes.items()
        if name in state_dict and tuple(state_dict[name].shape) != shape
    ]
    constants = []
    for name, make in layout.constants.items():
        if name in state_dict:
            found, wanted = state_dict[name].float(), make(torch.float32)
            if found.shape != wanted.shape or not torch.allclose(
                found, wanted, atol=0.005 * float(wanted.abs().max() if len(wanted) else 0)
            ):
                text = f"{name} {tuple(found.shape)}"
                if name.endswith(".offset") and len(found):
                    span = f"{wanted[0]:g} to {wanted[-1]:g} angstrom ({len(wanted)})"
                    text = f"{name}: Gaussians from {found.min():g} to {found.max():g} ({len(found)}), expected {span}"
                constants.append(text)
    kinds = ("missing", missing), ("unknown", unknown), ("of another shape", other), ("constants of other values", constants)
    for what, names in kinds:
        if names:
            problems.append(f"{what}: {', '.join(names[:20])}{f' and {len(names) - 20} more' if len(names) > 20 else ''}")
    if problems:
        raise ConversionError(f"The weights do not fit a {config['model_type']} of this configuration; {'; '.join(problems)}.")
    return ours, convert_tensors({name: state_dict[name] for name in shapes}, ours)


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
    features = batch.get("block_embeddings")
    if features is None and batch.get("block_embeddings0") is not None:
        parts = [batch["block_embeddings0"], batch["block_embeddings1"]]
        features = parts[0].new_zeros(len(batch["B"]), max(part.shape[1] for part in parts))
        for segment, part in enumerate(parts):
            features[batch["segment_ids"] == segment, : part.shape[1]] = part
    if features is not None:
        inputs["block_features"] = pad(features, complex_of_block, 0.0)
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


_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "atom_ids", "atom_to_block", "positions", "modality_ids",
           "block_features")  # fmt: skip


@torch.no_grad()
def original_outputs(model, batch):
    """What ATOMICA calls its outputs, of one of our models for ATOMICA's flat batch -> name -> tensor, flat as there."""
    model = model.eval()
    inputs = original_batch_to_inputs(batch)
    plain = {name: inputs[name] for name in _INPUTS if name in inputs}
    blocks, atoms = inputs["attention_mask"].bool(), inputs["atom_to_block"] >= 0
    encoder = model.base_model
    output = encoder(**plain, output_irreps=True)
    found = {
        "unit_repr": output.atom_hidden_state[atoms],
        "block_repr": output.last_hidden_state[blocks],
        "graph_repr": output.pooler_output,
        "atom_irreps": output.atom_irreps[atoms],
        "block_irreps": output.block_irreps[blocks],
    }
    for pooling in REPRESENTATION_POOLINGS:
        z = encoder.get_representations(("z_atom", "z_block", "z_graph"), pooling=pooling, **plain)
        found.update(z_atom=z["z_atom"][atoms], z_block=z["z_block"][blocks])
        found[f"z_graph_{pooling}"] = z["z_graph"]
    kind = model.config.architectures[0]
    if kind == "AtomicaForPreTraining":
        output = model(**inputs)
        names = {"loss": "loss", "atom_loss": "atom_loss", "tor_loss": "torsion_loss", "translation_loss": "translation_loss",
                 "rotation_loss": "rotation_loss", "masked_loss": "mask_loss"}  # fmt: skip
        found.update({theirs: output[ours] for theirs, ours in names.items() if output.get(ours) is not None})
        if model.config.use_masking and "labels" in inputs:
            found["pred_blocks"] = output.prediction_logits[inputs["labels"] >= 0].softmax(-1)
    elif kind == "AtomicaForMaskedLM":
        output = model(**plain, labels=inputs.get("labels"))
        if "labels" in inputs:
            found["masked_loss"] = found["loss"] = output.loss
            found["pred_blocks"] = output.logits[inputs["labels"] >= 0][:, NUM_SPECIAL_BLOCKS:].softmax(-1)
    elif kind == "AtomicaForSequenceClassification":
        output = model(**plain, labels=batch.get("label"))
        squeezed = output.logits.squeeze(-1)
        problem = model.config.problem_type
        found["prediction"] = {
            "regression": squeezed, "multi_label_classification": squeezed.sigmoid(),
            "single_label_classification": output.logits.softmax(-1),
        }[problem]  # fmt: skip
        if output.loss is not None:
            found["loss"] = output.loss
    return found


def read_json(path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path}: not JSON ({error}).") from error


def read_weights(path):
    """A state dict from `.pt` (without running anything in it) or `.safetensors`.

    Raises:
        `ConversionError`: if the file is damaged, or holds Python objects instead of tensors.
    """
    try:
        if Path(path).suffix == ".safetensors":
            found = load_file(path)
            inside = {n.removeprefix("state_dict."): w for n, w in found.items() if n.startswith("state_dict.")}
            return inside or found
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        if needed is None:
            raise ConversionError(f"{path}: not a file of weights, or damaged ({str(error).splitlines()[0]}).") from error
        raise ConversionError(
            f"{path}: holds a pickled Python object ({needed[1]}), and opening such a file runs whatever code it names; only "
            "state dicts are read. ATOMICA writes one beside each pickled model (.pt); or save it there with "
            "torch.save(model.state_dict(), 'weights.pt')."
        ) from error
    except (
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        SafetensorError,
        UnicodeDecodeError,
    ) as error:
        raise ConversionError(
            f"{path}: not a file of weights, or cut off ({type(error).__name__}: {str(error).partition(chr(10))[0]})."
        ) from error
    plain = lambda w: isinstance(w, torch.Tensor) and w.layout == torch.strided and not w.is_meta and not w.is_complex()
    if not isinstance(found, dict) or not found or not all(isinstance(n, str) and plain(w) for n, w in found.items()):
        what = f"keys {', '.join(map(str, list(found)[:8]))}" if isinstance(found, dict) else type(found).__name__
        raise ConversionError(f"{path}: expected a state dict (names and plain tensors), found {what}.")
    return found


def read_reference(path):
    """Input and expected output of `--check`: tensors `input.*` and `output.*`, in safetensors, or lists in JSON."""
    if Path(path).suffix == ".safetensors":
        try:
            flat = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ConversionError(f"{path}: not a safetensors file ({error}).") from error
    else:
        data = read_json(path)
        try:
            flat = {f"{g}.{n}": torch.tensor(v) for g in ("input", "output") for n, v in data[g].items() if v is not None}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConversionError(
                f"{path}: expected an object with `input` and `output` of names and arrays ({error})."
            ) from error
    groups = {"input": {}, "output": {}}
    for key, tensor in flat.items():
        group, _, name = key.partition(".")
        if group in groups:
            groups[group][name] = tensor.double() if tensor.is_floating_point() else tensor
    missing = [n for n in ("X", "A", "B", "block_lengths", "lengths", "segment_ids") if n not in groups["input"]]
    if missing or not groups["output"]:
        wanted = ", ".join(f"input.{n}" for n in missing) or "any output.*"
        raise ConversionError(f"{path}: a file of reference values needs input.* and output.* tensors; it has no {wanted}.")
    return groups["input"], groups["output"]


def compare(model, reference):
    """Largest differences from the reference values of a file, in float64 -> rows (name, difference, relative to the largest
    value), and the names of outputs that have no counterpart."""
    inputs, expected = read_reference(reference)
    if inputs["X"].shape != (len(inputs["A"]), 3) or not inputs["X"].is_floating_point():
        raise ConversionError(f"{reference}: input.X has shape {tuple(inputs['X'].shape)}, expected {(len(inputs['A']), 3)}.")
    for name, size in (("A", model.config.atom_vocab_size), ("B", model.config.vocab_size)):
        if (
            inputs[name].is_floating_point()
            or inputs[name].ndim != 1
            or not (0 <= inputs[name]).all() & (inputs[name] < size).all()
        ):
            raise ConversionError(f"{reference}: input.{name} must be whole numbers from 0 to {size - 1}.")
    try:
        found = original_outputs(model.double(), inputs)
    except (ValueError, IndexError, RuntimeError, TypeError, NotImplementedError) as error:
        raise ConversionError(f"{reference}: its input cannot be used: {str(error).partition(chr(10))[0]}") from error
    rows = []
    for name, wanted in expected.items():
        if name not in found or not wanted.is_floating_point():
            continue
        if found[name].shape != wanted.shape:
            raise ConversionError(
                f"{reference}: output.{name} has shape {tuple(wanted.shape)}, found {tuple(found[name].shape)}."
            )
        difference = float((found[name] - wanted).abs().max())
        rows.append((name, difference, difference / max(float(wanted.abs().max()), 1e-30)))
    if not rows:
        raise ConversionError(f"{reference}: none of its outputs can be compared: {', '.join(expected)}.")
    return rows, sorted(set(expected) - {name for name, _, _ in rows})


CARD = """---
library_name: transformers
tags:
- chemistry
- biology
- molecular-representation
license: other
license_name: as-the-source
license_link: {source}
---

# {name}

A checkpoint of ATOMICA ({model_type}), converted to the format of Atomica; nothing was trained. The class is
`{architecture}`.

- Source of method and code: {source} (MIT licence); the published weights are on the Hub as `ada-f/ATOMICA`. The licence of
  the weights is that of their source.
- Converted from `{config_file}` and `{weights_file}` (SHA-256 {digest}){vocabulary}.

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
vector = model(**processor("CC(=O)Oc1ccccc1C(=O)O", return_tensors="pt")).pooler_output
```

Three settings of `config.json` keep the numbers of the published code: `attend_to_padding` (vectors depend on what else is in
the batch), `unknown_as_global` (`<unk>` blocks count as global ones in the graph) and `direction_softening=0` (the direction
of a vanishing vector is rounding noise). `processor_config.json` has `as_published=true`: complexes are cut as ATOMICA
cuts them.
{check}
## Citation

Fang et al., Learning Universal Representations of Intermolecular Interactions with ATOMICA, bioRxiv 2025.04.02.646906.
"""


@dataclass
class ConversionArguments:
    output_dir: str = HfArg(help="Folder to write; must not exist.")
    config: str | None = HfArg(default=None, help="ATOMICA's configuration, a file named *_config.json.")
    weights: str | None = HfArg(default=None, help="ATOMICA's state dict, a file named *_weights.pt.")
    fragment_vocabulary: str | None = HfArg(
        default=None, help="ATOMICA's vocabulary file, for example ps_vocab_300.txt; none if it was trained without fragments."
    )
    nonlinearity: str | None = HfArg(
        default=None, metadata={"choices": ["relu", "gelu", "elu"]}, help="Of a head whose configuration says null."
    )
    check: str | None = HfArg(
        default=None, help="File of reference values (input.* and output.*, .safetensors or .json) to compare outputs with."
    )
    tolerance: float = HfArg(default=1e-6, help="Largest relative difference that --check accepts, in float64.")
    reverse: str | None = HfArg(
        default=None, help="The other way: folder or hub id of a model of ours; writes model_config.json and model_weights.pt."
    )


def _write_folder(output_dir, write):
    """Calls `write(temporary folder)` and renames the folder when it is complete."""
    output = Path(output_dir)
    if output.exists():
        raise ConversionError(f"{output} exists already; name a new folder.")
    temporary = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def convert(arguments):
    if arguments.config is None or arguments.weights is None:
        raise ConversionError("--config and --weights are both needed (or --reverse FOLDER for the other way).")
    config = read_json(arguments.config)
    if not isinstance(config, dict):
        raise ConversionError(f"{arguments.config}: expected a JSON object, found {type(config).__name__}.")
    config = config["config"] if isinstance(config.get("config"), dict) else config
    weights = read_weights(arguments.weights)
    try:
        ours, state_dict = convert_state_dict(weights, config, arguments.nonlinearity)
    except ConversionError as error:
        raise ConversionError(f"{arguments.config}, {arguments.weights}: {error}") from error
    path = arguments.fragment_vocabulary
    tokenizer = AtomicaTokenizer(atom_order="input") if path is None else AtomicaTokenizer.from_fragment_vocabulary(path)
    if len(tokenizer) != ours.vocab_size:
        raise ConversionError(
            f"--fragment_vocabulary {path or 'was not given'}: {len(tokenizer)} block tokens, but {arguments.weights} has "
            f"{ours.vocab_size}; its configuration says fragmentation_method {config.get('fragmentation_method')!r}."
        )
    model = getattr(atomica_hf, ours.architectures[0])(ours)
    model.to(functools.reduce(torch.promote_types, {tensor.dtype for tensor in state_dict.values()})).load_state_dict(
        state_dict
    )
    check, worst = "", 0.0
    if arguments.check:
        dtype, (rows, left_out) = model.dtype, compare(model, arguments.check)
        model.to(dtype)
        worst = max((relative for _, _, relative in rows), key=lambda x: (x != x, x))  # a NaN is the worst
        print("\n".join(f"{name:42s} {difference:.2e}  relative {relative:.2e}" for name, difference, relative in rows))
        if left_out:
            print(f"Not compared: {', '.join(left_out)}.")
        print(f"Largest relative difference from {arguments.check}: {worst:.2e}, in float64.")
        check = f"\nChecked against `{Path(arguments.check).name}` in float64: largest relative difference {worst:.1e}.\n"
        if not worst <= arguments.tolerance:
            raise ConversionError(f"{arguments.check}: differs by {worst:.2e}, more than --tolerance {arguments.tolerance:g}.")

    def write(folder):
        model.save_pretrained(folder)
        AtomicaProcessor(tokenizer, as_published=True).save_pretrained(folder)
        card = CARD.format(
            name=Path(arguments.output_dir).name, model_type=config["model_type"], architecture=type(model).__name__,
            source=SOURCE, config_file=Path(arguments.config).name, weights_file=Path(arguments.weights).name,
            digest=hashlib.sha256(Path(arguments.weights).read_bytes()).hexdigest(), check=check,
            vocabulary=f", vocabulary `{Path(path).name}`" if path else "",
        )  # fmt: skip
        (folder / "README.md").write_text(card, encoding="utf-8")

    _write_folder(arguments.output_dir, write)
    count = sum(p.numel() for p in model.parameters())
    kind = f"{type(model).__name__} from {config['model_type']}"
    print(f"{arguments.output_dir}: {kind}, {count} parameters, {len(tokenizer)} tokens.")


def reverse(arguments):
    source = arguments.reverse
    try:
        model_type = AtomicaConfig.get_config_dict(source)[0].get("model_type")
        if model_type != "atomica":
            raise ConversionError(f"its model type is {model_type!r}.")
        config = AtomicaConfig.from_pretrained(source)
        architecture = config.architectures[0] if config.architectures else "none"
        if not hasattr(atomica_hf, architecture):
            raise ConversionError(f"its architecture is {architecture}.")
        model, loading = getattr(atomica_hf, architecture).from_pretrained(source, output_loading_info=True)
        tokenizer = AtomicaTokenizer.from_pretrained(source)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise ConversionError(f"{source}: no Atomica model there: {str(error).partition(chr(10))[0]}") from error
    if loading["missing_keys"]:
        raise ConversionError(f"{source}: weights are missing: {', '.join(sorted(loading['missing_keys'])[:10])}.")
    if len(tokenizer) != config.vocab_size:
        raise ConversionError(
            f"{source}: the model has {config.vocab_size} block tokens, the tokenizer beside it {len(tokenizer)}; save the "
            "processor or tokenizer of the model there."
        )
    config.architectures = [architecture]
    theirs = original_config(config)
    state_dict = original_state_dict(model.state_dict(), config)
    for difference in other_behaviour(config):
        print(f"Numbers will differ: {difference}.", file=sys.stderr)

    def write(folder):
        (folder / "model_config.json").write_text(json.dumps(theirs, indent=4), encoding="utf-8")
        torch.save(state_dict, folder / "model_weights.pt")
        lines = ['{"kekulize": false}', *("\t".join(map(str, fragment.values())) for fragment in tokenizer.fragments)]
        (folder / "fragment_vocabulary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    _write_folder(arguments.output_dir, write)
    print(
        f"{arguments.output_dir}: model_config.json and model_weights.pt of a {theirs['model_type']}, fragment_vocabulary.txt."
    )


def main(argv=None):
    parser = ScriptParser(ConversionArguments, description=__doc__)
    (arguments,) = parser.parse_args_into_dataclasses(argv)
    (reverse if arguments.reverse else convert)(arguments)


if __name__ == "__main__":
    run_script(main, ValueError)
