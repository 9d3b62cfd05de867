# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""The convolution on a CUDA device: `torch` and `triton` checked against double precision and timed, beside e3nn.

    python benchmarks/convolution_gpu.py --output DIR

In this order: what the device can do (copy, matrix products); errors of both implementations and of their gradients; tile sizes
of the kernels, of which the fastest are used from then on; time, memory and share of the ceilings for the layers of the
published size; a pass in which waiting for the device is an error; a CUDA graph. Writes `convolution_gpu.json` and
`convolution_gpu.md`. What does not fit in `--seconds` is left out and named. Without a device it ends with status 2.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from atomica_hf import convolution_triton_atomica as kernels  # noqa: E402
from atomica_hf.geometry_atomica import HARMONICS, EdgeFeatures, TensorProductConvolution, irreps_size, mean_weight  # noqa: E402
from atomica_hf.modeling_atomica import encoder_irreps  # noqa: E402


IMPLEMENTATIONS = ("torch", "triton")
PRECISIONS = ("highest", "high", "medium")  # of torch.set_float32_matmul_precision
CANDIDATES = {  # tiles to try: receivers, channels, hidden units, warps
    1: ((16, 16, 16, 4), (32, 8, 16, 8), (16, 8, 32, 4), (32, 16, 16, 8)),
    4: ((8, 4, 32, 4), (16, 4, 16, 4), (16, 4, 32, 8), (8, 8, 32, 8)),
    8: ((8, 4, 16, 4), (8, 4, 32, 8), (4, 4, 32, 4), (8, 2, 32, 4)),
}


class Bench:
    """Sizes, clock and deadline of one run."""

    def __init__(self, rehearse, seconds):
        self.rehearse = rehearse
        self.device = torch.device("cpu" if rehearse else "cuda")
        self.hidden, self.edge = (4, 4) if rehearse else (32, 32)
        self.systems = {"few": (5, 3)} if rehearse else {"nodes": (8192, 16), "globals": (64, 300)}  # receivers, neighbours
        self.depths = (1,) if rehearse else (0, 1, 2, 3)
        self.repeats = 1 if rehearse else 20
        self.start, self.seconds, self.left_out = time.perf_counter(), seconds, []

    def time_for(self, name):
        if time.perf_counter() - self.start < self.seconds:
            return True
        self.left_out.append(name)
        return False

    def synchronize(self):
        if not self.rehearse:
            torch.cuda.synchronize()

    def milliseconds(self, function):
        """Median of several calls, after one that compiles and one that warms up."""
        for _ in range(1 if self.rehearse else 2):
            function()
        self.synchronize()
        times = []
        for _ in range(self.repeats):
            if self.rehearse:
                start = time.perf_counter()
                function()
                times.append(1e3 * (time.perf_counter() - start))
                continue
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        return statistics.median(times)

    def peak(self, function):
        """Mebibytes above what was there before; the first call may compile and does not count."""
        if self.rehearse:
            return 0.0
        function()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def ceilings(bench):
    """Bytes per second of a copy; operations per second of matrix products."""
    size = 2**10 if bench.rehearse else 2**28
    source = torch.zeros(size, device=bench.device)
    target = torch.empty_like(source)
    found = {"copy_bytes": 8 * size / bench.milliseconds(lambda: target.copy_(source)) * 1e3}
    width = 64 if bench.rehearse else 8192
    for name, dtype, precision in (("float32", torch.float32, "highest"), ("tf32", torch.float32, "high"),
                                   ("bfloat16", torch.bfloat16, "highest")):  # fmt: skip
        torch.set_float32_matmul_precision(precision)
        a = torch.randn(width, width, device=bench.device).to(dtype)
        found[name] = 2 * width**3 / bench.milliseconds(lambda a=a: a @ a) * 1e3
    torch.set_float32_matmul_precision("highest")
    return found


