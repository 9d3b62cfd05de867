# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Nearest neighbours by search_embeddings.py: the exact search beside the index, in seconds and in what the index finds.

python benchmarks/neighbours.py --sizes 100000 --num_queries 100
python benchmarks/neighbours.py --vectors shards/ --num_queries 1000
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from atomica_hf import StructureError  # noqa: E402
from embedding_files import EmbeddingFiles  # noqa: E402
from search_embeddings import METRICS, build_index, open_index, search, search_index  # noqa: E402


COLUMNS = ("vectors", "width", "queries", "exact, s", "index built, s", "index opened, s", "index, s", "index, MB", "recall")


def write_vectors(path, count, width, seed=0, centres=1000, rows=100_000):
    """A Parquet file of `count` vectors of length one: normal around `centres` normal centres, half as wide as these."""
    generator = np.random.default_rng(seed)
    middles = generator.normal(size=(centres, width))
    schema = pa.schema([("index", pa.int64()), ("name", pa.string()), ("embedding", pa.list_(pa.float32()))])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, count, rows):
            numbers = np.arange(first, min(first + rows, count))
            vectors = middles[generator.integers(centres, size=len(numbers))]
            vectors = vectors + 0.5 * generator.normal(size=vectors.shape)
            vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
            starts = pa.array(np.arange(len(numbers) + 1) * width, pa.int32())
            lists = pa.ListArray.from_arrays(starts, pa.array(vectors.ravel()))
            writer.write_table(pa.table([pa.array(numbers), [f"m{i}" for i in numbers], lists], schema=schema))


def timed(function, *arguments):
    started = time.perf_counter()
    found = function(*arguments)
    return found, time.perf_counter() - started


def recall(nearest, exact):
    """Mean share of the exact neighbours that were found."""
    return float(np.mean([np.isin(right, found).mean() for right, found in zip(exact.rows, nearest.rows) if len(right)]))


def row(path, folder, number, k, metric, seed=0):
    """A row of the table: `number` rows drawn as queries, each left out of its own neighbours."""
    files = EmbeddingFiles(path)
    own = np.sort(np.random.default_rng(seed).choice(files.num_rows, min(number, files.num_rows), replace=False))
    queries = np.concatenate([block[own[(own >= i) & (own < i + len(block))] - i] for i, block, _ in files.blocks()])
    usable = np.isfinite(queries).all(axis=1) & (queries != 0).any(axis=1)
    queries, own = queries[usable], own[usable]
    index = Path(folder) / "neighbours.usearch"
    exact, exact_s = timed(search, files, queries, k, metric, own)
    _, built_s = timed(build_index, files, index, metric)
    (opened, card), opened_s = timed(open_index, files, index, metric)
    nearest, index_s = timed(search_index, files, opened, card, queries, k, metric, own)
    size = index.stat().st_size / 1e6
    seconds = (f"{value:.3g}" for value in (exact_s, built_s, opened_s, index_s))
    return (files.num_rows, files.width, len(queries), *seconds, f"{size:.0f}", f"{recall(nearest, exact):.4f}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", help="Parquet of run_embedding.py or a folder of them; by default vectors are drawn.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000], help="How many vectors to draw.")
    parser.add_argument("--width", type=int, default=32, help="Numbers in a drawn vector.")
    parser.add_argument("--num_queries", type=int, default=100, help="Rows whose neighbours are searched.")
    parser.add_argument("--k", type=int, default=10, help="Neighbours of each.")
    parser.add_argument("--metric", choices=METRICS, default="cosine", help="Distance.")
    arguments = parser.parse_args(argv)
    print(f"| {' | '.join(COLUMNS)}@{arguments.k} |\n|{'---|' * len(COLUMNS)}")
    for size in arguments.sizes if arguments.vectors is None else [None]:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # an open index cannot be deleted on Windows
            path = arguments.vectors
            if path is None:
                path = Path(folder) / "vectors.parquet"
                write_vectors(path, size, arguments.width)
            found = row(path, folder, arguments.num_queries, arguments.k, arguments.metric)
        print(f"| {' | '.join(map(str, found))} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (StructureError, OSError) as error:
        sys.exit(f"neighbours.py: error: {error}")
