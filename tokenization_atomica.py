# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Block vocabulary: residues, nucleotides, elements, and fragments of small molecules, as tokens."""

import json
import os
from collections import Counter
from pathlib import Path

from rdkit import Chem
from transformers import PreTrainedTokenizer

from .fragmentation_atomica import (
    ATOM_ORDERS,
    Fragmentation,
    Fragments,
    FragmentVocabulary,
    MoleculeGraph,
    parse_smiles,
    read_molecule,
)
from .mining_atomica import mine


SPECIAL_TOKENS = ("<pad>", "<mask>", "<unk>", "<global>")
AMINO_ACIDS = tuple("GLY ALA VAL LEU ILE PHE TRP TYR ASP HIS ASN GLU LYS GLN MET ARG SER THR CYS PRO".split())
NUCLEOTIDES = tuple("DA DG DC DT RA RG RC RU".split())
ELEMENTS = tuple(Chem.GetPeriodicTable().GetElementSymbol(number) for number in range(1, 119))
BASE_TOKENS = SPECIAL_TOKENS + AMINO_ACIDS + NUCLEOTIDES + ELEMENTS

VOCAB_FILES_NAMES = {"vocab_file": "vocab.json"}
MOLECULE_CACHE_SIZE = 20_000  # molecules that a tokenizer remembers


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
        self._set_fragments([] if vocab_file is None else self._read_vocabulary(vocab_file))
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

    def _set_fragments(self, fragments):
        self.fragments = fragments
        self.fragment_counts = {f["token"]: f["count"] for f in fragments}
        self._vocabulary = FragmentVocabulary(self.fragment_counts)
        self._tokens = list(BASE_TOKENS) + [f["token"] for f in fragments if f["token"] not in ELEMENTS]
        self._ids = {token: i for i, token in enumerate(self._tokens)}

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
        tokenizer._set_fragments(fragments)
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

    def train_new_from_iterator(
        self,
        text_iterator,
        vocab_size,
        min_count=2,
        num_proc=1,
        checkpoint_file=None,
        checkpoint_seconds=60,
        rejected=None,
        progress=None,
        **kwargs,
    ):
        """Mines a vocabulary from SMILES by merging, again and again, the most frequent pair of neighbouring fragments.

        Args:
            text_iterator (iterable of `str` or of lists of `str`): SMILES.
            vocab_size (`int`): number of tokens, the special ones, residues and elements included.
            min_count (`int`): a fragment less frequent than this ends the mining.
            num_proc (`int`): processes; the result does not depend on their number.
            checkpoint_file (path): the merges so far are kept in this file every `checkpoint_seconds`, and at the end. If it
                exists, mining goes on from there, also towards another `vocab_size` or `min_count`.
            rejected (`list`): takes (SMILES, message) of what cannot be read, which is then left out instead of an error.
            progress (`bool`): show bars; by default on a terminal only.

        Returns:
            `AtomicaTokenizer` with the same settings. Equal counts are broken by the alphabet.

        Raises:
            `ValueError`: for a SMILES that does not parse, a `vocab_size` without room for fragments, or a checkpoint of other
            molecules.
        """
        room = vocab_size - len(BASE_TOKENS)
        if room <= 0:
            raise ValueError(
                f"`vocab_size` is {vocab_size}, expected more than the {len(BASE_TOKENS)} tokens without fragments."
            )
        smiles = [s for batch in text_iterator for s in ([batch] if isinstance(batch, str) else batch)]
        counts, elements = mine(
            smiles, room, min_count, self.atom_order, num_proc, checkpoint_file, checkpoint_seconds, rejected, progress
        )
        sizes = {s: Chem.MolFromSmiles(s, sanitize=False).GetNumAtoms() for s in counts}
        fragments = [{"token": s, "atoms": sizes[s], "count": n} for s, n in counts.items()]
        fragments.sort(key=lambda f: (-f["atoms"], -f["count"], f["token"]))
        fragments += [{"token": e, "atoms": 1, "count": elements[e]} for e in ELEMENTS if e in elements]
        return self._from_fragments(fragments, atom_order=self.atom_order, **kwargs)

    # fragments ----------------------------------------------------------------------------------------------------------

    def fragment(self, mol):
        """Cuts a molecule into fragments.

        Args:
            mol (`rdkit.Chem.Mol` or SMILES): explicit hydrogens are left out, unless it has nothing else.

        Returns:
            Tokens, and the atom indices (of `mol`) of each, as two lists. Every heavy atom is in exactly one fragment, and no
            fragment spans two molecules.

        Raises:
            `ValueError`: for SMILES that do not parse, and for atoms that are no element, naming the atom.
        """
        return self.fragment_batch([mol])[0]

    def fragment_batch(self, mols):
        """`fragment` of each of many molecules, faster: reading a hundred of them before cutting them suits the processor."""
        results, vocabulary = [], self._vocabulary
        for start in range(0, len(mols), 100):
            for smiles, heavy, place, order in [read_molecule(mol, self.atom_order) for mol in mols[start : start + 100]]:
                if smiles in vocabulary.molecules:
                    tokens, groups = vocabulary.molecules[smiles]
                else:
                    tokens, groups = Fragmentation(MoleculeGraph.of(smiles, heavy, place)).run(vocabulary)
                    if smiles is not None:
                        if len(vocabulary.molecules) >= MOLECULE_CACHE_SIZE:
                            vocabulary.molecules.clear()
                        vocabulary.molecules[smiles] = tokens, groups
                results.append((list(tokens), [[order[atom] for atom in atoms] for atoms in groups]))
        return results

    def cut(self, mol):
        """As `fragment`, with the atoms and bonds that `to_smiles` needs: returns `Fragments`."""
        mol = parse_smiles(mol) if isinstance(mol, str) else mol
        return Fragments.of(mol, *self.fragment(mol))

    def to_smiles(self, fragments):
        """`Fragments` -> canonical SMILES of the whole molecule, with its stereochemistry.

        Raises:
            `ValueError`: if an atom is in no fragment or in two, or if no molecule results.
        """
        return fragments.to_smiles()

    def tokenize(self, text, **kwargs):
        """SMILES -> tokens; a special token stands for itself. Added tokens are names of blocks and never split a SMILES."""
        if text in self.all_special_tokens:
            return [text]
        return self._tokenize(text)

    def _tokenize(self, text, **kwargs):
        return self._tokens_and_atoms(text)[0]

    def _tokens_and_atoms(self, text):
        """Tokens of all molecules of a SMILES, each but the first after its `<global>`, and the atoms of each token."""
        if "." not in text:
            return self.fragment(text)
        indices = []
        parts = Chem.GetMolFrags(parse_smiles(text), asMols=True, sanitizeFrags=False, fragsMolAtomMapping=indices)
        tokens, atoms = [], []
        for molecule, index in zip(parts, indices):
            found, groups = self.fragment(molecule)
            tokens += [self.cls_token] * bool(tokens) + found
            atoms += [[]] * bool(atoms) + [[index[atom] for atom in group] for group in groups]
        return tokens, atoms

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

    def _encode_plus(self, text, text_pair=None, *args, return_atoms=False, return_offsets_mapping=False, **kwargs):
        """As in Transformers; `return_atoms=True` adds `atoms`: for every block, the indices of its atoms in its SMILES."""
        if return_offsets_mapping:
            raise ValueError("Fragments are no stretches of a SMILES, so there are no offsets; use `return_atoms=True`.")
        if not return_atoms:
            return super()._encode_plus(text, text_pair, *args, **kwargs)
        if kwargs.get("return_tensors") or kwargs.get("return_overflowing_tokens"):
            raise ValueError("`return_atoms=True` gives lists of lists; it goes without tensors and overflowing tokens.")
        encoded = super()._encode_plus(text, text_pair, *args, **kwargs)
        if isinstance(text, str):
            encoded["atoms"] = self._atoms_of_blocks(encoded["input_ids"], text, text_pair, **kwargs)
        else:
            items = [item if isinstance(item, (tuple, list)) else (item,) for item in text]
            items = [(*item, other) for item, other in zip(items, text_pair)] if text_pair else items
            encoded["atoms"] = [self._atoms_of_blocks(ids, *item, **kwargs) for ids, item in zip(encoded["input_ids"], items)]
        return encoded

    def _atoms_of_blocks(self, input_ids, text, text_pair=None, **kwargs):
        """The atoms of the blocks that truncation has left, [] for special tokens and padding."""
        texts = [text] if text_pair is None else [text, text_pair]
        found = [self._tokens_and_atoms(part) for part in texts]
        ids = [self.convert_tokens_to_ids(tokens) for tokens, _ in found] + [None]
        special = 1 if kwargs.get("add_special_tokens", True) else 0
        too_many = sum(special + len(part) for part in ids[: len(texts)]) - (kwargs.get("max_length") or 0)
        strategy = kwargs.get("truncation_strategy", "do_not_truncate")
        kept = ids[:2]
        if too_many > 0 and kwargs.get("max_length") and strategy != "do_not_truncate":
            kept = self.truncate_sequences(*ids[:2], num_tokens_to_remove=too_many, truncation_strategy=strategy)[:2]
        atoms = []
        for (_, groups), part in zip(found, kept):
            if part is not None:
                start = len(groups) - len(part) if self.truncation_side == "left" else 0
                atoms += [[]] * special + groups[start : start + len(part)]
        padding = [[]] * (len(input_ids) - len(atoms))
        return padding + atoms if self.padding_side == "left" else atoms + padding

    def truncate_sequences(self, ids, pair_ids=None, num_tokens_to_remove=0, truncation_strategy="longest_first", stride=0):
        """As in Transformers, by blocks; no molecule is left with a bare `<global>`.

        Raises:
            `ValueError`: if nothing of the first molecule would be left.
        """
        strategy = getattr(truncation_strategy, "value", truncation_strategy)
        if num_tokens_to_remove > 0 and strategy == "longest_first" and pair_ids is not None:
            lengths = [len(ids), len(pair_ids)]
            for _ in range(min(num_tokens_to_remove, sum(lengths))):
                lengths[lengths[1] >= lengths[0]] -= 1
            left = self.truncation_side == "left"
            ids, pair_ids = (
                part[len(part) - size :] if left else part[:size] for part, size in zip((ids, pair_ids), lengths)
            )  # fmt: skip
            overflow = []
        else:
            ids, pair_ids, overflow = super().truncate_sequences(
                ids, pair_ids, num_tokens_to_remove, truncation_strategy, stride
            )
        if num_tokens_to_remove > 0:
            end = 0 if self.truncation_side == "left" else -1
            for part in (ids, pair_ids):
                while part and part[end] == self.global_token_id:
                    part.pop(end)
            if not ids:
                raise ValueError(f"Truncating by {num_tokens_to_remove} leaves no block of the first molecule.")
            pair_ids = pair_ids or None
        return ids, pair_ids, overflow

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
]
