# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Noise on the atoms of training examples, and a second head that predicts it while a model learns labels ("noisy nodes",
Godwin et al., ICLR 2022). The head is the one that pretraining has for Gaussian noise; it is taken off before a model is saved.
"""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.utils import ModelOutput

from atomica_hf import (
    AtomicaCollator,
    AtomicaForSequenceClassification,
    AtomicaForTokenClassification,
    AtomicaModel,
)
from atomica_hf.modeling_atomica import AtomicaAtomNoiseHead
from atomica_hf.processing_atomica import ATOM_GLOBAL, pad_examples


def draw_noise(example, rng):
    """Standard normal noise of each atom `(num_atoms, 3)`; that of a global atom is the mean over its segment, whose centre it
    is."""
    noise = rng.normal(size=(len(example["atom_ids"]), 3))
    segments = np.asarray(example["token_type_ids"])[np.asarray(example["atom_to_block"])]
    is_global = np.asarray(example["atom_ids"]) == ATOM_GLOBAL
    for segment in np.unique(segments):
        inside = segments == segment
        noise[inside & is_global] = noise[inside & ~is_global].mean(0)
    return noise


class NoisyExamples(torch.utils.data.Dataset):
    """Examples whose atoms have moved by `sigma` (angstrom) times a noise that depends on (seed, epoch, index) only, so that it
    is the same with any number of processes and workers, and after a resume. `atom_noise_labels` are (clean - noisy) / sigma.
    """

    def __init__(self, examples, sigma, seed):
        self.examples, self.sigma, self.seed = examples, sigma, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers of a loader see it change

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        example = self.examples[index]
        noise = draw_noise(example, np.random.default_rng((self.seed, int(self.epoch), index)))
        return {**example, "positions": np.asarray(example["positions"]) + self.sigma * noise, "atom_noise_labels": -noise}


class EpochOfNoise(TrainerCallback):
    """Tells `NoisyExamples` the epoch."""

    def __init__(self, examples):
        self.examples = examples

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.examples.epoch.fill_(int((state.epoch or 0) + 1e-6))


class DenoisingCollator(AtomicaCollator):
    """`AtomicaCollator` that keeps the `atom_noise_labels` of noisy examples."""

    def __call__(self, examples):
        batch = super().__call__(examples)
        if "atom_noise_labels" in examples[0]:
            batch |= pad_examples(examples, ["atom_noise_labels"])
        return batch


@dataclass
class DenoisingOutput(ModelOutput):
    """
    Output for noisy examples.

    Args:
        loss, logits: of the labels, as without noise.
        noise_loss (`torch.FloatTensor` of shape `()`): squared length of (prediction - label), averaged over the atoms of a
            complex, then over complexes. The sigma of pretraining's loss is left out, because it is the same everywhere.
        noise_baseline (`torch.FloatTensor` of shape `()`): the same for predicting zero.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    noise_loss: torch.FloatTensor | None = None
    noise_baseline: torch.FloatTensor | None = None


class _RememberingModel(AtomicaModel):
    def encode(self, *args, **kwargs):
        self.found = super().encode(*args, **kwargs)
        return self.found


class _Denoising:
    """What a model with a head for labels is besides, while it has one for noise: given `atom_noise_labels` it returns a
    `DenoisingOutput`."""

    accepts_loss_kwargs = False  # the Trainer would conclude otherwise from the signature
    _auto_class = None  # a checkpoint needs no code

    def forward(self, *args, atom_noise_labels=None, **kwargs):
        output = super().forward(*args, **kwargs)
        found = self.atomica.__dict__.pop("found")
        if atom_noise_labels is None:
            return output
        types, index = self.atomica.atom_encoder.edge_type_embeddings.weight, found.index
        prediction = self.atom_noise_head(found.atom_irreps, found.atom_edges, types, found.h_block, index.block_of_atom)
        prediction = index.pad_atoms(prediction).to(atom_noise_labels.dtype)
        losses = []
        for error in (prediction - atom_noise_labels, atom_noise_labels):
            per_complex = (error.pow(2).sum(-1) * index.atom_mask).sum(1) / index.atom_mask.sum(1).clamp_min(1)
            losses.append(per_complex.mean())
        return DenoisingOutput(output.loss, output.logits, *losses)


_DENOISING = {
    cls: type(cls.__name__, (_Denoising, cls), {"__module__": __name__})
    for cls in (AtomicaForSequenceClassification, AtomicaForTokenClassification)
}


def attach_denoising_head(model):
    """Gives a model with a head for labels a second one for noise, in place."""
    config = model.config
    model.atom_noise_head = AtomicaAtomNoiseHead(config).to(model.device, model.dtype)
    model.__class__, model.atomica.__class__ = _DENOISING[type(model)], _RememberingModel
    return model


def detach_denoising_head(model):
    """The inverse of `attach_denoising_head`; a model without that head stays as it is."""
    if isinstance(model, _Denoising):
        model.__class__, model.atomica.__class__ = type(model).__mro__[2], AtomicaModel
        del model.atom_noise_head
    return model
