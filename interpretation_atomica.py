# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""What the model sees of an interaction: how far a read-out turns when one block is hidden, block by block.

A block is hidden as in pretraining: it becomes `<mask>` with one `<mask>` atom at the centre of its atoms, a vector of another
model for it becomes zero, and the global atom stays where it was. Blocks that pretraining never hides, those with special
tokens, get no score. The read-out is handed in as a function, so nothing here knows how a model is built.
"""

from collections.abc import Iterable
from numbers import Integral

import torch
import torch.nn.functional as F

from .configuration_atomica import NUM_SPECIAL_BLOCKS
from .geometry_atomica import NeighborList
from .graph_atomica import NodeEdges, node_edges


READOUTS = ("z_interface", "h_graph")


def widest(tensor):
    """The tensor in double precision, or in single where the device has no double."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def mask_each_block(inputs, blocks, config):
    """One complex -> a batch of copies of it, in each of which one block is hidden.

    What a hidden block had besides its `<mask>` atom becomes padding (`atom_to_block` -1) where it stands.

    Args:
        inputs (`dict`): tensors of one complex, as for `AtomicaModel` with a batch of one.
        blocks (`torch.LongTensor` of shape `(num_copies,)`): which block to hide in each copy; -1 for none.
        config (`AtomicaConfig`): of the model, for the special tokens.

    Returns:
        `dict`: the same names, `num_copies` rows each.
    """
    batch = {name: value.repeat_interleave(len(blocks), 0) for name, value in inputs.items()}
    rows = (blocks >= 0).nonzero().squeeze(1)
    batch["input_ids"][rows, blocks[rows]] = config.mask_token_id
    if "block_features" in batch:
        batch["block_features"][rows, blocks[rows]] = 0

    inside = (batch["atom_to_block"] == blocks[:, None]) & (blocks[:, None] >= 0)
    rows = inside.any(1).nonzero().squeeze(1)  # a block may have no atoms
    first, positions = inside.long().argmax(1)[rows], widest(inputs["positions"][0])
    weight = inside[rows].to(positions.dtype)
    centres = (weight @ positions) / weight.sum(1, keepdim=True)
    batch["atom_to_block"] = batch["atom_to_block"].masked_fill(inside, -1)
    batch["atom_to_block"][rows, first] = blocks[rows]
    batch["atom_ids"] = batch["atom_ids"].masked_fill(inside, config.atom_pad_token_id)
    batch["atom_ids"][rows, first] = config.atom_mask_token_id
    if "atom_charges" in batch:
        batch["atom_charges"] = batch["atom_charges"].masked_fill(inside, 0)
    batch["positions"][rows, first] = centres.to(batch["positions"].dtype)
    return batch


def one_complex(inputs, row: int):
    """Inputs of a padded batch -> those of one of its complexes, without padding at the end, a batch of one."""
    sizes = {"block": int(inputs["attention_mask"][row].nonzero().max()) + 1}
    sizes["atom"] = int((inputs["atom_to_block"][row] >= 0).nonzero().max()) + 1
    cut = {
        **dict.fromkeys(("atom_ids", "atom_to_block", "positions", "atom_charges"), sizes["atom"]),
        **dict.fromkeys(("input_ids", "attention_mask", "token_type_ids", "block_features"), sizes["block"]),
    }
    return {name: value[row : row + 1, : cut[name]] if name in cut else value[row : row + 1] for name, value in inputs.items()}


def check_arguments(segments, readout, max_blocks_per_batch):
    """
    Raises:
        `ValueError`: for an unknown read-out, a limit below one, or segments that are not numbers from 0.
    """
    if readout not in READOUTS:
        raise ValueError(f"`readout` is {readout!r}, expected one of {', '.join(READOUTS)}.")
    if max_blocks_per_batch < 1:
        raise ValueError(f"`max_blocks_per_batch` is {max_blocks_per_batch}, expected a positive number.")
    given = [] if not isinstance(segments, Iterable) else list(segments)
    if segments is not None and (not given or any(not isinstance(s, Integral) or s < 0 for s in given)):
        raise ValueError(f"`segments` are {segments!r}, expected None for all or some of 0, 1, ...")


def changes(values):
    """Where rows of `values` `(copies, num_nodes, ...)` differ from the first -> `(copies, num_nodes)`."""
    different = values != values[:1]
    return different.flatten(2).any(-1) if different.ndim > 2 else different


