# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""The fragment tokenizer beside a plain form of the published procedure, in one run: whether they agree, how fast both cut
molecules and mine a vocabulary, whether every molecule of some files is cut as it should be, and how well vocabularies cover
molecules. Prints Markdown tables.

    python benchmarks/tokenizer.py speed druglike.smi.gz --vocabulary ps_vocab_300.txt
    python benchmarks/tokenizer.py mining druglike.smi.gz
    python benchmarks/tokenizer.py check druglike.smi.gz delaney.csv --round_trip 6000
    python benchmarks/tokenizer.py coverage druglike=druglike.smi.gz:0:250000 ESOL=delaney.csv --vocabularies . my-tokenizer

The published procedure names, after every merge of a molecule, all its pairs of neighbouring fragments, each with one call of
RDKit; mining does so for all molecules in every round.
"""

import argparse
import gzip
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from rdkit import Chem
from rdkit.Chem import Draw
from rdkit.Chem.Draw import rdMolDraw2D
from tqdm.auto import tqdm


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from atomica_hf import AtomicaTokenizer, fragmentation_atomica  # noqa: E402
from atomica_hf.fragmentation_atomica import heavy_atoms, parse_smiles  # noqa: E402
from atomica_hf.structure_atomica import read_smiles  # noqa: E402
from atomica_hf.tokenization_atomica import BASE_TOKENS  # noqa: E402


class Straightforward:
    """The fragments of one molecule while they grow. Groups are dictionaries in the order of the published procedure, whose
    ties are broken by what it meets first."""

    def __init__(self, mol):
        self.mol = mol
        self.neighbors = [[n.GetIdx() for n in atom.GetNeighbors()] for atom in mol.GetAtoms()]
        self.groups = {i: [i] for i in range(mol.GetNumAtoms())}
        self.owner = list(self.groups)
        self.next_group = len(self.groups)

    def joined_smiles(self, atoms):
        inside = set(atoms)
        bonds = [b.GetIdx() for b in self.mol.GetBonds() if b.GetBeginAtomIdx() in inside and b.GetEndAtomIdx() in inside]
        return Chem.MolToSmiles(Chem.PathToSubmol(self.mol, bonds))

    def pairs(self):
        """Joined SMILES -> pairs of neighbouring groups."""
        found = {}
        for group, atoms in self.groups.items():
            near = [self.owner[j] for i in atoms for j in self.neighbors[i] if j < i and self.owner[j] != group]
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
        while True:
            pairs = self.pairs()
            known = [smiles for smiles in pairs if smiles in counts]
            if not known:
                break
            self.merge(pairs[max(known, key=counts.__getitem__)])
        symbol = lambda i: self.mol.GetAtomWithIdx(i).GetSymbol()
        return [(symbol(a[0]) if len(a) == 1 else self.joined_smiles(a), a) for a in self.groups.values()]


def ordered(smiles, atom_order):
    """The molecule without hydrogens whose atoms stand in the order that decides ties, and the index of each in the input."""
    mol, kept = heavy_atoms(parse_smiles(smiles))
    if atom_order == "input":
        return mol, kept
    mol = Chem.Mol(mol)
    written = Chem.MolToSmiles(mol, isomericSmiles=False)
    parameters = Chem.SmilesParserParams()
    parameters.removeHs = False
    order = list(mol.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])
    return Chem.MolFromSmiles(written, parameters), [kept[atom] for atom in order]


def straightforward(smiles, counts, atom_order):
    """Tokens and atoms of a molecule, as `AtomicaTokenizer.fragment` gives them."""
    mol, kept = ordered(smiles, atom_order)
    found = Straightforward(mol).run(counts)
    return [token for token, _ in found], [[kept[i] for i in atoms] for _, atoms in found]


def straightforward_mining(smiles, size, atom_order, every=False):
    """SMILES -> count of the `size` fragments that are merged first. With `every`, pairs of every molecule are named anew in
    every round, as the published procedure does; else only those of the molecules that a merge changed."""
    molecules = [Straightforward(ordered(text, atom_order)[0]) for text in smiles]
    pairs, counts = [molecule.pairs() for molecule in molecules], {}
    while len(counts) < size:
        total = Counter()
        for found in pairs:
            total.update({text: len(groups) for text, groups in found.items()})
        best = min(total, key=lambda text: (-total[text], text))
        counts.setdefault(best, total[best])
        for i, molecule in enumerate(molecules):
            changed = best in pairs[i]
            if changed:
                molecule.merge(pairs[i][best])
            if changed or every:
                pairs[i] = molecule.pairs()
    return counts


def spellings(smiles, number, rng):
    """A molecule, and random spellings of it (aromatic, kekulised, with explicit hydrogens) with the atom each of theirs is."""
    mol = Chem.MolFromSmiles(smiles)
    found = []
    for i in range(number):
        order = list(range(mol.GetNumAtoms()))
        rng.shuffle(order)
        other = Chem.RenumberAtoms(mol, order)
        kekule = i % 3 == 1
        if kekule:
            Chem.Kekulize(other, clearAromaticFlags=True)
        elif i % 3 == 2:
            other = Chem.AddHs(other)
        text = Chem.MolToSmiles(other, canonical=False, kekuleSmiles=kekule)
        written = [int(k) for k in other.GetProp("_smilesAtomOutputOrder")[1:-1].split(",")]
        found.append((text, [order[k] if k < len(order) else None for k in written]))
    return mol, found


def same_fragments(tokenizer, mol, found):
    """Whether spellings give the same tokens on the same atoms; atoms that symmetry makes equal are the same."""
    rank = list(Chem.CanonicalRankAtoms(mol, breakTies=False, includeChirality=False, includeIsotopes=False))
    seen = set()
    for text, original in found:
        original = [atom for atom in original if atom is not None]  # reading SMILES drops hydrogens and keeps the order
        tokens, groups = tokenizer.fragment(text)
        seen.add(tuple(sorted((token, *sorted(rank[original[a]] for a in group)) for token, group in zip(tokens, groups))))
    return len(seen) == 1


def open_tokenizer(path, atom_order=None):
    if Path(path).is_dir():
        return AtomicaTokenizer.from_pretrained(path, **({} if atom_order is None else {"atom_order": atom_order}))
    return AtomicaTokenizer.from_fragment_vocabulary(path, atom_order=atom_order or "canonical")


def rate(function, smiles, repeats):
    """SMILES a second, in the fastest of some runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(smiles)
        times.append(time.perf_counter() - start)
    return len(smiles) / min(times)


