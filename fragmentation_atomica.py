# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Molecules cut into fragments by principal subgraphs, and put together again.

Principal subgraphs (Kong et al., NeurIPS 2022, arXiv 2106.15098): every atom starts as a fragment of its own; again and
again, the pair of neighbouring fragments whose joined canonical SMILES is the most frequent of the vocabulary is merged.
`docs/fragments.md` has the rules in full.
"""

import hashlib
import json
import re
from bisect import bisect
from collections import Counter
from dataclasses import dataclass
from itertools import count

from rdkit import Chem


ATOM_ORDERS = ("canonical", "input")
CACHE_SIZE = 1 << 20  # joined fragments that a process remembers


# molecules ------------------------------------------------------------------------------------------------------------------


def parse_smiles(smiles):
    """SMILES -> sanitised RDKit molecule.

    Raises:
        `ValueError`: with the SMILES, if it does not parse or has no atoms.
    """
    if not isinstance(smiles, str):
        raise ValueError(f"Expected a SMILES string, got {type(smiles).__name__}: {smiles!r}.")
    mol = Chem.MolFromSmiles(smiles) if len(smiles.split()) == 1 else None  # RDKit would take a second word for a name
    if mol is None or mol.GetNumAtoms() == 0:
        raise ValueError(f"Not a SMILES that RDKit can parse and sanitise: {smiles!r}.")
    return mol


def heavy_atoms(mol, name=None):
    """Molecule without explicit hydrogens (kept if it has nothing else), and the index of each atom left in `mol`.

    Raises:
        `ValueError`: for dummy and query atoms, which are no element, naming the atom and the molecule (or `name`).
    """
    numbers = []
    for atom in mol.GetAtoms():
        numbers.append(atom.GetAtomicNum())
        if numbers[-1] == 0 or atom.HasQuery():
            found = f"the query {atom.GetSmarts()!r}" if atom.HasQuery() else repr(atom.GetSymbol())
            name = name or Chem.MolToSmiles(mol)
            raise ValueError(f"Atom {atom.GetIdx()} of {name!r} is {found}, expected an element.")
    if 1 not in numbers or all(number == 1 for number in numbers):
        return mol, list(range(len(numbers)))
    mol = Chem.Mol(mol)
    for atom in mol.GetAtoms():
        atom.SetIntProp("_atomica_index", atom.GetIdx())
    parameters = Chem.RemoveHsParameters()
    for name in dir(parameters):
        if name.startswith("remove"):
            setattr(parameters, name, True)
    parameters.showWarnings = False
    mol = Chem.RemoveHs(mol, parameters, sanitize=False)
    kept = [atom.GetIntProp("_atomica_index") for atom in mol.GetAtoms()]
    return mol, kept


_RAW = Chem.SmilesParserParams()
_RAW.sanitize = _RAW.removeHs = False
_FLAT = Chem.SmilesWriteParams()  # without stereochemistry and isotopes, which would split one fragment into many
_FLAT.doIsomericSmiles = _FLAT.cleanStereo = False
_HYDROGEN = re.compile(r"\[\d*H")
_ATOM_MAP = re.compile(r":\d+\]")
_PERCEIVED = Chem.SanitizeFlags.SANITIZE_ALL  # all that a SMILES depends on
for _step in ("CLEANUPCHIRALITY", "CLEANUPATROPISOMERS", "SETCONJUGATION", "SETHYBRIDIZATION"):
    _PERCEIVED ^= getattr(Chem.SanitizeFlags, f"SANITIZE_{_step}")


def _canonical(mol):
    """Canonical SMILES of a molecule without explicit hydrogens, which forgets stereochemistry, isotopes and atom maps; `mol`,
    which is changed; and the index in `mol` of each atom in the order of the SMILES. The first is None if there are atoms that
    are no element."""
    smiles = Chem.MolToSmiles(mol, _FLAT)
    if ":" in smiles and _ATOM_MAP.search(smiles):
        for atom in mol.GetAtoms():
            atom.SetAtomMapNum(0)
        smiles = Chem.MolToSmiles(mol, _FLAT)
    order = mol.GetProp("_smilesAtomOutputOrder")
    return None if "*" in smiles else smiles, mol, json.loads(order)


def read_molecule(mol, atom_order):
    """SMILES or molecule -> canonical SMILES, or None if atoms stay in the order of the input; the molecule without hydrogens,
    and its atoms in the order of the SMILES; and the index in the input of each atom, in this order too.

    Raises:
        `ValueError`: for what does not parse, has no atoms, or has atoms that are no element.
    """
    name = None
    if isinstance(mol, str):
        if atom_order == "canonical" and len(mol.split()) == 1 and not _HYDROGEN.search(mol):  # stereochemistry is not needed
            raw = Chem.MolFromSmiles(mol.strip(), _RAW)
            if raw is not None and raw.GetNumAtoms() and not Chem.SanitizeMol(raw, _PERCEIVED, catchErrors=True):
                smiles, raw, order = _canonical(raw)
                if smiles is not None:
                    return smiles, raw, order, order
        name, mol = mol, parse_smiles(mol)
    elif not isinstance(mol, Chem.Mol):
        raise ValueError(f"Expected a SMILES string or an RDKit molecule, got {type(mol).__name__}: {mol!r}.")
    elif mol.GetNumAtoms() == 0:
        raise ValueError("Expected a molecule, got one without atoms.")
    heavy, kept = heavy_atoms(mol, name)
    if atom_order == "input":
        return None, heavy, None, kept
    perceived = Chem.Mol(heavy)  # also if `mol` was: it may be kekulised since
    if Chem.SanitizeMol(perceived, _PERCEIVED, catchErrors=True):
        raise ValueError(f"RDKit cannot sanitise this molecule: {Chem.MolToSmiles(heavy)!r}.")
    smiles, perceived, order = _canonical(perceived)
    return smiles, perceived, order, [kept[atom] for atom in order]


# fragments of one molecule --------------------------------------------------------------------------------------------------

_SPLIT = re.compile(r"\[[^\]]+\]|Cl|Br|->|<-|%\d\d|%\(\d+\)|.").findall
_BONDS = {
    "-": Chem.BondType.SINGLE,
    "/": Chem.BondType.SINGLE,
    "\\": Chem.BondType.SINGLE,
    "=": Chem.BondType.DOUBLE,
    "#": Chem.BondType.TRIPLE,
    "$": Chem.BondType.QUADRUPLE,
    ":": Chem.BondType.AROMATIC,
    "~": Chem.BondType.UNSPECIFIED,
    "->": Chem.BondType.DATIVE,
    "<-": Chem.BondType.DATIVE,
}
_SYMBOLS = {kind: symbol for symbol, kind in _BONDS.items() if symbol not in ("/", "\\", "<-")}
_BOND, _OPEN, _CLOSE, _RING, _DOT = range(5)
_KINDS = dict.fromkeys(_BONDS, _BOND) | {"(": _OPEN, ")": _CLOSE, ".": _DOT} | {str(i): _RING for i in range(10)}
_CODE = re.compile(r"(->|<-|[-/\\=#$:~]?)(.+)", re.DOTALL)
_ORGANIC = frozenset("B C N O P S F Cl Br I".split())
_LOWER_CASE = frozenset((5, 6, 7, 8, 14, 15, 16, 33, 34, 52))  # elements that SMILES writes in lower case when aromatic
_identity = count().__next__


class _Atoms(dict):
    """How an atom is written -> RDKit's atom. Either as SMILES, with its unpaired electrons (`[CH2]^1`), or in numbers."""

    def __missing__(self, label):
        if len(self) >= CACHE_SIZE:
            self.clear()
        if not label[0].isdigit():
            written, _, radicals = label.partition("^")
            atom = Chem.AtomFromSmiles(written)
            atom.SetNumRadicalElectrons(int(radicals or 0))
        else:
            number, aromatic, charge, hydrogens, no_implicit, isotope, radicals, atom_map = map(int, label.split())
            atom = Chem.Atom(number)
            atom.SetIsAromatic(bool(aromatic))
            atom.SetFormalCharge(charge)
            atom.SetNumExplicitHs(hydrogens)
            atom.SetNoImplicit(bool(no_implicit))
            atom.SetIsotope(isotope)
            atom.SetNumRadicalElectrons(radicals)
            atom.SetAtomMapNum(atom_map)
        self[label] = atom
        return atom


