# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Parquet files of vectors, as `run_embedding.py` writes them, read block by block."""

import hashlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from atomica_hf import StructureError


ROWS_PER_BLOCK = 32768


def _is_list(kind):
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


@contextmanager
def _opened(path):
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise StructureError("bad_parquet", f"{path}: not Parquet that can be read: {str(error).splitlines()[0]}") from error


class EmbeddingFiles:
    """A Parquet file of vectors, or a folder of them, as one table whose rows are numbered from 0 in the order of the names of
    the files. Nothing is held in memory.

    Args:
        path (`str`): a file, or a folder with `.parquet` files.
        column (`str`, *optional*): the column with the vectors; by default the only one there is.

    Attributes: `column`, `width` (numbers in a vector), `num_rows`, `names` (all columns), `exact` (whether the vectors are in
    double precision), `level` (`"complex"`, `"block"` or `"atom"`).

    Raises:
        `StructureError`: if there is no such file, it is no Parquet, has no such column or not just one with vectors, or if the
            files of a folder have different columns or widths.
    """

    def __init__(self, path, column=None):
        self.path = Path(path)
        self.files = sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path]
        if not self.files or not self.path.exists():
            raise StructureError("no_file", f"{path}: no such Parquet file, or a folder without any.")
        schema, self.num_rows = None, 0
        for file in self.files:
            with _opened(file) as parquet:
                found = parquet.schema_arrow
                if schema is not None and not found.equals(schema):
                    raise StructureError("bad_parquet", f"{file}: other columns than in {self.files[0].name}: {found.names}.")
                schema, self.num_rows = found, self.num_rows + parquet.metadata.num_rows
        self.names = schema.names
        self.column = self._choose(schema, column)
        self.exact = schema.field(self.column).type.value_type == pa.float64()
        self.level = "atom" if "atom" in self.names else "block" if "block" in self.names else "complex"
        if not self.num_rows:
            raise StructureError("empty_file", f"{path}: there are no rows in it.")
        self.width = self._find_width()

    def _choose(self, schema, column):
        lists = [field.name for field in schema if _is_list(field.type)]
        vectors = [name for name in lists if pa.types.is_floating(schema.field(name).type.value_type)]
        if column is None:
            if len(vectors) == 1:
                return vectors[0]
            raise StructureError(
                "no_column",
                f"{self.path}: expected one column of vectors, found {', '.join(vectors) or 'none'} among "
                f"{', '.join(schema.names)}; name one with --column.",
            )
        if column in vectors:
            return column
        if column in lists and _is_list(schema.field(column).type.value_type):
            raise StructureError(
                "no_column",
                f"{self.path}: {column} has a list of vectors in each row; embed it alone (--representations {column}) for a "
                "row of its own for each.",
            )
        raise StructureError(
            "no_column", f"{self.path}: no column {column!r} of vectors, expected one of {', '.join(vectors) or 'none'}."
        )

    def _find_width(self):
        for file in self.files:
            with _opened(file) as parquet:
                for batch in parquet.iter_batches(1024, columns=[self.column]):
                    widths = pc.drop_null(pc.list_value_length(batch.column(0)))
                    if len(widths) and widths[0].as_py():
                        return widths[0].as_py()
                    if len(widths):
                        raise StructureError("no_vectors", f"{file}: the first vector in {self.column} has no numbers.")
        raise StructureError("no_vectors", f"{self.path}: the column {self.column} is empty in all of {self.num_rows} rows.")

    def tables(self, columns, rows=ROWS_PER_BLOCK):
        """Gives (number of the first row, `pyarrow.Table` with these columns) for at most so many rows at a time."""
        if missing := [name for name in columns if name not in self.names]:
            raise StructureError("no_column", f"{self.path}: no column {missing[0]!r}; there are {', '.join(self.names)}.")
        first = 0
        for file in self.files:
            with _opened(file) as parquet:
                for batch in parquet.iter_batches(rows, columns=list(dict.fromkeys(columns))):
                    yield first, pa.Table.from_batches([batch])
                    first += len(batch)

    def blocks(self, columns=(), rows=ROWS_PER_BLOCK):
        """Gives (number of the first row, vectors `(rows, width)`, table with `columns`). A vector that is missing is NaN.

        Raises:
            `StructureError`: if a vector has another width than the first.
        """
        for first, table in self.tables((*columns, self.column), rows):
            yield first, self._array(table[self.column].combine_chunks(), first), table.select(list(dict.fromkeys(columns)))

    def _array(self, lists, first):
        widths, present = (
            pc.list_value_length(lists).to_numpy(zero_copy_only=False),
            lists.is_valid().to_numpy(zero_copy_only=False),
        )
        if (wrong := np.flatnonzero(present & (widths != self.width))).size:
            raise StructureError(
                "other_width",
                f"{self.path}: row {first + wrong[0]} has {int(widths[wrong[0]])} numbers in {self.column}, "
                f"expected {self.width}.",
            )
        kind = np.float64 if self.exact else np.float32
        array = np.full((len(lists), self.width), np.nan, kind)
        array[present] = lists.drop_null().flatten().to_numpy(zero_copy_only=False).astype(kind).reshape(-1, self.width)
        return array

    def take(self, rows, columns):
        """Rows of these numbers as dictionaries, in the order given."""
        wanted, found = np.unique(np.asarray(rows, np.int64)), {}
        for first, table in self.tables(columns):
            inside = wanted[(wanted >= first) & (wanted < first + len(table))]
            if inside.size:
                found.update(zip(inside.tolist(), table.take(inside - first).to_pylist()))
        return [found[int(row)] for row in rows]

    def text_columns(self):
        """Those of `index`, `name` and the place in the complex that there are."""
        known = ("index", "name", "block", "atom", "segment", "token", "origin", "atom_name")
        return [name for name in known if name in self.names]

    def fingerprint(self):
        """Hash of the bytes of the files in their order."""
        return hash_of(self.files)


def hash_of(files):
    """Hash of the bytes of some files in their order."""
    found = hashlib.blake2b(digest_size=20)
    for file in files:
        with open(file, "rb") as stream:
            found.update(hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=20)).digest())
    return found.hexdigest()


def describe(row):
    """Name of a row for people: that of the complex, and of a block or atom its place in it."""
    parts = [str(row.get("name") if row.get("name") not in (None, "") else f"row {row.get('row', row.get('index', '?'))}")]
    parts += [str(row[name]) for name in ("origin", "token", "atom_name") if row.get(name) not in (None, "")]
    return " ".join(dict.fromkeys(parts))
