# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are either whole or known not to be: written aside, hashed, flushed, renamed; checked before they are used.

A checkpoint holds tensors as safetensors (`model`, `optimizer`, `ema`), everything else in `trainer_state.json`, and in
`sha256.json` size and hash of each file. No random state is kept: every draw is seeded by its place in the run.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from atomic_files import sync
from pretraining_arguments import UsageError
from pretraining_sharding import like


STATE_FILE = "trainer_state.json"
HASH_FILE = "sha256.json"


# what could not be written ----------------------------------------------------------------------------------------------


class NotWrittenError(UsageError):
    """A file or folder that could not be written, with what there was room for and how to go on."""


@contextlib.contextmanager
def writing(path, needed, temporary=None):
    """If writing `path`, about `needed` bytes, fails within the block, removes the folder `temporary` and says why.

    Raises:
        `NotWrittenError`: for `OSError` and `SafetensorError`, with `path`, the reason, and bytes needed and free.
    """
    path = Path(path)
    try:
        yield
    except (OSError, SafetensorError) as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        there = next(folder for folder in path.absolute().parents if folder.exists())
        reason = os.strerror(error.errno) if getattr(error, "errno", None) else str(error)
        free = shutil.disk_usage(there).free
        raise NotWrittenError(
            f"{path} could not be written: {reason} ({needed:,} bytes needed, {free:,} free on that disk). What "
            "was written before is whole; make room and go on with --resume_from_checkpoint latest."
        ) from error


def num_bytes(tensors):
    return sum(value.nbytes for value in tensors.values())


# tensors ----------------------------------------------------------------------------------------------------------------


def optimizer_tensors(model, optimizer):
    """State of each parameter by its name: `name.exp_avg` and so on."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(model, optimizer, tensors):
    """The reverse, for an optimizer that has not stepped."""
    for name, parameter in model.named_parameters():
        found = {key: tensors.get(f"{name}.{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
        if any(value is not None for value in found.values()):
            optimizer.state[parameter] = {
                key: value if key == "step" else like(value, parameter) for key, value in found.items()
            }


# files ------------------------------------------------------------------------------------------------------------------


def _hash(path):
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def number_of(folder):
    return int(folder.name.removeprefix("checkpoint-"))


def checkpoints(output_dir):
    """Folders with the name of a checkpoint, by their number of steps; damaged ones too."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if p.is_dir() and p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=number_of)


def write_checkpoint(output_dir, tensors, state, limit=None):
    """Writes `checkpoint-STEP` and removes the oldest ones beyond `limit`; a kill at any moment leaves the others whole.

    Args:
        tensors (`dict`): file name without ending -> dictionary of tensors.
        state (`dict`): what JSON can hold, with the `step`.

    Raises:
        `NotWrittenError`: if there is no room, or no way to write; nothing of this checkpoint is left then.
    """
    final = Path(output_dir) / f"checkpoint-{state['step']}"
    temporary = final.with_name(f"{final.name}.tmp")
    text = json.dumps(state, indent=1)
    with writing(final, sum(map(num_bytes, tensors.values())) + len(text), temporary):
        _write(final, temporary, tensors, text)
    clear_leftovers(output_dir)
    for old in checkpoints(output_dir)[:-limit] if limit else []:
        remove(old)
    return final


def _write(final, temporary, tensors, state):
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, content in tensors.items():
        content = {key: value.detach().cpu().contiguous() for key, value in content.items()}
        save_file(content, temporary / f"{name}.safetensors")
    (temporary / STATE_FILE).write_text(state, encoding="utf-8")
    files = sorted(temporary.iterdir())
    (temporary / HASH_FILE).write_text(json.dumps({file.name: _hash(file) for file in files}, indent=1), encoding="utf-8")
    for path in (*files, temporary / HASH_FILE, temporary):
        sync(path)
    if final.exists():  # of a run that went on from an earlier step
        aside = final.with_name(f"{final.name}.old.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(final, aside)
    os.replace(temporary, final)
    sync(final.parent)


def remove(folder):
    """Renames first, so that a kill halfway does not leave half a checkpoint with a good name."""
    doomed = folder.with_name(f"{folder.name}.old.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def clear_leftovers(output_dir):
    """Removes what a kill left of checkpoints that were being written or removed."""
    for leftover in Path(output_dir).glob("checkpoint-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def damage(folder):
    """What is wrong with a checkpoint, in words; None if it is as it was written."""
    try:
        hashes = json.loads((folder / HASH_FILE).read_text(encoding="utf-8"))
        if STATE_FILE not in hashes or "model.safetensors" not in hashes:
            return f"{HASH_FILE} is not complete"
        for name, written in hashes.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if (folder / name).stat().st_size != written["bytes"] or _hash(folder / name) != written:
                return f"{name} is not as it was written"
    except FileNotFoundError:
        return f"{HASH_FILE} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{HASH_FILE} cannot be read ({type(error).__name__})"
    return None


def find_checkpoint(name, output_dir, say=print):
    """The checkpoint to resume from: `latest` is the newest whole one of `output_dir`, and what is passed over is said.

    Raises:
        `UsageError`: if there is none, or a named one is damaged.
    """
    if name != "latest":
        folder = Path(name)
        if not folder.is_dir() or not folder.name.removeprefix("checkpoint-").isdigit():
            raise UsageError(f"--resume_from_checkpoint {name}: no complete checkpoint there (a folder checkpoint-STEP).")
        wrong = damage(folder)
        if wrong:
            raise UsageError(f"{folder}: a checkpoint that cannot be read: {wrong}.")
        return folder
    found = checkpoints(output_dir)
    for folder in reversed(found):
        wrong = damage(folder)
        if wrong is None:
            return folder
        say(f"{folder} is damaged ({wrong}); trying the one before.")
    which = "only damaged ones" if found else "none"
    raise UsageError(f"--resume_from_checkpoint latest: no complete checkpoint in {output_dir} ({which}).")


def read_checkpoint(folder, settings):
    """State and tensors of a checkpoint, which must belong to a run with these settings.

    Raises:
        `UsageError`: if it belongs to another run, and in what they differ.
    """
    state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    saved = state.get("settings", {})
    different = [f"{k} was {saved.get(k)!r}, is {v!r}" for k, v in settings.items() if saved.get(k) != v]
    if different:
        raise UsageError(f"{folder} is a checkpoint of another run: {'; '.join(different)}.")
    return state, {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
