# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""A folder or hub id -> a model on a device, whole and with the tokenizer it was trained with, or a reason why not."""

from contextlib import contextmanager

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, logging

from atomica_hf import AtomicaModel, AtomicaProcessor, StructureError


def best_device():
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_processor(name) -> AtomicaProcessor:
    """The processor of a folder or hub id.

    Raises:
        `StructureError`: if there is none.
    """
    try:
        return AtomicaProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        message = f"{name}: no Atomica processor there ({str(error).splitlines()[0]})."
        raise StructureError("no_processor", message) from error


def read_all_atoms(processor, keep_hydrogens, return_charges):
    """Lets a processor keep hydrogens, or give charges, as well as what it does already; returns it.

    Raises:
        `StructureError`: if it reads complexes as ATOMICA does, which has neither.
    """
    if processor.as_published and (keep_hydrogens or return_charges):
        raise StructureError("usage", "This processor reads complexes as ATOMICA does, without hydrogens and without charges.")
    processor.keep_hydrogens = processor.keep_hydrogens or keep_hydrogens
    processor.return_charges = processor.return_charges or return_charges
    return processor


@contextmanager
def _errors_only():
    """Without the table of weights that are missing, which the error names."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_model(name, dtype="float32", device="cpu", model_class=AtomicaModel):
    """(Model in evaluation mode, `AtomicaProcessor`) of a folder or hub id.

    Args:
        name (`str`): of the folder, or the hub id.
        dtype (`str`): precision of the weights, a name in `torch`.
        device (`str`): of the model.
        model_class (`type`): of the model; the folder must have weights for all of it.

    Raises:
        `StructureError`: if there is no such Atomica model, its tokenizer has other tokens, or the device is not there.
    """
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type != "atomica":
            raise ValueError(f"a checkpoint of model type {config.model_type!r}, expected 'atomica'")
        with _errors_only():
            model, found = model_class.from_pretrained(name, dtype=getattr(torch, dtype), output_loading_info=True)
        parts = sorted({key.split(".")[0] for key in found["missing_keys"]})
        if parts:
            raise ValueError(f"{model_class.__name__} needs {', '.join(parts)}, and the weights have none")
        processor = AtomicaProcessor.from_pretrained(name)
    except (OSError, ValueError, SafetensorError) as error:
        raise StructureError("no_model", f"{name}: no Atomica model there: {str(error).splitlines()[0]}") from error
    if len(processor.tokenizer) != model.config.vocab_size:
        raise StructureError(
            "other_vocabulary",
            f"{name}: the model has {model.config.vocab_size} block tokens, the tokenizer {len(processor.tokenizer)}.",
        )
    try:
        return model.to(device).eval(), processor
    except (RuntimeError, AssertionError) as error:
        raise StructureError("no_device", f"--device {device}: {str(error).splitlines()[0]}") from error