def forget(tokenizer):
    """Empties all that a process and a tokenizer remember."""
    for cache in (fragmentation_atomica._JOINED, fragmentation_atomica._NAMED, fragmentation_atomica._ATOMS):
        cache.clear()
    fragmentation_atomica._CODES.clear()
    tokenizer._vocabulary.bonds.clear()
    tokenizer._vocabulary.molecules.clear()


def throughput(vocabulary, atom_order, molecules, written, few, repeats):
    """Rows of a table: how many SMILES a second, reading them included."""
    tokenizer = open_tokenizer(vocabulary, atom_order)
    counts = tokenizer.fragment_counts

    def cold(smiles):
        forget(tokenizer)
        tokenizer.fragment_batch(smiles)

    def one_by_one(smiles):
        forget(tokenizer)
        for text in smiles:
            tokenizer.fragment(text)

    def new_to_warm(smiles):
        tokenizer._vocabulary.molecules.clear()
        tokenizer.fragment_batch(smiles)

    slow = rate(lambda smiles: [straightforward(text, counts, atom_order) for text in smiles], molecules[:few], repeats)
    print(f"| straightforward | {atom_order} | {few} distinct molecules | {slow:.0f} | 1 |", flush=True)
    for what, smiles, function in (
        ("distinct molecules one by one, caches cold", molecules, one_by_one),
        ("distinct molecules in a batch, caches cold", molecules, cold),
        ("distinct molecules in a batch, fragments met before", molecules, new_to_warm),
        ("SMILES, shuffled spellings of these, in a batch", written, new_to_warm),
    ):
        fast = rate(function, smiles, repeats)
        print(f"| here | {atom_order} | {len(smiles)} {what} | {fast:.0f} | {fast / slow:.1f} |", flush=True)


