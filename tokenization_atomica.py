# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Block vocabulary, and molecules cut into fragments by principal subgraphs.

Principal subgraphs (Kong et al., NeurIPS 2022, arXiv 2106.15098): every atom starts as a fragment of its own; again and
again, the pair of neighbouring fragments whose joined canonical SMILES is the most frequent of the vocabulary is merged.
"""

import json
import os
from collections import Counter
from pathlib import Path

from rdkit import Chem
from transformers import PreTrainedTokenizer


SPECIAL_TOKENS = ("<pad>", "<mask>", "<unk>", "<global>")
AMINO_ACIDS = tuple("GLY ALA VAL LEU ILE PHE TRP TYR ASP HIS ASN GLU LYS GLN MET ARG SER THR CYS PRO".split())
NUCLEOTIDES = tuple("DA DG DC DT RA RG RC RU".split())
ELEMENTS = tuple(Chem.GetPeriodicTable().GetElementSymbol(number) for number in range(1, 119))
BASE_TOKENS = SPECIAL_TOKENS + AMINO_ACIDS + NUCLEOTIDES + ELEMENTS

VOCAB_FILES_NAMES = {"vocab_file": "vocab.json"}
ATOM_ORDERS = ("canonical", "input")


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


def heavy_atoms(mol):
    """Molecule without explicit hydrogens (kept if it has nothing else), and the index of each atom left in `mol`.

    Raises:
        `ValueError`: for dummy and query atoms, which are no element.
    """
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 0:
            raise ValueError(f"Atom {atom.GetIdx()} of {Chem.MolToSmiles(mol)!r} is {atom.GetSymbol()!r}, expected an element.")
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
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


class _Fragmentation:
    """The fragments of one molecule while they grow. Groups are dictionaries in the order of the published procedure, whose
    ties are broken by what it meets first."""

    def __init__(self, mol):
        self.mol = mol
        self.neighbors = [[n.GetIdx() for n in atom.GetNeighbors()] for atom in mol.GetAtoms()]
        self.groups = {i: [i] for i in range(mol.GetNumAtoms())}
        self.owner = list(self.groups)
        self.next_group = len(self.groups)
        self.smiles = {}

    def joined_smiles(self, atoms):
        key = frozenset(atoms)
        if key not in self.smiles:
            bonds = [b.GetIdx() for b in self.mol.GetBonds() if b.GetBeginAtomIdx() in key and b.GetEndAtomIdx() in key]
            self.smiles[key] = Chem.MolToSmiles(Chem.PathToSubmol(self.mol, bonds))
        return self.smiles[key]

    def pairs(self):
        """Joined SMILES -> pairs of neighbouring groups."""
        found = {}
        for group, atoms in self.groups.items():
            near = [self.owner[j] for i in atoms for j in self.neighbors[i] if j < i and self.owner[j] != group]
            # a set, not a sorted list: where a pair stands decides ties, and the published procedure iterates over one
            for other in set(near):
                found.setdefault(self.joined_smiles(atoms + self.groups[other]), []).append((group, other))
        return found

    def merge(self, pairs):
        for a, b in pairs:
            if a in self.groups and b in self.groups:
                merged = self.groups[self.next_group] = self.groups.pop(a) + self.groups.pop(b)
                for i in merged:
                    self.owner[i] = self.next_group
                self.next_group += 1

    def run(self, counts):
        """Merges as long as a joined SMILES is in `counts` (SMILES -> frequency)."""
        while True:
            pairs = self.pairs()
            known = [smiles for smiles in pairs if smiles in counts]
            if not known:
                return self
            self.merge(pairs[max(known, key=counts.__getitem__)])

    def result(self):
        """List of (token, atom indices)."""
        symbol = lambda i: self.mol.GetAtomWithIdx(i).GetSymbol()  # noqa: E731
        return [(symbol(a[0]) if len(a) == 1 else self.joined_smiles(a), a) for a in self.groups.values()]


class AtomicaTokenizer(PreTrainedTokenizer):
    """
    Tokens of blocks: four special ones, amino acids, nucleotides, elements, and fragments of small molecules.

    `tokenizer(smiles)` gives the blocks of a molecule, `tokenizer(smiles_a, smiles_b)` those of a pair; every molecule (also
    those a dot separates) is a segment of its own and starts with `<global>`.

    Args:
        vocab_file (`str`): JSON file with the list `fragments`, each with `token` (SMILES), `atoms` and `count`.
        atom_order (`str`, defaults to `"canonical"`): which of equally frequent merges comes first is decided by the order of
            atoms, `"canonical"` by RDKit's canonical ranks, `"input"` as they are written, as published ATOMICA does.
    """

    vocab_files_names = VOCAB_FILES_NAMES
    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file=None,
        atom_order="canonical",
        pad_token="<pad>",
        mask_token="<mask>",
        unk_token="<unk>",
        cls_token="<global>",
        **kwargs,
    ):
        if atom_order not in ATOM_ORDERS:
            raise ValueError(f"`atom_order` is {atom_order!r}, expected one of {', '.join(ATOM_ORDERS)}.")
        self.atom_order = atom_order
        self.fragments = [] if vocab_file is None else self._read_vocabulary(vocab_file)
        self.fragment_counts = {f["token"]: f["count"] for f in self.fragments}
        self._tokens = list(BASE_TOKENS) + [f["token"] for f in self.fragments if f["token"] not in ELEMENTS]
        self._ids = {token: i for i, token in enumerate(self._tokens)}
        if len(self._ids) != len(self._tokens):
            twice = [token for token, n in Counter(self._tokens).items() if n > 1]
            raise ValueError(f"The fragment vocabulary names these tokens twice: {', '.join(twice)}.")
        super().__init__(
            atom_order=atom_order,
            pad_token=pad_token,
            mask_token=mask_token,
            unk_token=unk_token,
            cls_token=cls_token,
            **kwargs,
        )

    @staticmethod
    def _read_vocabulary(path):
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            return [{"token": str(f["token"]), "atoms": int(f["atoms"]), "count": int(f["count"])} for f in data["fragments"]]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: not a fragment vocabulary ({error!r}); expected JSON with a list `fragments` of token, atoms, count."
            ) from error

    @classmethod
    def _from_fragments(cls, fragments, **kwargs):
        tokenizer = cls(**kwargs)
        tokenizer.fragments = fragments
        tokenizer.fragment_counts = {f["token"]: f["count"] for f in fragments}
        tokenizer._tokens = list(BASE_TOKENS) + [f["token"] for f in fragments if f["token"] not in ELEMENTS]
        tokenizer._ids = {token: i for i, token in enumerate(tokenizer._tokens)}
        tokenizer._update_total_vocab_size()
        return tokenizer

    @classmethod
    def from_fragment_vocabulary(cls, path, atom_order="input", **kwargs):
        """Reads ATOMICA's vocabulary files: a line of JSON, then `SMILES <tab> atoms <tab> count`.

        Raises:
            `ValueError`: naming the line that is not of that form.
        """
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        fragments = []
        for number, line in enumerate(lines, 1):
            if number == 1 and line.startswith("{"):
                if json.loads(line).get("kekulize"):
                    raise ValueError(f"{path}: a vocabulary of kekulised fragments; only aromatic ones are supported.")
                continue
            fields = line.split("\t")
            if len(fields) != 3 or not fields[1].isdigit() or not fields[2].isdigit():
                raise ValueError(f"{path}, line {number}: expected SMILES, atoms and count separated by tabs, got {line!r}.")
            fragments.append({"token": fields[0], "atoms": int(fields[1]), "count": int(fields[2])})
        return cls._from_fragments(fragments, atom_order=atom_order, **kwargs)

    def train_new_from_iterator(self, text_iterator, vocab_size, min_count=2, **kwargs):
        """Mines a vocabulary from SMILES by merging, again and again, the most frequent pair of neighbouring fragments.

        Args:
            text_iterator (iterable of `str` or of lists of `str`): SMILES.
            vocab_size (`int`): number of tokens, the special ones, residues and elements included.
            min_count (`int`): a fragment less frequent than this ends the mining.

        Returns:
            `AtomicaTokenizer` with the same settings. Equal counts are broken by the alphabet.

        Raises:
            `ValueError`: for a SMILES that does not parse, or a `vocab_size` without room for fragments.
        """
        if vocab_size <= len(BASE_TOKENS):
            raise ValueError(
                f"`vocab_size` is {vocab_size}, expected more than the {len(BASE_TOKENS)} tokens without fragments."
            )
        smiles = [s for batch in text_iterator for s in ([batch] if isinstance(batch, str) else batch)]
        molecules = [_Fragmentation(self._ordered(heavy_atoms(parse_smiles(s))[0])[0]) for s in smiles]
        elements = Counter(atom.GetSymbol() for m in molecules for atom in m.mol.GetAtoms())
        counts = {}
        pairs = [m.pairs() for m in molecules]
        while len(counts) < vocab_size - len(BASE_TOKENS):
            total = Counter()
            for found in pairs:
                total.update({s: len(p) for s, p in found.items()})
            if not total:
                break
            best = min(total, key=lambda s: (-total[s], s))
            if total[best] < min_count:
                break
            counts.setdefault(best, total[best])
            for i, m in enumerate(molecules):
                if best in pairs[i]:
                    m.merge(pairs[i][best])
                    pairs[i] = m.pairs()
        sizes = {s: Chem.MolFromSmiles(s, sanitize=False).GetNumAtoms() for s in counts}
        fragments = [{"token": s, "atoms": sizes[s], "count": n} for s, n in counts.items()]
        fragments.sort(key=lambda f: (-f["atoms"], -f["count"], f["token"]))
        fragments += [{"token": e, "atoms": 1, "count": elements[e]} for e in ELEMENTS if e in elements]
        return self._from_fragments(fragments, atom_order=self.atom_order, **kwargs)

    # fragments ----------------------------------------------------------------------------------------------------------

    def _ordered(self, mol):
        """The molecule in the order of atoms that decides ties, and the index each atom had. Canonical order also forgets
        stereochemistry, which would split one fragment into many."""
        if self.atom_order == "input":
            return mol, list(range(mol.GetNumAtoms()))
        mol = Chem.Mol(mol)
        smiles = Chem.MolToSmiles(mol, isomericSmiles=False)
        parameters = Chem.SmilesParserParams()
        parameters.removeHs = False
        again = Chem.MolFromSmiles(smiles, parameters)
        if again is None:
            raise ValueError(f"RDKit cannot read its own SMILES of this molecule: {smiles!r}.")
        return again, list(mol.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])

    def fragment(self, mol):
        """Cuts a molecule into fragments.

        Args:
            mol (`rdkit.Chem.Mol` or SMILES): explicit hydrogens are left out, unless it has nothing else.

        Returns:
            Tokens, and the atom indices (of `mol`) of each, as two lists. Every heavy atom is in exactly one fragment.

        Raises:
            `ValueError`: for SMILES that do not parse, and for atoms that are no element.
        """
        if isinstance(mol, str):
            mol = parse_smiles(mol)
        heavy, kept = heavy_atoms(mol)
        ordered, order = self._ordered(heavy)
        found = _Fragmentation(ordered).run(self.fragment_counts).result()
        return [token for token, _ in found], [[kept[order[i]] for i in atoms] for _, atoms in found]

    def tokenize(self, text, **kwargs):
        if not text.strip():
            raise ValueError(f"Expected a SMILES string, got {text!r}.")
        return super().tokenize(text, **kwargs)

    def _tokenize(self, text, **kwargs):
        tokens = []
        for molecule in Chem.GetMolFrags(parse_smiles(text), asMols=True, sanitizeFrags=False):
            tokens += [self.cls_token] * bool(tokens) + self.fragment(molecule)[0]
        return tokens

    def convert_tokens_to_string(self, tokens):
        return " ".join(tokens)

    # vocabulary ---------------------------------------------------------------------------------------------------------

    @property
    def global_token(self) -> str:
        """Token of the block that stands for a whole segment."""
        return self.cls_token

    @property
    def global_token_id(self) -> int:
        return self.cls_token_id

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    def get_vocab(self):
        return {**self._ids, **self.added_tokens_encoder}

    def _convert_token_to_id(self, token):
        return self._ids.get(token, self._ids["<unk>"])

    def _convert_id_to_token(self, index):
        return self._tokens[index] if 0 <= index < len(self._tokens) else self.unk_token

    def save_vocabulary(self, save_directory, filename_prefix=None):
        name = (filename_prefix + "-" if filename_prefix else "") + VOCAB_FILES_NAMES["vocab_file"]
        path = Path(save_directory) / name
        lines = ",\n".join("  " + json.dumps(f) for f in self.fragments)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text('{"fragments": [\n' + lines + "\n]}\n", encoding="utf-8")
        os.replace(temporary, path)
        return (str(path),)

    # sequences ----------------------------------------------------------------------------------------------------------

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        ids = [self.global_token_id] + token_ids_0
        return ids if token_ids_1 is None else ids + [self.global_token_id] + token_ids_1

    def create_token_type_ids_from_sequences(self, token_ids_0, token_ids_1=None):
        segment, segments = -1, []
        for token in self.build_inputs_with_special_tokens(token_ids_0, token_ids_1):
            segment += token == self.global_token_id
            segments.append(segment)
        return segments

    def get_special_tokens_mask(self, token_ids_0, token_ids_1=None, already_has_special_tokens=False):
        ids = token_ids_0
        if not already_has_special_tokens:
            ids = self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        return [int(token < len(SPECIAL_TOKENS)) for token in ids]


__all__ = [
    "AMINO_ACIDS",
    "BASE_TOKENS",
    "ELEMENTS",
    "NUCLEOTIDES",
    "SPECIAL_TOKENS",
    "AtomicaTokenizer",
    "heavy_atoms",
    "parse_smiles",
]
