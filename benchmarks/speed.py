# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Speed and memory of `AtomicaForPreTraining` on named systems, beside the same network written from e3nn's building blocks.

    python benchmarks/speed.py --data DIR [--systems dimers mixed] [--device cuda] [--json speed.json]
    python benchmarks/speed.py --data DIR --scaling --plot scaling.svg

DIR holds `dimers/`, `smiles/` and `complexes/`; systems whose data is absent are skipped. Batches are puzzles of
`pretrain_torsion_masking` with a fixed seed; the large complexes, tiled from a real one, are encoded as they are. Both
implementations have the same weights, run in turns in one process, and their outputs and gradients are compared first. Memory
is the peak above what was there before the call, in a process of its own.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from atomica_hf import (  # noqa: E402
    ROOT,
    AtomicaConfig,
    AtomicaForPreTraining,
    AtomicaPreTrainingCollator,
    AtomicaProcessor,
    StructureError,
)
from atomica_hf.processing_atomica import MODEL_INPUTS, pad_examples  # noqa: E402
from atomica_hf.structure_atomica import list_inputs  # noqa: E402


FOLDERS = ("mixed", "protein_dna", "protein_protein")
BLOCKS_PER_BATCH, BLOCKS_PER_COMPLEX = 1000, 256  # as in the published pretraining
LARGE = {"atoms_10000": 10_000, "atoms_50000": 50_000}
SYSTEMS = ("dimers", "examples", "molecules", *FOLDERS, *LARGE)
SIZES = (100, 300, 1000, 3000, 10_000, 30_000, 50_000)
MODES = ("forward", "train")
WARM_UP = ("CCCCO", "CCCC")  # a small pair, so that what happens once in a process is not measured
TOLERANCE = {"float32": 1e-2, "float64": 1e-8}  # rounding in single precision grows from layer to layer in both alike
# of a symmetric molecule these vanish before the layer norm, which then scales rounding up: not comparable in single precision
VANISHING = ("translation_prediction", "rotation_prediction")


# Systems ------------------------------------------------------------------------------------------------------------------


def encode(work, processor, number=None):
    """Examples of the inputs that `list_inputs` found, up to `number`; what cannot be read is left out."""
    examples = []
    for _, function, given in work:
        if number is not None and len(examples) >= number:
            break
        with contextlib.suppress(StructureError):
            found = function(*given)
            examples += [processor.encode(structure) for structure in (found if isinstance(found, list) else [found])]
    return examples[:number]


def fill_batch(work, processor):
    """Examples of about as many blocks as a batch of the published pretraining has."""
    examples, blocks = [], 0
    for item in work:
        for example in encode([item], processor):
            size = min(len(example["input_ids"]), BLOCKS_PER_COMPLEX)
            if blocks + size <= BLOCKS_PER_BATCH:
                examples.append(example)
                blocks += size
    return examples