def make(bench, depth, receivers, neighbors, dtype=torch.float32):
    """Convolutions of one encoder layer with the same weights, and inputs."""
    torch.manual_seed(0)
    irreps_in, irreps_out = encoder_irreps(depth, bench.hidden), encoder_irreps(depth + 1, bench.hidden)
    sizes = (bench.edge, bench.edge, bench.hidden, bench.hidden)
    convolutions = {}
    for name in IMPLEMENTATIONS:
        convolutions[name] = TensorProductConvolution(irreps_in, HARMONICS, irreps_out, *sizes, implementation=name)
        convolutions[name].load_state_dict(convolutions["torch"].state_dict())
        convolutions[name].to(bench.device, dtype)
    nodes = receivers + 3
    mask = torch.rand(receivers, neighbors) < 0.9
    tensors = {
        "x": torch.randn(nodes, irreps_size(irreps_in)),
        "harmonics": torch.randn(receivers, neighbors, 9),
        "radial": torch.rand(receivers, neighbors, bench.edge),
        "types": torch.randn(4, bench.edge),
    }
    tensors = {name: value.to(bench.device, dtype).requires_grad_(name != "harmonics") for name, value in tensors.items()}
    senders = torch.randint(nodes, mask.shape).to(bench.device)
    kinds = torch.randint(4, mask.shape).to(bench.device)
    weight = mean_weight(mask, dtype).to(bench.device)
    return convolutions, (tensors, senders, kinds, weight)


def forward(convolution, given):
    tensors, senders, kinds, weight = given
    scalars = tensors["x"][:, : convolution.sizes[3]]
    edges = EdgeFeatures(senders, kinds, tensors["harmonics"], tensors["radial"], weight)
    return convolution(tensors["x"], edges, tensors["types"], scalars[: len(senders)], scalars)


def step(convolution, given):
    leaves = [value for value in given[0].values() if value.requires_grad]
    out = forward(convolution, given)
    return [out, *torch.autograd.grad(out.sum(), [*leaves, *convolution.parameters()])]


def errors(bench):
    """Largest error of the result and of its gradients against double precision, each over its largest entry."""
    found = {}
    for depth, (receivers, neighbors) in itertools.product(bench.depths, bench.systems.values()):
        size = (min(receivers, 500), neighbors)
        convolutions, given = make(bench, depth, *size, torch.float64)
        reference = step(convolutions["torch"], given)
        convolutions, given = make(bench, depth, *size)
        runs = [(name, precision, False) for name in IMPLEMENTATIONS for precision in PRECISIONS]
        for name, precision, half in [*runs, ("triton", "highest", True)]:
            torch.set_float32_matmul_precision(precision)
            with torch.autocast(bench.device.type, dtype=torch.bfloat16, enabled=half):
                result = step(convolutions[name], given)
            worst = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(result, reference)]
            key = f"{name}, {'bfloat16 autocast' if half else precision}"
            one = found.setdefault(key, {"result": 0.0, "gradients": 0.0})
            one["result"], one["gradients"] = max(one["result"], worst[0]), max(one["gradients"], *worst[1:])
    torch.set_float32_matmul_precision("highest")
    return found


