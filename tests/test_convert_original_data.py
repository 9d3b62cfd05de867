import collections
import copy
import gzip
import itertools
import json
import os
import pickle
import runpy
import struct
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, VOCAB_SIZE, run

import convert_original_data
import dataset_shards
import plain_pickle
import prepare_dataset
import prepared_datasets
from atomica_hf import AtomicaPreTrainingCollator, ReadReport, StructureError
from convert_original_data import example_to_record, read_original_records, record_to_example
from original_data import NO_TORSION_MASK, UNKNOWN_ELEMENT, read_original_examples


FIELDS = ("X", "B", "A", "block_lengths", "segment_ids", "torsion_mask")


def make_record(name="complex", seed=0):
    """A serine and a glycine beside a chain of four atoms; everything but the block embeddings."""
    positions = np.random.default_rng(seed).normal(size=(16, 3)).astype(np.float32) * 5
    data = {
        "X": positions.tolist(),
        "B": [3, 20, 4, 3, 37, 38],
        "A": [2, 9, 8, 8, 10, 8, 10, 9, 8, 8, 10, 2, 8, 8, 9, 10],
        "atom_positions": [2, 3, 4, 3, 3, 5, 6, 3, 4, 3, 3, 2, 1, 1, 1, 1],
        "block_lengths": [1, 6, 4, 1, 3, 1],
        "segment_ids": [0, 0, 0, 1, 1, 1],
        "torsion_mask": [
            {"type": 0, "edges": [[[1, 4]], None], "mask_rotate": [[[False] * 4 + [True] * 2], None]},
            {"type": 1, "edges": [[1, 2]], "mask_rotate": [[True, True, False, False]]},
        ],
    }
    indexes = {"1": "A_12", "2": "A_-3B", "5": "somewhere"}
    return {"id": name, "affinity": {"neglog_aff": 6.5}, "data": data, "block_to_pdb_indexes": indexes, "modality": 1}


def with_arrays(record):
    record = copy.deepcopy(record)
    record["data"]["X"] = np.array(record["data"]["X"])
    record["data"]["A"] = np.asfortranarray(record["data"]["A"], dtype=">i2")
    last = record["data"]["torsion_mask"][-1]
    last["mask_rotate"] = None if last["mask_rotate"] is None else np.array(last["mask_rotate"])
    record["affinity"]["neglog_aff"] = np.float64(record["affinity"]["neglog_aff"])
    record["block_to_pdb_indexes"] = {int(key): value for key, value in record["block_to_pdb_indexes"].items()}
    return record


def plain(example):
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in example.items()}


def convert(record, name="complex"):
    return plain(record_to_example(record, name, VOCAB_SIZE))


def same(example, other):
    assert example.keys() == other.keys()
    for key in example:
        assert example[key] == other[key], key


@pytest.fixture(scope="module")
def records(examples):
    """What `AtomicaProcessor.encode` gives for six inputs, and two complexes with residues."""
    made = [example_to_record({**example, "label": float(i)}) for i, example in enumerate(examples)]
    return made + [{**make_record(f"complex {i}", i), "affinity": {"neglog_aff": 6.5 + i}} for i in range(2)]


def write_json_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# examples and records ---------------------------------------------------------------------------------------------------


def test_an_example_has_what_encode_gives_and_says_the_same(examples, processor):
    for example in examples:
        back = record_to_example(example_to_record(example), example["name"], len(processor.tokenizer))
        expected = {key: value for key, value in example.items() if key not in ("example_index", "epoch")}
        assert list(back) == list(expected)
        for key in ("input_ids", "token_type_ids", "attention_mask", "atom_ids", "atom_to_block", "positions"):
            assert back[key].dtype == expected[key].dtype and np.array_equal(back[key], expected[key]), key
        for key in ("torsion_bonds", "segment_is_polymer", "block_origins"):
            assert back[key] == expected[key], key
        assert back["torsion_atoms"] == [sorted(atoms) for atoms in expected["torsion_atoms"]]
    assert any(example["torsion_bonds"] for example in examples)


def test_a_record_and_back_is_the_same_record(records):
    for record in records:
        back = example_to_record(record_to_example(record, record["id"], VOCAB_SIZE))
        assert back["id"] == record["id"] and back["affinity"] == record["affinity"]
        assert back["block_to_pdb_indexes"] == record["block_to_pdb_indexes"]
        for key in FIELDS:
            assert back["data"][key] == record["data"][key], key
        assert json.loads(json.dumps(back)) == back