def edges_of_copies(lists, positions, base, changed, num_layers: int, softening, dtype):
    """Edges for each layer of an encoder over copies of one complex, where only receivers that a change has reached are
    computed, and the others take what the same node of the first copy got.

    A change reaches a receiver in a layer if the node itself, one of its senders or its list of senders has changed.

    Args:
        lists (`list[NeighborList]`): of all nodes of all copies.
        positions (`torch.FloatTensor` of shape `(total, 3)`): in angstrom.
        base (`torch.LongTensor` of shape `(total,)`): the same node of the first copy.
        changed (`torch.BoolTensor` of shape `(total,)`): whether a node comes in changed; one that moved has to be among them.
        num_layers, softening, dtype: of the encoder; see `node_edges`.

    Returns:
        `list[NodeEdges]` of length `num_layers`, and `changed` after the last layer.
    """
    row, group = torch.zeros_like(base), torch.zeros_like(base)
    for number, edges in enumerate(lists):
        row[edges.receivers] = torch.arange(len(edges.receivers), device=base.device)
        group[edges.receivers] = number
    rewired = group != group[base]
    for edges in lists:
        mine = edges.receivers[~rewired[edges.receivers]]
        own, first = row[mine], row[base[mine]]
        same = (base[edges.senders[own]] == edges.senders[first]) & (edges.edge_types[own] == edges.edge_types[first])
        same = (same | ~edges.mask[own]) & (edges.mask[own] == edges.mask[first])
        rewired[mine] = ~same.all(-1)

    is_first = base == torch.arange(len(base), device=base.device)
    found = []
    for _ in range(num_layers):
        reached = changed | rewired
        for edges in lists:
            reached[edges.receivers] |= (changed[edges.senders] & edges.mask).any(-1)
        changed, wanted = reached, reached | is_first
        some = []
        for edges in lists:
            rows = wanted[edges.receivers]
            some.append(NeighborList(*(tensor[rows] for tensor in vars(edges).values())))
        layer = node_edges(positions, some, softening, dtype)
        receivers = torch.cat([edges.receivers for edges in some])
        place = torch.zeros_like(base).index_copy(0, receivers, torch.arange(len(receivers), device=base.device))
        found.append(NodeEdges(layer.groups, torch.where(wanted, place, place[base])))
    return found, changed


@torch.no_grad()
def interaction_scores(read_out, config, inputs, segments=None, readout="z_interface", max_blocks_per_batch=4000):
    """Cosine between a read-out before and after each block is hidden; see `AtomicaPreTrainedModel.interaction_scores`.

    Args:
        read_out (`Callable`): inputs of a batch, which of its blocks `(batch, num_blocks)` are the partner's, and whether all
            its complexes are copies of the first -> vectors `(batch, width)`.
        config (`AtomicaConfig`): of the model.
        inputs (`dict`): padded tensors for `AtomicaModel`, without a `graph`.
        segments (`Sequence[int]`): whose blocks get a score; None for all.
        readout (`str`): which of `READOUTS` the vectors are.
        max_blocks_per_batch (`int`): blocks in one batch, at most, but at least one copy of a complex.

    Returns:
        `torch.FloatTensor` of shape `(batch, num_blocks)`.

    Raises:
        `ValueError`: for bad arguments, a complex without one of the segments, or without a partner to read out, and vectors
            that are not finite.
    """
    check_arguments(segments, readout, max_blocks_per_batch)
    inputs = {name: value for name, value in inputs.items() if value is not None}
    ids = inputs["input_ids"]
    inputs.setdefault("attention_mask", (ids != config.pad_token_id).long())
    inputs.setdefault("token_type_ids", ((ids == config.global_token_id).cumsum(1) - 1).clamp_min(0))
    scores = torch.full(ids.shape, torch.nan, dtype=widest(inputs["positions"][:0]).dtype, device=ids.device)
    for row in range(len(ids)):
        alone = one_complex(inputs, row)
        of_block, is_block = alone["token_type_ids"][0], alone["attention_mask"][0].bool()
        ordinary = is_block & (alone["input_ids"][0] != config.global_token_id)
        copies = max(1, max_blocks_per_batch // len(of_block) - 1)  # beside the complex itself
        this = f"Complex {row} of the batch" if len(ids) > 1 else "The complex"
        for segment in _asked(this, of_block[ordinary].unique().tolist(), segments, readout):
            can_be_hidden = is_block & (of_block == segment) & (alone["input_ids"][0] >= NUM_SPECIAL_BLOCKS)
            partner = (of_block != segment)[None]
            for blocks in can_be_hidden.nonzero().squeeze(1).split(copies):
                batch = mask_each_block(alone, F.pad(blocks, (1, 0), value=-1), config)
                if config.attend_to_padding:  # what is in a batch would change every vector
                    vectors = [read_out(one_complex(batch, i), partner, False) for i in range(len(blocks) + 1)]
                    vectors = torch.cat(vectors)
                else:
                    vectors = read_out(batch, partner.expand(len(blocks) + 1, -1), True)
                scores[row, blocks] = F.cosine_similarity(widest(vectors[:1]), widest(vectors[1:]), dim=-1)
                if not vectors.isfinite().all():
                    raise ValueError(f"{this} has a {readout} that is not finite: are positions and weights?")
    return scores


def _asked(this, present, segments, readout):
    """Segments of a complex, which errors call `this`, that are asked for, in order."""
    asked = present if segments is None else sorted(set(segments))
    missing = [segment for segment in asked if segment not in present]
    if missing:
        raise ValueError(f"{this} has no segment {missing[0]} for `segments`; it has {', '.join(map(str, present))}.")
    if readout != "h_graph" and len(present) < 2:
        raise ValueError(f"{this} has one segment and no partner to read out; `readout='h_graph'` needs none.")
    return asked


__all__ = ["READOUTS", "changes", "check_arguments", "edges_of_copies", "interaction_scores", "mask_each_block"]
