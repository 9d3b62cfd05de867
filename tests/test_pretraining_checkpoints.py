"""Runs that are killed, stopped and damaged go on as if nothing had been: the same weights to the last bit."""

import errno
import os
import random
import re
import shutil
import signal
import time

import pytest
import torch
from pretraining_runs import begin, complete, end, molecules_file, needs_fork, options, rows, same_tensors

import pretraining_checkpoints
import run_pretraining
from dataset_shards import prepare
from pretraining_arguments import UsageError
from pretraining_checkpoints import NotWrittenError, checkpoints, damage, find_checkpoint, read_checkpoint, write_checkpoint


try:
    import resource
except ImportError:  # Windows, where no test forks
    resource = None

STEPS = ["--max_train_steps", 9, "--checkpointing_steps", 2, "--logging_steps", 3, "--max_blocks_per_batch", 10]
STEPS += ["--gradient_accumulation_steps", 2, "--hidden_dropout_prob", 0.2, "--ema_decay", 0.9, "--spike_factor", 50]
STEPS += ["--save_total_limit", 2, "--learning_rate", 0.01, "--validation_split_percentage", 20]
LATEST = ["--resume_from_checkpoint", "latest"]


@pytest.fixture(scope="module")
def data(tmp_path_factory, processor):
    """Molecules, as a file and prepared."""
    folder = tmp_path_factory.mktemp("data")
    file = molecules_file(folder)
    prepare([file], folder / "prepared", processor, shard_size=2, progress=False)
    return folder


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "undisturbed"
    torch.set_num_threads(1)
    run_pretraining.main(options(data / "prepared", output, *STEPS))
    return output


def assert_same_run(output, undisturbed):
    assert same_tensors(output / "model.safetensors", undisturbed / "model.safetensors")
    one, other = (sorted(folder.glob("checkpoint-*"))[-1] for folder in (output, undisturbed))
    for file in ("optimizer.safetensors", "ema.safetensors"):
        assert same_tensors(one / file, other / file)
    for split in ("train", "validation"):
        assert rows(output, split) == rows(undisturbed, split)


def die(*arguments, **more):
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number, function, before=die):
    """`function`, in place of whose `number`-th call something else is done."""
    calls = 0

    def call(*arguments, **more):
        nonlocal calls
        calls += 1
        return before(*arguments, **more) if calls == number else function(*arguments, **more)

    return call


def half_a_file(tensors, path):
    path.write_bytes(b"\0" * 100)
    die()


MOMENTS = {  # name of what is replaced, where, and by what
    "in the third step": (run_pretraining.Pretraining, "make_step", 3, die),
    "while the second checkpoint's weights are written": (pretraining_checkpoints, "save_file", 5, half_a_file),
    "before the second checkpoint is renamed": (pretraining_checkpoints, "sync", 13, die),
    "while the oldest checkpoint is removed": (pretraining_checkpoints, "remove", 1, die),
    "in validation, after the last step": (run_pretraining.Pretraining, "validate", 2, die),
}


@needs_fork
@pytest.mark.parametrize("moment, workers", zip(MOMENTS, (0, 1, 4, 0, 1)))
def test_a_killed_run_gives_the_weights_of_the_undisturbed_one(moment, workers, data, undisturbed, tmp_path):
    where, name, number, before = MOMENTS[moment]
    output, log = tmp_path / "killed", tmp_path / "log"

    def patch():
        setattr(where, name, at_call(number, getattr(where, name), before))

    assert end(begin(options(data / "prepared", output, *STEPS), log, patch=patch)) == [-signal.SIGKILL]
    assert not (output / "model.safetensors").exists()
    text = complete(options(data / "prepared", output, *STEPS, *LATEST, "--dataloader_num_workers", workers), log)
    assert "Resuming from" in text and "damaged" not in text
    assert not list(output.glob("*.tmp")) and len(checkpoints(output)) == 2
    assert_same_run(output, undisturbed)


@needs_fork
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_saves_and_ends_well(data, undisturbed, tmp_path, number):
    output, log = tmp_path / "stopped", tmp_path / "log"

    def patch():
        step = run_pretraining.Pretraining.make_step

        def and_ask(self, *arguments):
            if self.step == 4:
                os.kill(os.getpid(), number)
            return step(self, *arguments)

        run_pretraining.Pretraining.make_step = and_ask

    text = complete(options(data / "prepared", output, *STEPS), log, patch=patch)
    assert "Stopped at step 6, with a checkpoint" in text and not (output / "model.safetensors").exists()
    complete(options(data / "prepared", output, *STEPS, *LATEST), log)
    assert_same_run(output, undisturbed)