def speed(vocabulary, molecules, num_spellings, num_compared, repeats):
    """Whether the two ways agree, how the two orders differ, and a table of rates."""
    rng = random.Random(1)
    compared = molecules[:num_compared]
    tokenizers = {order: open_tokenizer(vocabulary, order) for order in ("canonical", "input")}
    for order, tokenizer in tokenizers.items():
        wrong = sum(tokenizer.fragment(s) != straightforward(s, tokenizer.fragment_counts, order) for s in compared)
        print(f"{order} order: {len(compared) - wrong} of {len(compared)} molecules as the straightforward algorithm cuts them")
    cut = [[sorted(tokens) for tokens, _ in tokenizer.fragment_batch(molecules)] for tokenizer in tokenizers.values()]
    differ = sum(a != b for a, b in zip(*cut))
    print(
        f"the two orders give other tokens for {differ} of {len(molecules)} molecules ({100 * differ / len(molecules):.1f} %)"
    )
    spelled = [spellings(s, num_spellings, rng) for s in molecules]
    for order, tokenizer in tokenizers.items():
        forget(tokenizer)
        same = sum(same_fragments(tokenizer, *item) for item in spelled)
        print(f"{order} order: {same} of {len(molecules)} molecules cut alike in {num_spellings} random spellings")
    written = [text for _, found in spelled for text, _ in found]
    rng.shuffle(written)
    print("\n| algorithm | atom order | what | SMILES per second | ratio |\n|---|---|---|---|---|")
    for order in tokenizers:
        throughput(vocabulary, order, molecules, written, min(300, len(molecules)), repeats)
    reading = rate(lambda smiles: [Chem.MolToSmiles(Chem.MolFromSmiles(text)) for text in smiles], molecules, repeats)
    print(f"| RDKit reads and writes the SMILES, no fragments | | {len(molecules)} distinct molecules | {reading:.0f} | |")


