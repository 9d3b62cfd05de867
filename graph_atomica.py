# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Where everything stands: blocks and atoms of a padded batch in flat tensors, and who receives from whom.

All of it follows from the inputs. A model finds it by itself; the workers of a data loader can do so before (`batch_graph`),
so that a step on an accelerator never has to wait for a size that only the device knows.
"""

from dataclasses import dataclass

import torch

from .geometry_atomica import (
    EdgeFeatures,
    NeighborList,
    mean_weight,
    neighbor_lists,
    pairs_across_segments,
    spherical_harmonics,
)


GRAPH_OPTIONS = (
    "num_neighbors", "global_message_passing", "atom_global_message_passing", "unknown_as_global", "cross_segment_edges",
    "energy_cutoff",
)  # fmt: skip


def segment_sum(values, index, num_segments: int):
    """Sum of rows `values` with the same `index` -> `(num_segments, ...)`."""
    return values.new_zeros((num_segments, *values.shape[1:])).index_add_(0, index, values)


def segment_mean(values, index, num_segments: int):
    """Mean of rows `values` with the same `index` (zero where there are none)."""
    count = segment_sum(torch.ones_like(index, dtype=values.dtype), index, num_segments)
    return segment_sum(values, index, num_segments) / count.clamp_min(1).view(-1, *[1] * (values.ndim - 1))


class ComplexIndex:
    """Where every block and atom of a padded batch stands in the flat tensors `(total_blocks, ...)` and `(total_atoms, ...)`.
    Built once in a forward pass; every index the model needs is read from here."""

    def __init__(self, config, input_ids, atom_to_block, positions, attention_mask, token_type_ids, graph=None):
        self.config, self.graph = config, graph
        self.batch, self.num_blocks = input_ids.shape
        self.num_atoms = atom_to_block.shape[1]
        self.block_mask = attention_mask.bool()
        self.atom_mask = atom_to_block >= 0
        if graph is not None:
            self.check_graph()
        self.block_slots = self.found("block_slots", lambda: self.block_mask.flatten().nonzero().squeeze(1))
        self.atom_slots = self.found("atom_slots", lambda: self.atom_mask.flatten().nonzero().squeeze(1))
        self.total_blocks, self.total_atoms = len(self.block_slots), len(self.atom_slots)
        if not self.total_blocks or not self.total_atoms:
            raise ValueError("Every block or every atom of the batch is padding: nothing to encode.")
        self.complex_of_block = self.block_slots // self.num_blocks
        self.complex_of_atom = self.atom_slots // self.num_atoms

        self.segments = token_type_ids
        self.atom_segments = token_type_ids.gather(1, atom_to_block.clamp_min(0))
        self.num_segments = (token_type_ids * self.block_mask).amax(1) + 1
        self.flat_atom = self.atom_mask.flatten().cumsum(0).view(self.batch, self.num_atoms) - 1
        flat_block = self.block_mask.flatten().cumsum(0).view(self.batch, self.num_blocks) - 1
        self.block_of_atom = flat_block[self.complex_of_atom, self.unpad_atoms(atom_to_block)]

        is_global = input_ids == config.global_token_id
        in_graph_as_global = is_global | (input_ids == config.unk_token_id) if config.unknown_as_global else is_global
        self.is_global_block = self.unpad_blocks(is_global)
        self.is_global_atom = self.is_global_block[self.block_of_atom]
        self.global_block_nodes = in_graph_as_global
        self.global_atom_nodes = in_graph_as_global.gather(1, atom_to_block.clamp_min(0))

        self.positions = positions
        self.atom_positions = self.unpad_atoms(positions)
        self.block_positions = segment_mean(self.atom_positions, self.block_of_atom, self.total_blocks)

    def check_graph(self):
        """
        Raises:
            `ValueError`: for a graph of another batch or of a model with other options.
        """
        expected = {"shape": [self.batch, self.num_blocks, self.num_atoms]}
        expected.update((name, getattr(self.config, name)) for name in GRAPH_OPTIONS)
        made_for = self.graph["made_for"]
        different = [name for name, value in expected.items() if made_for.get(name) != value]
        if different:
            difference = "; ".join(f"{name} is {made_for.get(name)}, expected {expected[name]}" for name in different)
            raise ValueError(f"`graph` was made for another batch or model: {difference}.")

    def found(self, name, find):
        return self.graph[name] if self.graph is not None and name in self.graph else find()

    def attended_atoms(self):
        """Flat indices of the atoms that blocks attend over: those of globals only if the atom graph has them."""
        if self.config.atom_global_message_passing:
            return slice(None)
        return self.found("attended_atoms", lambda: (~self.is_global_atom).nonzero().squeeze(1))

    def torsion_slots(self, torsion_index):
        """Flat indices of the bonds in a padded `(batch, num_torsions, 2)`."""
        return self.found("torsion_slots", lambda: (torsion_index[..., 0] >= 0).flatten().nonzero().squeeze(1))

    def atom_neighbors(self):
        """`NeighborList`s of the atoms; see `neighbor_lists`."""

        def find():
            return neighbor_lists(
                self.positions, self.atom_mask, self.atom_segments, self.global_atom_nodes, self.config.num_neighbors,
                self.config.atom_global_message_passing, self.config.cross_segment_edges,
            )  # fmt: skip

        return self._neighbors("atom_neighbors", find)

    def block_neighbors(self):
        """`NeighborList`s of the blocks."""

        def find():
            return neighbor_lists(
                self.pad_blocks(self.block_positions), self.block_mask, self.segments, self.global_block_nodes,
                self.config.num_neighbors, self.config.global_message_passing, self.config.cross_segment_edges,
            )  # fmt: skip

        return self._neighbors("block_neighbors", find)

    def interacting_atoms(self):
        """Flat indices `(2, num_pairs)` of the atoms of different segments that `energy_cutoff` lets interact."""

        def find():
            with torch.no_grad():
                return pairs_across_segments(
                    self.positions, self.atom_mask, self.atom_segments, self.global_atom_nodes, self.config.energy_cutoff
                )

        return self.found("interacting_atoms", find)

    @property
    def segment_of_atom(self):
        """A number below batch times num_blocks for the segment of each atom, `(total_atoms,)`."""
        return self.complex_of_atom * self.num_blocks + self.unpad_atoms(self.atom_segments)

    def _neighbors(self, name, find):
        if self.graph is not None:
            return [NeighborList(**tensors) for tensors in self.graph[name]]
        with torch.no_grad():
            return find()

    def unpad_blocks(self, padded):
        return padded.flatten(0, 1)[self.block_slots]

    def unpad_atoms(self, padded):
        return padded.flatten(0, 1)[self.atom_slots]

    def pad_blocks(self, flat):
        padded = flat.new_zeros(self.batch * self.num_blocks, *flat.shape[1:]).index_copy(0, self.block_slots, flat)
        return padded.view(self.batch, self.num_blocks, *flat.shape[1:])

    def pad_atoms(self, flat):
        padded = flat.new_zeros(self.batch * self.num_atoms, *flat.shape[1:]).index_copy(0, self.atom_slots, flat)
        return padded.view(self.batch, self.num_atoms, *flat.shape[1:])


def batch_graph(config, batch):
    """Everything about a batch that has a size of its own: the model's argument `graph`.

    A collator makes it where the batch is made; positions must not change afterwards. The result holds tensors, lists and
    dictionaries only, so that data loaders, the `Trainer` and Accelerate pin it and move it as they do the rest.

    Args:
        config (`AtomicaConfig`): of the model that gets the batch.
        batch (`dict`): its inputs, as tensors on the CPU.

    Returns:
        `dict`: `block_slots`, `atom_slots`, `attended_atoms`, `torsion_slots` (flat indices of what is not padding), the
        `NeighborList`s of atoms and blocks, for a head of pair energies `interacting_atoms`, and what it was `made_for`.
    """
    ids, to_block = batch["input_ids"], batch["atom_to_block"]
    index = ComplexIndex(config, ids, to_block, batch["positions"], batch["attention_mask"], batch["token_type_ids"])
    graph = {
        "made_for": {"shape": [*ids.shape, to_block.shape[1]], **{name: getattr(config, name) for name in GRAPH_OPTIONS}},
        "block_slots": index.block_slots,
        "atom_slots": index.atom_slots,
        "atom_neighbors": [dict(vars(edges)) for edges in index.atom_neighbors()],
        "block_neighbors": [dict(vars(edges)) for edges in index.block_neighbors()],
    }
    if not config.atom_global_message_passing:
        graph["attended_atoms"] = index.attended_atoms()
    if config.pooling == "pair_energy":
        graph["interacting_atoms"] = index.interacting_atoms()
    if "torsion_index" in batch:
        graph["torsion_slots"] = index.torsion_slots(batch["torsion_index"])
    return graph


@dataclass
class NodeEdges:
    """The edges of all nodes of one level, as groups of receivers with dense rows of neighbours.

    `groups`: per group the receivers, their `EdgeFeatures` without radial part, and the distances `(n, k)` in angstrom;
    `order` puts the concatenated groups back into node order.
    """

    groups: list
    order: torch.Tensor


def node_edges(positions, lists, softening, dtype):
    """Directions and lengths of the edges of `NeighborList`s among nodes at `positions` `(total, 3)`."""
    groups = []
    for edges in lists:
        vectors = positions[edges.senders] - positions[edges.receivers].unsqueeze(1)
        distances = vectors.norm(dim=-1).to(dtype)
        harmonics = spherical_harmonics(vectors, softening).to(dtype)
        features = EdgeFeatures(edges.senders, edges.edge_types, harmonics, None, mean_weight(edges.mask, dtype))
        groups.append((edges.receivers, features, distances))
    return NodeEdges(groups, torch.cat([edges.receivers for edges in lists]).argsort())


__all__ = ["ComplexIndex", "NodeEdges", "batch_graph", "node_edges", "segment_mean", "segment_sum"]
