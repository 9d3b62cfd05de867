import hashlib
import os
import signal
import sys
import threading
import time
from multiprocessing import Pipe

import pytest
from conftest import ROOT, run, shipped_smiles, tiny_model

import engines
from atomica_hf import StructureError
from engines import run_tasks


def failed(task, code, why):
    return task, code, why


def square(number):
    if number == "hangs":
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # native, not to be interrupted
    if number == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if number == "raises":
        raise ValueError("raised in another process")
    return number**2


def slow_square(number):
    import ray

    time.sleep(0.2)
    return number**2, ray.get_runtime_context().get_node_id()


def test_this_process_does_it_as_results_are_asked_for():
    asked = []
    results = run_tasks(square, (asked.append(n) or n for n in range(10)))
    assert [next(results), next(results)] == [0, 1] and asked == [0, 1]


def test_a_time_limit_holds_in_one_process():
    ((task, code, why),) = run_tasks(time.sleep, [1000], time_limit=0.01, failed=failed)
    assert (task, code, why) == (1000, "time_limit", "took longer than 0.01 s")
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0 and signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    with pytest.raises(StructureError, match="took longer than 0.01 s"):
        next(run_tasks(time.sleep, [1000], time_limit=0.01))


def test_processes_do_it_and_what_one_raises_is_raised():
    assert list(run_tasks(square, range(250), num_proc=2)) == [n**2 for n in range(250)]
    with pytest.raises(ValueError, match="raised in another process"):
        list(run_tasks(square, [1, "raises", 2], num_proc=2))


EARLY_IS_DONE = threading.Event()


def wait_for_early(task):
    if task == "late":
        assert EARLY_IS_DONE.wait(30)
    if task == "early":
        EARLY_IS_DONE.set()
    return task


class InAThread:
    """Stands for a `_Worker`."""

    def __init__(self, function, time_limit, failed):
        self.connection, theirs = Pipe()
        self.ready, self.numbers, self.since = False, engines.deque(), 0.0
        threading.Thread(target=self.work, args=(theirs, function), daemon=True).start()

    def work(self, connection, function):
        connection.send(None)
        for (task,) in iter(connection.recv, ["end"]):
            connection.send((function(task), None))

    def stop(self):
        self.connection.send(["end"])


def test_results_come_in_the_order_of_the_tasks(monkeypatch):
    monkeypatch.setattr(engines, "_Worker", InAThread)
    tasks = ["late", "middle", "early", "last"]
    assert list(run_tasks(wait_for_early, tasks, num_proc=2, at_once=1)) == tasks and EARLY_IS_DONE.is_set()


def test_workers_that_cannot_start_are_an_error(monkeypatch):
    class Stillborn:
        ready, numbers, since, exitcode = False, (), 0.0, 3

        def __init__(self, *arguments):
            self.connection, theirs = Pipe()
            theirs.close()
            self.process = self

        def join(self):
            pass

        def stop(self):
            self.connection.close()

    monkeypatch.setattr(engines, "_Worker", Stillborn)
    with pytest.raises(StructureError, match="exit code 3, before they can start"):
        list(run_tasks(square, [1, 2], num_proc=2))


