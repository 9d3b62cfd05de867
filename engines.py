# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""One function over many tasks: in this process, in several, or on a Ray cluster; results in the order of the tasks."""

import contextlib
import faulthandler
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from multiprocessing.connection import wait

import torch

from atomica_hf import ROOT, StructureError


ENGINES = ("local", "ray")
_GRACE = 2.0  # seconds that a process has beyond the time limit, to notice it itself
_AHEAD = 100  # tasks for each worker that may be under way or done before their turn
_CALLS_AHEAD = 4  # calls of Ray for each of the cluster's cores


# a time limit ---------------------------------------------------------------------------------------------------------------


class _TimeIsUp(BaseException):
    """Not an `Exception`, so that no function takes it for a fault of its task."""


@contextlib.contextmanager
def _limited(seconds):
    """Raises `_TimeIsUp` in its block after so many seconds; in native code, when that returns."""
    if seconds is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _watched(seconds):
    """Ends this process, with exit code 1, if its block takes longer and `_limited` could not stop it."""
    if seconds is None:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        faulthandler.dump_traceback_later(seconds + _GRACE, exit=True, file=nowhere)  # needs no interpreter lock
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def _raise(task, code, why):
    raise StructureError(code, f"A task {why}.")


def _too_slow(task, time_limit, failed):
    return failed(task, "time_limit", f"took longer than {time_limit:g} s")


def _attempt(function, task, time_limit, failed):
    try:
        with _limited(time_limit):
            return function(task)
    except _TimeIsUp:
        return _too_slow(task, time_limit, failed)


# processes of this machine --------------------------------------------------------------------------------------------------


def _end_with_parent():
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _work(connection, function, time_limit, failed):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        connection.send(None)  # ready
        while True:
            for task in connection.recv():
                try:
                    with _watched(time_limit):
                        result = _attempt(function, task, time_limit, failed), None
                except Exception as error:
                    result = None, error
                connection.send(result)
    except (EOFError, BrokenPipeError):
        pass


class _Worker:
    def __init__(self, *arguments):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self.ready, self.numbers, self.since = False, deque(), 0.0  # numbers of its tasks, what it is doing first

    def stop(self):
        self.process.kill()
        self.process.join()
        self.connection.close()