def mining(smiles, few, size):
    """Seconds for the same vocabulary of `few` molecules, both ways, and for all of `smiles` here, each in one process."""
    print(f"\n| algorithm | molecules | fragments | seconds | peak memory, GiB | ratio for {few} |\n|---|---|---|---|---|---|")
    seconds = []
    for every, name in ((True, "straightforward"), (False, "straightforward, changed molecules only")):
        start = time.perf_counter()
        expected = straightforward_mining(smiles[:few], size, "canonical", every)
        seconds.append(time.perf_counter() - start)
        print(f"| {name} | {few} | {size} | {seconds[-1]:.1f} | | {seconds[0] / seconds[-1]:.1f} |", flush=True)
    slow = seconds[0]
    for number in (few, len(smiles)):
        done = subprocess.run(
            [sys.executable, __file__, "_mine", str(size)], input="\n".join(smiles[:number]), text=True, check=True,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        result = json.loads(done.stdout)
        if number == few and result["counts"] != expected:
            raise SystemExit("The two ways mine different fragments.")
        ratio = f"{slow / result['seconds']:.0f}" if number == few else ""
        print(f"| here | {number} | {size} | {result['seconds']:.1f} | {result['gib']:.2f} | {ratio} |", flush=True)
    scaled = slow * len(smiles) / few
    print(f"\nFor {len(smiles)} molecules the straightforward way takes {scaled:.0f} s if its time grows with their number:")
    print(f"{scaled / result['seconds']:.0f} times as long as here.")


def faults(smiles, tokenizer):
    """What is wrong with the fragments of a SMILES: nothing, reasons, or one that begins with "refused:"."""
    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        return ["refused: RDKit cannot read it"]
    try:
        tokens, groups = tokenizer.fragment(smiles)
    except ValueError as error:
        return [f"refused: {str(error).split(': ', 1)[-1]}"]
    heavy = [a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() > 1] or [a.GetIdx() for a in mol.GetAtoms()]
    found = []
    if sorted(atom for group in groups for atom in group) != heavy:
        found.append("an atom in none or several fragments")
    if tokenizer.unk_token_id in tokenizer.convert_tokens_to_ids(tokens):
        found.append("<unk>")
    for group in groups:
        inside, reached, rest = set(group), set(), [group[0]]
        while rest:
            reached.add(atom := rest.pop())
            rest += [n.GetIdx() for n in mol.GetAtomWithIdx(atom).GetNeighbors() if n.GetIdx() in inside - reached]
        if reached != inside:
            found.append("a fragment in pieces")
    return found


def check(paths, vocabulary, round_trips):
    """Every distinct molecule of the files is cut, and the fragments are looked at; whether any was cut wrongly.

    A random sample is also put together again, and compared with RDKit's canonical SMILES."""
    tokenizer = open_tokenizer(vocabulary)
    seen, wrong, put_together, sampled = set(), 0, Counter(), random.Random(3)
    print("\n| file | distinct SMILES not in a file above | cut | refused | wrong |\n|---|---|---|---|---|")
    refused, examples = Counter(), []
    for path in paths:
        new = [text for text in dict.fromkeys(read_smiles(path)) if text not in seen]
        seen.update(new)
        reasons = {
            text: found
            for text in tqdm(new, desc=Path(path).name, leave=False, disable=None)
            if (found := faults(text, tokenizer))
        }
        no = [found[0] for found in reasons.values() if found[0].startswith("refused")]
        refused.update(no)
        bad = {text: found for text, found in reasons.items() if not found[0].startswith("refused")}
        wrong += len(bad)
        examples += [f"{text}: {', '.join(found)}" for text, found in list(bad.items())[:5]]
        print(f"| {Path(path).name} | {len(new)} | {len(new) - len(no)} | {len(no)} | {len(bad)} |", flush=True)
        readable = [text for text in new if text not in reasons]
        for text in sampled.sample(readable, min(round_trips, len(readable))):
            again = tokenizer.to_smiles(tokenizer.cut(text))
            put_together["alike" if again == Chem.CanonSmiles(text) else f"{Chem.CanonSmiles(text)} became {again}"] += 1
    for reason, times in refused.most_common():
        print(f"- {reason}: {times}")
    if round_trips:
        print(f"\nPut together again, at most {round_trips} of each file: {put_together.pop('alike', 0)} alike, others:")
    print("\n".join(f"- {text}" for text in [*put_together, *examples]))
    return wrong > 0


def mine_only(size):
    import resource

    start = time.perf_counter()
    mined = AtomicaTokenizer().train_new_from_iterator(sys.stdin.read().split(), len(BASE_TOKENS) + size, progress=False)
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    counts = {f["token"]: f["count"] for f in mined.fragments if f["atoms"] > 1}
    print(json.dumps({"seconds": time.perf_counter() - start, "gib": gib, "counts": counts}))


def coverage(paths, sets):
    print("\n| vocabulary | molecules | fragments per molecule | atoms per fragment | atoms alone, % | tokens never used, % |")
    print("|---|---|---|---|---|---|")
    for path in paths:
        tokenizer = open_tokenizer(path)
        known = {f["token"] for f in tokenizer.fragments if f["atoms"] > 1}
        for name, molecules in sets.items():
            cut = tokenizer.fragment_batch(molecules)
            groups = [group for _, atoms in cut for group in atoms]
            atoms, alone = sum(map(len, groups)), sum(len(group) == 1 for group in groups)
            unused = 1 - len({token for tokens, _ in cut for token in tokens} & known) / len(known)
            print(
                f"| {Path(path).name} ({len(known)}) | {name} ({len(molecules)}) | {len(groups) / len(molecules):.2f} "
                f"| {atoms / len(groups):.2f} | {100 * alone / atoms:.1f} | {100 * unused:.0f} |",
                flush=True,
            )


def draw(path, vocabulary, molecules, number=48):
    """A picture of the fragments that a vocabulary uses most often, with how often."""
    cut = open_tokenizer(vocabulary).fragment_batch(molecules)
    used = Counter(token for tokens, atoms in cut for token, group in zip(tokens, atoms) if len(group) > 1).most_common(number)
    mols = [rdMolDraw2D.PrepareMolForDrawing(Chem.MolFromSmiles(s, sanitize=False), kekulize=False) for s, _ in used]
    options = rdMolDraw2D.MolDrawOptions()
    options.prepareMolsBeforeDrawing = False
    legends = [f"{text}  {times}" for text, times in used]
    image = Draw.MolsToGridImage(
        mols, molsPerRow=8, subImgSize=(150, 120), legends=legends, drawOptions=options, returnPNG=False
    )  # fmt: skip
    image.save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    cut = commands.add_parser("speed", help="Both ways cut the same molecules: agreement, spellings, rates.")
    cut.add_argument("smiles", help="File of SMILES (.smi .csv, also .gz).")
    cut.add_argument("--vocabulary", required=True, help="ATOMICA's file, or a folder.")
    cut.add_argument("--num_molecules", type=int, default=10_000, help="A random sample of this many molecules.")
    cut.add_argument("--num_spellings", type=int, default=5, help="Spellings of each.")
    cut.add_argument("--num_compared", type=int, default=1000, help="Molecules that both ways cut.")
    cut.add_argument("--repeats", type=int, default=3, help="The fastest of so many runs counts.")
    mined = commands.add_parser("mining", help="Both ways mine a vocabulary.")
    mined.add_argument("smiles", help="File of SMILES (.smi .csv, also .gz).")
    mined.add_argument("--num_molecules", type=int, default=100_000, help="A random sample of this many, mined here.")
    mined.add_argument("--num_compared", type=int, default=300, help="Molecules that both ways mine.")
    mined.add_argument("--size", type=int, default=300, help="Fragments.")
    checked = commands.add_parser("check", help="Whether all molecules of some files are cut as they should be.")
    checked.add_argument("smiles", nargs="+", help="Files of SMILES (.smi .csv, also .gz).")
    checked.add_argument("--vocabulary", default=str(ROOT), help="ATOMICA's file, or a folder; by default this repository's.")
    checked.add_argument("--round_trip", type=int, default=0, help="Put so many of each file together again.")
    covered = commands.add_parser("coverage", help="How vocabularies cut sets of molecules.")
    covered.add_argument("sets", nargs="+", help="NAME=FILE, SMILES or SDF; with NAME=FILE:SEED:NUMBER those are left out that "
                         "`train_tokenizer.py --seed SEED --max_samples NUMBER` mines.")  # fmt: skip
    covered.add_argument("--vocabularies", nargs="+", required=True, help="ATOMICA's files, or folders.")
    covered.add_argument("--num_molecules", type=int, default=20_000, help="At most so many of each set, a random sample.")
    covered.add_argument("--picture", help="PNG of the fragments of the first vocabulary that the first set uses most.")
    hidden = commands.add_parser("_mine", description="Mines the SMILES of the standard input, and prints JSON.")
    hidden.add_argument("size", type=int)
    arguments = parser.parse_args()
    if arguments.command == "_mine":
        return mine_only(arguments.size)
    if arguments.command == "coverage":
        sets = {}
        for given in arguments.sets:
            name, path = given.split("=", 1)
            sets[name] = sample(*path.split(":"), number=arguments.num_molecules)
        if arguments.picture:
            draw(arguments.picture, arguments.vocabularies[0], next(iter(sets.values())))
        return coverage(arguments.vocabularies, sets)
    if arguments.command == "check":
        return check(arguments.smiles, arguments.vocabulary, arguments.round_trip)
    molecules = sample(arguments.smiles, number=arguments.num_molecules)
    if arguments.command == "mining":
        return mining(molecules, arguments.num_compared, arguments.size)
    return speed(arguments.vocabulary, molecules, arguments.num_spellings, arguments.num_compared, arguments.repeats)


def sample(path, seed=None, mined=None, number=0):
    """SMILES of a file, of molecules that can be read and were not mined with this seed and number; at most so many."""
    if Path(path).name.endswith((".sdf", ".sdf.gz")):
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as stream:
            everything = [Chem.MolToSmiles(mol) for mol in Chem.ForwardSDMolSupplier(stream) if mol is not None]
    else:
        everything = read_smiles(path)
    if seed is not None:
        left_out = set(random.Random(int(seed)).sample(everything, int(mined)))
        everything = [text for text in everything if text not in left_out]
    found = random.Random(1).sample(everything, min(number, len(everything)))
    readable = [text for text in found if (mol := Chem.MolFromSmiles(text)) is not None and mol.GetNumAtoms()]
    if len(readable) < len(found):
        print(f"{Path(path).name}: RDKit cannot read {len(found) - len(readable)} of {len(found)}.", file=sys.stderr)
    return readable


if __name__ == "__main__":
    sys.exit(main())