class _Codes(dict):
    """How an atom is written, after the bond to its parent -> (identity, its part of the composition, symbol, bond, atom)."""

    def __missing__(self, code):
        if len(self) >= CACHE_SIZE:
            self.clear()
        bond, label = _CODE.fullmatch(code).groups()
        atom = _ATOMS[label]
        value = self[code] = _identity(), _composition(atom), atom.GetSymbol(), bond, atom
        return value


_ATOMS, _CODES = _Atoms(), _Codes()
_SINGLE = [(atom,) for atom in range(1000)]  # shared by all molecules, which saves half the memory of mining
_JOINED, _NAMED = {}, {}  # two fragments and how they are joined -> (SMILES, identity); a whole fragment -> the same


def _composition(atom):
    """A number for what every SMILES says of an atom. Fragments of different sums have different SMILES."""
    number = atom.GetAtomicNum()
    text = f"{number} {number in _LOWER_CASE and atom.GetIsAromatic()} {atom.GetFormalCharge()}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


class MoleculeGraph:
    """A molecule as a forest and the bonds that close its rings, in the order of its bonds.

    `codes` and `parents` (per atom): how it is written, after the bond to its parent; its parent, an atom before it, or -1.
    `extra`: the other bonds, (begin, end, symbol). `special`: atoms of which this does not say all that a SMILES depends on,
    such as stereochemistry; fragments with any of them are named by `mol`.
    """

    __slots__ = ("codes", "extra", "mol", "parents", "special")

    @classmethod
    def of(cls, smiles, mol, order):
        """What `read_molecule` gives, without the last."""
        return cls.of_mol(mol) if smiles is None else cls.of_smiles(smiles, mol, order)

    @classmethod
    def of_smiles(cls, smiles, mol, order):
        """Reads what `_canonical` gives as RDKit does: ring-closing bonds come last, by ring number."""
        codes, parents, rings, pending, branches = [], [], [], {}, []
        previous, bond, kind_of = -1, "", _KINDS.get
        for part in _SPLIT(smiles):
            kind = kind_of(part)
            if kind is None and part[0] != "%":
                parents.append(previous)
                previous = len(codes)
                codes.append(bond + part if bond else part)
                bond = ""
            elif kind == _BOND:
                bond = part
            elif kind == _OPEN:
                branches.append(previous)
            elif kind == _CLOSE:
                previous = branches.pop()
            elif kind == _DOT:
                previous = -1
            elif part in pending:
                other, symbol = pending.pop(part)
                rings.append((int(part.strip("%()")), len(rings), previous, other, symbol or bond))
                bond = ""
            else:
                pending[part] = previous, bond
                bond = ""
        rings.sort()
        if "[" in smiles:  # unpaired electrons are not always to be seen
            for place, code in enumerate(codes):
                if code[-1] == "]" and (radicals := mol.GetAtomWithIdx(order[place]).GetNumRadicalElectrons()):
                    codes[place] = f"{code}^{radicals}"
        graph = cls()
        graph.codes, graph.parents, graph.extra, graph.special = codes, parents, [ring[2:] for ring in rings], None
        graph.mol = None
        return graph

    @classmethod
    def of_mol(cls, mol):
        """Takes the atoms of `mol` in their order."""
        graph = cls()
        graph.codes, graph.parents, graph.extra, graph.special = [], [-1] * mol.GetNumAtoms(), [], set()
        for atom in mol.GetAtoms():
            details = (
                atom.GetIsAromatic(), atom.GetFormalCharge(), atom.GetNumExplicitHs(), atom.GetNoImplicit(), atom.GetIsotope(),
                atom.GetNumRadicalElectrons(), atom.GetAtomMapNum(),
            )  # fmt: skip
            label = atom.GetSymbol()
            if any(details) or label not in _ORGANIC:
                label = " ".join(str(int(number)) for number in (atom.GetAtomicNum(), *details))
            graph.codes.append(label)
            if atom.GetChiralTag() != Chem.ChiralType.CHI_UNSPECIFIED:
                graph.special.add(atom.GetIdx())
        reached = 0
        for bond in mol.GetBonds():
            begin, end, kind = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), bond.GetBondType()
            if (
                kind not in _SYMBOLS
                or bond.GetIsAromatic() != (kind == Chem.BondType.AROMATIC)
                or bond.GetBondDir() != Chem.BondDir.NONE
                or bond.GetStereo() != Chem.BondStereo.STEREONONE
            ):
                graph.special.update((begin, end))
            symbol = _SYMBOLS.get(kind, "~")
            if not graph.extra and begin < end and end > reached:
                graph.parents[end] = begin
                graph.codes[end] = symbol + graph.codes[end]
                reached = end
            else:
                graph.extra.append((begin, end, symbol))
        graph.mol = mol if graph.special else None
        return graph