def tiles(bench):
    """Milliseconds of a forward pass and of a step with each tile; sets the fastest by the sum of both."""
    found = []
    receivers, neighbors = next(iter(bench.systems.values()))
    hidden, width = bench.hidden, 2 * bench.edge + 2 * bench.hidden
    for power, components in ((1, 1), (4, 3), (8, 5)):
        channels, outputs = (2 * hidden, hidden) if components == 1 else (7 * hidden // 2, hidden // 2)
        y = torch.randn(receivers, neighbors, components * channels, device=bench.device)
        h = torch.randn(receivers, neighbors, width, device=bench.device)
        weight = torch.randn(channels, width, outputs, device=bench.device)
        gradient = torch.randn(receivers * components, outputs, device=bench.device)
        shift = torch.zeros(receivers, components * channels, device=bench.device)
        kept, best = kernels.TILES[power], None
        gh, gw = torch.zeros_like(h), torch.zeros_like(weight)
        for tile in dict.fromkeys((kept, *(() if bench.rehearse else CANDIDATES[power]))):
            if not bench.time_for(f"tile {tile} for {components} components"):
                continue
            kernels.TILES[power] = tile
            row = {"components": components, "tile": tile}
            try:
                row["forward"] = bench.milliseconds(partial(kernels.contract, y, h, weight, components, "float32"))
                arguments = (gradient, y, h, weight, shift, gh, gw, components, "float32")
                row["backward"] = bench.milliseconds(partial(kernels.contract_backward, *arguments))
            except Exception as error:  # more shared memory or registers than the device has
                row["failed"] = f"{type(error).__name__}: {error}"
            found.append(row)
            if "backward" in row and (best is None or row["forward"] + row["backward"] < best[0]):
                best = row["forward"] + row["backward"], tile
        kernels.TILES[power] = best[1] if best else kept
    return found


def work(convolution, receivers, neighbors):
    """Operations of a forward pass in our form (both products), and bytes that the kernels must move."""
    width = sum(convolution.sizes)
    operations, moved = 0, receivers * neighbors * width * 4
    for irrep, weight in zip(convolution.irreps_out, convolution.output_weights):
        columns = irrep.components * len(weight)
        operations += 2 * receivers * columns * width * (neighbors + irrep.multiplicity)
        moved += 4 * (receivers * neighbors * columns + weight.numel() + receivers * irrep.size)
    return operations, moved


def e3nn_convolution(bench, depth, given):
    """The same layer with a weight per edge, as functions for a forward pass and a step; None without e3nn."""
    try:
        from e3nn_baseline import E3nnConvolution, to_o3
    except ImportError:
        return None
    irreps = [to_o3(part) for part in (encoder_irreps(depth, bench.hidden), HARMONICS, encoder_irreps(depth + 1, bench.hidden))]
    convolution = E3nnConvolution(*irreps, 2 * bench.edge + 2 * bench.hidden).to(bench.device)
    tensors, senders, kinds, weight = given
    receivers, slots = weight.nonzero(as_tuple=True)
    sources = senders[receivers, slots]

    def run():
        scalars = tensors["x"][:, : bench.hidden]
        features = [tensors["radial"][receivers, slots], tensors["types"][kinds[receivers, slots]], scalars[receivers],
                    scalars[sources]]  # fmt: skip
        harmonics = tensors["harmonics"][receivers, slots]
        return convolution(tensors["x"], sources, receivers, harmonics, features, len(senders))

    leaves = [value for value in tensors.values() if value.requires_grad]
    return run, lambda: torch.autograd.grad(run().sum(), [*leaves, *convolution.parameters()])


def speeds(bench, ceiling):
    rows = []
    for depth, (system, (receivers, neighbors)) in itertools.product(bench.depths, bench.systems.items()):
        convolutions, given = make(bench, depth, receivers, neighbors)
        operations, moved = work(convolutions["torch"], receivers, neighbors)
        runs = []
        for name in IMPLEMENTATIONS:
            for precision in PRECISIONS[:2]:
                runs.append((f"{name}, {precision}", precision, False, convolutions[name]))
        runs.append(("triton, bfloat16 autocast", "highest", True, convolutions["triton"]))
        functions = [(*run, partial(forward, c, given), partial(step, c, given)) for *run, c in runs]
        theirs = e3nn_convolution(bench, depth, given)
        functions += [("e3nn", "highest", False, *theirs)] if theirs else []
        for name, precision, half, run, train in functions:
            if not bench.time_for(f"{name}, {system}, layer {depth + 1}"):
                continue
            torch.set_float32_matmul_precision(precision)
            row = {"system": system, "layer": depth + 1, "receivers": receivers, "neighbors": neighbors, "run": name}
            try:
                with torch.autocast(bench.device.type, dtype=torch.bfloat16, enabled=half):
                    with torch.no_grad():
                        row["forward_ms"] = bench.milliseconds(run)
                    row["step_ms"], row["step_mib"] = bench.milliseconds(train), bench.peak(train)
            except torch.OutOfMemoryError:
                row["failed"] = "out of memory"
            else:
                if name != "e3nn":
                    rate = ceiling["bfloat16" if half else "tf32" if precision == "high" else "float32"]
                    row["of_matrix_product"] = operations / row["forward_ms"] * 1e3 / rate
                    row["of_copy"] = moved / row["forward_ms"] * 1e3 / ceiling["copy_bytes"]
            rows.append(row)
    torch.set_float32_matmul_precision("highest")
    return rows


def without_waiting(bench):
    """A step in which waiting for the device is an error; then the same step as a CUDA graph, replayed on new numbers."""
    found = {}
    for name in IMPLEMENTATIONS:
        convolutions, given = make(bench, bench.depths[-1], *next(iter(bench.systems.values())))
        run = partial(step, convolutions[name], given)
        run()
        if bench.rehearse:
            found[name] = {"waits": "not asked", "graph_error": 0.0}
            continue
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
            waits = "never"
        except RuntimeError as error:
            waits = str(error)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                run()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = run()
            with torch.no_grad():
                given[0]["x"].copy_(torch.randn_like(given[0]["x"]))
            graph.replay()
            torch.cuda.synchronize()
            expected = run()
            error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(captured, expected))
        except RuntimeError as problem:
            error = f"{type(problem).__name__}: {problem}"
        found[name] = {"waits": waits, "graph_error": error}
    return found


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def markdown(report):
    number = lambda value: f"{value:.3g}" if isinstance(value, float) else str(value)
    parts = [f"# Convolution on {report['device']}\n", f"torch {report['torch']}, triton {report['triton']}.\n"]
    if report["rehearsal"]:
        parts.append("A rehearsal in Triton's interpreter: the times mean nothing.\n")
    parts.append(table(("ceiling", "per second"), [(name, f"{value:.3g}") for name, value in report["ceilings"].items()]))
    parts.append("Errors against double precision, over the largest entry:\n")
    parts.append(table(("run", "result", "gradients"), [(n, *map(number, e.values())) for n, e in report["errors"].items()]))
    header = ("components", "tile", "forward", "backward", "failed")
    parts.append("Tiles (receivers, channels, hidden units, warps), ms:\n")
    parts.append(table(header, [[number(row.get(name, "")) for name in header] for row in report["tiles"]]))
    parts.append(f"Used from here on: {report['tiles_used']}\n")
    header = ("system", "layer", "receivers", "neighbors", "run", "forward_ms", "step_ms", "step_mib", "of_matrix_product",
              "of_copy", "failed")  # fmt: skip
    parts.append(table(header, [[number(row.get(name, "")) for name in header] for row in report["speeds"]]))
    header = ("implementation", "waits for the device", "error of the replayed CUDA graph")
    parts.append(table(header, [(n, *map(number, found.values())) for n, found in report["without_waiting"].items()]))
    if report["left_out"]:
        parts.append(f"No time for: {'; '.join(report['left_out'])}.\n")
    return "\n".join(parts)