def test_a_published_record_and_back_is_the_same_record(shared):
    record = json.loads((shared / "data/original/PL.json").read_text())
    example = record_to_example(record, record["id"], 440)
    assert example["label"] == -1.0 and example["segment_is_polymer"] == [1, 0] and len(example["torsion_bonds"]) == 47
    assert example["block_origins"][:2] == ["", "A:CYS:12"] and example["atom_origins"][:3] == ["", "N", "C"]
    back = example_to_record(example)
    assert np.array_equal(back["data"]["X"], np.array(record["data"]["X"], dtype=np.float32))
    for key in FIELDS[1:]:
        assert back["data"][key] == record["data"][key], key
    assert back["block_to_pdb_indexes"] == record["block_to_pdb_indexes"]


def test_bonds_turn_the_end_that_is_in_the_mask():
    record = make_record()
    example = convert(record)
    assert example["torsion_bonds"] == [[2, 5], [14, 13]] and example["torsion_atoms"] == [[5, 6], [12, 13]]
    assert example["segment_is_polymer"] == [1, 0] and example["modality_ids"] == 1 and example["label"] == 6.5
    assert example["block_origins"] == ["", "A:SER:12", "A:GLY:-3B", "", "", "somewhere"]
    record["data"]["torsion_mask"][0]["edges"][0] = [[4, 1]]
    same(convert(record), example)
    assert example_to_record(convert(record))["data"]["torsion_mask"][0]["edges"][0] == [[1, 4]]
    record["data"]["torsion_mask"][1].update(edges=None, mask_rotate=None)
    assert convert(record)["torsion_bonds"] == [[2, 5]]
    del record["data"]["torsion_mask"], record["modality"], record["affinity"]
    bare = convert(record)
    assert bare["torsion_bonds"] == [] and bare["segment_is_polymer"] == [1, 0]
    assert "label" not in bare and "modality_ids" not in bare and "block_features" not in bare


@pytest.mark.parametrize("place", ["affinity", "label", "data"])
def test_labels_and_modality_are_found_where_they_may_stand(place):
    record = make_record()
    del record["affinity"]
    if place == "affinity":
        record["affinity"] = {"neglog_aff": 2}
    else:
        (record if place == "label" else record["data"])["label"] = [2.0]
        record["data"]["modality"] = record.pop("modality")
    example = convert(record)
    assert example["label"] == 2.0 and isinstance(example["label"], float) and example["modality_ids"] == 1


def test_block_embeddings_of_each_segment_are_padded_to_one_width():
    record = make_record()
    record["data"]["block_embeddings"] = np.arange(12).reshape(6, 2).tolist()
    assert convert(record)["block_features"] == record["data"]["block_embeddings"]
    assert example_to_record(convert(record))["data"]["block_embeddings"] == record["data"]["block_embeddings"]
    del record["data"]["block_embeddings"]
    record["data"].update(block_embeddings0=[[1.0], [2], [3]], block_embeddings1=[[4.0, 5], [6, 7], [8, 9]])
    found = record_to_example(record, "complex", VOCAB_SIZE)["block_features"]
    assert found.dtype == np.float32 and found.tolist() == [[1, 0], [2, 0], [3, 0], [4, 5], [6, 7], [8, 9]]


def test_atoms_that_do_not_stand_block_by_block_are_sorted():
    example = convert(make_record())
    order = np.random.default_rng(0).permutation(16)
    place = np.argsort(order)
    mixed = {**example, **{key: np.array(example[key])[order] for key in ("atom_ids", "atom_to_block", "positions")}}
    mixed["torsion_bonds"] = place[np.array(example["torsion_bonds"])].tolist()
    mixed["torsion_atoms"] = [place[atoms].tolist() for atoms in example["torsion_atoms"]]
    back = convert(example_to_record(mixed))

    def bonds(example):
        where = [tuple(position) for position in example["positions"]]
        turning = [{where[i] for i in atoms} for atoms in example["torsion_atoms"]]
        return [([where[i] for i in bond], atoms) for bond, atoms in zip(example["torsion_bonds"], turning)]

    assert bonds(back) == bonds(example) and back["atom_to_block"] == example["atom_to_block"]
    with pytest.raises(StructureError, match="complex: the atoms of the torsion bond .* two blocks"):
        example_to_record({**example, "torsion_bonds": [[2, 7]], "torsion_atoms": [[7, 8]]})
    with pytest.raises(StructureError, match="not just the second atom turns"):
        example_to_record({**example, "torsion_bonds": [[5, 2]], "torsion_atoms": [[5, 6]]})


def changed(path, value):
    def change(record):
        *parents, last = path
        for key in parents:
            record = record[key]
        if value is None:
            del record[last]
        else:
            record[last] = value(record[last]) if callable(value) else value

    return change