def _name(key):
    """RDKit's SMILES of a fragment, given as the codes of its atoms in their order, their parents, and the other bonds.

    RDKit ranks some different atoms equal (those of Cc and cC), and then their order decides: it is part of the key.
    """
    codes, parents, extra = key
    parts = [_CODES[code] for code in codes]
    mol = Chem.RWMol()
    for part in parts:
        mol.AddAtom(part[4])
    tree = [(parent, atom, parts[atom][3]) for atom, parent in enumerate(parents) if parent is not None]
    for begin, end, symbol in (*tree, *extra):
        if not symbol:
            symbol = ":" if parts[begin][4].GetIsAromatic() and parts[end][4].GetIsAromatic() else "-"
        if symbol == "<-":
            begin, end = end, begin
        number = mol.AddBond(begin, end, _BONDS[symbol])
        if symbol == ":":
            mol.GetBondWithIdx(number - 1).SetIsAromatic(True)
    return Chem.MolToSmiles(mol)


class FragmentVocabulary:
    """Frequencies of fragments, arranged for `Fragmentation.run`.

    `counts`: SMILES -> frequency. `bounds`: composition -> the largest of its frequencies. Two caches: `bonds`, two atoms as
    they are written, the parent first -> frequency and name of the two joined, or None; `molecules`, canonical SMILES ->
    tokens and atoms.
    """

    def __init__(self, counts):
        self.counts, self.bounds, self.bonds, self.molecules = counts, {}, {}, {}
        for token, frequency in counts.items():
            mol = Chem.MolFromSmiles(token, sanitize=False)
            if mol is not None:
                composition = sum(map(_composition, mol.GetAtoms()))
                self.bounds[composition] = max(frequency, self.bounds.get(composition, 0))

    def __reduce__(self):  # identities mean nothing in another process
        return FragmentVocabulary, (self.counts,)


