# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints and configurations -> models with a head for the labels, in the units of the labels; their layers."""

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, TrainerCallback, set_seed

from atomica_hf import (
    ROOT,
    AtomicaConfig,
    AtomicaForSequenceClassification,
    AtomicaForTokenClassification,
    AtomicaModel,
    StructureError,
)
from atomica_hf.configuration_atomica import REPRESENTATION_POOLINGS
from finetuning_arguments import HEAD_OPTIONS, PROBES
from metrics_atomica import REGRESSION
from model_loading import load_processor, read_all_atoms


def processor_of(options, folder=None):
    """That of a folder, or the one that the options name, with the hydrogens and charges that they or the model ask for."""
    if folder:
        return load_processor(folder)
    arguments, name = options.model, options.model.model_name_or_path
    processor = load_processor(arguments.processor_name_or_path or name or str(ROOT))
    config = load_config(name) if name else unlabelled_config(arguments)
    return read_all_atoms(processor, arguments.keep_hydrogens, config.use_atom_charges)


def load_config(name):
    """Raises `StructureError` if there is no Atomica model."""
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise StructureError("no_model", f"{name}: no Atomica model there ({str(error).splitlines()[0]}).") from error
    if config.model_type != "atomica":
        raise StructureError("no_model", f"{name}: a checkpoint of model type {config.model_type!r}, expected 'atomica'.")
    return config


def model_class(of_blocks):
    return AtomicaForTokenClassification if of_blocks else AtomicaForSequenceClassification


def has_head(config):
    """Whether a checkpoint was fine-tuned."""
    return any(name.endswith("Classification") for name in config.architectures or ())


def check_head(config, labels, name, pooling=None):
    """Raises `StructureError` if the head of a fine-tuned checkpoint is not for these labels."""
    wanted = model_class(labels.of_blocks).__name__
    differences = []
    if wanted not in config.architectures:
        differences.append(f"is {config.architectures[0]}, expected {wanted}")
    if config.num_labels != labels.num_labels:
        differences.append(f"has num_labels {config.num_labels}, expected {labels.num_labels}")
    if config.problem_type not in (None, labels.problem):
        differences.append(f"has problem_type {config.problem_type!r}, expected {labels.problem!r}")
    if pooling is not None and config.pooling != pooling:
        differences.append(f"has pooling {config.pooling!r}, expected {pooling!r}")
    if differences:
        raise StructureError("other_head", f"{name}: {'; '.join(differences)}. Use --reset_head to train a new head.")


def label_settings(labels):
    """Entries of the configuration."""
    names = {i: str(name) for i, name in enumerate(labels.names)}
    return {"problem_type": labels.problem, "id2label": names, "label2id": {name: i for i, name in names.items()}}


def head_settings(arguments):
    """Entries of the configuration that the options change."""
    return {name: getattr(arguments, name) for name in HEAD_OPTIONS if getattr(arguments, name) is not None}


def unlabelled_config(arguments):
    """Of a model without pretrained weights, before anything is known of its labels. Raises as `new_config`."""
    config = load_config(arguments.config_name) if arguments.config_name else AtomicaConfig()
    try:
        if arguments.config_overrides:
            config.update_from_string(arguments.config_overrides)
        return config
    except (ValueError, AttributeError, KeyError) as error:
        raise StructureError("usage", f"--config_overrides {arguments.config_overrides}: {error}") from error


def new_config(arguments, vocab_size, labels):
    """Of a model without pretrained weights.

    Raises:
        `StructureError`: for overrides that are not known or do not fit.
    """
    config = unlabelled_config(arguments)
    try:
        values = {**config.to_dict(), "vocab_size": vocab_size, **label_settings(labels), **head_settings(arguments)}
        for name in ("num_labels", "architectures", "transformers_version", "model_type"):
            values.pop(name, None)
        return AtomicaConfig(**values)
    except (ValueError, AttributeError, KeyError) as error:
        raise StructureError("usage", f"--config_overrides {arguments.config_overrides}: {error}") from error


