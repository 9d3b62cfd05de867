# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Geometry of Atomica: neighbour lists, radial basis, spherical harmonics, Wigner 3j, tensor-product convolution, layer norm.

Conventions are those of e3nn: real harmonics in the order m = -l..l with y as polar axis, "component" normalisation.
Features with several irreps are flat tensors; inside one irrep they are laid out component first, `(2 l + 1, multiplicity)`,
so that the convolution needs no transposes. `to_channel_major` gives e3nn's layout.
An edge goes from a sender to a receiver and its vector is `positions[sender] - positions[receiver]`.
"""

import json
import math
import re
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import nn

from .configuration_atomica import CONVOLUTIONS
from .convolution_triton_atomica import contract, contract_backward
from .convolution_triton_atomica import require as require_triton


class Irrep(NamedTuple):
    """`multiplicity` channels that rotate with `degree` l and change sign under inversion if `parity` is -1."""

    multiplicity: int
    degree: int
    parity: int

    @property
    def components(self) -> int:
        return 2 * self.degree + 1

    @property
    def size(self) -> int:
        return self.multiplicity * self.components

    @property
    def name(self) -> str:
        return f"{self.degree}{'e' if self.parity == 1 else 'o'}"


def irreps_size(irreps) -> int:
    return sum(irrep.size for irrep in irreps)


def split_irreps(features, irreps):
    """Splits the last axis into views of shape `(..., 2 l + 1, multiplicity)`."""
    parts = features.split([irrep.size for irrep in irreps], dim=-1)
    return [p.unflatten(-1, (irrep.components, irrep.multiplicity)) for p, irrep in zip(parts, irreps)]


def to_channel_major(features, irreps):
    """Component-first features -> e3nn's layout, `(multiplicity, 2 l + 1)` inside each irrep."""
    return torch.cat([p.transpose(-1, -2).flatten(-2) for p in split_irreps(features, irreps)], dim=-1)


def gram_invariants(features, irreps):
    """Inner products of the channels of every irrep that is not a scalar: upper triangles, diagonal included, row by row."""
    found = []
    for part, irrep in zip(split_irreps(features, irreps), irreps):
        if irrep.degree:
            row, column = torch.triu_indices(irrep.multiplicity, irrep.multiplicity, device=features.device)
            found.append((part.transpose(-1, -2) @ part)[..., row, column])
    return torch.cat(found, dim=-1)


# Wigner 3j and harmonics ------------------------------------------------------------------------------------------------


def _clebsch_gordan(j1, j2, j3):
    """Clebsch-Gordan coefficients of SU(2) for integer spins (Racah's formula), shape `(2 j1 + 1, 2 j2 + 1, 2 j3 + 1)`."""
    f = math.factorial
    table = torch.zeros(2 * j1 + 1, 2 * j2 + 1, 2 * j3 + 1, dtype=torch.float64)
    for m1 in range(-j1, j1 + 1):
        for m2 in range(-j2, j2 + 1):
            m3 = m1 + m2
            if abs(m3) > j3:
                continue
            prefactor = math.sqrt(
                (2 * j3 + 1)
                * f(j3 + j1 - j2) * f(j3 - j1 + j2) * f(j1 + j2 - j3) / f(j1 + j2 + j3 + 1)
                * f(j3 + m3) * f(j3 - m3) / (f(j1 + m1) * f(j1 - m1) * f(j2 + m2) * f(j2 - m2))
            )  # fmt: skip
            first, last = max(-j1 + j2 + m3, -j1 + m1, 0), min(j2 + j3 + m1, j3 - j1 + j2, j3 + m3)
            total = sum(
                (-1) ** (v + j2 + m2)
                * f(j2 + j3 + m1 - v) * f(j1 - m1 + v)
                / (f(v) * f(j3 - j1 + j2 - v) * f(j3 + m3 - v) * f(v + j1 - j2 - m3))
                for v in range(first, last + 1)
            )  # fmt: skip
            table[j1 + m1, j2 + m2, j3 + m3] = prefactor * total
    return table


def _real_to_complex(degree):
    """Columns: e3nn's real harmonics written in complex ones, with the phase (-i)^l that makes the 3j symbols real."""
    q = torch.zeros(2 * degree + 1, 2 * degree + 1, dtype=torch.complex128)
    q[degree, degree] = 1
    for m in range(1, degree + 1):
        q[degree - m, degree + m], q[degree - m, degree - m] = 1 / math.sqrt(2), -1j / math.sqrt(2)
        q[degree + m, degree + m], q[degree + m, degree - m] = (-1) ** m / math.sqrt(2), 1j * (-1) ** m / math.sqrt(2)
    return (-1j) ** degree * q


@torch.compiler.assume_constant_result  # else every compiled call would make the table anew
def wigner_3j(l1: int, l2: int, l3: int, dtype=torch.float64, device=None):
    """Real Wigner 3j symbols of unit norm, shape `(2 l1 + 1, 2 l2 + 1, 2 l3 + 1)`, equal to `e3nn.o3.wigner_3j`.

    Raises:
        `ValueError`: if |l1 - l2| <= l3 <= l1 + l2 does not hold.
    """
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"wigner_3j: degrees ({l1}, {l2}, {l3}) do not satisfy |l1 - l2| <= l3 <= l1 + l2.")
    return _wigner_3j(l1, l2, l3, dtype, device)


@cache
def _wigner_3j(l1, l2, l3, dtype, device):
    with torch.inference_mode(False), torch.no_grad():  # the cached tensor must be usable in a later backward pass
        table = torch.einsum(
            "ij,kl,mn,ikn->jlm",
            _real_to_complex(l1),
            _real_to_complex(l2),
            _real_to_complex(l3).T.conj(),
            _clebsch_gordan(l1, l2, l3).to(torch.complex128),
        ).real
        return (table / table.norm()).to(dtype=dtype, device=device)


HARMONICS = (Irrep(1, 0, 1), Irrep(1, 1, -1), Irrep(1, 2, 1))


