# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Nearest neighbours among vectors that run_embedding.py wrote: exact, or from an index for millions.

python search_embeddings.py --vectors vectors.parquet --names aspirin caffeine --k 5
python search_embeddings.py --vectors shards/ --smiles "CC(=O)Oc1ccccc1C(=O)O" --model_name_or_path my-atomica
python search_embeddings.py --vectors shards/ --query_file new.csv --model_name_or_path my-atomica \\
    --index vectors.usearch --output_file neighbours.csv
"""

import io
import json
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers.hf_argparser import HfArg

from atomic_files import replacing, write_table, write_text
from atomica_hf import StructureError
from atomica_hf.modeling_atomica import REPRESENTATION_POOLINGS
from embedding_files import ROWS_PER_BLOCK, EmbeddingFiles, describe, hash_of
from script_arguments import ScriptParser, run_script


METRICS = ("cosine", "euclidean")
COSINE_DECIMALS = 15  # two vectors of one direction differ by less after they are scaled to length one
DISTANCES_AT_ONCE = 2**22
LARGEST = 1e150  # its square is still finite
SHOWN, SHOWN_BESIDE_FILE, NAMED = 40, 5, 5  # rows of the table, also if a file has all, and of those left out, on the screen


@dataclass
class SearchArguments:
    vectors: str = HfArg(help="Parquet file of run_embedding.py, or a folder of them, among whose rows is searched.")
    column: str | None = HfArg(default=None, help="Column with the vectors; by default the only one there is.")
    names: list[str] = HfArg(default_factory=list, help="Queries: all rows of --vectors with these names.")
    rows: list[int] = HfArg(default_factory=list, help="Queries: the rows of --vectors with these numbers, from 0.")
    query_vectors: str | None = HfArg(default=None, help="Queries: another Parquet file of vectors, or a folder of them.")
    smiles: list[str] = HfArg(default_factory=list, help="Queries: SMILES, embedded with --model_name_or_path.")
    query_file: str | None = HfArg(default=None, help="Queries: a file that run_embedding.py reads, embedded likewise.")
    model_name_or_path: str | None = HfArg(default=None, help="Folder or hub id of the model that made --vectors.")
    pooling: str | None = HfArg(
        default=None,
        metadata={"choices": list(REPRESENTATION_POOLINGS)},
        help="What --vectors was made with, if it has z_graph or z_interface.",
    )
    segment: int | None = HfArg(default=None, help="What --vectors was made with, if it has h_interface or z_interface.")
    device: str | None = HfArg(default=None, help="Of the model: cpu, cuda, mps; by default the best there is.")
    k: int = HfArg(default=10, help="How many neighbours of each query.")
    metric: str = HfArg(default="cosine", metadata={"choices": list(METRICS)}, help="Distance; cosine is 1 - the cosine.")
    include_self: bool = HfArg(default=False, help="Keep the query itself among its neighbours (with --names and --rows).")
    index: str | None = HfArg(
        default=None,
        help="Search in this index file; it is built first if it does not exist. Nearly exact, for millions of vectors; needs "
        "the package usearch.",
    )
    output_file: str | None = HfArg(default=None, help="Table with all neighbours to write: .csv or .parquet.")


# distances ------------------------------------------------------------------------------------------------------------------


def prepared(vectors, metric):
    """Vectors `(n, width)` in double precision, of length one for `cosine`; and which of them can be compared: all numbers
    finite and, for `cosine`, not all zero. The others are zero."""
    vectors = np.array(vectors, np.float64)
    scale = np.abs(vectors).max(axis=1)
    usable = scale < LARGEST  # NaN is not
    vectors[~usable] = 0
    if metric == "cosine":
        usable &= scale > 0
        vectors /= np.where(usable, scale, 1)[:, None]  # so that no square is too small
        vectors /= np.where(usable, np.sqrt((vectors**2).sum(axis=1)), 1)[:, None]
    return vectors, usable


def distances_to(query, vectors, metric):
    """Distances `(n,)` between one prepared vector and `n`, from their differences, so that near duplicates are told apart.
    For two vectors of length one, 1 - cosine is half their squared distance."""
    squares = ((vectors - query) ** 2).sum(axis=1)
    return np.round(squares / 2, COSINE_DECIMALS) if metric == "cosine" else np.sqrt(squares)


class Nearest:
    """The `k` nearest of all vectors that were shown, for each query; equal distances in the order of the rows.

    Args:
        queries (`np.ndarray` of shape `(num_queries, width)`): as `prepared` gives them.
        own (`list[int]`, *optional*): for each query a row that is not its neighbour.

    Attributes: `distances` and `rows`, for each query an array of at most `k`; `left_out`, the rows that cannot be compared.
    """

    def __init__(self, queries, k, metric="cosine", own=None):
        self.queries, self.k, self.metric = queries, k, metric
        self.own = np.full(len(queries), -1) if own is None else np.asarray(own)
        self.distances = [np.empty(0)] * len(queries)
        self.rows = [np.empty(0, np.int64)] * len(queries)
        self.left_out = []

    def add(self, first, vectors):
        """Shows vectors `(n, width)` of the rows from `first` on."""
        vectors, usable = prepared(vectors, self.metric)
        rows = np.flatnonzero(usable) + first
        self.left_out += (np.flatnonzero(~usable) + first).tolist()
        vectors = vectors[usable]
        if not len(rows):
            return
        norms, step = (vectors**2).sum(axis=1), max(1, DISTANCES_AT_ONCE // len(rows))
        for start in range(0, len(self.queries), step):
            queries = self.queries[start : start + step]
            own = (queries**2).sum(axis=1)
            squares = own[:, None] + norms - 2 * (queries @ vectors.T)
            margin = 64 * len(vectors[0]) * np.finfo(float).eps * (own + norms.max()) + 2 * 10.0**-COSINE_DECIMALS
            for i in range(len(queries)):
                self._merge(start + i, squares[i], margin[i], vectors, rows)

    def _merge(self, i, squares, margin, vectors, rows):
        """The product of matrices is rounded: it only says who may be among the nearest, within twice its error."""
        best = np.partition(squares, min(self.k, len(squares) - 1))[: self.k + 1].max()  # one more than k: the row itself
        if len(self.distances[i]) == self.k:
            last = self.distances[i][-1]
            best = min(best, 2 * last if self.metric == "cosine" else last**2)
        chosen = np.flatnonzero((squares <= best + 2 * margin) & (rows != self.own[i]))
        self.put(i, vectors[chosen], rows[chosen])

    def put(self, i, vectors, rows):
        """Shows query `i` some prepared vectors only."""
        distances = np.concatenate([self.distances[i], distances_to(self.queries[i], vectors, self.metric)])
        rows = np.concatenate([self.rows[i], rows])
        order = np.lexsort((rows, distances))[: self.k]
        self.distances[i], self.rows[i] = distances[order], rows[order]


def search(files, queries, k=10, metric="cosine", own=None, rows_per_block=ROWS_PER_BLOCK):
    """Exact neighbours, with no more than a block of rows in memory.

    Args:
        files (`EmbeddingFiles`): among whose rows is searched.
        queries (`np.ndarray` of shape `(num_queries, width)`): finite, and not zero for `cosine`.
        own (`list[int]`, *optional*): for each query a row that is not its neighbour; -1 for none.

    Returns:
        `Nearest`.
    """
    nearest = Nearest(check_queries(files, queries, metric), k, metric, own)
    for first, vectors, _ in files.blocks(rows=rows_per_block):
        nearest.add(first, vectors)
    return nearest


def check_queries(files, queries, metric):
    """The queries `prepared`.

    Raises:
        `StructureError`: if they have another width, or cannot be compared.
    """
    queries = np.atleast_2d(np.asarray(queries))
    if queries.shape[1] != files.width:
        raise StructureError(
            "other_width", f"The queries have {queries.shape[1]} numbers each, the vectors of {files.path} {files.width}."
        )
    queries, usable = prepared(queries, metric)
    if not usable.all():
        raise StructureError("bad_query", f"Query {np.flatnonzero(~usable)[0]} is not finite, or zero, which has no direction.")
    return queries


# index ----------------------------------------------------------------------------------------------------------------------


def _usearch():
    try:
        from usearch.index import Index
    except ImportError as error:
        raise StructureError("no_package", "--index needs the package usearch: pip install usearch") from error
    return Index


def _card(index):
    return Path(f"{index}.json")


def build_index(files, path, metric="cosine"):
    """Writes an index (a graph of near neighbours, HNSW) of all vectors that can be compared, and a JSON beside it that says of
    which. Returns what is in the JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "f64" if files.exact else "f32"
    index, left_out = _usearch()(ndim=files.width, metric="cos" if metric == "cosine" else "l2sq", dtype=kind), []
    for first, vectors, _ in files.blocks():
        _, usable = prepared(vectors, metric)
        left_out += (np.flatnonzero(~usable) + first).tolist()
        if usable.any():
            index.add((np.flatnonzero(usable) + first).astype(np.uint64), vectors[usable])
    if not len(index):
        raise StructureError("no_vectors", f"{files.path}: no vector in {files.column} that could be compared.")
    card = {
        "library": "usearch", "metric": metric, "column": files.column, "width": files.width, "dtype": kind,
        "rows": files.num_rows, "left_out": left_out, "vectors": files.fingerprint(),
    }  # fmt: skip
    with replacing(path) as temporary:
        try:
            index.save(str(temporary))
        except RuntimeError as error:
            raise StructureError("cannot_write", f"{path}: cannot be written: {error}.") from error
        card["index"] = hash_of([temporary])
    write_text(_card(path), json.dumps(card, indent=1) + "\n")
    return card


