import csv
import json
import re
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import load_script, run, tiny_model
from sklearn.neighbors import NearestNeighbors

import embedding_map
import run_embedding
import search_embeddings
from atomica_hf import StructureError
from embedding_files import EmbeddingFiles
from search_embeddings import METRICS, build_index, open_index, search, search_index


def write(path, vectors, names=None, **columns):
    names = [f"m{i}" for i in range(len(vectors))] if names is None else names
    vectors = [None if vector is None else list(vector) for vector in vectors]
    data = {"index": list(range(len(names))), "name": names, **columns, "embedding": pa.array(vectors, pa.list_(pa.float32()))}
    pq.write_table(pa.table(data), path)
    return path


def clusters(count=600, width=8, seed=0):
    """Around a few centres, with exact copies and copies that differ in the last digits."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(20, width))[generator.integers(20, size=max(count, 240))]
    vectors += 0.3 * generator.normal(size=vectors.shape)
    vectors[100:140] = vectors[7]
    vectors[200:240] = vectors[8] + 1e-6 * generator.normal(size=(40, width))
    vectors = vectors[:count]
    return vectors.astype(np.float32)


def brute_force(vectors, queries, k, metric, own):
    """Distances from differences in extended precision, then (distance, row) sorted by Python."""
    wide, found = vectors.astype(np.longdouble), []
    for query, mine in zip(queries.astype(np.longdouble), own):
        if metric == "cosine":
            unit = lambda v: v / np.sqrt((v * v).sum(axis=-1, keepdims=True))
            distances = ((unit(wide) - unit(query)) ** 2).sum(axis=1) / 2
        else:
            distances = np.sqrt(((wide - query) ** 2).sum(axis=1))
        order = sorted((float(np.round(d, 15)), i) for i, d in enumerate(distances) if i != mine)
        found.append(order[:k])
    return found


@pytest.mark.parametrize("metric", METRICS)
def test_exact_neighbours_of_copies_and_near_copies(metric, tmp_path):
    vectors = clusters()
    files = EmbeddingFiles(write(tmp_path / "v.parquet", vectors))
    own = [7, 8, 100, 210, 239, 500]
    nearest = search(files, vectors[own], 60, metric, own)
    theirs, _ = (
        NearestNeighbors(n_neighbors=61, metric=metric, algorithm="brute")
        .fit(vectors.astype(float))
        .kneighbors(vectors[own].astype(float))
    )
    for i, expected in enumerate(brute_force(vectors, vectors[own], 60, metric, own)):
        distances, rows = (np.array(part) for part in zip(*expected))
        assert np.abs(nearest.distances[i] - distances).max() < 1e-12
        assert np.abs(nearest.distances[i] - theirs[i, 1:]).max() < 1e-6  # its matrix product loses small distances
        assert (
            nearest.rows[i].tolist() == rows.tolist()
            or np.abs(distances - nearest.distances[i])[rows != nearest.rows[i]].max() < 1e-15
        )
    assert nearest.rows[0][:40].tolist() == list(range(100, 140)) and not nearest.distances[0][:40].any()
    assert nearest.rows[2][:40].tolist() == [7, *range(101, 140)]


def test_multiples_of_a_vector_are_ties_of_the_cosine(tmp_path):
    vector = np.random.default_rng(1).normal(size=16)
    vectors = np.array([vector * scale for scale in (3.7, 1e-20, 0.1, 1, 7e15, 11 / 3)])
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table({"embedding": pa.array(vectors.tolist(), pa.list_(pa.float64()))}), path)
    nearest = search(EmbeddingFiles(path), vectors[3:4], 6)
    assert nearest.rows[0].tolist() == [0, 1, 2, 3, 4, 5] and not nearest.distances[0].any()


@pytest.mark.parametrize("metric", METRICS)
def test_blocks_files_and_chunks_of_queries_change_nothing(metric, tmp_path, monkeypatch):
    vectors = clusters()
    vectors[300] = np.nan
    whole = EmbeddingFiles(write(tmp_path / "v.parquet", vectors))
    folder = tmp_path / "shards"
    folder.mkdir()
    for i, (first, last) in enumerate(((0, 1), (1, 205), (205, 600))):
        write(folder / f"part-{i}.parquet", vectors[first:last])
    expected = search(whole, vectors[:30], 12, metric)
    monkeypatch.setattr(search_embeddings, "DISTANCES_AT_ONCE", 100)
    for files, rows in ((whole, 7), (EmbeddingFiles(folder), 64)):
        found = search(files, vectors[:30], 12, metric, rows_per_block=rows)
        assert all(np.array_equal(a, b) for a, b in zip(found.rows, expected.rows))
        assert all(np.array_equal(a, b) for a, b in zip(found.distances, expected.distances))
        assert found.left_out == [300]


@pytest.mark.parametrize("metric", METRICS)
def test_the_index_finds_what_the_exact_search_finds(metric, tmp_path):
    pytest.importorskip("usearch", reason="the optional package usearch is not installed")
    vectors = clusters(3000, 16)
    vectors[[50, 1000]] = np.nan
    files = EmbeddingFiles(write(tmp_path / "v.parquet", vectors))
    card = build_index(files, tmp_path / "v.usearch", metric)
    index, card = open_index(files, tmp_path / "v.usearch", metric)
    own = list(range(300, 400))
    exact, found = search(files, vectors[own], 10, metric, own), search_index(files, index, card, vectors[own], 10, metric, own)
    assert card["left_out"] == found.left_out == exact.left_out == [50, 1000]
    assert all(row not in rows and len(rows) == 10 for row, rows in zip(own, found.rows))
    assert load_script("benchmarks/neighbours.py").recall(found, exact) > 0.98
    for i in range(len(own)):
        same = np.isin(found.rows[i], exact.rows[i])
        assert np.array_equal(found.distances[i][same], exact.distances[i][np.isin(exact.rows[i], found.rows[i])])
    assert not list(tmp_path.glob("*.tmp*"))


def test_an_index_of_something_else_is_refused(tmp_path):
    pytest.importorskip("usearch", reason="the optional package usearch is not installed")
    vectors, path = clusters(), tmp_path / "v.usearch"
    files = EmbeddingFiles(write(tmp_path / "v.parquet", vectors))
    build_index(files, path)
    for change, metric, words in (
        (vectors[::-1], "cosine", "made of other vectors"),
        (vectors[:-1], "cosine", "made for rows 600, expected 599"),
        (vectors[:, :5], "cosine", "made for width 8, expected 5"),
        (vectors, "euclidean", "made for metric 'cosine', expected 'euclidean'"),
    ):
        other = EmbeddingFiles(write(tmp_path / "other.parquet", change))
        with pytest.raises(StructureError, match=words):
            open_index(other, path, metric)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StructureError, match="damaged"):
        open_index(files, path)
    (tmp_path / "v.usearch.json").unlink()
    with pytest.raises(StructureError, match="nobody knows"):
        open_index(files, path)


def test_without_its_package_the_index_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch", None)
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    path = write(tmp_path / "v.parquet", clusters())
    with pytest.raises(StructureError, match="pip install usearch"):
        search_embeddings.main(["--vectors", str(path), "--rows", "0", "--index", str(tmp_path / "i")])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["v.parquet"]


def test_the_command_writes_the_neighbours_of_names_and_rows(tmp_path, capsys):
    vectors = list(clusters(50))
    vectors[3], vectors[4], vectors[5] = None, np.full(8, np.nan), np.zeros(8)
    names = ["twice" if i in (10, 20) else "" if i == 30 else f"m{i}" for i in range(50)]
    path = write(tmp_path / "v.parquet", vectors, names)
    for ending, read in ((".csv", lambda p: list(csv.DictReader(open(p, encoding="utf-8")))),
                         (".parquet", lambda p: pq.read_table(p).to_pylist())):  # fmt: skip
        output = tmp_path / f"out/n{ending}"
        options = ["--names", "twice", "m4", "--rows", "30", "--k", "3", "--output_file", str(output)]
        search_embeddings.main(["--vectors", str(path), *options])
        text = capsys.readouterr().out
        assert "1 query left out, missing, NaN or zero: m4." in text
        assert "3 rows left out, missing, NaN or zero: row 3 (m3), row 4 (m4), row 5 (m5)." in text
        rows = read(output)
        assert [row["query"] for row in rows] == ["twice"] * 6 + ["row 30"] * 3
        exact = search(EmbeddingFiles(path), np.array([vectors[10], vectors[20], vectors[30]]), 3, own=[10, 20, 30])
        assert [int(row["row"]) for row in rows] == np.concatenate(exact.rows).tolist()
        assert np.allclose([float(row["distance"]) for row in rows], np.concatenate(exact.distances), rtol=0, atol=0)
        assert all(row["name"] == names[int(row["row"])] for row in rows)
    search_embeddings.main(["--vectors", str(path), "--rows", "10", "--k", "1", "--include_self"])
    assert "0           10        twice" in capsys.readouterr().out


def test_what_does_not_fit_is_named(tmp_path):
    vectors = clusters(20)
    path = write(tmp_path / "v.parquet", vectors)
    narrow = write(tmp_path / "narrow.parquet", vectors[:, :5])
    nested = tmp_path / "nested.parquet"
    pq.write_table(pa.table({"h_block": [[[1.0, 2.0]]], "a": [[1.0]], "b": [[1.0]]}), nested)
    ragged = write(tmp_path / "ragged.parquet", [[1, 2], [1, 2, 3]])
    (tmp_path / "text.parquet").write_text("no")
    good = {"--vectors": path, "--rows": 0}
    for change, words in (
        ({"--vectors": tmp_path / "gone.parquet"}, "gone.parquet: no such Parquet"),
        ({"--vectors": tmp_path / "text.parquet"}, "not Parquet that can be read"),
        ({"--vectors": nested}, "expected one column of vectors, found a, b among h_block, a, b"),
        ({"--vectors": nested, "--column": "h_block"}, "--representations h_block"),
        ({"--vectors": path, "--column": "name"}, "no column 'name' of vectors, expected one of embedding"),
        ({"--vectors": ragged}, "row 1 has 3 numbers in embedding, expected 2"),
        ({"--rows": 20}, "rows 0 to 19"),
        ({"--rows": None, "--names": "nobody"}, "not in .*: nobody"),
        ({"--rows": None}, "Expected one of"),
        ({"--query_vectors": narrow}, "found --names or --rows and --query_vectors"),
        ({"--rows": None, "--query_vectors": narrow}, "The queries have 5 numbers each, the vectors of .* 8"),
        ({"--rows": None, "--smiles": "CCO"}, "--smiles needs --model_name_or_path"),
        ({"--k": 0}, "--k is 0"),
        ({"--output_file": tmp_path / "n.txt"}, "ends in .csv or .parquet"),
    ):
        options = {**good, **change}
        with pytest.raises(StructureError, match=words):
            search_embeddings.main([str(x) for pair in options.items() if pair[1] is not None for x in pair])


def test_molecules_find_themselves_through_the_model(processor, tmp_path, capsys):
    folder, molecules = tmp_path / "model", tmp_path / "m.csv"
    tiny_model(dtype=torch.float32).save_pretrained(folder)
    processor.save_pretrained(folder)
    molecules.write_text("name,smiles\nethanol,CCO\naspirin,CC(=O)Oc1ccccc1C(=O)O\nphenol,Oc1ccccc1\npair,CCO.O\n")
    named = ["--representations", "z_graph", "--pooling", "mean_std_global"]
    for level, options in (("complex", []), ("block", ["--level", "block"]), ("named", named)):
        path = tmp_path / f"{level}.parquet"
        base = ["--model_name_or_path", str(folder), "--device", "cpu"]
        run_embedding.main([*base, "--input_file", str(molecules), "--output_file", str(path), *options])
        pooling = named[2:] if level == "named" else []
        output = tmp_path / "n.csv"
        smiles = ["CC(=O)Oc1ccccc1C(=O)O", "c1cc", "CCO"]
        queries = ["--smiles", *smiles, "--k", "1", "--output_file", str(output)]
        search_embeddings.main(["--vectors", str(path), *base, *pooling, *queries])
        text = capsys.readouterr().out
        assert "c1cc" in text and "1 kept" not in text and "2 kept, 1 left out" in text
        assert "queries.parquet" not in text and re.search(r"^queries: \d+ embedded", text, re.MULTILINE)
        rows = list(csv.DictReader(open(output, encoding="utf-8")))
        assert all(float(row["distance"]) < 1e-10 for row in rows)
        if level == "block":
            assert rows[1]["query"].startswith("CC(=O)Oc1ccccc1C(=O)O ") and {row["block"] for row in rows} >= {"0", "1"}
        else:
            assert [row["name"] for row in rows] == ["aspirin", "ethanol"]
    search_embeddings.main(["--vectors", str(tmp_path / "complex.parquet"), *base, "--query_file", str(molecules), "--k", "1"])
    assert "4 queries among 4 rows" in capsys.readouterr().out


def test_the_script_and_the_measurement_run(tmp_path, capsys):
    path = write(tmp_path / "v.parquet", clusters(40))
    done = run("search_embeddings.py", "--vectors", path, "--names", "nobody")
    assert done.returncode == 1 and done.stderr.strip() == f"search_embeddings.py: error: --names: not in {path}: nobody."
    pytest.importorskip("usearch", reason="the optional package usearch is not installed")
    search_embeddings.main(["--vectors", str(path), "--index", str(tmp_path / "i" / "v.usearch")])
    assert "index of 40 vectors written" in capsys.readouterr().out
    assert json.loads((tmp_path / "i" / "v.usearch.json").read_text())["rows"] == 40
    benchmark = load_script("benchmarks/neighbours.py")
    benchmark.main(["--vectors", str(path), "--num_queries", "10", "--k", "5"])
    benchmark.main(["--sizes", "500", "--width", "6", "--num_queries", "10"])


def test_a_file_is_named_instead_of_a_long_table(tmp_path, capsys):
    path, output = write(tmp_path / "v.parquet", clusters(40)), tmp_path / "n.csv"
    options = ["--vectors", str(path), "--rows", "0", "--k", "30"]
    search_embeddings.main(options)
    text = capsys.readouterr().out
    assert len(text.splitlines()) == 32 and "\n1 query among 40 rows" in text
    search_embeddings.main([*options, "--output_file", str(output)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 and lines[6] == f"... and 25 more in {output}." and lines[7] == f"{output}: 30 neighbours written."
    assert len(output.read_text(encoding="utf-8").splitlines()) == 31


def test_names_of_several_lines_stay_on_one(tmp_path, capsys):
    path = tmp_path / "v.parquet"
    names = ["one\ntwo", "three\tfour", "five"]
    pq.write_table(pa.table({"name": names, "embedding": [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]}), path)
    search_embeddings.main(["--vectors", str(path), "--rows", "0", "--k", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("one two") and lines[1].endswith("three four") and len(lines) == 4


def test_bad_smiles_are_those_of_the_command(processor, tmp_path):
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table({"name": ["a"], "embedding": [[1.0, 0.0]]}), path)
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    with pytest.raises(StructureError, match="^--smiles: no usable example"):
        search_embeddings.main(["--vectors", str(path), "--smiles", "C1CC", "--model_name_or_path", str(tmp_path / "model")])


@pytest.mark.parametrize("script", [search_embeddings, embedding_map])
def test_unknown_options_end_the_script(script, capsys):
    with pytest.raises(SystemExit) as end:
        script.main(["--vectors", "x.parquet", "--bogus", "1"])
    assert end.value.code == 2 and "not understood: --bogus 1" in capsys.readouterr().err