def spherical_harmonics(vectors, softening: float):
    """Real harmonics of degree 0, 1, 2, component-normalised.

    Args:
        vectors (`torch.FloatTensor` of shape `(..., 3)`): in angstrom.
        softening (`float`): the harmonics are the polynomials at r / sqrt(|r|^2 + softening^2), which fade for vectors
            shorter than this; with 0, at r / max(|r|, 1e-12).

    Returns:
        `torch.FloatTensor` of shape `(..., 9)`.
    """
    if softening > 0:
        unit = vectors * (vectors.pow(2).sum(-1, keepdim=True) + softening**2).rsqrt()
    else:
        unit = F.normalize(vectors, dim=-1, eps=1e-12)
    x, y, z = unit.unbind(-1)
    s3, s5, s15 = math.sqrt(3), math.sqrt(5), math.sqrt(15)
    second = [s15 * x * z, s15 * x * y, s5 * (y * y - 0.5 * (x * x + z * z)), s15 * y * z, 0.5 * s15 * (z * z - x * x)]
    return torch.stack([torch.ones_like(x), s3 * x, s3 * y, s3 * z, *second], dim=-1)


# Harmonics of a bond's surroundings: (harmonics of r) x (degree 2 of the bond), sorted by (degree, odd before even). Degrees
# 3 and 4 are left out, because a scalar output cannot be reached from them with inputs of degree 2 or less.
_BOND_PRODUCTS = ((2, 0), (1, 1), (2, 1), (1, 2), (0, 2), (2, 2))  # (degree of r, degree of the product)
BOND_HARMONICS = tuple(Irrep(1, degree, (-1) ** first) for first, degree in _BOND_PRODUCTS)


def bond_harmonics(harmonics, bond):
    """Harmonics of shape `(..., 9)` times those of the bond `(..., 9)` -> `BOND_HARMONICS` of shape `(..., 22)`."""
    parts = split_irreps(harmonics, HARMONICS)
    second = bond[..., 4:]
    products = []
    for first, degree in _BOND_PRODUCTS:
        symbols = wigner_3j(first, 2, degree, harmonics.dtype, harmonics.device) * math.sqrt(2 * degree + 1)
        products.append(torch.einsum("abc,...a,...b->...c", symbols, parts[first].squeeze(-1), second))
    return torch.cat(products, dim=-1)


def gaussian_basis(distances, num_gaussians: int, cutoff: float, start: float = 0.0):
    """exp(-(d - mu)^2 / 2 delta^2) at `num_gaussians` centres mu evenly on [start, cutoff], delta their spacing; no cut-off."""
    centres = torch.linspace(start, cutoff, num_gaussians, dtype=distances.dtype, device=distances.device)
    spacing = (cutoff - start) / (num_gaussians - 1)
    return torch.exp(-0.5 * ((distances.unsqueeze(-1) - centres) / spacing).pow(2))


# Neighbours -------------------------------------------------------------------------------------------------------------


@dataclass
class NeighborList:
    """Edges of some receivers as dense rows; `mask` is False where a receiver has fewer than `num_neighbors` senders.

    receivers `(num_receivers,)`, senders, edge_types, mask `(num_receivers, num_neighbors)`; indices are flat node indices.
    Edge types: 0 same segment, 1 other segment, 2 a global and its segment, 3 two globals.
    """

    receivers: torch.Tensor
    senders: torch.Tensor
    edge_types: torch.Tensor
    mask: torch.Tensor


def smallest(values, k: int):
    """Indices of the `k` smallest entries of each row, ties broken by index (`topk` alone leaves ties open).

    Returns indices of shape `(..., k)` and a mask that is False where fewer than `k` entries are finite.
    """
    k = min(k, values.shape[-1])
    if k == 0:
        empty = values.new_zeros((*values.shape[:-1], 0))
        return empty.long(), empty.bool()
    kth = values.topk(k, dim=-1, largest=False).values[..., -1:]
    index = torch.arange(values.shape[-1], device=values.device).expand_as(values)
    rank = torch.where(values < kth, index - values.shape[-1], index)
    rank = torch.where(values <= kth, rank, 2 * values.shape[-1])
    chosen = rank.topk(k, dim=-1, largest=False).indices.sort(dim=-1).values
    return chosen, values.gather(-1, chosen).isfinite()


def squared_distances(points, others):
    """`(..., a, 3)`, `(..., b, 3)` -> `(..., a, b)`, by explicit differences: a matrix product loses too many digits."""
    return (points.unsqueeze(-2) - others.unsqueeze(-3)).pow(2).sum(-1)


_MAX_DISTANCES = 2**20  # distances held at once
_TREE_NODES = 512  # complexes with more nodes are searched by trees, on the processor
_TREE_SPARE = 8  # neighbours that a tree gives beyond those wanted, among which ties are broken