def test_the_first_ctrl_c_is_a_request_and_the_second_an_end(capfd):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), run_pretraining.Termination(speaks=True) as termination:
        assert termination.asked is None
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # what torchrun passes on
        assert termination.asked is not None
        termination.asked -= 3
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err.count("Stopping after this step, with a checkpoint") == 1
    assert signal.getsignal(signal.SIGINT) is before


@needs_fork
def test_a_damaged_checkpoint_is_passed_over(data, undisturbed, tmp_path):
    output = tmp_path / "damaged"
    shutil.copytree(undisturbed, output)
    for name in ("model.safetensors", "all_results.json"):
        (output / name).unlink()
    last = checkpoints(output)[-1]
    assert last.name == "checkpoint-8"
    content = bytearray((last / "optimizer.safetensors").read_bytes())
    content[-20] ^= 1
    (last / "optimizer.safetensors").write_bytes(content)
    text = complete(options(data / "prepared", output, *STEPS, *LATEST), tmp_path / "log")
    assert "checkpoint-8 is damaged (optimizer.safetensors is not as it was written); trying the one before" in text
    assert "Resuming from" in text and "checkpoint-6: step 6" in text
    assert_same_run(output, undisturbed)


def test_damage_to_any_file_is_recognised(tmp_path):
    tensors = {name: {"a": torch.arange(5.0), "b": torch.eye(3)} for name in ("model", "optimizer", "ema")}
    for step in (2, 10):
        write_checkpoint(tmp_path, tensors, {"step": step, "settings": {"seed": 1}})
    whole = tmp_path / "checkpoint-10"
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-10"] and damage(whole) is None
    files = sorted(file.name for file in whole.iterdir())
    assert files == ["ema.safetensors", "model.safetensors", "optimizer.safetensors", "sha256.json", "trainer_state.json"]
    kept = tmp_path / "kept"
    shutil.copytree(whole, kept)
    for file in files:
        content = (whole / file).read_bytes()
        for broken in (b"", content[:-7], content[:40] + bytes([content[40] ^ 4]) + content[41:], content + b" x", None):
            (whole / file).unlink() if broken is None else (whole / file).write_bytes(broken)
            said = []
            assert damage(whole) is not None, (file, broken)
            assert find_checkpoint("latest", tmp_path, said.append).name == "checkpoint-2"
            assert len(said) == 1 and "checkpoint-10 is damaged" in said[0] and (file in said[0] or file == "sha256.json")
            with pytest.raises(UsageError, match="checkpoint-10: a checkpoint that cannot be read"):
                find_checkpoint(str(whole), tmp_path)
            shutil.rmtree(whole)
            shutil.copytree(kept, whole)
    assert find_checkpoint("latest", tmp_path) == whole
    state, found = read_checkpoint(whole, {"seed": 1})
    assert state["step"] == 10 and torch.equal(found["ema"]["b"], torch.eye(3))
    for folder in checkpoints(tmp_path):
        (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="only damaged ones"):
        find_checkpoint("latest", tmp_path, lambda text: None)


def test_the_last_checkpoints_are_kept(tmp_path):
    for step in (1, 2, 30, 4):
        write_checkpoint(tmp_path, {"model": {"a": torch.ones(1)}}, {"step": step}, limit=2)
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-30"]
    write_checkpoint(tmp_path, {"model": {"a": torch.zeros(1)}}, {"step": 30}, limit=2)  # again, as after a step back
    assert float(read_checkpoint(tmp_path / "checkpoint-30", {})[1]["model"]["a"]) == 0
    assert not list(tmp_path.glob("*.tmp"))


@needs_fork
def test_a_step_back_removes_what_came_later(data, undisturbed, tmp_path):
    output = tmp_path / "back"
    shutil.copytree(undisturbed, output)
    first = checkpoints(output)[0]
    text = complete(options(data / "prepared", output, *STEPS, "--resume_from_checkpoint", first), tmp_path / "log")
    assert "checkpoint-8 is removed: this run is at step 6" in text
    assert_same_run(output, undisturbed)


@needs_fork
def test_nothing_yet_to_resume_from_is_a_beginning(data, undisturbed, tmp_path):
    output, log = tmp_path / "early", tmp_path / "log"

    def patch():
        run_pretraining.Pretraining.make_step = die

    assert end(begin(options(data / "prepared", output, *STEPS), log, patch=patch)) == [-signal.SIGKILL]
    assert "no checkpoint was written yet" in complete(options(data / "prepared", output, *STEPS, *LATEST), log)
    assert_same_run(output, undisturbed)