MASK = ("data", "torsion_mask")
SIDE, WHOLE = (*MASK, 0), (*MASK, 1)
WRONG = {
    "missing_field": [(("data", "A"), None), (("data",), {}), (("data",), None)],
    "bad_lengths": [
        (("data", "block_lengths", 1), 5),
        (("data", "A"), lambda a: a[:-1]),
        (("data", "X"), lambda x: x[:-1]),
        (("data", "X"), lambda x: [p[:2] for p in x]),
        (("data", "B"), lambda b: b[:-1]),
        (("data", "segment_ids"), lambda s: s[1:]),
        (("data", "block_lengths"), [1, 6, 0, 5, 3, 1]),
    ],
    "bad_token": [
        (("data", "B", 1), VOCAB_SIZE), (("data", "B", 1), -1), (("data", "B", 1), 0), (("data", "A", 1), 121),
        (("data", "A", 1), 0),
    ],
    "bad_coordinates": [(("data", "X", 3, 1), float("nan")), (("data", "X", 3, 1), float("inf")), (("data", "X", 3, 1), 1e300)],
    "bad_segments": [
        (("data", "segment_ids"), [1, 1, 1, 2, 2, 2]),
        (("data", "segment_ids"), [0, 0, 0, 2, 2, 2]),
        (("data", "segment_ids"), [0, 0, 0, 1, 1, 0]),
        (("data", "B", 3), 4),
        (("data", "A", 11), 8),
        (("data", "B", 4), 3),
        (("data", "A", 5), 2),
        (("data",), lambda d: {**{k: d[k][:11] for k in ("X", "A")}, "B": [3, 20, 3, 37], "block_lengths": [1, 6, 1, 3],
                               "segment_ids": [0, 0, 1, 2]}),
    ],
    "bad_torsion_mask": [
        (MASK, lambda m: m[:1]),
        (MASK, {"type": 0}),
        ((*SIDE, "type"), 2),
        ((*SIDE, "edges"), lambda e: e[:1]),
        ((*SIDE, "mask_rotate"), lambda m: m[:1]),
        ((*SIDE, "mask_rotate", 0, 0), lambda m: m[:-1]),
        ((*SIDE, "mask_rotate", 0), []),
        ((*SIDE, "edges", 0, 0), [1, 6]),
        ((*SIDE, "edges", 0, 0), [-1, 4]),
        ((*SIDE, "edges", 0, 0), [4, 5]),
        ((*SIDE, "edges", 0, 0), [0, 1]),
        ((*SIDE, "edges", 0, 0), [1.5, 4]),
        ((*WHOLE, "mask_rotate"), []),
        ((*WHOLE, "mask_rotate", 0), lambda m: m + [True]),
        ((*WHOLE, "edges"), []),
        ((*WHOLE, "edges", 0), [0, 4]),
        ((*WHOLE, "edges", 0), [2, 3]),
    ],
    "bad_block_features": [
        (("data", "block_embeddings"), [[1.0]] * 5),
        (("data", "block_embeddings"), [1.0] * 6),
        (("data", "block_embeddings0"), [[1.0]] * 2),
        (("data", "block_embeddings"), [[float("nan")]] * 6),
    ],
    "bad_field": [
        (("data", "B", 1), "GLY"), (("data", "B", 1), 4.5), (("data", "X", 2), [1.0]), (("data", "A"), lambda a: [a]),
        (("data", "torsion_mask"), "[{"), (("data",), "{'X'"),
    ],
    "bad_label": [(("affinity", "neglog_aff"), "high"), (("affinity", "neglog_aff"), [1.0, 2.0])],
    "bad_modality": [(("modality",), 8), (("modality",), "PL")],
    "bad_origins": [
        (("block_to_pdb_indexes", "6"), "A_1"), (("block_to_pdb_indexes",), [1]), (("block_to_pdb_indexes", "x"), "A_1"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("code, path, value", [(code, *case) for code, cases in WRONG.items() for case in cases])
def test_what_does_not_fit_names_the_record(code, path, value):
    record = make_record("1abc")
    if path[-1] in ("6", "x", "block_embeddings", "block_embeddings0"):
        changed(path[:-1], lambda found: {**found, path[-1]: value})(record)
    else:
        changed(path, value)(record)
    with pytest.raises(StructureError, match="^1abc: ") as error:
        convert(record, "1abc")
    assert error.value.code == code, error.value


# files ------------------------------------------------------------------------------------------------------------------


def parquet_rows(records, kind):
    rows = []
    for record in records:
        data = {key: value for key, value in record["data"].items() if key != "atom_positions"}
        data["torsion_mask"] = json.dumps(data["torsion_mask"])
        row = {key: value for key, value in record.items() if key != "data"}
        row["block_to_pdb_indexes"] = {
            "nested": record["block_to_pdb_indexes"],
            "flat": list(map(list, record["block_to_pdb_indexes"].items())),
            "struct": [{"key": k, "value": v} for k, v in record["block_to_pdb_indexes"].items()],
            "text": json.dumps(record["block_to_pdb_indexes"]),
        }[kind]
        if kind == "flat":
            data["X"] = np.ravel(data["X"]).tolist()
        rows.append({**row, **data} if kind in ("nested", "flat") else {**row, "data": data})
        if kind == "text":
            rows[-1]["data"] = json.dumps(record["data"])
    return [{**dict.fromkeys(itertools.chain(*rows)), **row} for row in rows]


def write(path, records, kind):
    if path.suffix in (".pkl", ".pickle"):
        protocol = int(kind[-1])
        path.write_bytes(pickle.dumps([with_arrays(r) for r in records] if "arrays" in kind else records, protocol=protocol))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(parquet_rows(records, kind)), path)
    else:
        text = "\n".join(map(json.dumps, records)) if ".jsonl" in path.name else json.dumps(records, indent=kind)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


FORMATS = [
    *(("x.pkl", f"lists {protocol}") for protocol in (2, 3, 4, 5)),
    *(("x.pickle", f"arrays {protocol}") for protocol in (2, 3, 4, 5)),
    *(("x.parquet", kind) for kind in ("nested", "flat", "struct", "text")),
    ("x.jsonl", None), ("x.jsonl.gz", None), ("x.json", None), ("x.json.gz", 1),
]  # fmt: skip


@pytest.mark.parametrize("name, kind", FORMATS)
def test_all_formats_give_the_same_examples(name, kind, records, tmp_path, monkeypatch):
    monkeypatch.setattr("original_data._CHUNK", 700)
    monkeypatch.setattr("plain_pickle.CHUNK", 700)
    report = ReadReport()
    found = list(read_original_examples(write(tmp_path / name, records, kind), VOCAB_SIZE, report, progress=False))
    assert report.kept == len(records) and not report.rejected, report.summary()
    for example, record in zip(found, records):
        same(plain(example), convert(record, record["id"]))


def test_one_record_alone_and_older_pickles(records, tmp_path):
    record = make_record()
    old = [{"id": r["id"], "affinity": r["affinity"]} for r in records], [with_arrays(r)["data"] for r in records]
    for protocol in (2, 4):
        (tmp_path / "one.pkl").write_bytes(pickle.dumps(record, protocol))
        assert list(read_original_records(tmp_path / "one.pkl")) == [("complex", record)]
        (tmp_path / "old.pkl").write_bytes(pickle.dumps((6, *old), protocol))
        found = list(read_original_records(tmp_path / "old.pkl"))
        assert [name for name, _ in found] == [r["id"] for r in records]
        for (name, got), expected in zip(found, records):
            expected = {key: value for key, value in expected.items() if key in ("id", "data", "affinity")}
            same(convert(got, name), convert(expected, name))
    (tmp_path / "one.json").write_text(json.dumps(record, indent=1))
    assert list(read_original_records(tmp_path / "one.json")) == [("complex", record)]
    (tmp_path / "none.json").write_text("[ ]")
    assert list(read_original_records(tmp_path / "none.json")) == []
    (tmp_path / "none.pkl").write_bytes(pickle.dumps([]))
    assert list(read_original_records(tmp_path / "none.pkl")) == []


def test_pickles_of_older_and_newer_numpy(tmp_path):
    record = with_arrays(make_record())
    data = pickle.dumps([record], protocol=2)
    for old, new in ((b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")):
        (tmp_path / "x.pkl").write_bytes(data.replace(old, new))
        ((name, found),) = read_original_records(tmp_path / "x.pkl")
        same(convert(found), convert(record))


def test_arrays_of_a_pickle_are_what_they_were(tmp_path):
    arrays = [np.arange(6).astype(dtype).reshape(2, 3) for dtype in ("i1", "u2", "<i4", ">i8", "f2", "<f4", ">f8", "?")] + [
        np.zeros((0, 3)),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["a", "bc"]),
        np.array([None, [1], {}], object),
    ]
    arrays += [np.float32(1.5), np.int64(7), np.bool_(True), np.arange(10)[::2]]
    for protocol in (2, 3, 4, 5):
        value = {
            "a": arrays,
            "again": arrays[:3],
            "dtype": arrays[1],
            1: (1, -(2**40), 2.5, b"", b"x", "ä", None, {1}, frozenset("a")),
        }
        (tmp_path / "x.pkl").write_bytes(pickle.dumps([value], protocol))
        ((_, found),) = read_original_records(tmp_path / "x.pkl")
        assert found[1] == value[1]
        for got, expected in zip(found["a"], arrays):
            assert np.array_equal(got, expected) and np.asarray(got).shape == np.shape(expected), expected
            if isinstance(expected, np.ndarray):
                assert got.dtype == expected.dtype
        assert all(got is expected for got, expected in zip(found["again"], found["a"])) and found["dtype"] is found["a"][1]


def peak(path, count):
    tracemalloc.start()
    assert sum(1 for _ in read_original_records(path)) == count
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


@pytest.mark.parametrize("name, kind", [f for f in FORMATS if f[1] in ("lists 2", "arrays 4", "lists 5", None, "flat")])
def test_memory_does_not_grow_with_the_number_of_records(name, kind, tmp_path, monkeypatch):
    monkeypatch.setattr("original_data._CHUNK", 1 << 14)
    monkeypatch.setattr("plain_pickle.CHUNK", 1 << 14)
    monkeypatch.setattr("plain_pickle.KEPT", 200)
    records = [copy.deepcopy({**make_record(), "id": f"record {i}"}) for i in range(1000)]
    few, many = (peak(write(tmp_path / name, records[:count], kind), count) for count in (100, 1000))
    assert many < 1.5 * few, (few, many)
    assert many < len(pickle.dumps(records)) / 5


def test_records_that_share_objects_are_read_as_a_whole(tmp_path, caplog):
    affinity, strings = {"neglog_aff": 1.0}, [f"A_{i}" for i in range(40)]
    records = [{**make_record(f"r{i}"), "affinity": affinity} for i in range(5)]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(records))
    assert [r for _, r in read_original_records(tmp_path / "x.pkl")] == records
    assert "share objects" in caplog.text
    records = [{**make_record(f"r{i}"), "note": strings[i % 40]} for i in range(400)]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(pickle.loads(pickle.dumps(records))))
    for kept in (10, 1000):
        caplog.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plain_pickle, "KEPT", kept)
            assert [r for _, r in read_original_records(tmp_path / "x.pkl")] == records
        assert ("share objects" in caplog.text) == (kept == 10)