class Fragmentation:
    """The fragments of one molecule while they grow.

    A fragment is a number: that of its atom at first, and every merge gives a new one. `groups` holds those that are left, in
    the order of their numbers, as tuples: atoms as they were joined (which decides ties), atoms by index, composition, token,
    identity, bonds to parents outside and bonds from children outside (by the child), and places in `extra` of the ring
    bonds that leave and of those that no longer do.
    """

    __slots__ = ("below", "codes", "direct", "extra", "groups", "mol", "next", "owner", "parents", "special")

    def __init__(self, graph):
        self.codes, self.parents, self.extra = graph.codes, graph.parents, graph.extra
        self.special, self.mol = graph.special, graph.mol
        number = self.next = len(self.codes)
        self.owner = list(range(number))
        self.direct = {}
        self.below = {}  # of atoms with ring-closing bonds, the neighbours of a smaller index
        atoms = _SINGLE[:number] if number <= len(_SINGLE) else [(atom,) for atom in self.owner]
        leaves, roots = [()] * number, atoms[:]
        for atom, parent in enumerate(self.parents):
            if parent >= 0:
                leaves[parent] = leaves[parent] + atoms[atom] if leaves[parent] else atoms[atom]
            else:
                roots[atom] = ()
        rings = [()] * number
        for place, (begin, end, _) in enumerate(self.extra):
            rings[begin] += (place,)
            rings[end] += (place,)
            if begin < end:
                begin, end = end, begin
            if begin not in self.below:
                self.below[begin] = [] if self.parents[begin] < 0 else [self.parents[begin]]
            self.below[begin].append(end)
        identities, compositions, symbols, _, _ = zip(*[_CODES[code] for code in self.codes])
        inner = [()] * number
        groups = zip(atoms, atoms, compositions, symbols, identities, roots, leaves, rings, inner)
        self.groups = dict(enumerate(groups))

    def _whole_name(self, atoms):
        """(SMILES, identity) of the atoms, which are sorted."""
        if self.special and not self.special.isdisjoint(atoms):
            key = frozenset(atoms)
            if key not in self.direct:
                bonds = [b.GetIdx() for b in self.mol.GetBonds() if b.GetBeginAtomIdx() in key and b.GetEndAtomIdx() in key]
                self.direct[key] = Chem.MolToSmiles(Chem.PathToSubmol(self.mol, bonds)), None
            return self.direct[key]
        place = {atom: i for i, atom in enumerate(atoms)}
        parents, codes = self.parents, self.codes
        key = (
            tuple([codes[atom] for atom in atoms]),
            tuple([place.get(parents[atom]) for atom in atoms]),
            tuple([(place[u], place[v], s) for u, v, s in self.extra if u in place and v in place]),
        )
        if key not in _NAMED:
            if len(_NAMED) >= CACHE_SIZE:
                _NAMED.clear()
                _JOINED.clear()
            _NAMED[key] = _name(key), _identity()
        return _NAMED[key]

    def name(self, a, b, link):
        """(SMILES, identity) of two neighbouring fragments joined; `link` is one of the bonds between them."""
        first, second, parents = self.groups[a], self.groups[b], self.parents
        x, y = first[1], second[1]
        # how the atoms of one lie between those of the other
        between = 0 if y[-1] < x[0] else bisect(y, x[0]) if len(x) == 1 else tuple([bisect(y, i) for i in x])
        inner, other_inner = first[8], second[8]
        shared = first[7] and second[7] and sorted([place for place in first[7] if place in second[7]])
        if shared and (inner or other_inner) or inner and other_inner:  # of several ring bonds, the order matters too
            return self._whole_name(sorted(x + y))
        if self.special and not self.special.isdisjoint(x + y):
            return self._whole_name(x + y)
        if shared or inner or other_inner:
            owner = self.owner
            bonds = [(x.index(i), y.index(parents[i])) for i in first[5] if owner[parents[i]] == b]
            bonds += [(y.index(i), x.index(parents[i]), None) for i in second[5] if owner[parents[i]] == a]
            for place in shared:
                begin, end, symbol = self.extra[place]
                if owner[begin] == a:
                    bonds.append((x.index(begin), y.index(end), symbol, True))
                else:
                    bonds.append((y.index(begin), x.index(end), symbol, False))
            key = first[4], second[4], between, tuple(bonds)
        else:
            key = first[4], second[4], between, x.index(link), y.index(parents[link])
        if key in _JOINED:
            return _JOINED[key]
        if len(_JOINED) >= CACHE_SIZE:
            _JOINED.clear()
        named = _JOINED[key] = self._whole_name(sorted(x + y))
        return named

    def merge(self, a, b, link, named):
        """Joins two fragments to a new one of this (SMILES, identity)."""
        groups, owner, new = self.groups, self.owner, self.next
        atoms, order, composition, _, _, roots, leaves, rings, inner = groups.pop(a)
        other_atoms, other_order, other_composition, _, _, other_roots, other_leaves, other_rings, other_inner = groups.pop(b)
        order = tuple(sorted(order + other_order))
        for atom in order:
            owner[atom] = new
        if inner or other_inner or rings and other_rings:
            parents = self.parents
            closed = tuple([place for place in rings if place in other_rings])
            inner += other_inner + closed
            rings += other_rings
            if closed:
                rings = tuple([place for place in rings if place not in closed])
            roots = tuple([i for i in roots + other_roots if owner[parents[i]] != new])
            leaves = tuple([i for i in leaves + other_leaves if owner[i] != new])
        else:  # one bond, so one link
            roots = other_roots if len(roots) == 1 else other_roots + tuple([i for i in roots if i != link])
            if len(other_leaves) > 1:
                leaves += tuple([i for i in other_leaves if i != link])
            rings = rings or other_rings
        groups[new] = (
            atoms + other_atoms, order, composition + other_composition, named[0], named[1], roots, leaves, rings, inner,
        )  # fmt: skip
        self.next = new + 1

    def links(self, group, first):
        """Neighbours of a new fragment, as (fragment, one that has an atom before an atom of it, a bond between them). Pairs of
        two new fragments, those from `first` on, are given by the first of them only."""
        owner, parents = self.owner, self.parents
        _, _, _, _, _, roots, leaves, rings, _ = self.groups[group]
        found = [(group, owner[parents[i]], i) for i in roots]
        for i in leaves:
            other = owner[i]
            if other < first:
                found.append((other, group, i))
        for place in rings:
            begin, end, _ = self.extra[place]
            if begin < end:
                begin, end = end, begin
            if owner[begin] == group or owner[begin] < first:
                found.append((owner[begin], owner[end], len(parents) + place))
        return found

    def arrange(self, pairs):
        """Sorts pairs, which start with two fragments, as the published procedure meets them: by the first fragment, and of
        one first fragment in the order in which Python iterates over the set of its neighbours."""
        pairs.sort()
        if len({pair[0] for pair in pairs}) == len(pairs):
            return
        before, owner, below, parents = -1, self.owner, self.below, self.parents
        for i, pair in enumerate(pairs):
            group = pair[0]
            if group == before:
                near = []
                for atom in self.groups[group][0]:
                    if atom in below:
                        near += [owner[other] for other in below[atom] if owner[other] != group]
                    elif parents[atom] >= 0 and owner[parents[atom]] != group:
                        near.append(owner[parents[atom]])
                near = list(set(near))
                stop = i + 1
                while stop < len(pairs) and pairs[stop][0] == group:
                    stop += 1
                pairs[i - 1 : stop] = sorted(pairs[i - 1 : stop], key=lambda p: near.index(p[1]))
            before = group

    def _first_pairs(self, vocabulary):
        """Frequency -> pairs of atoms, for those joined fragments that are in the vocabulary."""
        codes, bonds, waiting = self.codes, vocabulary.bonds, {}
        if self.special:
            for pair in [link for group in self.groups for link in self.links(group, 0)]:
                named = self.name(*pair)
                frequency = vocabulary.counts.get(named[0])
                if frequency is not None:
                    waiting.setdefault(frequency, []).append((*pair, named))
            return waiting
        for atom, parent in enumerate(self.parents):
            if parent >= 0:
                key = codes[parent], codes[atom]
                known = bonds[key] if key in bonds else self._learn(vocabulary, key, (atom, parent, atom))
                if known is not None:
                    frequency, named = known
                    if frequency in waiting:
                        waiting[frequency].append((atom, parent, atom, named))
                    else:
                        waiting[frequency] = [(atom, parent, atom, named)]
        place = len(codes)
        for begin, end, symbol in self.extra:
            key = codes[begin], codes[end], symbol, begin < end
            if begin < end:
                begin, end = end, begin
            known = bonds[key] if key in bonds else self._learn(vocabulary, key, (begin, end, place))
            if known is not None:
                waiting.setdefault(known[0], []).append((begin, end, place, known[1]))
            place += 1
        return waiting

    def _learn(self, vocabulary, key, pair):
        named = self.name(*pair)
        frequency = vocabulary.counts.get(named[0])
        known = None if frequency is None else (frequency, named)
        if len(vocabulary.bonds) >= CACHE_SIZE:
            vocabulary.bonds.clear()
        vocabulary.bonds[key] = known
        return known

    def run(self, vocabulary):
        """Merges as long as a joined SMILES is in the vocabulary. Pairs wait under the largest frequency that their composition
        allows, and are named when their turn comes.

        Returns:
            tokens and atoms, two lists.
        """
        groups, name, merge = self.groups, self.name, self.merge
        frequency_of, bound_of, links = vocabulary.counts.get, vocabulary.bounds.get, self.links
        waiting = self._first_pairs(vocabulary)
        while waiting:
            highest = max(waiting)
            pairs = []
            for pair in waiting.pop(highest):
                a, b, link, named = pair
                if a in groups and b in groups:
                    if named is None:
                        named = name(a, b, link)
                        frequency = frequency_of(named[0])
                        if frequency is None:
                            continue
                        pair = a, b, link, named
                        if frequency != highest:
                            if frequency in waiting:
                                waiting[frequency].append(pair)
                            else:
                                waiting[frequency] = [pair]
                            continue
                    pairs.append(pair)
            if not pairs:
                continue
            if len(pairs) > 1:
                self.arrange(pairs)
            token, first = pairs[0][3][0], self.next
            for pair in pairs:
                a, b, link, named = pair
                if named[0] != token:
                    waiting.setdefault(highest, []).append(pair)
                elif a in groups and b in groups:
                    merge(a, b, link, named)
            for group in range(first, self.next):
                for a, b, link in links(group, first):
                    bound = bound_of(groups[a][2] + groups[b][2])
                    if bound is not None:
                        if bound in waiting:
                            waiting[bound].append((a, b, link, None))
                        else:
                            waiting[bound] = [(a, b, link, None)]
        return [group[3] for group in groups.values()], [group[0] for group in groups.values()]