def tile(example, num_atoms):
    """About `num_atoms` atoms from copies of a complex beside each other in space, with one global atom per segment as before;
    a size below that of the complex takes the blocks nearest to its interface."""
    owner, segments = np.asarray(example["atom_to_block"]), np.asarray(example["token_type_ids"])
    positions = np.asarray(example["positions"], dtype=np.float64)
    starts, ends = (np.searchsorted(owner, np.arange(len(segments)), side) for side in ("left", "right"))
    is_global = np.r_[True, segments[1:] != segments[:-1]]
    centres = np.stack([positions[a:b].mean(0) for a, b in zip(starts, ends)])
    ordinary, num_segments = np.flatnonzero(~is_global), segments.max() + 1
    apart = np.linalg.norm(centres[ordinary, None] - centres[ordinary], axis=-1)
    apart[segments[ordinary, None] == segments[ordinary]] = np.inf
    order = ordinary[np.argsort(apart.min(1), kind="stable")]

    copies = math.ceil(num_atoms / (ends - starts)[ordinary].sum())
    side = math.ceil(copies ** (1 / 3))
    shifts = np.array([(c % side, c // side % side, c // side**2) for c in range(copies)]) * (np.ptp(positions, axis=0) + 3)
    chosen = [(segments[block], copy, block) for copy in range(copies) for block in order]
    size = np.cumsum([ends[block] - starts[block] for _, _, block in chosen]) + num_segments
    chosen = sorted(chosen[: np.searchsorted(size, num_atoms, "right")])

    blocks, kinds, parts, atoms, places, where = [], [], [], [], [], {}
    for segment in range(num_segments):
        mine = [(copy, block) for s, copy, block in chosen if s == segment]
        inside = [positions[starts[b] : ends[b]] + shifts[copy] for copy, b in mine]
        first = int(np.flatnonzero(segments == segment)[0])
        for copy, block in [(None, first), *mine]:
            if copy is not None:
                where.update({(copy, atom): len(atoms) + i for i, atom in enumerate(range(starts[block], ends[block]))})
            parts += [len(blocks)] * (ends[block] - starts[block])
            atoms += list(np.asarray(example["atom_ids"])[starts[block] : ends[block]])
            blocks.append(example["input_ids"][block])
            kinds.append(segment)
        places += [np.concatenate(inside).mean(0, keepdims=True), *inside]
    bonds, turning = [], []
    for copy in range(copies):
        for bond, moved in zip(example["torsion_bonds"], example["torsion_atoms"]):
            if all((copy, atom) in where for atom in (*bond, *moved)):
                bonds.append([where[copy, atom] for atom in bond])
                turning.append([where[copy, atom] for atom in moved])
    arrays = {"input_ids": blocks, "token_type_ids": kinds, "attention_mask": np.ones(len(blocks)), "atom_ids": atoms,
              "atom_to_block": parts}  # fmt: skip
    return {
        "name": f"{example['name']}, {copies} copies",
        **{name: np.asarray(value, dtype=np.int64) for name, value in arrays.items()},
        "positions": np.concatenate(places).astype(np.float32),
        "torsion_bonds": bonds,
        "torsion_atoms": turning,
        "segment_is_polymer": example["segment_is_polymer"],
    }


def source_of_tiles(data, processor):
    """The complex that is tiled: the first pair of proteins, or of the examples."""
    for place in ("complexes/protein_protein", "complexes/atomica_examples/example_inputs.csv"):
        if (data / place).exists():
            pairs = [e for e in encode(list_inputs(data / place, processor.read_options)[:3], processor)
                     if e["token_type_ids"].max() > 0]  # fmt: skip
            return pairs[0]
    raise FileNotFoundError(data / "complexes")


def examples_of(system, data, processor):
    """Examples of a named system.

    Raises:
        `FileNotFoundError`: if its data is absent.
    """
    if system in LARGE:
        return [tile(source_of_tiles(data, processor), LARGE[system])]
    place = {
        "dimers": "dimers/dimers.sdf.gz",
        "examples": "complexes/atomica_examples/example_inputs.csv",
        "molecules": "smiles",
    }.get(system, f"complexes/{system}")
    if not (data / place).exists():
        raise FileNotFoundError(data / place)
    if system == "molecules":
        work = [item for file in sorted((data / place).iterdir()) for item in list_inputs(file)]
        return encode(random.Random(0).sample(work, min(80, len(work))), processor, 64)
    work = list_inputs(data / place, processor.read_options)
    if system == "dimers":
        return encode(work[:: max(1, len(work) // 16)], processor, 16)
    return encode(work, processor) if system == "examples" else fill_batch(work, processor)


def available(systems, data, processor):
    """(name, examples) of the systems whose data is there; the others are said."""
    for name in systems:
        try:
            yield name, examples_of(name, data, processor)
        except FileNotFoundError as error:
            print(f"{name}: skipped, there is no {error}", flush=True)


def as_batch(examples, puzzle, max_blocks=BLOCKS_PER_COMPLEX):
    if not puzzle:
        return pad_examples(examples, MODEL_INPUTS)
    numbered = [{**example, "example_index": i, "epoch": 0} for i, example in enumerate(examples)]
    return AtomicaPreTrainingCollator(task="pretrain_torsion_masking", max_blocks=max_blocks, seed=0)(numbered)


def store(folder, name, batch, note=""):
    """Writes a batch for the workers; what the table says about it."""
    torch.save(batch, folder / f"{name}.pt")
    size = {"complexes": len(batch["input_ids"]), "blocks": int(batch["attention_mask"].sum()),
            "atoms": int((batch["atom_to_block"] >= 0).sum())}  # fmt: skip
    return {"system": name, "file": str(folder / f"{name}.pt"), "note": note, **size}


# Workers ------------------------------------------------------------------------------------------------------------------


def make_models(job, names=None):
    torch.manual_seed(0)
    ours = AtomicaForPreTraining(AtomicaConfig(**job["config"])).to(job["device"], getattr(torch, job["dtype"]))
    models = {}
    for name in names or job["implementations"]:
        models[name] = ours
        if name == "e3nn":
            import e3nn

            if job["e3nn_mode"] != "default":
                e3nn.set_optimization_defaults(jit_mode=job["e3nn_mode"])
            from e3nn_baseline import E3nnForPreTraining

            models[name] = E3nnForPreTraining.from_atomica(ours)
    return models


def load_batch(job, file):
    batch, dtype = torch.load(file), getattr(torch, job["dtype"])
    return {n: v.to(job["device"], dtype if v.is_floating_point() else None) for n, v in batch.items()}


def make_step(model, mode):
    """What is measured, as a function of a batch."""
    if mode == "forward":
        model.eval()
        return torch.no_grad()(lambda batch: model(**batch))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(batch):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return step


def clock(job):
    return time.process_time() if job["clock"] == "cpu" else time.perf_counter()


def synchronize(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def status(name):
    """A line of this process's status on Linux, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024


def limit_memory(job):
    """More memory than this is refused, so that a baseline that does not fit fails early."""
    if not job.get("limit_gib"):
        return
    limit = int(job["limit_gib"] * 2**30)
    if job["device"].startswith("cuda"):
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
    else:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + limit, -1))


def work_memory(job):
    """Peak of one call, above what was there before it."""
    (model,) = make_models(job).values()
    step = make_step(model, job["mode"])
    step(load_batch(job, job["warm_up"]))
    batch = load_batch(job, job["file"])
    gc.collect()
    limit_memory(job)
    if job["device"].startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    else:
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # freed memory that the allocator kept would hide what the call takes
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, peak = status("VmRSS"), lambda: status("VmHWM")
    start = time.perf_counter()
    step(batch)
    synchronize(job["device"])
    return {"bytes": peak() - before, "seconds": time.perf_counter() - start}


def difference(models, batch, mode):
    """Largest difference of outputs, relative to the largest entry, and of gradients, relative to the largest gradient."""
    from e3nn_baseline import rename

    outputs = {}
    for name, model in models.items():
        with torch.set_grad_enabled(mode == "train"):
            output = model(**batch)
        if mode == "train":
            output.loss.backward()
        outputs[name] = {n: value.detach() for n, value in output.items()}
        del output
    ours, theirs = outputs["ours"], outputs["e3nn"]
    names = [n for n, v in theirs.items() if v.numel() and (v.dtype == torch.float64 or n not in VANISHING)]
    found = max(((ours[n] - theirs[n]).abs().max() / theirs[n].abs().max().clamp_min(1)).item() for n in names)
    if mode == "train":
        mine = rename(models["ours"], {n: p.grad for n, p in models["ours"].named_parameters()})
        largest = max(gradient.abs().max().item() for gradient in mine.values())
        for name, parameter in models["e3nn"].named_parameters():
            found = max(found, (mine[name] - parameter.grad).abs().max().item() / largest)
        for model in models.values():
            model.zero_grad()
    return found


def work_check(job):
    return {"difference": difference(make_models(job), load_batch(job, job["file"]), "train")}


def work_time(job):
    """Times of the implementations in turns, the difference between them, and the counted operations of our forward pass."""
    from torch.utils.flop_counter import FlopCounterMode, flop_registry

    counted = lambda *given, **named: flop_registry[torch.ops.aten.addmm](*given, **named)
    counted._get_raw = True  # it looks at the shapes itself
    in_place = {torch.ops.aten.addmm_: counted}  # which torch does not count

    models, batch, found = make_models(job), load_batch(job, job["file"]), {}
    limit_memory(job)
    if len(models) == 2:
        found["difference"] = difference(models, batch, job["mode"])
    steps = {name: make_step(model, job["mode"]) for name, model in models.items()}
    small = load_batch(job, job["warm_up"])
    for step in steps.values():
        for _ in range(3):  # e3nn's scripts are compiled in the first calls
            step(small)
    if job["mode"] == "forward":
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            steps["ours"](batch)
        found["flop"] = counter.get_total_flops()
    for step in steps.values():
        for _ in range(job["warm_ups"]):
            step(batch)
    synchronize(job["device"])
    times, start = {name: [] for name in steps}, time.perf_counter()
    for _ in range(job["repeats"]):
        for name, step in steps.items():
            begin = clock(job)
            step(batch)
            synchronize(job["device"])
            times[name].append(clock(job) - begin)
        if time.perf_counter() - start > job["seconds"]:
            break
    return {"times": times, **found}


def work_matmul(job):
    """Operations a second of a large matrix product."""
    a, b = (torch.randn(2048, 2048, device=job["device"], dtype=getattr(torch, job["dtype"])) for _ in range(2))
    times = []
    for _ in range(2 + job["repeats"]):
        start = clock(job)
        torch.mm(a, b)
        synchronize(job["device"])
        times.append(clock(job) - start)
    return {"flop_per_second": 2 * 2048**3 / statistics.median(times[2:])}


def is_out_of_memory(error):
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(part in text for part in ("out of memory", "allocate memory", "bad_alloc"))


def worker(job):
    """Runs one job of the parent process; the last line of the output is its result."""
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    try:
        result = globals()[f"work_{job['task']}"](job)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        result = {"failed": "out of memory"}
    print(json.dumps(result), flush=True)


def run_worker(job):
    """A job in a process of its own -> its result, or {"failed": why}."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    if job["threads"]:
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(job["threads"])
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=job["timeout"])
    except subprocess.TimeoutExpired:
        return {"failed": f"over {job['timeout']} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode == -9 or is_out_of_memory(done.stderr[-2000:]):
        return {"failed": "out of memory"}
    reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    return {"failed": f"failed: {reason[0][:200]}"}


# Tables -------------------------------------------------------------------------------------------------------------------


def measure(job, system, mode, arguments):
    """Memory and times of one system in one mode; the baseline only where it fits."""
    job = {**job, "file": system["file"], "mode": mode}
    row = {**system, "mode": mode, "memory": {}}
    names = ["ours"] if arguments.no_baseline else ["ours", "e3nn"]
    for name in names:
        limit = arguments.baseline_limit_gib if name == "e3nn" else None
        row["memory"][name] = run_worker({**job, "task": "memory", "implementations": [name], "limit_gib": limit})
    fit = [name for name in names if "failed" not in row["memory"][name]]
    row["time"] = {"failed": "ours did not run"}
    if "ours" in fit:
        quick = max(row["memory"][name]["seconds"] for name in fit) < arguments.seconds / 10
        job["warm_ups"] = 2 if quick else 0
        limit = arguments.baseline_limit_gib + row["memory"]["ours"]["bytes"] / 2**30 if "e3nn" in fit else None
        row["time"] = run_worker({**job, "task": "time", "implementations": fit, "limit_gib": limit})
        if "e3nn" in fit and "failed" in row["time"]:  # together they may need more than each alone
            row["memory"]["e3nn"] = {**row["memory"]["e3nn"], "failed": row["time"]["failed"]}
            row["time"] = run_worker({**job, "task": "time", "implementations": ["ours"]})
    row["median"] = {name: statistics.median(times) for name, times in row["time"].get("times", {}).items()}
    if row["time"].get("difference", 0.0) > TOLERANCE[job["dtype"]]:
        row["differs"] = row["time"]["difference"]
    return row


def number(value):
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table_row(row, peak):
    seconds, memory = row["median"], row["memory"]
    ours, theirs = seconds.get("ours"), seconds.get("e3nn")
    outcome = memory.get("e3nn", {}).get("failed", "")
    mebibytes = lambda name: number(memory[name]["bytes"] / 2**20) if "bytes" in memory.get(name, {}) else ""
    cells = [row["system"], row["complexes"], row["blocks"], row["atoms"], row["mode"]]
    if ours is None:
        return [*cells, memory["ours"].get("failed") or row["time"]["failed"], *[""] * 9]
    cells += [number(1e3 * ours), number(1e3 * theirs) if theirs else outcome, f"{theirs / ours:.2f}" if theirs else ""]
    cells += [mebibytes("ours"), mebibytes("e3nn")]
    both = "bytes" in memory.get("e3nn", {})
    cells += [f"{memory['e3nn']['bytes'] / max(1, memory['ours']['bytes']):.2f}" if both else ""]
    cells += [number(row["complexes"] / ours), number(row["atoms"] / ours)]
    if "flop" in row["time"]:
        rate = row["time"]["flop"] / ours
        return [*cells, number(rate / 1e9), f"{100 * rate / peak:.0f} %"]
    return [*cells, "", ""]


HEADER = (
    "system", "complexes", "blocks", "atoms", "mode", "ours, ms", "e3nn, ms", "times faster", "ours, MiB", "e3nn, MiB",
    "times less", "complexes/s", "atoms/s", "GFLOP/s", "of a matrix product",
)  # fmt: skip


def print_row(cells):
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def speed(arguments, job, processor, folder):
    systems, first = [], []
    for name, examples in available(arguments.systems, Path(arguments.data), processor):
        first += examples[:2]
        note = f"tiled: {examples[0]['name']}" if name in LARGE else ""
        systems.append(store(folder, name, as_batch(examples, puzzle=name not in LARGE), note))
        if note:
            print(f"{name}: {note}", flush=True)
    if systems and not arguments.no_baseline:
        file = store(folder, "check", as_batch(first[:4], puzzle=True, max_blocks=12))["file"]
        checked = {**job, "task": "check", "file": file, "dtype": "float64", "device": "cpu"}
        found = run_worker({**checked, "implementations": ["ours", "e3nn"]})
        if not found.get("difference", math.inf) < TOLERANCE["float64"]:
            sys.exit(f"speed.py: error: the baseline is not the same network: {found}")
        print(f"The baseline gives the same outputs and gradients: {found['difference']:.0e} in double precision.")
    peak = run_worker({**job, "task": "matmul"})["flop_per_second"]
    print(f"A matrix product of 2048 x 2048: {peak / 1e9:.0f} GFLOP/s.\n")
    print_row(HEADER)
    print_row(["---"] * len(HEADER))
    rows = []
    for system in systems:
        for mode in arguments.modes:
            if mode == "train" and system["system"] in LARGE:
                continue
            rows.append(measure(job, system, mode, arguments))
            print_row(table_row(rows[-1], peak))
    print("\nGFLOP/s are those of our forward pass: matrix products and attention only. What is done element by element, and")
    print("gathering, sorting and summing by index, is not counted.")
    differences = [row["time"]["difference"] for row in rows if "difference" in row["time"]]
    if differences:
        print(f"Largest difference of outputs and gradients in {arguments.dtype}: {max(differences):.0e}")
    return {"matrix_product_flop_per_second": peak, "rows": rows}


def relative_slopes(sizes, values):
    """Rise per atom from each size to the next, over the median of all."""
    slopes = [(b - a) / (n - m) for a, b, m, n in zip(values, values[1:], sizes, sizes[1:])]
    middle = statistics.median(slopes)
    return [slope / middle if middle > 0 else math.nan for slope in slopes]


def scaling(arguments, job, processor, folder):
    source = source_of_tiles(Path(arguments.data), processor)
    print(f"Tiled: {source['name']}; the smallest are cut around its interface. Slope: rise per atom since the size before,")
    print("over the median of these.\n")
    header = ["mode", "implementation", "atoms", "ms", "microseconds per atom", "slope", "MiB", "kB per atom", "slope"]
    print_row(header)
    print_row(["---"] * len(header))
    rows = []
    for mode in arguments.modes:
        for size in arguments.sizes:
            batch = as_batch([tile(source, size)], puzzle=mode == "train", max_blocks=10**9)
            rows.append(measure(job, store(folder, f"{mode}_{size}", batch), mode, arguments))
    curves = []
    for mode in arguments.modes:
        for name in ("ours",) if arguments.no_baseline else ("ours", "e3nn"):
            done = [row for row in rows if row["mode"] == mode and name in row["median"]]
            if not done:
                continue
            atoms = [row["atoms"] for row in done]
            seconds, memory = [row["median"][name] for row in done], [row["memory"][name]["bytes"] for row in done]
            slopes = [[math.nan, *relative_slopes(atoms, values)] for values in (seconds, memory)]
            for n, t, m, of_time, of_memory in zip(atoms, seconds, memory, *slopes):
                cells = [mode, name, n, number(1e3 * t), number(1e6 * t / n), "" if math.isnan(of_time) else f"{of_time:.2f}"]
                print_row(
                    [*cells, number(m / 2**20), number(m / n / 1000), "" if math.isnan(of_memory) else f"{of_memory:.2f}"]
                )
            curves.append({"mode": mode, "implementation": name, "atoms": atoms, "seconds": seconds, "bytes": memory,
                           "slope_of_time": slopes[0], "slope_of_memory": slopes[1]})  # fmt: skip
    for row in rows:
        for name, found in row["memory"].items():
            if "failed" in found:
                print(f"{name}, {row['mode']}, {row['atoms']} atoms: {found['failed']}")
    if arguments.plot:
        plot(curves, arguments.plot)
    return {"curves": curves, "rows": rows}


def plot(curves, path):
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("drawing the plot needs the package matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axis, values, scale, label in ((axes[0], "seconds", 1.0, "seconds"), (axes[1], "bytes", 2.0**-20, "peak memory, MiB")):
        for curve in curves:
            style = {"color": "C0" if curve["mode"] == "forward" else "C1", "marker": "o"}
            style["linestyle"] = "-" if curve["implementation"] == "ours" else ":"
            name = f"{curve['mode']}, {curve['implementation']}"
            axis.loglog(curve["atoms"], [scale * value for value in curve[values]], label=name, **style)
        axis.set_xlabel("atoms")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--data", help="Folder with dimers/, smiles/ and complexes/.")
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, choices=SYSTEMS, help="Rows of the table.")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES, help="Forward pass, training step.")
    parser.add_argument("--scaling", action="store_true", help="From 100 to 50,000 atoms, instead of the systems.")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="Atoms of --scaling.")
    parser.add_argument("--plot", help="Image of --scaling, .svg or .png.")
    parser.add_argument("--processor", default=str(ROOT), help="Folder or hub id with processor and tokenizer.")
    parser.add_argument("--config", help="Folder or hub id of another config; the published size by default.")
    for name in ("hidden_size", "edge_size", "num_hidden_layers", "num_neighbors"):
        parser.add_argument(f"--{name}", type=int, help="Of the config.")
    parser.add_argument("--dtype", default="float32", choices=tuple(TOLERANCE), help="Of weights and positions.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda.")
    parser.add_argument("--threads", type=int, default=0, help="Threads of the processor; 0 leaves it to torch.")
    parser.add_argument("--repeats", type=int, default=5, help="The median of so many turns counts.")
    parser.add_argument("--seconds", type=float, default=60, help="No new turn of a system after so long.")
    parser.add_argument(
        "--clock", default="wall", choices=("wall", "cpu"), help="cpu: processor time, for one thread of a busy machine."
    )
    parser.add_argument("--timeout", type=float, default=1800, help="Seconds until a measurement is given up.")
    parser.add_argument("--no_baseline", action="store_true", help="Without e3nn.")
    parser.add_argument("--baseline_limit_gib", type=float, default=12, help="The baseline is refused more memory than this.")
    parser.add_argument(
        "--e3nn_mode", default="default", choices=("default", "eager", "script"), help="How e3nn compiles its products."
    )
    parser.add_argument("--json", help="File for all numbers.")
    arguments = parser.parse_args()
    if arguments.worker is None and arguments.data is None:
        parser.error("--data is needed: the folder with dimers/, smiles/ and complexes/")
    return arguments


def main():
    arguments = parse_arguments()
    if arguments.worker is not None:
        worker(json.loads(arguments.worker))
        return
    processor = AtomicaProcessor.from_pretrained(arguments.processor)
    config = {} if arguments.config is None else AtomicaConfig.from_pretrained(arguments.config).to_diff_dict()
    for name in ("hidden_size", "edge_size", "num_hidden_layers", "num_neighbors"):
        if getattr(arguments, name) is not None:
            config[name] = getattr(arguments, name)
    if arguments.hidden_size is not None:
        config["atom_hidden_size"] = arguments.hidden_size
    config["vocab_size"] = max(AtomicaConfig(**config).vocab_size, len(processor.tokenizer))
    shared = ("dtype", "device", "threads", "repeats", "seconds", "timeout", "e3nn_mode", "clock")
    job = {"config": config, **{name: getattr(arguments, name) for name in shared}}
    threads = arguments.threads or torch.get_num_threads()
    print(f"torch {torch.__version__}, {arguments.device}, {arguments.dtype}, threads: {threads}, {arguments.clock} time")
    with tempfile.TemporaryDirectory() as folder:
        small = processor.encode(processor.read(WARM_UP)[0])
        job["warm_up"] = store(Path(folder), "warm_up", as_batch([small], puzzle=True))["file"]
        found = (scaling if arguments.scaling else speed)(arguments, job, processor, Path(folder))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"config": config, "torch": torch.__version__, **found}, indent=1) + "\n")
    differing = [f"{row['system']} {row['mode']}: {row['differs']:.0e}" for row in found["rows"] if "differs" in row]
    if differing:
        sys.exit(f"speed.py: error: the baseline differs in {', '.join(differing)}")


if __name__ == "__main__":
    main()
