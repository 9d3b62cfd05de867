# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""A model whose parameters are shared out among processes (FSDP2 of torch), and whole tensors from and into it.

Accelerate is asked for it (`fsdp_version: 2` in its configuration), but torch does it: Accelerate 1.15 leaves processes on CPUs
with DDP without a word, and so the path that is tested is the one that runs everywhere.
"""

import os

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pretraining_arguments import UsageError


ASKED, VERSION = "ACCELERATE_USE_FSDP", "FSDP_VERSION"  # what accelerate launch sets


def take_request():
    """Whether accelerate was configured for FSDP; it is not told, so that it sets up plain processes.

    Raises:
        `UsageError`: for FSDP1.
    """
    asked = os.environ.pop(ASKED, "false").lower() in ("true", "1")
    if asked and os.environ.get(VERSION, "1") != "2":
        raise UsageError("accelerate is configured for FSDP1; expected fsdp_version: 2 (or --fsdp_version 2).")
    return asked


def shard(model):
    """Shares out the parameters of a model in place, layer by layer; to be called before its optimizer is made."""
    for module in list(model.modules()):
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module)
    return fully_shard(model)


def whole(value):
    """A tensor as one; every process must ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_tensors(tensors):
    return {name: whole(value) for name, value in tensors.items()}


def like(value, parameter):
    """A whole tensor, on the device of a parameter, in its type, and shared out as it is."""
    value = value.to(parameter.device, parameter.dtype)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else value


@torch.no_grad()
def load_whole(model, tensors):
    """`load_state_dict` for a model that may be shared out."""
    model.load_state_dict({name: like(tensors[name], value) for name, value in model.state_dict().items()})