def _nearest_by_distances(positions, candidates, segments, num_neighbors, across=True):
    """Nearest candidates of every candidate of a padded batch, from all distances, some rows at a time.

    Yields (edge type, complex, receiver, sender); see `neighbor_lists`.
    """
    batch, width = candidates.shape
    arange = torch.arange(width, device=positions.device)
    rows_per_chunk = max(1, _MAX_DISTANCES // max(1, batch * width))
    for start in range(0, width, rows_per_chunk):
        rows = slice(start, min(start + rows_per_chunk, width))
        distances = squared_distances(positions[:, rows], positions)
        allowed = candidates[:, rows, None] & candidates[:, None] & (arange[rows, None] != arange)
        same = segments[:, rows, None] == segments[:, None]
        for edge_type, pairs in ((0, allowed & same), (1, allowed & ~same))[: 1 + across]:
            sender, found = smallest(distances.masked_fill(~pairs, math.inf), num_neighbors)
            complex_id, row, slot = found.nonzero(as_tuple=True)
            yield edge_type, complex_id, row + start, sender[complex_id, row, slot]


def _nearest_in_tree(points, others, num_neighbors, own=None):
    """Nearest of `others` around each point, in memory and nearly in time proportional to their number: as `smallest` gives
    them from all distances, indices into `others` of shape `(num_points, k)` and a mask.

    A tree gives a few too many, of which the nearest are chosen. own `(num_points,)`: which of `others` the point is itself.
    """
    number = min(num_neighbors + (own is not None) + _TREE_SPARE, len(others))
    if number == 0 or len(points) == 0:
        return smallest(points.new_zeros(len(points), len(others)), num_neighbors)
    tree = cKDTree(others.detach().double().numpy())
    _, near = tree.query(points.detach().double().numpy(), k=list(range(1, number + 1)))
    near = torch.from_numpy(near.astype("int64")).sort(dim=1).values

    def nearest_of(distances, candidates, rows=slice(None)):
        if own is not None:
            distances.masked_fill_(candidates == own[rows].unsqueeze(1), math.inf)
        return smallest(distances, num_neighbors)

    distances = (points.unsqueeze(1) - others[near]).pow(2).sum(-1)
    chosen, found = nearest_of(distances, near)
    nearest = near.gather(1, chosen)
    if number < len(others):  # more of equal distance than were asked for, as in a lattice
        farthest = distances.masked_fill(distances.isinf(), 0).amax(1)
        tied = farthest <= distances.gather(1, chosen).amax(1) * (1 + 1e-5)
        for rows in tied.nonzero().squeeze(1).split(max(1, _MAX_DISTANCES // len(others))):
            every = torch.arange(len(others))
            nearest[rows], found[rows] = nearest_of(squared_distances(points[rows], others), every, rows)
    return nearest, found


def _nearest_by_trees(positions, segments, num_neighbors, across=True):
    """The same as `_nearest_by_distances` for the nodes of one complex, `(num_nodes, 3)`: a tree per segment, and one of what
    is beside it. Yields (edge type, receiver, sender)."""
    for segment in segments.unique():
        inside = segments == segment
        receivers, beside = inside.nonzero().squeeze(1), (~inside).nonzero().squeeze(1)
        for edge_type, others, own in ((0, receivers, torch.arange(len(receivers))), (1, beside, None))[: 1 + across]:
            nearest, found = _nearest_in_tree(positions[receivers], positions[others], num_neighbors, own)
            row, slot = found.nonzero(as_tuple=True)
            yield edge_type, receivers[row], others[nearest[row, slot]]


def nearest_atoms(points, complex_id, positions, valid, num_neighbors: int):
    """The nearest atoms around points, each of the point's own complex; ties are broken by index.

    Args:
        points (`torch.FloatTensor` of shape `(num_points, 3)`): in angstrom.
        complex_id (`torch.LongTensor` of shape `(num_points,)`): complex of each point.
        positions, valid (tensors of shape `(batch, num_atoms, 3)`, `(batch, num_atoms)`): atoms, and which are not padding.

    Returns:
        Indices of atoms in their complex, `(num_points, k)` with k at most `num_neighbors`, and a mask that is False where
        there are fewer.
    """
    if positions.device.type == "cpu" and valid.shape[1] > _TREE_NODES and not torch.compiler.is_compiling():
        nearest = complex_id.new_zeros(len(points), min(num_neighbors, valid.shape[1]))
        found = torch.zeros_like(nearest, dtype=torch.bool)
        for number in complex_id.unique():
            rows, atoms = (complex_id == number).nonzero().squeeze(1), valid[number].nonzero().squeeze(1)
            near, is_one = _nearest_in_tree(points[rows], positions[number, atoms], num_neighbors)
            nearest[rows, : near.shape[1]], found[rows, : near.shape[1]] = atoms[near], is_one
        return nearest, found
    rows_at_once = max(1, _MAX_DISTANCES // max(1, valid.shape[1]))
    parts = []
    for some, number in zip(points.split(rows_at_once), complex_id.split(rows_at_once)):
        distances = squared_distances(some.unsqueeze(1), positions[number]).squeeze(1)
        parts.append(smallest(distances.masked_fill(~valid[number], math.inf), num_neighbors))
    nearest, found = zip(*parts)
    return torch.cat(nearest), torch.cat(found)


def pairs_across_segments(positions, valid, segments, is_global, cutoff: float):
    """Pairs of nodes of one complex that belong to different segments and are nearer than `cutoff` angstrom, each pair once;
    globals are in none.

    Args:
        positions, valid, segments, is_global: as for `neighbor_lists`.

    Returns:
        `torch.LongTensor` of shape `(2, num_pairs)`: flat indices, of the lower segment first.
    """
    batch, width = valid.shape
    flat = valid.flatten().cumsum(0).view(batch, width) - 1
    candidates = valid & ~is_global
    rows_per_chunk = max(1, _MAX_DISTANCES // max(1, batch * width))
    found = [flat.new_zeros(2, 0)]
    for start in range(0, width, rows_per_chunk):
        rows = slice(start, start + rows_per_chunk)
        across = candidates[:, rows, None] & candidates[:, None] & (segments[:, rows, None] < segments[:, None])
        across &= squared_distances(positions[:, rows], positions) < cutoff**2
        complex_id, first, second = across.nonzero(as_tuple=True)
        found.append(torch.stack([flat[complex_id, first + start], flat[complex_id, second]]))
    return torch.cat(found, dim=1)


def neighbor_lists(positions, valid, segments, is_global, num_neighbors: int, with_globals: bool, across_segments: bool = True):
    """Edges of every node of a padded batch of complexes.

    A node that is not global receives from its `num_neighbors` nearest non-globals of its own segment and from as many of
    the complex's other segments. With `with_globals`, each global also exchanges with every other node of its segment and
    with the complex's other globals. Two globals of one segment are joined by both kinds of edge. Without `across_segments`
    no edge joins two segments.

    Args:
        positions (`torch.FloatTensor` of shape `(batch, num_nodes, 3)`): in angstrom.
        valid, is_global (`torch.BoolTensor` of shape `(batch, num_nodes)`): not padding; global.
        segments (`torch.LongTensor` of shape `(batch, num_nodes)`): segment of each node.

    Returns:
        Two `NeighborList`s that together hold every valid node once: nodes with few neighbours, and globals with many.
        Indices count valid nodes in order, `valid.nonzero()`.
    """
    batch, width = valid.shape
    device = positions.device
    num_nodes = len(valid.flatten().nonzero())
    flat = valid.flatten().cumsum(0).view(batch, width) - 1
    arange = torch.arange(width, device=device)
    candidates = valid & ~is_global

    edges = []  # (receiver, sender, type), flat
    small = slice(None)
    if device.type == "cpu" and width > _TREE_NODES:
        large = candidates.sum(1) > _TREE_NODES
        for i in large.nonzero().squeeze(1):
            nodes = candidates[i].nonzero().squeeze(1)
            found = _nearest_by_trees(positions[i, nodes], segments[i, nodes], num_neighbors, across_segments)
            for edge_type, receiver, sender in found:
                receiver, sender = flat[i, nodes[receiver]], flat[i, nodes[sender]]
                edges.append((receiver, sender, torch.full_like(receiver, edge_type)))
        small = (~large).nonzero().squeeze(1)
        width = int((candidates[small] * (arange + 1)).max()) if len(small) else 0
    if width:
        within = flat[small]
        within_width = [values[small, :width] for values in (positions, candidates, segments)]
        arguments = (*within_width, num_neighbors, across_segments)
        for edge_type, complex_id, receiver, sender in _nearest_by_distances(*arguments):
            receiver, sender = within[complex_id, receiver], within[complex_id, sender]
            edges.append((receiver, sender, torch.full_like(receiver, edge_type)))
    if with_globals:
        complex_id, position = (valid & is_global).nonzero(as_tuple=True)
        others = valid[complex_id] & (arange != position[:, None])
        same = segments[complex_id] == segments[complex_id, position][:, None]
        others_in_reach = others if across_segments else others & same
        for edge_type, pairs in ((2, others & same), (3, others_in_reach & is_global[complex_id])):
            row, node = pairs.nonzero(as_tuple=True)
            central, node_is_global = flat[complex_id[row], position[row]], is_global[complex_id[row], node]
            node = flat[complex_id[row], node]
            edges.append((central, node, torch.full_like(node, edge_type)))
            if edge_type == 2:
                back = ~node_is_global  # a node that is itself global has a row of its own
                edges.append((node[back], central[back], torch.full_like(node[back], edge_type)))

    receiver, sender, edge_type = (torch.cat(parts) for parts in zip(*edges))
    order = receiver.sort(stable=True).indices
    receiver, sender, edge_type = receiver[order], sender[order], edge_type[order]
    degree = torch.bincount(receiver, minlength=num_nodes)
    slot = torch.arange(len(receiver), device=device) - (degree.cumsum(0) - degree)[receiver]
    few = degree <= 2 * num_neighbors + 1
    lists = []
    for group in (few, ~few):
        receivers = group.nonzero().squeeze(1)
        receivers = receivers[degree[receivers].sort(stable=True).indices]  # so that chunks of rows have few empty slots
        shape = (len(receivers), len(torch.bincount(degree[group], minlength=2)) - 1)
        row = torch.zeros_like(degree).index_copy_(0, receivers, torch.arange(len(receivers), device=device))
        inside = group[receiver]
        where = (row[receiver[inside]], slot[inside])
        senders, types = receiver.new_zeros(shape), receiver.new_zeros(shape)
        mask = torch.zeros(shape, dtype=torch.bool, device=device)
        senders[where], types[where], mask[where] = sender[inside], edge_type[inside], True
        lists.append(NeighborList(receivers, senders, types, mask))
    return lists


# Tensor-product convolution ---------------------------------------------------------------------------------------------


@dataclass
class EdgeFeatures:
    """Everything about the edges of a `NeighborList` that does not change from layer to layer.

    senders `(n, k)`; edge_types `(n, k)` or None; harmonics `(n, k, size)`; radial `(n, k, edge_size)`; weight `(n, k)`: one
    over the number of neighbours, zero on padding, so that a weighted sum is the mean.
    """

    senders: torch.Tensor
    edge_types: torch.Tensor | None
    harmonics: torch.Tensor
    radial: torch.Tensor
    weight: torch.Tensor


def mean_weight(mask, dtype):
    """Boolean mask `(n, k)` -> weights `(n, k)` that turn a sum over neighbours into their mean (zero without any)."""
    mask = mask.to(dtype)
    return mask / mask.sum(-1, keepdim=True).clamp_min(1)


_CHUNK_ELEMENTS = {"cpu": 2**22}
_CHUNK_ELEMENTS_ACCELERATOR = 2**26
_BLOCK_ELEMENTS = 2**18  # of Z: what a core keeps near itself


class _Plan:
    """out_i = sum over j of w_ij TP(x_j, Y_ij; W2 h_ij + b2), h_ij = ReLU(radial W_r + receiver_i + sender_j + type_ij).

    The weights per edge never exist: the linear map is moved past the sum over neighbours,
    Z_i = sum over j of y_ij^T h_ij, out_i = Z_i W2. Nothing of the size of edges times hidden width is kept: y, h and Z
    live for one chunk of receivers and are computed again in the backward pass. With `products`, the name of the dtype that
    products are rounded to, the kernels of `convolution_triton_atomica` do this without Z.

    `forward` and `backward` take the tensors of `TensorProductConvolution.forward` in the order of `_Convolution`.
    """

    def __init__(self, irreps_in, irreps_edge, irreps_out, sizes, dropout):
        self.irreps_in, self.irreps_edge, self.irreps_out = irreps_in, irreps_edge, irreps_out
        self.sizes, self.dropout = sizes, dropout
        self.outputs, self.scales, self.channels = [], [], []
        for out in irreps_out:
            paths = [
                (a, b)
                for a, first in enumerate(irreps_in)
                for b, second in enumerate(irreps_edge)
                if first.parity * second.parity == out.parity
                and abs(first.degree - second.degree) <= out.degree <= first.degree + second.degree
            ]
            if not paths:
                raise ValueError(f"No path from {irreps_in} and {irreps_edge} leads to {out.name}.")
            self.outputs.append(paths)
            self.channels.append(sum(irreps_in[a].multiplicity for a, _ in paths))
            self.scales.append(math.sqrt(out.components / self.channels[-1]))
        self.inputs_of_degree, self.offsets = {}, []  # inputs of each degree; where an input stands among those of its degree
        for a, irrep in enumerate(irreps_in):
            same = self.inputs_of_degree.setdefault(irrep.degree, [])
            self.offsets.append(sum(irreps_in[other].multiplicity for other in same))
            same.append(a)
        self.rows = {degree: {} for degree in self.inputs_of_degree}  # of (harmonic, degree of the output) in their couplings
        for out, paths in zip(irreps_out, self.outputs):
            for a, b in paths:
                rows = self.rows[irreps_in[a].degree]
                start = sum(2 * degree + 1 for _, degree in rows)
                rows.setdefault((b, out.degree), slice(start, start + out.components))

    def chunks(self, senders, filled, products):
        """Slices of receivers whose largest intermediate stays near the size of the processor's cache, and for each the index
        of their edges: on a processor without the slots that are empty in all of its rows. Elsewhere, asking how many would
        wait for the device."""
        neighbors, width = senders.shape[1], sum(self.sizes)
        columns = [irrep.components * channels for irrep, channels in zip(self.irreps_out, self.channels)]
        size = neighbors * (sum(columns) + width) if products else max(columns) * (width + neighbors)
        step = max(1, _CHUNK_ELEMENTS.get(senders.device.type, _CHUNK_ELEMENTS_ACCELERATOR) // max(1, size))
        chunks = [slice(i, min(i + step, len(senders))) for i in range(0, len(senders), step)]
        if senders.device.type != "cpu":
            return [(rows, rows) for rows in chunks]
        slots = filled.tolist()
        return [(rows, (rows, slice(max(slots[rows])))) for rows in chunks]

    def blocks(self, y, h):
        """Slices of the rows of a chunk and room for their Z `(rows, (2 l + 1) * channels, edge width)`, which is written and
        read while it is in the cache of a core."""
        size = y.shape[2] * h.shape[2]
        step = len(y) if y.device.type != "cpu" else max(1, _BLOCK_ELEMENTS * torch.get_num_threads() // size)
        room = y.new_empty(min(step, len(y)), y.shape[2], h.shape[2])
        for start in range(0, len(y), step):
            part = slice(start, min(start + step, len(y)))
            yield part, room[: part.stop - start]

    def hidden(self, radial, receiver_term, sender_term, type_term, radial_weight, edge_types, dropout_mask):
        """h `(n, k, edge width)` of some receivers."""
        h = F.linear(radial, radial_weight).add_(sender_term)
        if receiver_term is not None:
            h += receiver_term.unsqueeze(1)
        if type_term is not None:
            h += F.embedding(edge_types, type_term)
        h.relu_()
        if dropout_mask is not None:
            h *= dropout_mask
            h /= 1 - self.dropout
        return h

    def symbols(self, degree, like):
        """3j symbols that couple inputs of a degree, `(size of the harmonics, rows, 2 l_in + 1)`, zero where a row has another
        harmonic."""
        harmonics = tuple(irrep.degree for irrep in self.irreps_edge)
        return _stacked_symbols(degree, harmonics, tuple(self.rows[degree]), like.dtype, like.device)

    def couplings(self, x, harmonics):
        """By degree of the input: what couples it to outputs, 3j symbols times harmonics `(n, k, rows, 2 l_in + 1)`; and x,
        `(n, k, 2 l_in + 1, channels)`. Inputs of one degree are coupled together, whatever their parity, and to all outputs:
        few and large products, because small ones are slow."""
        inputs, found = split_irreps(x, self.irreps_in), {}
        for degree, same in self.inputs_of_degree.items():
            symbols = self.symbols(degree, x)
            coupling = (harmonics @ symbols.flatten(1)).unflatten(-1, symbols.shape[1:])
            found[degree] = coupling, torch.cat([inputs[a] for a in same], dim=-1)
        return found

    def places(self, out):
        """Per path into an output: the degree of its input, its rows and columns among products of that degree, and its
        columns in y."""
        start = 0
        for a, b in self.outputs[out]:
            irrep = self.irreps_in[a]
            columns = slice(self.offsets[a], self.offsets[a] + irrep.multiplicity)
            rows = self.rows[irrep.degree][b, self.irreps_out[out].degree]
            yield irrep.degree, rows, columns, slice(start, start + irrep.multiplicity)
            start += irrep.multiplicity

    def sender_factors(self, couplings):
        """One y per output, `(n, k, (2 l + 1) * channels)`."""
        products = {
            degree: coupling * x if degree == 0 else coupling @ x  # a matrix product of one term is slow
            for degree, (coupling, x) in couplings.items()
        }
        return [
            torch.cat([products[degree][..., rows, columns] for degree, rows, columns, _ in self.places(i)], dim=-1).flatten(-2)
            for i in range(len(self.irreps_out))
        ]

    def forward(self, products, senders, edge_types, dropout_mask, filled, x, harmonics, radial, receiver_term, sender_term,
                type_term, radial_weight, parameters):  # fmt: skip
        weights, biases = parameters[: len(self.outputs)], parameters[len(self.outputs) :]
        out = x.new_empty(len(senders), irreps_size(self.irreps_out))
        for rows, edges in self.chunks(senders, filled, products):
            sources, kinds, drop = (None if i is None else i[edges] for i in (senders, edge_types, dropout_mask))
            receiver = None if receiver_term is None else receiver_term[rows]
            sender = F.embedding(sources, sender_term)
            h = self.hidden(radial[edges], receiver, sender, type_term, radial_weight, kinds, drop)
            ys = self.sender_factors(self.couplings(F.embedding(sources, x), harmonics[edges]))
            parts = []
            for y, w, b, irrep, scale in zip(ys, weights, biases, self.irreps_out, self.scales):
                value = y.sum(1).view(-1, len(w)) @ b
                if products:
                    value += contract(y, h, w, irrep.components, products)
                else:
                    for part, z in self.blocks(y, h):
                        torch.bmm(y[part].transpose(1, 2), h[part], out=z)
                        value.view(len(y), -1)[part].view(-1, irrep.multiplicity).addmm_(
                            z.view(-1, w[..., 0].numel()), w.flatten(0, 1)
                        )
                parts.append(value.view(-1, irrep.size) * scale)
            torch.cat(parts, dim=1, out=out[rows])
        return out

    def backward(self, grad, needs, products, senders, edge_types, dropout_mask, filled, x, harmonics, radial, receiver_term,
                 sender_term, type_term, radial_weight, parameters):  # fmt: skip
        """Gradients of the seven tensors from x to radial_weight (None where one is None, or `needs` says so for the first
        three) and of the parameters."""
        weights, biases = parameters[: len(self.outputs)], parameters[len(self.outputs) :]
        gradients = [
            None if t is None or not need else torch.zeros_like(t)
            for t, need in zip(
                (x, harmonics, radial, receiver_term, sender_term, type_term, radial_weight), [*needs, *[True] * 4]
            )
        ]
        gx, gharmonics, gradial, greceiver, gsender, gtype, gradial_weight = gradients
        gweights, gbiases = [torch.zeros_like(w) for w in weights], [torch.zeros_like(b) for b in biases]
        # of the weights without kernels: a matrix product into a few long rows is faster than one into many short ones
        transposed = [] if products else [w.new_zeros(w.shape[-1], w[..., 0].numel()) for w in weights]
        for rows, edges in self.chunks(senders, filled, products):
            sources, kinds, drop = (None if i is None else i[edges] for i in (senders, edge_types, dropout_mask))
            receiver = None if receiver_term is None else receiver_term[rows]
            sender = F.embedding(sources, sender_term)
            h = self.hidden(radial[edges], receiver, sender, type_term, radial_weight, kinds, drop)
            couplings = self.couplings(F.embedding(sources, x), harmonics[edges])
            ys = self.sender_factors(couplings)
            gh = torch.zeros_like(h)
            # every place in it belongs to one output: they are assigned, not added
            gproducts = {degree: c.new_zeros(*c.shape[:3], own.shape[-1]) for degree, (c, own) in couplings.items()}
            gparts = grad[rows].split([irrep.size for irrep in self.irreps_out], dim=1)
            for i, (irrep, scale) in enumerate(zip(self.irreps_out, self.scales)):
                y, w, b, gw = ys[i], weights[i], biases[i], gweights[i]
                ys[i] = None
                g = (gparts[i] * scale).reshape(-1, irrep.multiplicity)
                gbiases[i].addmm_(y.sum(1).view(-1, len(b)).T, g)
                shift = (g @ b.T).view(len(y), -1)
                if products:
                    gy = contract_backward(g, y, h, w, shift, gh, gw, irrep.components, products)
                else:
                    gy = shift.unsqueeze(1).repeat(1, y.shape[1], 1)
                    w = w.flatten(0, 1)
                    for part, z in self.blocks(y, h):
                        torch.bmm(y[part].transpose(1, 2), h[part], out=z)
                        inside = g.view(len(y), -1)[part].view(-1, irrep.multiplicity)
                        transposed[i].addmm_(inside.T, z.view(-1, len(w)))
                        torch.mm(inside, w.T, out=z.view(-1, len(w)))
                        gh[part].baddbmm_(y[part], z)
                        gy[part].baddbmm_(h[part], z.transpose(1, 2))
                gy = gy.unflatten(-1, (irrep.components, -1))
                for degree, into, columns, own in self.places(i):
                    gproducts[degree][..., into, columns] = gy[..., own]

            gh *= h > 0  # ReLU and dropout; what was dropped is zero
            if drop is not None:
                gh /= 1 - self.dropout
            gsender.index_add_(0, sources.flatten(), gh.flatten(0, 1))
            if greceiver is not None:
                greceiver[rows] = gh.sum(1)
            if gtype is not None:
                gtype.index_add_(0, kinds.flatten(), gh.flatten(0, 1))
            if gradial is not None:
                gradial[edges] = gh @ radial_weight
            gradial_weight.addmm_(gh.flatten(0, 1).T, radial[edges].flatten(0, 1))
            if gx is not None:
                by_input = [None] * len(self.irreps_in)
                for degree, same in self.inputs_of_degree.items():
                    coupling, gproduct = couplings[degree][0], gproducts[degree]
                    found = (coupling * gproduct).sum(-2, keepdim=True) if degree == 0 else coupling.mT @ gproduct
                    for a, part in zip(same, found.split([self.irreps_in[a].multiplicity for a in same], dim=-1)):
                        by_input[a] = part.flatten(-2)
                gx.index_add_(0, sources.flatten(), torch.cat(by_input, dim=-1).flatten(0, 1))
            if gharmonics is not None:
                for degree, (_, own) in couplings.items():
                    gcoupling = gproducts[degree] @ own.mT
                    gharmonics[edges] += gcoupling.flatten(-2) @ self.symbols(degree, x).flatten(1).T
        for gw, found in zip(gweights, transposed):
            gw += found.T.view_as(gw)
        return [*gradients, *gweights, *gbiases]


@cache
def _stacked_symbols(degree, harmonics, rows, dtype, device):
    """3j symbols of an input's degree and the degrees of harmonics, for rows (place of a harmonic, degree of the output)."""
    with torch.inference_mode(False), torch.no_grad():  # as for `_wigner_3j`
        found = []
        for place, out in rows:
            parts = [torch.zeros(2 * other + 1, 2 * out + 1, 2 * degree + 1, dtype=dtype) for other in harmonics]
            parts[place] = wigner_3j(degree, harmonics[place], out, dtype).permute(1, 2, 0)
            found.append(torch.cat(parts))
        return torch.cat(found, dim=1).to(device)


@cache
def _plan(key: str) -> _Plan:
    """A plan from the JSON of its arguments: a custom operator takes a string, but no object."""
    *irreps, sizes, dropout = json.loads(key)
    return _Plan(*(tuple(Irrep(*irrep) for irrep in part) for part in irreps), tuple(sizes), dropout)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, key, products, senders, edge_types, dropout_mask, filled, x, harmonics, radial, receiver_term, sender_term,
                type_term, radial_weight, *parameters):  # fmt: skip
        tensors = (x, harmonics, radial, receiver_term, sender_term, type_term, radial_weight)
        ctx.fixed = (key, products, senders, edge_types, dropout_mask, filled)
        ctx.save_for_backward(*tensors, *parameters)
        return _plan(key).forward(*ctx.fixed[1:], *tensors, parameters)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        key, *fixed = ctx.fixed
        tensors = ctx.saved_tensors
        with torch.autocast(device_type=grad.device.type, enabled=False):
            found = _plan(key).backward(grad, ctx.needs_input_grad[6:9], *fixed, *tensors[:7], tensors[7:])
        return (*[None] * 6, *found)


# The same as operators, which `torch.compile` leaves whole. Each copy of this module has its own: a saved model brings one.
_NAMESPACE = re.sub(r"\W", "_", __name__)


@torch.library.custom_op(f"{_NAMESPACE}::convolution", mutates_args=())
def _convolution(
    key: str, products: str, senders: torch.Tensor, edge_types: torch.Tensor | None, dropout_mask: torch.Tensor | None,
    filled: torch.Tensor | None, x: torch.Tensor, harmonics: torch.Tensor, radial: torch.Tensor,
    receiver_term: torch.Tensor | None, sender_term: torch.Tensor, type_term: torch.Tensor | None, radial_weight: torch.Tensor,
    parameters: list[torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    with torch.autocast(device_type=x.device.type, enabled=False):
        return _plan(key).forward(
            products, senders, edge_types, dropout_mask, filled, x, harmonics, radial, receiver_term, sender_term, type_term,
            radial_weight, parameters,
        )  # fmt: skip


@_convolution.register_fake
def _(key, products, senders, edge_types, dropout_mask, filled, x, *others):
    return x.new_empty(len(senders), irreps_size(_plan(key).irreps_out))


@torch.library.custom_op(f"{_NAMESPACE}::convolution_backward", mutates_args=())
def _convolution_backward(
    grad: torch.Tensor, needs: list[bool], key: str, products: str, senders: torch.Tensor, edge_types: torch.Tensor | None,
    dropout_mask: torch.Tensor | None, filled: torch.Tensor | None, x: torch.Tensor, harmonics: torch.Tensor,
    radial: torch.Tensor, receiver_term: torch.Tensor | None, sender_term: torch.Tensor, type_term: torch.Tensor | None,
    radial_weight: torch.Tensor, parameters: list[torch.Tensor],
) -> list[torch.Tensor]:  # fmt: skip
    with torch.autocast(device_type=grad.device.type, enabled=False):
        found = _plan(key).backward(
            grad, needs, products, senders, edge_types, dropout_mask, filled, x, harmonics, radial, receiver_term, sender_term,
            type_term, radial_weight, parameters,
        )  # fmt: skip
    return [grad.new_empty(0) if gradient is None else gradient for gradient in found]


@_convolution_backward.register_fake
def _(grad, needs, key, products, senders, edge_types, dropout_mask, filled, *tensors):
    *tensors, parameters = tensors
    wanted = [t is not None and need for t, need in zip(tensors, [*needs, *[True] * 4])]
    found = [torch.empty_like(t) if want else grad.new_empty(0) for t, want in zip(tensors, wanted)]
    return [*found, *(torch.empty_like(p) for p in parameters)]


def _keep(ctx, inputs, output):
    *fixed, parameters = inputs
    ctx.fixed, ctx.tensors = fixed[:2], [i is not None for i in fixed[2:]]
    ctx.save_for_backward(*[i for i in fixed[2:] if i is not None], *parameters)


def _differentiate(ctx, grad):
    saved = iter(ctx.saved_tensors)
    tensors = [next(saved) if there else None for there in ctx.tensors]
    needs = list(ctx.needs_input_grad[6:9])
    found = _convolution_backward(grad, needs, *ctx.fixed, *tensors, list(saved))
    wanted = [t is not None and need for t, need in zip(tensors[4:], [*needs, *[True] * 4])]
    return (*[None] * 6, *(g if want else None for g, want in zip(found, wanted)), list(found[7:]))


_convolution.register_autograd(_differentiate, setup_context=_keep)


class TensorProductConvolution(nn.Module):
    """Fully connected tensor product of sender features with edge harmonics, its weights made by a two-layer perceptron from
    the edge scalars, averaged over neighbours. Equal to e3nn's `FullyConnectedTensorProduct` with external weights.

    The edge scalars are the concatenation [radial, edge type embedding, receiver scalars, sender scalars]; absent ones have
    width 0. The first layer is split along this concatenation, so that the parts which belong to nodes are computed once per
    node. Each path from (input, harmonic) to an output is scaled by sqrt((2 l + 1) / sum of input channels of the paths into
    that output); weights of an output stand under its name as `(input channels of its paths, edge width, output channels)`.

    Args:
        implementation (`str`): `"torch"`; `"triton"`, kernels for CUDA devices that never write Z; or `"auto"`, which is
            `"torch"` on every device, because the kernels have not run on one yet.

    Half-precision weights and features are computed with in single precision, and so they are under autocast, except that
    the kernels then round what they multiply, and add up in single precision.

    Raises:
        `ValueError`: if no path leads to an output, or for another implementation.
        `ImportError`: for `"triton"` without this package.
    """

    def __init__(
        self, irreps_in, irreps_edge, irreps_out, radial_size, type_size=0, receiver_size=0, sender_size=0, dropout=0.0,
        implementation="auto",
    ):  # fmt: skip
        super().__init__()
        self.irreps_in, self.irreps_edge, self.irreps_out = tuple(irreps_in), tuple(irreps_edge), tuple(irreps_out)
        self.sizes = (radial_size, type_size, receiver_size, sender_size)
        self.dropout = dropout
        self.implementation = implementation
        if implementation not in CONVOLUTIONS:
            raise ValueError(f"`conv_implementation` is {implementation!r}, expected one of {', '.join(CONVOLUTIONS)}.")
        if implementation == "triton":
            require_triton()
        self.key = json.dumps([self.irreps_in, self.irreps_edge, self.irreps_out, self.sizes, dropout])
        width = sum(self.sizes)
        self.edge_dense = nn.Linear(width, width)
        for u, irrep in zip(_plan(self.key).channels, self.irreps_out):
            # own parameters, not a ParameterDict: transformers skips the initialisation of modules without parameters
            self.register_parameter(f"weight_{irrep.name}", nn.Parameter(torch.empty(u, width, irrep.multiplicity)))
            self.register_parameter(f"bias_{irrep.name}", nn.Parameter(torch.empty(u, irrep.multiplicity)))
        self.reset_parameters()

    def reset_parameters(self):
        bound = 1 / math.sqrt(sum(self.sizes))
        for parameter in (*self.output_weights, *self.output_biases):
            nn.init.uniform_(parameter, -bound, bound)

    @property
    def outputs(self):
        """Paths (input, harmonic) into each output."""
        return _plan(self.key).outputs

    @property
    def output_weights(self):
        return [getattr(self, f"weight_{irrep.name}") for irrep in self.irreps_out]

    @property
    def output_biases(self):
        return [getattr(self, f"bias_{irrep.name}") for irrep in self.irreps_out]

    def products(self, device, dtype):
        """The dtype that the kernels round products to; empty for the plain form.

        Raises:
            `RuntimeError`: for kernels where they cannot run.
        """
        if self.implementation != "triton":
            return ""
        require_triton(device)
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        return str(dtype).removeprefix("torch.")

    def forward(self, x, edges: EdgeFeatures, type_embeddings=None, receiver_scalars=None, sender_scalars=None):
        """
        Args:
            x (`torch.FloatTensor` of shape `(num_nodes, size of irreps_in)`): features of all nodes.
            edges (`EdgeFeatures`): of the receivers.
            type_embeddings (`torch.FloatTensor` of shape `(num_types, type_size)`), receiver_scalars (`(num_receivers,
                receiver_size)`), sender_scalars (`(num_nodes, sender_size)`): the other edge scalars.

        Returns:
            `torch.FloatTensor` of shape `(num_receivers, size of irreps_out)`, at least in single precision.
        """
        own = self.edge_dense.weight.dtype
        dtype = torch.promote_types(own, torch.float32)
        products = self.products(x.device, own)
        with torch.autocast(device_type=x.device.type, enabled=False):
            by_radial, by_type, by_receiver, by_sender = self.edge_dense.weight.to(dtype).split(self.sizes, dim=1)
            sender_term = F.linear(sender_scalars.to(dtype), by_sender, self.edge_dense.bias.to(dtype))
            receiver_term = None if receiver_scalars is None else F.linear(receiver_scalars.to(dtype), by_receiver)
            type_term = None if type_embeddings is None else F.linear(type_embeddings.to(dtype), by_type)
            dropout_mask = None
            if self.training and self.dropout > 0:
                shape = (*edges.senders.shape, sum(self.sizes))
                dropout_mask = torch.rand(shape, device=x.device) >= self.dropout
            neighbors, filled = edges.weight.shape[1], None
            if x.device.type == "cpu":
                slots = F.pad((edges.weight != 0) * torch.arange(1, neighbors + 1), (1, 0))
                filled = slots.amax(1)
            fixed = (self.key, products, edges.senders, edges.edge_types, dropout_mask, filled)
            tensors = (
                x.to(dtype), edges.harmonics.to(dtype) * edges.weight.to(dtype).unsqueeze(-1), edges.radial.to(dtype),
                receiver_term, sender_term, type_term, by_radial,
            )  # fmt: skip
            parameters = [p.to(dtype) for p in (*self.output_weights, *self.output_biases)]
            if torch.compiler.is_compiling():
                return _convolution(*fixed, *tensors, parameters)
            return _Convolution.apply(*fixed, *tensors, *parameters)


_ROUNDING_UNITS = 128  # of features of size one: more than is left of sums that cancel, and of rounded coordinates


class EquivariantLayerNorm(nn.Module):
    """Per irrep: 0e loses its channel mean; all are divided by the root of the mean square over channels and components, and
    multiplied by a weight per channel; 0e gets a bias. Half-precision features are normalised in single precision.

    Features that are zero by symmetry, as those of a planar molecule that change sign under reflection, come as rounding
    errors, which the division would enlarge from layer to layer. What is near the rounding unit is therefore taken as zero.
    """

    def __init__(self, irreps, eps: float = 1e-5):
        super().__init__()
        self.irreps = tuple(irreps)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(sum(irrep.multiplicity for irrep in self.irreps)))
        num_scalars = sum(irrep.multiplicity for irrep in self.irreps if irrep.name == "0e")
        self.bias = nn.Parameter(torch.zeros(num_scalars)) if num_scalars else None

    def reset_parameters(self):
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x):
        dtype = torch.promote_types(x.dtype, torch.float32)
        weights = self.weight.to(dtype).split([irrep.multiplicity for irrep in self.irreps])
        least = (_ROUNDING_UNITS * torch.finfo(dtype).eps) ** 2
        out = []
        for part, irrep, weight in zip(split_irreps(x.to(dtype), self.irreps), self.irreps, weights):
            if irrep.name == "0e":
                part = part - part.mean(-1, keepdim=True)
            square = part.pow(2).mean((-1, -2), keepdim=True)
            is_more_than_rounding = 1 / (1 + (least / square.clamp_min(1e-6 * least)).pow(3))
            part = part * ((square + self.eps).rsqrt() * is_more_than_rounding) * weight
            if irrep.name == "0e":
                part = part + self.bias.to(dtype)
            out.append(part.flatten(-2))
        return torch.cat(out, dim=-1).to(x.dtype)


__all__ = [
    "BOND_HARMONICS", "HARMONICS", "EdgeFeatures", "EquivariantLayerNorm", "Irrep", "NeighborList",
    "TensorProductConvolution", "bond_harmonics", "gaussian_basis", "gram_invariants", "irreps_size", "mean_weight",
    "neighbor_lists", "smallest", "spherical_harmonics", "split_irreps", "squared_distances", "to_channel_major", "wigner_3j",
]  # fmt: skip
