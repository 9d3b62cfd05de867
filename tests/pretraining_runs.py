"""Pretraining runs in processes of their own, which can be killed: forked, so that nothing is imported again."""

import json
import os
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

import run_pretraining


TINY = ["--hidden_size", 8, "--atom_hidden_size", 8, "--edge_size", 8, "--num_hidden_layers", 2]
MOLECULES = ["CC(=O)Oc1ccccc1C(=O)O", "Oc1ccccc1.O", "CCO", "[Na+]", "CC(N)C(=O)O", "OCC(O)CO", "Cc1ccccc1", "[Na+].[Cl-]"]
MOLECULES += ["CCCCO.CC(N)=O", "CCOC(=O)CC", "[K+]", "NCCc1ccccc1"]


def needs_fork(test):
    """Mark of tests that begin runs; `conftest.py` lets them run only without others, whose threads a fork would miss."""
    bears_it = sys.platform == "linux" and not torch.accelerator.is_available()
    return pytest.mark.forks(
        pytest.mark.skipif(not bears_it, reason="forks, which only Linux without an accelerator bears")(test)
    )


def molecules_file(folder):
    path = Path(folder) / "few.smi"
    path.write_text("".join(f"{smiles} m{i}\n" for i, smiles in enumerate(MOLECULES)))
    return path


def options(train, output, *more):
    return [str(x) for x in ("--train_file", train, "--output_dir", output, *TINY, *more)]


def _child(arguments, environment, log, patch):
    code = 1
    try:
        sys.stdout = sys.stderr = open(log, "a", buffering=1)
        os.dup2(sys.stdout.fileno(), 1), os.dup2(sys.stdout.fileno(), 2)
        torch.set_num_threads(1)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        os.environ.update(environment)
        if patch is not None:
            patch()
        run_pretraining.main(arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def begin(arguments, log, processes=1, patch=None):
    """Process ids of a run, which has begun."""
    environments = [{}]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        environments = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    started = []
    for rank, environment in enumerate(environments):
        pid = os.fork()
        if pid == 0:
            _child(arguments, environment, f"{log}.{rank}", patch)
        started.append(pid)
    return started


def end(pids, patience=300):
    """Exit codes; a signal is a negative one. Who has not ended after `patience` seconds is stopped by one."""
    watch = threading.Timer(patience, lambda: [os.kill(pid, signal.SIGABRT) for pid in pids])
    watch.start()
    try:
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    finally:
        watch.cancel()


def complete(arguments, log, processes=1, patch=None):
    """What the run printed, which must end well."""
    codes = end(begin(arguments, log, processes, patch))
    text = "".join(Path(f"{log}.{rank}").read_text() for rank in range(processes))
    assert codes == [0] * processes, text[-3000:]
    return text


def rows(output, split="train"):
    """Rows of metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]
    times = ("complexes_per_second", "atoms_per_second", "waiting", "memory_gib", "eta_seconds")
    return [{k: v for k, v in row.items() if k not in times} for row in lines if row["split"] == split]


def same_tensors(one, other):
    one, other = load_file(one), load_file(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
