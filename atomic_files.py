# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Files that are there whole or not at all."""

import csv
import errno
import os
from contextlib import contextmanager, suppress
from pathlib import Path


FULL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EIO", "EFBIG")}


@contextmanager
def replacing(path):
    """Gives a temporary path beside `path`, and puts what was written there in its place; nothing after an exception.

    Raises:
        `OSError`: that names `path`, not the temporary file, if it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp{path.suffix}")  # matplotlib looks at the ending
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def sync(path):
    """Returns when a file, or the names in a folder, would survive a loss of power, where the system can say so.

    Raises:
        `OSError`: if there is no room, which a network disk may say only here.
    """
    with suppress(PermissionError):  # Windows does not open folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)  # Windows and some network disks refuse what was opened to read
        except OSError as error:
            if error.errno in FULL:
                raise
        finally:
            os.close(handle)


def write_text(path, text):
    """Writes a text file in UTF-8, lines as they are."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_table(path, rows):
    """Writes rows, dictionaries with the same keys, as CSV."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def save_figure(figure, path, dpi=120):
    """Writes a figure of matplotlib, and closes it."""
    from matplotlib import pyplot

    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
    pyplot.close(figure)