def test_what_a_machine_of_the_cluster_does(tmp_path, monkeypatch):
    """A call without Ray: several tasks in the caller's folder, or one by one in a process that may die."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(engines.torch, "set_num_threads", lambda number: None)
    assert engines._call((square, None, failed, str(tmp_path)), [1, 2, 3]) == [1, 4, 9] and os.getcwd() == str(tmp_path)
    (one, slow, dead, two) = engines._call((square, 1.0, failed, str(tmp_path)), [1, "hangs", "dies", 2], alone=True)
    assert (one, two) == (1, 4) and slow == ("hangs", "time_limit", "took longer than 1 s")
    assert dead[:2] == ("dies", "worker_died") and "exit code -9" in dead[2]


def test_without_ray_its_name_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StructureError, match="the package ray is not installed"):
        list(run_tasks(square, [1], engine="ray"))


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Two nodes of Ray, one core each -> (cluster, the second node)."""
    pytest.importorskip("ray", reason="the package ray is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("HOME", str(tmp_path))  # Ray keeps a token there
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    yield nodes, second
    nodes.shutdown()


@pytest.mark.slow
def test_tasks_that_were_lost_with_a_node_are_done_again(cluster):
    nodes, second = cluster
    found = []
    for result, node in run_tasks(slow_square, range(60), "ray", address=nodes.address, at_once=2):
        found.append((result, node))
        if second is not None and len({node for _, node in found}) == 2:  # both are at work
            nodes.remove_node(second, allow_graceful=False)
            second, at = None, len(found)
    assert [result for result, _ in found] == [n**2 for n in range(60)]
    assert second is None and at < 50 and len({node for _, node in found[-10:]}) == 1
    tasks = [1, "dies", 2, "hangs", 3]
    one, dead, two, slow, three = run_tasks(square, tasks, "ray", address=nodes.address, time_limit=2.0, failed=failed)
    assert (one, two, three) == (1, 4, 9) and (dead[1], slow[1]) == ("worker_died", "time_limit")
    with pytest.raises(StructureError, match="ray_failed|ValueError: raised in another process"):
        list(run_tasks(square, ["raises"], "ray", address=nodes.address))


def complete(cluster, command, half_way):
    """Runs a script on the cluster, of which a node is killed as soon as a file is there."""
    nodes, second = cluster
    done = []
    thread = threading.Thread(target=lambda: done.append(run(*command, "--engine", "ray", "--ray_address", nodes.address)))
    thread.start()
    while not half_way.exists() and thread.is_alive():
        os.sched_yield()
    killed_at_work = thread.is_alive()
    nodes.remove_node(second, allow_graceful=False)
    thread.join()
    assert done[0].returncode == 0, done[0].stderr[-2000:]
    assert killed_at_work


def many_molecules(folder):
    smiles = [f"{smiles}.{ion}" for ion in ("O", "[Na+]", "N") for smiles in shipped_smiles()[:100]]
    (folder / "m.smi").write_text("".join(f"{text} m{i}\n" for i, text in enumerate(smiles)))
    return folder / "m.smi"


@pytest.mark.slow
def test_a_dataset_prepared_on_a_cluster_that_loses_a_node_is_the_same(cluster, tmp_path):
    command = ["prepare_dataset.py", many_molecules(tmp_path), "--shard_size", 40, "--output_dir"]
    complete(cluster, [*command, tmp_path / "ray"], tmp_path / "ray" / "data-00000.parquet")
    assert run(*command, tmp_path / "one").returncode == 0
    shards = sorted((tmp_path / "one").glob("data-*.parquet"))
    assert len(shards) > 3 and len(shards) == len(list((tmp_path / "ray").glob("data-*")))
    for shard in shards:
        assert (tmp_path / "ray" / shard.name).read_bytes() == shard.read_bytes()


@pytest.mark.slow
def test_vectors_of_a_cluster_that_loses_a_node_are_the_same(cluster, tmp_path, processor):
    model = tmp_path / "model"
    tiny_model().float().save_pretrained(model)
    processor.save_pretrained(model)
    prepare = ["prepare_dataset.py", many_molecules(tmp_path), "--output_dir", tmp_path / "prepared"]
    assert run(*prepare).returncode == 0
    command = ["run_embedding.py", "--model_name_or_path", model, "--input_file", tmp_path / "prepared", "--device", "cpu"]
    command += ["--output_file"]
    complete(cluster, [*command, tmp_path / "ray.parquet"], tmp_path / "ray.parquet.parts" / "part-000000.parquet")
    assert run(*command, tmp_path / "one.parquet").returncode == 0
    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
