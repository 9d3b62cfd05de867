# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Interaction energies of the segments of a complex, as sums over pairs of atoms, one of either segment. Its terms have the
forms of intermolecular perturbation theory, with constants that the encoder chooses for each atom.

Forms: A. J. Stone, The Theory of Intermolecular Forces (2013); the damping of dispersion is that of Becke and Johnson, J. Chem.
Phys. 123, 154101 (2005). They fix how energies fall off, so that a model that has learnt from some distances is sensible at
others. Only the sum is learnt: the terms are not those of a calculation by perturbation theory.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_atomica import ENERGY_UNITS
from .geometry_atomica import spherical_harmonics, split_irreps
from .graph_atomica import segment_sum


ENERGY_TERMS = ("electrostatics", "induction", "dispersion", "exchange", "charge_transfer")
COULOMB = 332.0637  # energy of two elementary charges at 1 angstrom, kcal/mol
_LARGEST_EXPONENT = 9.0  # of the repulsion of one pair: 8,000 kcal/mol


def smooth_cutoff(distances, cutoff: float):
    """1 up to four fifths of the cut-off, 0 beyond it, with continuous derivatives up to the second in between."""
    x = ((distances / cutoff - 0.8) / 0.2).clamp(0, 1)
    return 1 - x.pow(3) * (10 - 15 * x + 6 * x.pow(2))


