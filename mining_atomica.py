# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""A fragment vocabulary from many molecules: again and again, the most frequent pair of neighbouring fragments is merged.

Every process holds a share of the molecules and counts pairs anew only where a merge changed them.
"""

import gc
import hashlib
import heapq
import json
import multiprocessing
import os
import signal
import time
from bisect import bisect
from collections import Counter
from pathlib import Path

from rdkit import rdBase
from tqdm.auto import tqdm

from .fragmentation_atomica import Fragmentation, FragmentVocabulary, MoleculeGraph, read_molecule


class _MinedMolecule(Fragmentation):
    """A molecule that keeps all its pairs: token -> list of (fragment, fragment, bond, name)."""

    __slots__ = ("pairs",)

    def find_pairs(self, found, wanted=None):
        for (a, b), link in {(a, b): link for a, b, link in found}.items():
            if wanted is None or self.groups[a][2] + self.groups[b][2] in wanted:
                named = self.name(a, b, link)
                self.pairs.setdefault(named[0], []).append((a, b, link, named))

    def find_all_pairs(self, wanted=None):
        self.pairs = {}
        for group in self.groups:
            self.find_pairs(self.links(group, 0), wanted)

    def join(self, token, wanted=None):
        """Merges all pairs of this token."""
        pairs = self.pairs.pop(token)
        self.arrange(pairs)
        first, groups = self.next, self.groups
        for a, b, link, named in pairs:
            if a in groups and b in groups:
                self.merge(a, b, link, named)
        for other in list(self.pairs):
            left = [pair for pair in self.pairs[other] if pair[0] in groups and pair[1] in groups]
            if left:
                self.pairs[other] = left
            else:
                del self.pairs[other]
        for group in range(first, self.next):
            self.find_pairs(self.links(group, first), wanted)


class _Shard:
    """Molecules of one process while a vocabulary is mined."""

    def __init__(self, smiles, atom_order):
        self.smiles, self.atom_order, self.molecules, self.elements = smiles, atom_order, [], Counter()

    def read(self, start, stop):
        """Returns what could not be read: (place, SMILES, error)."""
        rejected = []
        for place, smiles in enumerate(self.smiles[start:stop], start):
            try:
                molecule = _MinedMolecule(MoleculeGraph.of(*read_molecule(smiles, self.atom_order)[:3]))
            except ValueError as error:
                rejected.append((place, smiles, error))
                continue
            self.elements.update(group[3] for group in molecule.groups.values())
            self.molecules.append(molecule)
        return rejected

    def replay(self, tokens, start, stop):
        """Repeats merges that were chosen before."""
        if tokens:
            places = {}
            for place, token in enumerate(tokens):
                places.setdefault(token, []).append(place)
            wanted = set(FragmentVocabulary(dict.fromkeys(tokens, 0)).bounds)
            for molecule in self.molecules[start:stop]:
                molecule.find_all_pairs(wanted)
                place = -1
                while True:
                    later = [(p[i], t) for t in molecule.pairs if (p := places.get(t)) and (i := bisect(p, place)) < len(p)]
                    if not later:
                        break
                    place, token = min(later)
                    molecule.join(token, wanted)
        for molecule in self.molecules[start:stop]:
            molecule.find_all_pairs()

    def counts(self):
        total = Counter()
        for molecule in self.molecules:
            for token, pairs in molecule.pairs.items():
                total[token] += len(pairs)
        return total, self.elements

    def join(self, token):
        """Merges a token everywhere. Returns how the numbers of pairs change."""
        change = Counter()
        for molecule in self.molecules:
            if token in molecule.pairs:
                for other, pairs in molecule.pairs.items():
                    change[other] -= len(pairs)
                molecule.join(token)
                for other, pairs in molecule.pairs.items():
                    change[other] += len(pairs)
        return {other: number for other, number in change.items() if number}


def _serve(connection, smiles, atom_order):
    """A process that holds one shard and answers (method, arguments) until it is told to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the process that started this one
    gc.disable()  # millions of small objects, none of them in cycles
    parent = os.getppid()
    shard = _Shard(smiles, atom_order)
    while True:
        while not connection.poll(10):
            if os.getppid() != parent:
                return
        request = connection.recv()
        if request is None:
            return
        try:
            connection.send((None, getattr(shard, request[0])(*request[1:])))
        except Exception as error:
            connection.send((error, None))