@needs_fork
@pytest.mark.parametrize("processes, workers", [(1, 2), (2, 0)])
def test_a_stream_and_two_processes_are_resumed_alike(processes, workers, data, tmp_path):
    log = tmp_path / "log"
    more = [*STEPS[:-2], "--streaming", "--dataloader_num_workers", workers]  # a stream has no validation split
    for output, patch in (("whole", None), ("killed", die_at_step_seven)):
        command = options(data / "prepared", tmp_path / output, *more)
        codes = end(begin(command, log, processes, patch))
        assert set(codes) == ({0} if patch is None else {-signal.SIGKILL}), (tmp_path / "log.0").read_text()[-2000:]
    text = complete([*command, *map(str, LATEST)], log, processes)
    assert "checkpoint-6: step 6" in text
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def die_at_step_seven():
    run_pretraining.Pretraining.make_step = at_call(7, run_pretraining.Pretraining.make_step)


def with_room_for(size, function):
    """`function`, while which is called no file of the process can grow beyond `size` bytes, as if the disk were full."""

    def call(*arguments, **more):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            return function(*arguments, **more)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    return call


FULL_AT = {  # what cannot be written: where it is written, by which call, bytes that a file may have, checkpoints that are left
    "checkpoint-4": (run_pretraining, "write_checkpoint", 2, 20_000, ["checkpoint-2"]),
    "metrics.jsonl": (run_pretraining.MetricsFile, "add", 2, 1000, ["checkpoint-2"]),
    "model.safetensors": (run_pretraining.Pretraining, "save_model", 1, 20_000, ["checkpoint-6", "checkpoint-8"]),
}


@needs_fork
@pytest.mark.parametrize("what, processes", [*((what, 1) for what in FULL_AT), ("checkpoint-4", 2)])
def test_a_full_disk_ends_the_run_and_loses_nothing(what, processes, data, undisturbed, tmp_path):
    where, name, number, size, left = FULL_AT[what]
    output, log = tmp_path / "full", tmp_path / "log"
    command = options(data / "prepared", output, *STEPS)

    def patch():
        function = getattr(where, name)
        setattr(where, name, at_call(number, function, with_room_for(size, function)))

    codes = end(begin(command, log, processes, patch=patch))
    text = (tmp_path / "log.0").read_text()
    assert codes == [1] * processes, text[-2000:]
    assert f"NotWrittenError: {output / what} could not be written: " in text and "File too large" in text
    assert re.search(r"\([\d,]+ bytes needed, [\d,]+ free", text) and "--resume_from_checkpoint latest" in text
    assert [folder.name for folder in checkpoints(output)] == left and not any(map(damage, checkpoints(output)))
    assert not list(output.glob("*.tmp*")) and not (output / "all_results.json").exists()
    assert (output / "metrics.jsonl").read_text().endswith("\n") or not rows(output)
    complete([*command, *LATEST], log, processes)
    if processes == 1:
        assert_same_run(output, undisturbed)


def test_a_flush_that_fails_for_want_of_room_is_no_checkpoint(tmp_path, monkeypatch):
    """As on network disks, which take what is written and say only then that it does not fit."""
    tensors = {"model": {"a": torch.ones(1000)}}
    write_checkpoint(tmp_path, tensors, {"step": 1})

    def full(handle):
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotWrittenError, match=r"checkpoint-2 could not be written: No space left.*4,0\d\d bytes needed"):
        write_checkpoint(tmp_path, tensors, {"step": 2})
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-1"]
    assert damage(tmp_path / "checkpoint-1") is None


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_twenty_random_kills_in_one_run_change_nothing(processes, data, tmp_path):
    """A new process after each, with 0, 1 or 4 workers; of two processes, one or both are killed."""
    chance = random.Random(processes)
    steps = ["--max_train_steps", 120, "--checkpointing_steps", 3, "--logging_steps", 7, "--max_blocks_per_batch", 10]
    steps += ["--gradient_accumulation_steps", 2, "--hidden_dropout_prob", 0.2, "--ema_decay", 0.9, "--learning_rate", 0.01]
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    command = options(data / "prepared", killed, *steps, *LATEST)
    complete(options(data / "prepared", whole, *steps), log, processes)
    kills = 0
    while kills < 20:
        at_most = (checkpoints(killed) or [None])[-1]
        pids = begin([*command, "--dataloader_num_workers", chance.choice("014")] if kills else command[:-2], log, processes)
        while (checkpoints(killed) or [None])[-1] == at_most:  # it must get somewhere, or this has no end
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1.0))
        victims = pids if chance.random() < 0.5 else pids[:1]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        codes = end(pids)
        if -signal.SIGKILL not in codes:
            break
        kills += 1
    complete([*command, "--dataloader_num_workers", "1"], log, processes)
    print(f"{kills} kills")
    assert kills == 20
    assert same_tensors(killed / "model.safetensors", whole / "model.safetensors")
    assert rows(killed) == rows(whole)