def open_index(files, path, metric="cosine"):
    """An index of `build_index`, and what is in its JSON.

    Raises:
        `StructureError`: if it is of other vectors, another column or metric, damaged, or its JSON is missing.
    """
    try:
        card = json.loads(_card(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StructureError(
            "bad_index", f"{_card(path)}: cannot be read, so nobody knows of what {path} is an index."
        ) from error
    expected = {"metric": metric, "column": files.column, "width": files.width, "rows": files.num_rows}
    for name, value in expected.items():
        if card.get(name) != value:
            raise StructureError("other_index", f"{path}: made for {name} {card.get(name)!r}, expected {value!r}.")
    if card.get("vectors") != files.fingerprint():
        raise StructureError(
            "other_index", f"{path}: made of other vectors than those in {files.path}; delete it to build it anew."
        )
    if card.get("index") != hash_of([path]):
        raise StructureError("bad_index", f"{path}: damaged, or not the file that {_card(path).name} describes; delete both.")
    index = _usearch().restore(str(path), view=True)
    if index is None:
        raise StructureError("bad_index", f"{path}: usearch cannot open it.")
    return index, card


def search_index(files, index, card, queries, k=10, metric="cosine", own=None):
    """As `search`, among what the index finds: some more than `k`, whose distances are then computed as in the exact search."""
    nearest = Nearest(check_queries(files, queries, metric), k, metric, own)
    nearest.left_out = card["left_out"]
    queries = np.atleast_2d(queries).astype(np.float64 if files.exact else np.float32)
    found = index.search(queries, min(len(index), 2 * k + 10))
    keys = np.asarray(found.keys).reshape(len(queries), -1)
    for i, count in enumerate(np.atleast_1d(getattr(found, "counts", keys.shape[1]))):
        rows = keys[i, :count].astype(np.int64)
        rows = rows[rows != nearest.own[i]]
        if len(rows):
            vectors, _ = prepared(np.reshape(index.get(rows.astype(np.uint64)), (-1, files.width)), metric)
            nearest.put(i, vectors, rows)
    return nearest


# queries --------------------------------------------------------------------------------------------------------------------


def _titles(first, table, chosen):
    if not table.num_columns:
        return [f"row {first + i}" for i in chosen]
    return [describe(row) for row in table.take(pa.array(chosen, pa.int64())).to_pylist()]


def rows_of(files, names, numbers):
    """Queries by name or number of a row: (vectors, their names, their rows).

    Raises:
        `StructureError`: if a name or number is not there.
    """
    if bad := [row for row in numbers if not 0 <= row < files.num_rows]:
        raise StructureError("no_row", f"--rows {bad[0]}: {files.path} has rows 0 to {files.num_rows - 1}.")
    columns, vectors, titles, rows, missing = files.text_columns(), [], [], [], set(names)
    if names and "name" not in columns:
        raise StructureError("no_column", f"--names: {files.path} has no column 'name'.")
    for first, block, table in files.blocks(columns):
        chosen = {row - first for row in numbers if first <= row < first + len(block)}
        if names:
            found = table["name"].to_pylist()
            chosen |= {i for i, name in enumerate(found) if name in names}
            missing -= set(found)
        chosen = sorted(chosen)
        vectors.append(block[chosen])
        titles += _titles(first, table, chosen)
        rows += [first + i for i in chosen]
    if missing:
        raise StructureError("no_name", f"--names: not in {files.path}: {', '.join(sorted(missing))}.")
    return np.concatenate(vectors), titles, rows


def all_of(files):
    """Queries from a whole Parquet file: (vectors, names)."""
    columns, vectors, titles = files.text_columns(), [], []
    for first, block, table in files.blocks(columns):
        vectors.append(block)
        titles += _titles(first, table, range(len(block)))
    return np.concatenate(vectors), titles


def embedded(arguments, files, folder):
    """`EmbeddingFiles` of the SMILES or the file to search for, made by run_embedding.py as `files` were."""
    import run_embedding

    source = arguments.query_file
    if arguments.smiles:
        source = Path(folder) / "queries.csv"
        write_table(source, [{"name": smiles, "smiles": smiles} for smiles in arguments.smiles])
    output = Path(folder) / "queries.parquet"
    options = ["--model_name_or_path", arguments.model_name_or_path, "--input_file", source, "--output_file", output]
    options += ["--level", files.level] if files.column == "embedding" else ["--representations", files.column]
    for name in ("pooling", "segment", "device"):
        if (value := getattr(arguments, name)) is not None:
            options += [f"--{name}", value]
    try:
        with redirect_stdout(io.StringIO()) as said:  # what it says is of a file that will not stay
            run_embedding.main([str(option) for option in (*options, "--dtype", "float64" if files.exact else "float32")])
    except StructureError as error:
        if not arguments.smiles:
            raise
        raise StructureError(error.code, str(error).replace(str(source), "--smiles")) from error
    found, summary = EmbeddingFiles(output, files.column), said.getvalue().partition("Input: ")[2].strip()
    print(f"queries: {found.num_rows} embedded. Input: {summary}")
    return found


def queries_of(arguments, files, folder):
    """(Vectors, names, rows or None) of what is searched for."""
    if arguments.names or arguments.rows:
        return rows_of(files, set(arguments.names), arguments.rows)
    if arguments.query_vectors:
        return (*all_of(EmbeddingFiles(arguments.query_vectors, arguments.column)), None)
    return (*all_of(embedded(arguments, files, folder)), None)


# the script -----------------------------------------------------------------------------------------------------------------


def check(arguments):
    """Raises `StructureError` for options that do not fit together."""
    sources = {
        "--names or --rows": bool(arguments.names or arguments.rows),
        "--query_vectors": bool(arguments.query_vectors),
        "--smiles": bool(arguments.smiles),
        "--query_file": bool(arguments.query_file),
    }
    given = [name for name, value in sources.items() if value]
    builds = arguments.index and not Path(arguments.index).exists()
    if len(given) > 1 or (not given and not builds):
        raise StructureError("usage", f"Expected one of {', '.join(sources)}, found {' and '.join(given) or 'none'}.")
    if (arguments.smiles or arguments.query_file) and not arguments.model_name_or_path:
        raise StructureError("usage", f"{given[0]} needs --model_name_or_path, the model that made {arguments.vectors}.")
    if arguments.k < 1:
        raise StructureError("usage", f"--k is {arguments.k}, expected at least 1.")
    if arguments.output_file and Path(arguments.output_file).suffix not in (".csv", ".parquet"):
        raise StructureError("usage", f"--output_file {arguments.output_file}: expected a name that ends in .csv or .parquet.")
    return bool(given)


def table_of(files, titles, nearest):
    """Neighbours as rows: query, rank from 1, distance, number of the row, and what the Parquet says of it."""
    columns, found = files.text_columns(), []
    texts = iter(files.take(np.concatenate(nearest.rows), columns) if columns else [{}] * sum(map(len, nearest.rows)))
    for title, distances, rows in zip(titles, nearest.distances, nearest.rows):
        for rank, (distance, row) in enumerate(zip(distances.tolist(), rows.tolist()), 1):
            found.append({"query": title, "rank": rank, "distance": distance, "row": row, **next(texts)})
    return found


def write(path, rows):
    """Writes the table as CSV or Parquet."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        return write_table(path, rows)
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)


def show(rows, file=None):
    """Prints the first rows of the table; fewer, if a file has all."""
    most = SHOWN if file is None else SHOWN_BESIDE_FILE
    width = max(len(row["query"]) for row in rows[:most])
    width = min(max(width, 5), 40)
    print(f"{'query':{width}}  rank  distance    row       name")
    for row in rows[:most]:
        query, name = (" ".join(text.split()) for text in (row["query"], describe(row)))  # a name may have lines
        print(f"{query[:width]:{width}}  {row['rank']:<4}  {row['distance']:<10.6g}  {row['row']:<8}  {name}")
    if len(rows) > most:
        print(f"... and {len(rows) - most} more{'; --output_file writes all' if file is None else f' in {file}'}.")


def _count(number, one, many):
    return f"{number} {one if number == 1 else many}"


def _titles_of(files, rows):
    columns = files.text_columns()
    found = files.take(rows, columns) if columns else [{}] * len(rows)
    return [f"row {row} ({describe(texts)})" if texts else f"row {row}" for row, texts in zip(rows, found)]


def _some(names, total):
    return ", ".join(names[:NAMED]) + (", ..." if total > NAMED else "")


def main(argv=None):
    parser = ScriptParser(SearchArguments, description=__doc__)
    (arguments,) = parser.parse_args_into_dataclasses(argv)
    has_queries = check(arguments)
    files, metric = EmbeddingFiles(arguments.vectors, arguments.column), arguments.metric
    if arguments.index and not Path(arguments.index).exists():
        card = build_index(files, arguments.index, metric)
        print(f"{arguments.index}: index of {card['rows'] - len(card['left_out'])} vectors written.")
        if not has_queries:
            return
    with tempfile.TemporaryDirectory() as folder:
        queries, titles, own = queries_of(arguments, files, folder)
    usable = prepared(queries, metric)[1]
    bad = [title for title, good in zip(titles, usable) if not good]
    if not usable.any():
        raise StructureError(
            "bad_query", f"None of {len(queries)} queries can be compared (missing, NaN or zero): {bad[0]}, ..."
        )
    own = None if own is None or arguments.include_self else np.asarray(own)[usable]
    titles = [title for title, good in zip(titles, usable) if good]
    if arguments.index:
        index, card = open_index(files, arguments.index, metric)
        nearest = search_index(files, index, card, queries[usable], arguments.k, metric, own)
    else:
        nearest = search(files, queries[usable], arguments.k, metric, own)
    rows = table_of(files, titles, nearest)
    if not rows:
        raise StructureError("no_neighbours", f"{files.path}: no vector that could be compared, besides the queries.")
    show(rows, arguments.output_file)
    if arguments.output_file:
        write(arguments.output_file, rows)
        print(f"{arguments.output_file}: {_count(len(rows), 'neighbour', 'neighbours')} written.")
    if bad:
        print(f"{_count(len(bad), 'query', 'queries')} left out, missing, NaN or zero: {_some(bad, len(bad))}.")
    how = "index, nearly exact" if arguments.index else "exact"
    queries, among = _count(len(titles), "query", "queries"), _count(files.num_rows, "row", "rows")
    print(f"{queries} among {among} of {files.path}, {metric}, {how}.")
    if nearest.left_out:
        left_out, total = _titles_of(files, nearest.left_out[:NAMED]), len(nearest.left_out)
        print(f"{_count(total, 'row', 'rows')} left out, missing, NaN or zero: {_some(left_out, total)}.")


if __name__ == "__main__":
    run_script(main)