class _Shards:
    """The shards of all processes; with one process, no other is started."""

    def __init__(self, smiles, atom_order, num_proc):
        parts = [smiles[i::num_proc] for i in range(num_proc)]
        self.sizes = [len(part) for part in parts]
        self.local, self.processes, self.connections = None, [], []
        if num_proc == 1:
            self.local = _Shard(smiles, atom_order)
            return
        context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
        for part in parts:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, part, atom_order), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.connections.append(ours)

    def call(self, *request):
        """Results of a method of all shards."""
        if self.local is not None:
            return [getattr(self.local, request[0])(*request[1:])]
        for connection in self.connections:
            connection.send(request)
        try:
            answers = [connection.recv() for connection in self.connections]
        except EOFError:
            raise RuntimeError("A process of the mining died, perhaps for lack of memory; fewer molecules may help.") from None
        for error, _ in answers:
            if error is not None:
                raise error
        return [answer for _, answer in answers]

    def in_steps(self, hidden, description, method, *arguments, step=500):
        """The same for a method that takes a range of molecules, with a bar; yields the results."""
        with tqdm(total=sum(self.sizes), desc=description, unit="molecule", disable=hidden) as bar:
            for start in range(0, max(self.sizes), step):
                yield self.call(method, *arguments, start, start + step)
                bar.update(sum(max(0, min(size, start + step) - start) for size in self.sizes))

    def close(self):
        for connection in self.connections:
            try:
                connection.send(None)
            except OSError:
                pass
        for process in self.processes:
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()


class _Checkpoint:
    """The merges of a mining, in a file that another run can go on from."""

    def __init__(self, path, smiles, atom_order, seconds):
        self.path, self.seconds, self.saved, self.merges = path and Path(path), seconds, time.monotonic(), []
        if path is None:
            return
        made_from = "\n".join((rdBase.rdkitVersion, atom_order, *smiles))
        self.made_from = hashlib.sha256(made_from.encode()).hexdigest()
        if self.path.exists():
            try:
                data = json.loads(self.path.read_text(encoding="utf-8"))
                self.merges = [(str(token), int(number)) for token, number in data["merges"]]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}: not a checkpoint of mined fragments ({error!r}).") from error
            if data.get("made_from") != self.made_from:
                raise ValueError(f"{path}: was made from other SMILES, with another atom order, or another RDKit.")

    def add(self, token, frequency):
        self.merges.append((token, frequency))
        if time.monotonic() - self.saved > self.seconds:
            self.save()

    def save(self):
        self.saved = time.monotonic()
        if self.path is not None and self.merges:
            temporary = self.path.with_name(self.path.name + ".tmp")
            temporary.write_text(json.dumps({"made_from": self.made_from, "merges": self.merges}), encoding="utf-8")
            os.replace(temporary, self.path)


def mine(
    smiles, size, min_count, atom_order, num_proc=1, checkpoint_file=None, checkpoint_seconds=60, rejected=None, progress=None
):
    """The merges of a vocabulary; arguments as for `AtomicaTokenizer.train_new_from_iterator`.

    Args:
        smiles (list of `str`)
        size (`int`): fragments wanted.

    Returns:
        SMILES -> count of the fragments of several atoms in the order they were made, and element -> number of its atoms.

    Raises:
        `ValueError`: for a SMILES that cannot be read (unless `rejected` takes it), or a checkpoint of other molecules.
    """
    if num_proc < 1:
        raise ValueError(f"`num_proc` is {num_proc}, expected at least one process.")
    checkpoint = _Checkpoint(checkpoint_file, smiles, atom_order, checkpoint_seconds)
    counts, tokens = {}, []
    for token, frequency in checkpoint.merges:
        if len(counts) >= size or frequency < min_count:
            break
        counts.setdefault(token, frequency)
        tokens.append(token)
    hidden = None if progress is None else not progress
    shards = _Shards(smiles, atom_order, min(num_proc, max(1, len(smiles))))
    try:
        failed = []
        for answers in shards.in_steps(hidden, "Reading", "read"):
            failed += [(place, shard, *why) for shard, answer in enumerate(answers) for place, *why in answer]
            if failed and rejected is None:
                raise min(failed)[3]
        if rejected is not None:
            rejected += [(text, str(error)) for _, _, text, error in sorted(failed)]
        for _ in shards.in_steps(hidden, "Repeating merges" if tokens else "Finding pairs", "replay", tokens):
            pass
        total, elements = Counter(), Counter()
        for some, symbols in shards.call("counts"):
            total.update(some)
            elements.update(symbols)
        heap = [(-frequency, token) for token, frequency in total.items()]
        heapq.heapify(heap)
        with tqdm(total=size, initial=len(counts), desc="Merging", unit="fragment", disable=hidden) as bar:
            while len(counts) < size:
                while heap and total.get(heap[0][1], 0) != -heap[0][0]:  # out of date
                    heapq.heappop(heap)
                if not heap or -heap[0][0] < min_count:
                    break
                best, frequency = heap[0][1], -heap[0][0]
                counts.setdefault(best, frequency)
                checkpoint.add(best, frequency)
                changed = set()
                for change in shards.call("join", best):
                    for token, number in change.items():
                        total[token] += number
                        changed.add(token)
                for token in changed:
                    if total[token]:
                        heapq.heappush(heap, (-total[token], token))
                    else:
                        del total[token]
                bar.update(len(counts) - bar.n)
    finally:
        checkpoint.save()
        shards.close()
    return counts, elements