class _Pool:
    """Worker processes. One that dies is replaced, and its task is tried once more; one that takes too long ends itself,
    whatever native code it is in, and is replaced."""

    def __init__(self, function, num_proc, time_limit, failed, at_once):
        self.function, self.num_proc, self.time_limit, self.failed = function, num_proc, time_limit, failed
        self.at_once, self.workers, self.failures, self.mean_seconds = at_once, [], 0, 1.0
        self.tasks, self.waiting, self.done, self.deaths = {}, deque(), {}, Counter()  # tasks: not done yet, by number

    def run(self, tasks):
        """Yields results in the order of the tasks."""
        tasks, come, gone = iter(tasks), 0, 0
        try:
            while True:
                for task in itertools.islice(tasks, max(0, _AHEAD * self.num_proc - (come - gone))):
                    self.tasks[come] = task
                    self.waiting.append(come)
                    come += 1
                if gone in self.done:
                    yield self.done.pop(gone)
                    gone += 1
                elif self.tasks:
                    self._advance()
                else:
                    return
        finally:
            for worker in self.workers:
                worker.stop()

    def _advance(self):
        """Gives tasks to whoever has none and waits until something happens."""
        while len(self.workers) < min(self.num_proc, len(self.tasks)):
            self.workers.append(_Worker(self.function, self.time_limit, self.failed))
        for worker in self.workers:
            if worker.ready and not worker.numbers and self.waiting:
                share = min(self.at_once, int(0.2 / max(self.mean_seconds, 1e-3)), len(self.waiting) // (2 * self.num_proc))
                worker.numbers.extend(self.waiting.popleft() for _ in range(max(1, share)))
                worker.since = time.monotonic()
                with contextlib.suppress(BrokenPipeError):  # it has just died; its end of the pipe will say so
                    worker.connection.send([self.tasks[number] for number in worker.numbers])
        by_connection = {worker.connection: worker for worker in self.workers}
        for connection in wait(list(by_connection)):
            self._receive(by_connection[connection])

    def _receive(self, worker):
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self._has_died(worker)
            return
        if message is None:
            worker.ready, self.failures = True, 0
            return
        result, error = message
        if error is not None:
            raise error
        number, now = worker.numbers.popleft(), time.monotonic()
        self.mean_seconds += 0.1 * (now - worker.since - self.mean_seconds)
        worker.since = now
        self.done[number] = result
        del self.tasks[number]

    def _has_died(self, worker):
        worker.process.join()
        code, seconds = worker.process.exitcode, time.monotonic() - worker.since
        if not worker.ready:
            self.failures += 1
            if self.failures >= 3:
                raise StructureError(
                    "no_workers", f"Worker processes end, with exit code {code}, before they can start; try --num_proc 1."
                )
        elif worker.numbers:
            number = worker.numbers[0]
            self.deaths[number] += 1
            if code == 1 and self.time_limit is not None and seconds > self.time_limit / 2:
                worker.numbers.popleft()
                self.done[number] = _too_slow(self.tasks.pop(number), self.time_limit, self.failed)
            elif self.deaths[number] > 1:
                worker.numbers.popleft()
                why = f"ended its process twice, with exit code {code}; it may need too much memory"
                self.done[number] = self.failed(self.tasks.pop(number), "worker_died", why)
        self.waiting.extendleft(reversed(worker.numbers))
        self.workers.remove(worker)
        worker.stop()


# a Ray cluster --------------------------------------------------------------------------------------------------------------


def _call(shared, tasks, alone=False):
    """On some machine of the cluster: results of some tasks, `alone` in a process that may die."""
    function, time_limit, failed, folder = shared
    os.chdir(folder)  # names of files may be relative
    torch.set_num_threads(1)
    if alone:
        return list(_Pool(function, 1, time_limit, failed, 1).run(tasks))
    results = []
    for task in tasks:
        with _watched(time_limit):
            results.append(_attempt(function, task, time_limit, failed))
    return results


def _on_ray(function, tasks, time_limit, failed, at_once, address, num_gpus):
    try:
        import ray
    except ImportError:
        raise StructureError("no_ray", "--engine ray: the package ray is not installed (pip install ray).") from None

    from ray import exceptions

    lost = (exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.OutOfMemoryError, exceptions.ObjectLostError)

    def get(call, tolerated=()):
        try:
            return ray.get(call)
        except tolerated:
            return None
        except exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, (StructureError, OSError)):
                raise cause from None
            why = str(cause).strip().splitlines()[-1]
            raise StructureError("ray_failed", f"--engine ray: {type(cause).__name__}: {why}") from error

    started = not ray.is_initialized()
    if started:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        options = {"runtime_env": {"env_vars": {"PYTHONPATH": path}}, "log_to_driver": False, "logging_level": "ERROR"}
        try:
            ray.init(address, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise StructureError("no_cluster", f"--ray_address {address}: {str(error).splitlines()[0]}") from error
    try:
        on_cluster = ray.remote(_call)
        call = on_cluster.options(num_gpus=num_gpus, max_retries=1)
        again = on_cluster.options(num_gpus=num_gpus, max_retries=10)
        shared, tasks, calls = ray.put((function, time_limit, failed, os.getcwd())), iter(tasks), deque()
        while True:
            ahead = max(2, _CALLS_AHEAD * int(ray.cluster_resources().get("CPU", 0)))
            while len(calls) < ahead and (group := list(itertools.islice(tasks, at_once))):
                calls.append((group, call.remote(shared, group)))
            if not calls:
                return
            group, under_way = calls.popleft()
            results = get(under_way, lost)
            if results is None:
                results = get(again.remote(shared, group, alone=True))
            yield from results
    finally:
        if started:
            ray.shutdown()


def run_tasks(
    function, tasks, engine="local", num_proc=1, time_limit=None, failed=_raise, at_once=16, address=None, num_gpus=0
):  # fmt: skip
    """Calls a function with every task, and yields what it returns in the order of the tasks, whatever the engine.

    Args:
        function: can be pickled, as can tasks and results; what it raises ends the run.
        tasks (iterable): read as they are needed.
        engine (`str`): "local", or "ray": all cores of a Ray cluster, whose machines have this repository and the
            files that tasks name at the same paths. Calls that were lost with a machine are made again.
        num_proc (`int`): processes of the local engine; with 1, this one.
        time_limit (`float`): for one task, in seconds.
        failed: (task, code, why) -> what is yielded for a task that takes longer (`time_limit`) or ends its process twice
            (`worker_died`); by default it raises `StructureError`.
        at_once (`int`): tasks that are sent together, at most.
        address (`str`): of the Ray cluster; without it, one of this machine, begun if there is none.
        num_gpus (`int`): GPUs of one call on Ray.

    Raises:
        `StructureError`: if worker processes cannot start, if ray is not installed, or its cluster is not found.
    """
    if engine == "ray":
        return _on_ray(function, tasks, time_limit, failed, at_once, address, num_gpus)
    if num_proc == 1:
        return (_attempt(function, task, time_limit, failed) for task in tasks)
    return _Pool(function, num_proc, time_limit, failed, at_once).run(tasks)


def check_engine(arguments):
    """Raises `StructureError` for --num_proc, --engine and --ray_address that do not fit together."""
    if arguments.engine == "ray" and arguments.num_proc != 1:
        raise StructureError("usage", "--num_proc is for --engine local; a Ray cluster has as many processes as cores.")
    if arguments.engine != "ray" and arguments.ray_address:
        raise StructureError("usage", f"--ray_address {arguments.ray_address} needs --engine ray.")