def write(path, text):
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="Folder for convolution_gpu.json and convolution_gpu.md.")
    parser.add_argument("--seconds", type=float, default=400, help="No new measurement after so long.")
    parser.add_argument(
        "--rehearse", action="store_true", help="Tiny sizes in Triton's interpreter (TRITON_INTERPRET=1): tries this script."
    )
    arguments = parser.parse_args(arguments)
    if arguments.rehearse and not kernels.interpreted():
        print("convolution_gpu.py: --rehearse needs TRITON_INTERPRET=1 in the environment", file=sys.stderr)
        return 2
    if not arguments.rehearse and (kernels.interpreted() or not torch.cuda.is_available()):
        print(
            "convolution_gpu.py: there is no CUDA device here (or TRITON_INTERPRET=1 is set): nothing measured", file=sys.stderr
        )
        return 2
    if kernels.triton is None:
        print("convolution_gpu.py: Triton is not installed: pip install triton", file=sys.stderr)
        return 2
    bench = Bench(arguments.rehearse, arguments.seconds)
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        "device": "a processor" if bench.rehearse else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": kernels.triton.__version__,
        "rehearsal": bench.rehearse,
        "ceilings": ceilings(bench),
    }
    for name, measure in (("errors", errors), ("without_waiting", without_waiting), ("tiles", tiles)):
        report[name] = measure(bench)
        print(f"{name}: {json.dumps(report[name])}", flush=True)
    report["tiles_used"] = {str(power): tile for power, tile in kernels.TILES.items()}
    report["speeds"] = speeds(bench, report["ceilings"])
    report["left_out"] = bench.left_out
    write(folder / "convolution_gpu.json", json.dumps(report, indent=1) + "\n")
    text = markdown(report)
    write(folder / "convolution_gpu.md", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