_DOUBLE_BONDS = {
    Chem.BondStereo.STEREOZ: "cis",
    Chem.BondStereo.STEREOCIS: "cis",
    Chem.BondStereo.STEREOE: "trans",
    Chem.BondStereo.STEREOTRANS: "trans",
}


def _label(atom):
    symbol = atom.GetSymbol()
    chirality = {Chem.ChiralType.CHI_TETRAHEDRAL_CCW: "@", Chem.ChiralType.CHI_TETRAHEDRAL_CW: "@@"}.get(
        atom.GetChiralTag(), ""
    )
    hydrogens, charge = atom.GetTotalNumHs(), atom.GetFormalCharge()
    return (
        f"[{atom.GetIsotope() or ''}{symbol.lower() if atom.GetIsAromatic() else symbol}{chirality}"
        f"{f'H{hydrogens}' if hydrogens else ''}{f'{charge:+d}' if charge else ''}]"
    )


@dataclass
class Fragments:
    """A molecule cut into fragments, with all that puts it together again.

    `tokens` and `atoms` as `AtomicaTokenizer.fragment` gives them; `labels`: atom -> how it is written, with hydrogens, charge
    and isotope; `bonds`: (atom, atom, symbol, stereochemistry or None), in the order of the molecule.
    """

    tokens: list
    atoms: list
    labels: dict
    bonds: list

    @classmethod
    def of(cls, mol, tokens, atoms):
        """A molecule and the fragments that `AtomicaTokenizer.fragment` cuts it into."""
        heavy, kept = heavy_atoms(mol)
        heavy = Chem.Mol(heavy)
        heavy.UpdatePropertyCache(strict=False)
        bonds = []
        for bond in heavy.GetBonds():
            stereo = _DOUBLE_BONDS.get(bond.GetStereo())
            if stereo is not None:
                stereo = (stereo, *(kept[atom] for atom in bond.GetStereoAtoms()))
            ends = kept[bond.GetBeginAtomIdx()], kept[bond.GetEndAtomIdx()]
            bonds.append((*ends, _SYMBOLS.get(bond.GetBondType(), "~"), stereo))
        return cls(tokens, atoms, {i: _label(atom) for i, atom in zip(kept, heavy.GetAtoms())}, bonds)

    def to_smiles(self):
        """Canonical SMILES of the whole molecule, with its stereochemistry.

        Raises:
            `ValueError`: if an atom is in no fragment or in two, or if no molecule results.
        """
        listed = Counter(atom for atoms in self.atoms for atom in atoms)
        wrong = [atom for atom in {*listed, *self.labels} if listed[atom] != 1 or atom not in self.labels]
        if wrong:
            raise ValueError(f"Atoms {sorted(wrong)} are not in exactly one fragment with a label.")
        mol, place = Chem.RWMol(), {}
        for index, label in self.labels.items():
            atom = Chem.AtomFromSmiles(label.replace("@", ""))
            if "@" in label:
                clockwise = "@@" in label
                tags = Chem.ChiralType
                atom.SetChiralTag(tags.CHI_TETRAHEDRAL_CW if clockwise else tags.CHI_TETRAHEDRAL_CCW)
            place[index] = mol.AddAtom(atom)
        for begin, end, symbol, _ in self.bonds:
            number = mol.AddBond(place[begin], place[end], _BONDS[symbol])
            bond = mol.GetBondWithIdx(number - 1)
            bond.SetIsAromatic(symbol == ":")
        if Chem.SanitizeMol(mol, catchErrors=True):
            raise ValueError(f"No molecule results from {len(self.labels)} atoms and {len(self.bonds)} bonds.")
        for number, (_, _, _, stereo) in enumerate(self.bonds):
            if stereo is not None:
                bond = mol.GetBondWithIdx(number)
                bond.SetStereoAtoms(place[stereo[1]], place[stereo[2]])
                bond.SetStereo(Chem.BondStereo.STEREOCIS if stereo[0] == "cis" else Chem.BondStereo.STEREOTRANS)
        Chem.SetDoubleBondNeighborDirections(mol)  # else cis and trans are lost when several molecules are written
        Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
        return Chem.CanonSmiles(Chem.MolToSmiles(mol))

    @property
    def bonds_between(self) -> list:
        """The bonds that were cut."""
        owner = {atom: fragment for fragment, atoms in enumerate(self.atoms) for atom in atoms}
        return [bond for bond in self.bonds if owner[bond[0]] != owner[bond[1]]]