class PairEnergy(nn.Module):
    """Features of atoms -> interaction energies of the segments of each complex.

    Each atom gets a charge, a dipole and a quadrupole, a polarisability, a coefficient and a radius of dispersion, and size and
    slope of its repulsion, which depends on the direction as the multipoles do. With r from atom i to j:

    - electrostatics: multipoles up to charge-quadrupole and dipole-dipole, with r^2 + a^2 instead of r^2;
    - induction: -alpha |field|^2 / 2 of each atom in the field of the charges of the other segments;
    - dispersion: -c_i c_j / (r^6 + (R_i + R_j)^6);
    - exchange: K = exp(k_i + k_j - (b_i + b_j) (r - 3));
    - charge transfer: -(sigmoid(d_i + a_j) + sigmoid(d_j + a_i)) K, of donors d and acceptors a.

    Args:
        irreps: of the encoder's features of atoms.
        hidden_size (`int`): width of the perceptron that chooses the constants.
        unit (`str`): one of `ENERGY_UNITS`.
        cutoff (`float`): largest distance of two atoms that interact, in angstrom.
    """

    _SCALARS = ("charge", "share", "polarizability", "dispersion", "radius", "repulsion", "slope", "donor", "acceptor")
    _DIRECTED = ("multipole", "repulsion", "donor", "acceptor")

    def __init__(self, irreps, hidden_size: int, unit: str, cutoff: float):
        super().__init__()
        self.irreps, self.unit, self.cutoff = irreps, ENERGY_UNITS[unit], cutoff
        channels = {irrep.name: irrep.multiplicity for irrep in irreps}
        width = channels["0e"]
        self.norm = nn.LayerNorm(width)
        self.dense = nn.Linear(width, hidden_size)
        self.constants = nn.Linear(hidden_size, len(self._SCALARS))
        self.vectors = nn.Linear(channels["1o"], len(self._DIRECTED), bias=False)
        self.tensors = nn.Linear(channels["2e"], len(self._DIRECTED), bias=False)
        self.softening = nn.Parameter(torch.zeros(2))
        self.reset_parameters()

    def reset_parameters(self):
        """All atoms begin nearly alike, with about the constants of carbon and no charge."""
        for layer in (self.constants, self.vectors, self.tensors):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.constants.bias)
        nn.init.zeros_(self.softening)

    def forward(self, found):
        """
        Args:
            found (`Encoding`): of a batch; the charges of the atoms of a segment sum up to its `net_charges`, and to anything
                if these are None.

        Returns:
            `(total_atoms, len(ENERGY_TERMS))`: the share of each atom, half of every pair.
        """
        index, charges = found.index, found.net_charges
        positions, is_global, segment_of_atom = index.atom_positions, index.is_global_atom, index.segment_of_atom
        scalars, vectors, tensors = self.features(found.atom_irreps)
        found = dict(zip(self._SCALARS, scalars.unbind(-1)))
        charge = found["charge"] * ~is_global
        if charges is not None:
            share = F.softplus(found["share"]) * ~is_global
            missing = charges - segment_sum(charge, segment_of_atom, len(charges))
            total = segment_sum(share, segment_of_atom, len(charges)).clamp_min(1e-6)
            charge = charge + share * (missing / total)[segment_of_atom]

        first, second = index.interacting_atoms()
        vector = positions[second] - positions[first]
        square = vector.pow(2).sum(-1)
        distance = square.clamp_min(1e-12).sqrt()
        harmonics = spherical_harmonics(vector, 0.0).to(scalars.dtype)
        # toward the partner, per pair and direction: the projections of vectors (odd under exchange) and of tensors (even)
        along = lambda values, atoms, part: (values[atoms] * part.unsqueeze(-1)).sum(1).unbind(-1)  # noqa: E731
        odd, even = harmonics[:, 1:4], harmonics[:, 4:9]
        vector_i, tensor_i = along(vectors, first, odd), along(tensors, first, even)
        vector_j, tensor_j = along(vectors, second, -odd), along(tensors, second, even)
        near = 0.3 + F.softplus(self.softening)
        within = smooth_cutoff(distance, self.cutoff)
        of = lambda name: (found[name][first], found[name][second])  # noqa: E731

        inverse = (square + near[0] ** 2).rsqrt()
        charge_i, charge_j = charge[first], charge[second]
        dipole_i, dipole_j = vector_i[0] / math.sqrt(3), vector_j[0] / math.sqrt(3)  # components toward the partner
        electrostatics = (
            charge_i * charge_j * inverse
            + (charge_j * dipole_i + charge_i * dipole_j) * inverse**2
            + ((vectors[first, :, 0] * vectors[second, :, 0]).sum(-1) + 3 * dipole_i * dipole_j) * inverse**3
            + (charge_j * tensor_i[0] + charge_i * tensor_j[0]) * inverse**3
        )

        of_charge = vector * (within / (distance * (square + near[1] ** 2))).unsqueeze(-1)
        fields = vector.new_zeros(len(positions), 3).to(scalars.dtype)
        fields = fields.index_add(0, first, charge_j.unsqueeze(-1) * -of_charge)
        fields = fields.index_add(0, second, charge_i.unsqueeze(-1) * of_charge)
        induction = -0.5 * F.softplus(found["polarizability"]) * fields.pow(2).sum(-1)

        strength, radius = F.softplus(found["dispersion"] + 3) * 10, F.softplus(found["radius"] + 2) * 0.75
        dispersion = -strength[first] * strength[second] / (square**3 + (radius[first] + radius[second]) ** 6)

        slope = 1.2 + F.softplus(found["slope"] + 0.5)
        size_i, size_j = of("repulsion")
        size = size_i + size_j + vector_i[1] + vector_j[1] + tensor_i[1] + tensor_j[1]
        exchange = (size - (slope[first] + slope[second]) * (distance - 3)).clamp_max(_LARGEST_EXPONENT).exp()
        donor_i, donor_j = of("donor")
        acceptor_i, acceptor_j = of("acceptor")
        gives = donor_i + vector_i[2] + tensor_i[2] + acceptor_j + vector_j[3] + tensor_j[3]
        takes = donor_j + vector_j[2] + tensor_j[2] + acceptor_i + vector_i[3] + tensor_i[3]
        transfer = -((gives - 1.5).sigmoid() + (takes - 1.5).sigmoid()) * exchange

        of_pairs = torch.stack([COULOMB * electrostatics, dispersion, exchange, transfer], dim=-1) * (within / 2).unsqueeze(-1)
        of_atoms = scalars.new_zeros(len(positions), 4)
        of_atoms = of_atoms.index_add(0, first, of_pairs).index_add(0, second, of_pairs)
        terms = torch.cat([of_atoms[:, :1], COULOMB * induction.unsqueeze(-1), of_atoms[:, 1:]], dim=-1)
        return terms * self.unit

    def features(self, irreps):
        """Constants `(total_atoms, 9)`, vectors `(total_atoms, 3, 4)` and tensors `(total_atoms, 5, 4)` of the atoms."""
        wide = torch.promote_types(self.dense.weight.dtype, torch.float32)
        parts = {irrep.name: part.to(wide) for part, irrep in zip(split_irreps(irreps, self.irreps), self.irreps)}
        found = (
            self.constants(F.silu(self.dense(self.norm(parts["0e"].squeeze(-2).to(self.norm.weight.dtype))))),
            self.vectors(parts["1o"].to(self.vectors.weight.dtype)),
            self.tensors(parts["2e"].to(self.tensors.weight.dtype)),
        )
        return tuple(values.to(wide) for values in found)


__all__ = ["COULOMB", "ENERGY_TERMS", "PairEnergy"]