def make_model(options, labels, vocab_size, seed, scale):
    """A model with a head for the labels, which works on standardised targets.

    Args:
        vocab_size (`int`): tokens of the processor.
        seed (`int`): of what is drawn.
        scale (`tuple` of two arrays `(num_labels,)`): mean and standard deviation of the targets; None for classes.

    Raises:
        `StructureError`: if the checkpoint does not fit.
    """
    arguments, name = options.model, options.model.model_name_or_path
    cls = model_class(labels.of_blocks)
    set_seed(seed)
    if name is None:
        return _with_head(cls, new_config(arguments, vocab_size, labels))
    config = load_config(name)
    if config.vocab_size != vocab_size:
        message = f"{name}: the model has {config.vocab_size} block tokens, the tokenizer {vocab_size}."
        raise StructureError("other_vocabulary", message)
    try:
        if has_head(config) and not arguments.reset_head:
            check_head(config, labels, name, arguments.pooling)
            model = cls.from_pretrained(name, **label_settings(labels), **head_settings(arguments), dtype=torch.float32)
            if scale is not None:
                unscale_head(model, *scale)
            return model
        encoder = AtomicaModel.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, StructureError):
            raise
        raise StructureError("no_model", f"{name}: no weights of Atomica there ({str(error).splitlines()[0]}).") from error
    for key, value in label_settings(labels).items():
        setattr(config, key, value)
    for key, value in head_settings(arguments).items():
        setattr(config, key, value)
    model = _with_head(cls, config)
    model.atomica.load_state_dict(encoder.state_dict())
    return model


def _with_head(cls, config):
    """Raises `StructureError` if the labels are not of the kind that the head is for."""
    try:
        return cls(config)
    except ValueError as error:
        raise StructureError("other_head", str(error)) from error


def pooling_of(options, vocab_size, labels):
    """`--pooling`, or else what the configuration says. For a probe: that of z_graph, or None for h_graph."""
    name = options.model.model_name_or_path
    pooling = options.model.pooling or (load_config(name) if name else new_config(options.model, vocab_size, labels)).pooling
    if options.model.strategy in PROBES:
        return pooling if pooling in REPRESENTATION_POOLINGS else None
    return pooling


def target_scale(task, pooling):
    """Mean and standard deviation of each target in the training set, arrays `(num_labels,)`; None for classes. With the
    pooling `block_sum`, zero and the root mean square: a sum over blocks has no place for a mean. With `pair_energy`, zero and
    one: its constants have units."""
    if task.problem != REGRESSION:
        return None
    values, _ = task.targets(task.rows("train"))
    if pooling == "pair_energy":
        return np.zeros(values.shape[1]), np.ones(values.shape[1])
    there = ~np.isnan(values)
    mean = np.array([value[known].mean() if known.any() else 0.0 for value, known in zip(values.T, there.T)])
    std = np.array([value[known].std() if known.any() else 0.0 for value, known in zip(values.T, there.T)])
    if pooling == "block_sum":
        mean, std = np.zeros_like(mean), np.sqrt(mean**2 + std**2)
    return mean, np.where(std > 0, std, 1.0)


@torch.no_grad()
def scale_head(model, mean, std):
    """Puts the units of the targets into the last layer: a model of standardised targets then predicts in their own units."""
    if hasattr(model, "pair_energy"):
        return
    last = model.classifier.layers[-1]
    mean, std = (torch.tensor(value, dtype=last.weight.dtype, device=last.weight.device) for value in (mean, std))
    last.weight.mul_(std[:, None])
    last.bias.mul_(std).add_(mean)


def unscale_head(model, mean, std):
    """The inverse of `scale_head`."""
    scale_head(model, np.zeros_like(mean), 1 / std)
    scale_head(model, -mean / std, np.ones_like(std))


def layer_groups(model):
    """Modules of the encoder from the top down, for gradual unfreezing: each layer, with what reads it out."""
    encoder = model.atomica
    groups = [[encoder.pooler, encoder.block_encoder.readout_in, encoder.block_encoder.readout_out]]
    groups += [[layer] for layer in reversed(encoder.block_encoder.layers)]
    groups += [[encoder.atom_to_block_attention, encoder.atom_encoder.readout_in, encoder.atom_encoder.readout_out]]
    groups += [[layer] for layer in reversed(encoder.atom_encoder.layers)]
    return groups + [[encoder]]  # embeddings and what else is left


class GradualUnfreezing(TrainerCallback):
    """The head alone for `every` epochs, then one more group of `layer_groups` every so many epochs."""

    def __init__(self, every):
        self.every = every

    def on_epoch_begin(self, args, state, control, model=None, **kwargs):
        model.atomica.requires_grad_(False)
        for modules in layer_groups(model)[: int(state.epoch + 1e-6) // self.every]:
            for module in modules:
                module.requires_grad_(True)