class Call:
    def __init__(self, function, *arguments, state=None):
        self.result = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.result


def global_text(module, name, *arguments):
    """Protocol 0: the function is named by a GLOBAL instruction, the arguments are text."""
    return f"c{module}\n{name}\n(".encode() + b"".join(f"S{a!r}\n".encode() for a in arguments) + b"tR."


def stack_global(module, name, *arguments):
    text = lambda value: b"\x8c" + bytes([len(value)]) + value.encode()  # noqa: E731
    return b"\x80\x04" + text(module) + text(name) + b"\x93(" + b"".join(map(text, arguments)) + b"tR."


def attacks(marker):
    command, code = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    yield "system", pickle.dumps(Call(os.system, command))
    for protocol in range(6):
        yield "eval", pickle.dumps([make_record(), {"id": Call(eval, code)}], protocol)
    yield "eval", pickle.dumps({"X": np.array([Call(eval, code)], dtype=object)})
    yield "exec", global_text("builtins", "exec", code)
    yield "exec", global_text("__builtin__", "exec", code)
    yield "system", global_text("os", "system", command)
    yield "system", stack_global("os", "system", command)
    yield "os.system", stack_global("numpy", "os.system", command)
    yield "os.system", stack_global("plain_pickle", "os.system", command)
    yield "system", f"(S{command!r}\nios\nsystem\n.".encode()
    yield "system", f"(cos\nsystem\nS{command!r}\no.".encode()
    yield "eval", f"(S{code!r}\ni__builtin__\neval\n.".encode()
    yield "ndarray", b"(S'a'\ninumpy\nndarray\n."
    yield "NEWOBJ", b"\x80\x02cnumpy\nndarray\nK\x05\x85\x81."
    yield "NEWOBJ_EX", b"\x80\x04cnumpy\nndarray\nK\x05\x85}\x92."
    yield "EXT1", b"\x80\x02\x82\x01."
    yield "PERSID", b"Pabc\n."
    yield "BINPERSID", b"K\x01Q."
    yield "call of a str", b"(S'a'\nS'b'\ntS'c'\n(tR."
    yield "numpy.ndarray", b"cnumpy\nndarray\n(K\x05tR."
    yield "fromfile", stack_global("numpy", "fromfile", str(marker))
    yield "load", stack_global("numpy", "load", str(marker))
    yield "memmap", stack_global("numpy", "memmap", str(marker))
    yield "runstring", stack_global("numpy.testing._private.utils", "runstring", code, "{}")
    yield "_reconstructor", pickle.dumps(Call(__import__("copyreg")._reconstructor, collections.Counter, dict, {}))
    yield "getattr", pickle.dumps(Call(getattr, 1, "real"))
    yield "OrderedDict", pickle.dumps(collections.OrderedDict(a=1))
    yield "decode", stack_global("_codecs", "decode", code, "unicode_escape")
    yield "encoding", stack_global("_codecs", "encode", "a", "punycode")
    yield "dtype", pickle.dumps(np.zeros(2, dtype=[("a", "f4"), ("b", "O")]))
    yield "dtype", pickle.dumps(np.dtype([("a", "f4")]))
    yield "dtype", global_text("numpy", "dtype", "V8")
    yield "dtype", global_text("numpy", "dtype", "(3,)f8")
    yield "another class", b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(K\x00tC\x01btR."
    yield "numpy scalar", b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\ntR(K\x03S'|'\nNNNtb" + b"S'a'\ntR."
    yield "a state for a dict", b"}}b."
    yield "a state for a list", b"\x80\x02]}b."
    yield "items for a dict", b"\x80\x02}K\x01a."
    yield "keys for a list", b"\x80\x02]K\x01K\x01s."


def test_a_pickle_that_asks_for_more_than_data_is_refused_and_nothing_runs(tmp_path):
    marker = tmp_path / "marker"
    pickle.loads(next(attacks(marker))[1])
    assert marker.exists()
    marker.unlink()
    for expected, data in attacks(marker):
        for content in (data, gzip.compress(data), pickle.dumps([make_record()]) + data):
            (tmp_path / "x.pkl").write_bytes(content)
            with pytest.raises(StructureError, match="x.pkl: ") as error:
                list(read_original_records(tmp_path / "x.pkl"))
            assert not marker.exists(), data
            assert error.value.code == "unsafe_pickle" and expected in str(error.value), (expected, data, error.value)


def test_sizes_that_a_pickle_only_claims_take_no_memory(tmp_path):
    huge = struct.pack("<Q", 1 << 60)
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR(K\x01("
    shape = b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft" + b"cnumpy\ndtype\n(S'f8'\ntR(K\x03S'<'\nNNNtb\x89C\x08abcdefghtb."
    for data in (
        b"\x80\x05\x96" + huge, b"\x80\x04\x8d" + huge, b"\x80\x04\x8e" + huge, b"\x80\x04\x95" + huge + b"].",
        array + shape, b"\x80\x04C\xff", b"(" * 10000 + b"t" * 10000,
    ):  # fmt: skip
        (tmp_path / "x.pkl").write_bytes(data)
        tracemalloc.start()
        if data.endswith(b"]."):
            assert list(read_original_records(tmp_path / "x.pkl")) == []
        else:
            with pytest.raises(StructureError, match="x.pkl: "):
                list(read_original_records(tmp_path / "x.pkl"))
        assert tracemalloc.get_traced_memory()[1] < 20e6
        tracemalloc.stop()


@pytest.mark.parametrize("name, kind", [f for f in FORMATS if f[1] in (None, 1, "lists 2", "arrays 4", "nested")])
def test_files_that_end_too_early_or_are_something_else_are_named(name, kind, tmp_path):
    path = write(tmp_path / name, [make_record(f"r{i}") for i in range(20)], kind)
    whole = path.read_bytes()
    for cut in (1, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:cut])
        if name == "x.jsonl" or (name == "x.jsonl.gz" and cut == 1):
            assert isinstance(list(read_original_records(path))[-1][1], StructureError)
            continue
        with pytest.raises(StructureError, match=f"{name}: ") as error:
            list(read_original_records(path))
        assert error.value.code in ("truncated_file", "damaged_file")
    for garbage in (b"hello", b"\x00\x01\x02" * 50, whole[::-1], b"<html>no</html>"):
        path.write_bytes(garbage)
        if ".jsonl" in name:
            assert all(isinstance(record, StructureError) for _, record in read_original_records(path))
            continue
        with pytest.raises(StructureError, match=f"{name}: "):
            list(read_original_records(path))
    path.write_bytes(b"")
    with pytest.raises(StructureError, match=name):
        list(read_original_records(path))


def test_damage_at_any_byte_is_an_error_or_a_record(tmp_path):
    data = pickle.dumps([with_arrays(make_record(f"r{i}")) for i in range(3)])
    rng = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(data)
        changed[rng.integers(len(data))] = rng.integers(256)
        (tmp_path / "x.pkl").write_bytes(bytes(changed))
        try:
            for name, record in read_original_records(tmp_path / "x.pkl"):
                if not isinstance(record, StructureError):
                    convert(record, name)
        except StructureError as error:
            assert str(error)


def test_other_files_are_refused(tmp_path):
    for name in ("x.txt", "missing.pkl", "missing.parquet", "missing.jsonl.gz"):
        if name == "x.txt":
            (tmp_path / name).write_text("a")
        with pytest.raises(StructureError, match=name):
            list(read_original_records(tmp_path / name))
    pq.write_table(pa.table({"smiles": ["C"]}), tmp_path / "x.parquet")
    with pytest.raises(StructureError, match="the columns are smiles; expected X, B, A"):
        list(read_original_records(tmp_path / "x.parquet"))
    (tmp_path / "x.json").write_text('[{"id": "a"}] [')
    with pytest.raises(StructureError, match="after the end"):
        list(read_original_records(tmp_path / "x.json"))
    (tmp_path / "x.json").write_text('[{"id": "a"} {"id": "b"}]')
    with pytest.raises(StructureError, match="expected a comma"):
        list(read_original_records(tmp_path / "x.json"))


# datasets ---------------------------------------------------------------------------------------------------------------


def test_bad_records_among_good_ones_are_counted_and_named(records, tmp_path, processor):
    lines = [json.dumps(record) for record in records]
    bad = make_record("bad one")
    bad["data"]["B"][1] = 999
    bare = make_record("bare")
    del bare["data"]["torsion_mask"], bare["affinity"], bare["modality"]
    bare["data"]["A"][1] = 1
    lines[2:2] = [json.dumps(bad), "{'id': 1}", "", "[1, 2]", json.dumps(bare)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    dataset, report = dataset_shards.load_examples(tmp_path / "x.jsonl", processor, tmp_path / "cache", progress=False)
    assert report.kept == len(dataset) == len(records) + 1
    assert [(name, code) for name, code, _ in report.rejected] == [
        ("bad one", "bad_token"), ("x.jsonl line 4", "bad_json"), ("x.jsonl line 6", "not_a_record"),
    ]  # fmt: skip
    assert report.notes == {NO_TORSION_MASK: 1, UNKNOWN_ELEMENT: 1}
    assert dataset["label"][:4] == [0.0, 1.0, None, 2.0] and set(dataset["modality_ids"]) == {None, 1}
    assert set(dataset.column_names) == {*prepared_datasets.FEATURES, "label", "modality_ids"}
    for row, record in zip([r for r in dataset if r["name"] != "bare"], records):
        expected = convert(record, record["id"])
        same({key: value for key, value in row.items() if value is not None}, expected)
    again, same_report = dataset_shards.load_examples(tmp_path / "x.jsonl", processor, tmp_path / "cache", progress=False)
    assert again["name"] == dataset["name"] and same_report == report
    few, report = dataset_shards.load_examples(
        tmp_path / "x.jsonl", processor, tmp_path / "cache", max_samples=3, progress=False
    )
    assert len(few) == 2 and len(report.rejected) == 1


def test_a_file_without_a_usable_record_leaves_nothing_behind(tmp_path, processor):
    cache = tmp_path / "cache"
    write_json_lines(tmp_path / "none.jsonl", [{"id": "a"}])
    with pytest.raises(StructureError, match="no usable example(.|\n)*a: has id, but no X, B"):
        dataset_shards.load_examples(tmp_path / "none.jsonl", processor, cache, progress=False)
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps([make_record(f"r{i}") for i in range(9)])[:-20])
    with pytest.raises(StructureError, match="cut.pkl: ends in the middle of a record, after 8 complete ones"):
        dataset_shards.load_examples(tmp_path / "cut.pkl", processor, cache, progress=False)
    with pytest.raises(StructureError, match="missing.pkl: no such file"):
        dataset_shards.load_examples(tmp_path / "missing.pkl", processor, cache, progress=False)
    assert not list(cache.iterdir())


def with_features(width, **changes):
    record = make_record(**changes)
    record["data"]["block_embeddings"] = np.full((6, width), 0.5).tolist()
    return record


def test_block_features_are_of_one_width(tmp_path, processor):
    paths = [
        write_json_lines(
            tmp_path / "a.jsonl",
            [with_features(3, name="a"), with_features(3, name="b"), make_record("none"), with_features(2)],
        ),
        write_json_lines(tmp_path / "b.jsonl", [make_record()]),
        write_json_lines(tmp_path / "c.jsonl", [with_features(3, name="c", seed=1)]),
    ]  # fmt: skip
    found = [dataset_shards.load_examples(path, processor, tmp_path / "cache", progress=False) for path in paths]
    datasets = [dataset for dataset, _ in found]
    assert [(name, code) for name, code, _ in found[0][1].rejected] == [
        ("none", "other_block_features"), ("complex", "other_block_features"),
    ]  # fmt: skip
    assert np.shape(datasets[0][0]["block_features"]) == (6, 3)
    joined = prepared_datasets.join_datasets([datasets[0], datasets[2]])
    assert joined["name"][:] == ["a", "b", "c"] and np.shape(joined[2]["block_features"]) == (6, 3)
    with pytest.raises(StructureError, match="widths 3, 0"):
        prepared_datasets.join_datasets(datasets[:2])


def test_inputs_of_different_kinds_become_one_dataset(tmp_path, processor, records, capsys):
    (tmp_path / "m.csv").write_text("smiles\nCCO\n")
    write_json_lines(tmp_path / "x.jsonl", records)
    out = tmp_path / "out"
    prepare_dataset.main([str(tmp_path / "m.csv"), str(tmp_path / "x.jsonl"), "--output_dir", str(out)])
    dataset = prepared_datasets.load_prepared(out, processor.tokenizer)
    assert dataset["name"][:] == ["CCO", *(record["id"] for record in records)]
    assert dataset["label"][:3] == [None, 0.0, 1.0]
    again = [convert(record, record["id"]) for record in records]
    assert [row["positions"] for row in dataset][1:] == [example["positions"] for example in again]
    assert not list(tmp_path.glob("out.*"))


@pytest.mark.parametrize("task", ["pretrain_torsion_masking", "pretrain_gaussian"])
def test_converted_examples_make_puzzles(records, task):
    collator = AtomicaPreTrainingCollator(task=task)
    made = [record_to_example({**record, "modality": 1}, record["id"], VOCAB_SIZE) for record in records]
    for epoch in range(3):
        batch = collator([{**example, "example_index": i, "epoch": epoch} for i, example in enumerate(made)])
        assert len(batch["input_ids"]) == len(records) and batch["positions"].isfinite().all()
        assert batch["modality_ids"].tolist() == [1] * len(records)


# the script -------------------------------------------------------------------------------------------------------------


def test_the_script_converts_there_and_back(tmp_path, records, processor):
    good = write(tmp_path / "x.pkl", [*records, {"id": "bad"}], "lists 4")
    done = run("convert_original_data.py", good, "--output_dir", tmp_path / "d")
    assert done.returncode == 0, done.stderr
    assert f"{len(records)} records kept, 1 rejected (1 x missing_field)" in done.stdout
    dataset = prepared_datasets.load_prepared(tmp_path / "d", processor.tokenizer)
    assert dataset["name"][:] == [record["id"] for record in records]
    done = run("convert_original_data.py", "--reverse", tmp_path / "d", "--output_file", tmp_path / "back.jsonl.gz")
    assert done.returncode == 0 and f"{len(records)} examples kept, 0 rejected" in done.stdout, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.jsonl.gz", "d", "x.pkl"]
    for (_, back), record in itertools.zip_longest(read_original_records(tmp_path / "back.jsonl.gz"), records):
        assert back["affinity"] == record["affinity"] and back.get("modality") == record.get("modality")
        assert all(back["data"][key] == record["data"][key] for key in FIELDS)


def test_errors_of_the_script_are_one_line(tmp_path, records, monkeypatch):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(Call(os.system, f"touch {tmp_path / 'marker'}")))
    monkeypatch.setattr("sys.argv", ["convert_original_data.py", str(tmp_path / "x.pkl"), "--output_dir", str(tmp_path / "d")])
    with pytest.raises(SystemExit, match="^convert_original_data.py: error: .*x.pkl: contains .*system"):
        runpy.run_path(str(ROOT / "convert_original_data.py"), run_name="__main__")
    assert [p.name for p in tmp_path.iterdir()] == ["x.pkl"]

    def fails(*arguments):
        with pytest.raises(StructureError) as error:
            convert_original_data.main(list(map(str, arguments)))
        return str(error.value)

    write_json_lines(tmp_path / "x.jsonl", records)
    out = tmp_path / "d"
    assert "expected either" in fails(tmp_path / "x.jsonl") and "expected either" in fails("--reverse", out)
    assert "expected either" in fails(tmp_path / "x.jsonl", "--output_dir", out, "--output_file", "a.jsonl")
    assert "expected either" in fails("--output_dir", out)
    assert "m.csv: expected a file ending in" in fails(tmp_path / "m.csv", "--output_dir", out)
    assert "at least 1" in fails(tmp_path / "x.jsonl", "--output_dir", out, "--max_samples", 0)
    assert "ending in .jsonl" in fails("--reverse", out, "--output_file", "a.pkl")
    assert "no dataset that" in fails("--reverse", out, "--output_file", "a.jsonl")
    assert "no Atomica processor" in fails(tmp_path / "x.jsonl", "--output_dir", out, "--processor", tmp_path)
    out.mkdir()
    assert "exists already" in fails(tmp_path / "x.jsonl", "--output_dir", out)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    example = convert(make_record())
    unwritable = {**example, "name": "two blocks", "torsion_bonds": [[2, 7]], "torsion_atoms": [[7, 8]]}
    report = ReadReport()
    convert_original_data.write_records([example, unwritable, example], tmp_path / "x.jsonl", report)
    assert report.kept == 2 and [row[:2] for row in report.rejected] == [("two blocks", "torsion_not_writable")]
    before = (tmp_path / "x.jsonl").read_bytes()

    def breaks():
        yield example
        raise OSError("disk")

    for examples in (breaks(), [unwritable]):
        with pytest.raises((OSError, StructureError)):
            convert_original_data.write_records(examples, tmp_path / "x.jsonl", ReadReport())
        assert (tmp_path / "x.jsonl").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
