# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""The folder that a script fills with files for each complex: their names and formats, and those of earlier runs."""

import contextlib
import json
import re
from pathlib import Path

import numpy as np

from atomica_hf.component_atomica import Origin


def file_name(index, name):
    """What the files of a complex are called, whatever its name holds."""
    return f"{index:05d}_{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[:60].strip('_') or 'complex'}"


def structure_suffix(example):
    """`.pdb`, or `.cif` for what does not fit into a PDB file."""
    origins = [Origin.from_text(origin) for origin in set(example["block_origins"])]
    in_file = [origin for origin in origins if origin.chain or origin.number is not None]
    positions = np.asarray(example["positions"])
    fits = (
        len(example["atom_ids"]) < 99_999
        and all(len(o.chain) < 2 and len(o.name) < 4 and -999 <= (o.number or 0) <= 9999 for o in in_file)
        and all(len(name) < 5 for name in example["atom_origins"])
        and (positions > -999).all()
        and (positions < 9999).all()
    )
    return ".pdb" if fits else ".cif"


def remove_earlier(folder, written):
    """Removes the files that the report of an earlier run names, but for those `written` now, beside which they would stand."""
    try:
        earlier = set(map(str, json.loads((folder / "report.json").read_text(encoding="utf-8"))["files"]))
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in earlier - set(written):
        if Path(name).name == name:  # in this folder
            (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder):
    """Makes a folder, and takes it away again if it was not there before and stays empty."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
