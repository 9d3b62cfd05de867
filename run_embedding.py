# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Structures -> vectors: one Parquet row per complex, block or atom.

python run_embedding.py --model_name_or_path my-atomica --input_file molecules.csv --output_file vectors.parquet
python run_embedding.py --model_name_or_path my-atomica --input_file complexes.csv --output_file vectors.parquet \\
    --representations h_graph z_interface --pooling mean_component_normalized --segment 1
python run_embedding.py --input_file structures/ --interfaces all --output_file vectors.parquet

`accelerate launch` or `torchrun --nproc_per_node N` instead of `python` divides the work among N processes, `--engine ray`
among the machines of a Ray cluster. The input is cut into parts, whose vectors wait beside the output, in `OUTPUT.parts`; so
the same command goes on where a run was stopped, with any number of processes, and the file is the same bit for bit.
"""

import functools
import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from transformers.hf_argparser import HfArg

from atomic_files import replacing, sync, write_text
from atomica_hf import ROOT, StructureError
from atomica_hf.modeling_atomica import REPRESENTATION_POOLINGS, REPRESENTATIONS, check_representations
from atomica_hf.pipelines_atomica import model_inputs
from atomica_hf.processing_atomica import pad_examples
from dataset_shards import differences, input_fingerprint, writing
from embedding_map import PAGE, PICTURES, map_of_parquet
from engines import ENGINES, check_engine, run_tasks
from interface_options import Interfaces
from model_loading import best_device, load_model
from prepared_datasets import for_model
from script_arguments import ScriptParser, run_script


_PART_BLOCKS = 256, 20_000  # least and most of one part, about
LEVELS = {"complex": "h_graph", "block": "h_block", "atom": "h_atom"}  # with what is written for it by default


@dataclass
class EmbeddingArguments:
    input_file: str = HfArg(help="What to embed: .smi .csv .sdf .pdb .cif, an index CSV, a folder, or a prepared dataset.")
    output_file: str = HfArg(help="Parquet file to write.")
    model_name_or_path: str = HfArg(default=str(ROOT), help="Folder or hub id of an Atomica model; by default this repository.")
    map: str | None = HfArg(
        default=None, help="Also draw the vectors into this .png, .svg, .pdf or .html file; see embedding_map.py for more."
    )
    level: str = HfArg(default="complex", metadata={"choices": list(LEVELS)}, help="One vector per complex, block or atom.")
    representations: list[str] = HfArg(
        default_factory=list,
        metadata={"choices": list(REPRESENTATIONS)},
        help="Instead of --level: one column of each name. Names of blocks give a row per block, of atoms a row per atom, and "
        "all others a row per complex, with lists in it where blocks or atoms are among them.",
    )
    pooling: str | None = HfArg(
        default=None,
        metadata={"choices": list(REPRESENTATION_POOLINGS)},
        help="For z_graph and z_interface: the first to train a head on, the second to compare with a cosine.",
    )
    segment: int | None = HfArg(default=None, help="For h_interface and z_interface: which partner, 0 or 1.")
    max_samples: int | None = HfArg(default=None, help="Read only this many inputs.")
    max_blocks_per_batch: int = HfArg(default=2000, help="Blocks in one batch, padding included.")
    num_proc: int = HfArg(default=1, help="Processes that read the input.")
    num_threads: int = HfArg(
        default=1, help="Threads of each process on a CPU. Only with the same number are vectors the same to the last bit."
    )
    engine: str = HfArg(
        default="local",
        metadata={"choices": list(ENGINES)},
        help="local: this machine, or those of accelerate and torchrun. ray: all cores of a Ray cluster (needs the package "
        "ray), whose machines see this repository, the model and the input at the same paths.",
    )
    ray_address: str | None = HfArg(
        default=None, help="Address of the Ray cluster; without it, that of this machine, begun if there is none."
    )
    device: str | None = HfArg(default=None, help="cpu, cuda, mps; by default the best there is.")
    dtype: str = HfArg(default="float32", metadata={"choices": ["float32", "float64"]}, help="Precision of the model.")


def batches(sizes, max_blocks):
    """Indices in order of size, in groups of at most `max_blocks` blocks, padding included."""
    batch = []
    for index in np.argsort(sizes, kind="stable"):
        if batch and sizes[index] * (len(batch) + 1) > max_blocks:
            yield batch
            batch = []
        batch.append(int(index))
    if batch:
        yield batch


def level_of(names):
    """Level of the rows: of blocks or atoms if all names are, else of complexes."""
    levels = {"atom" if name.endswith("atom") else "block" if name.endswith("block") else "complex" for name in names}
    return levels.pop() if len(levels) == 1 else "complex"


@torch.no_grad()
def embed(model, examples, names=("h_graph",), pooling=None, segment=None):
    """Examples of `AtomicaProcessor.encode` -> for each a dictionary of name -> array `(width,)`, `(num_blocks, width)` or
    `(num_atoms, width)`; names, pooling and segment as for `get_representations`."""
    batch = {key: value.to(model.device) for key, value in pad_examples(examples, model_inputs(model.config)).items()}
    batch["positions"] = batch["positions"].to(model.dtype)
    vectors = model.get_representations(names, pooling, segment, **batch)
    vectors = {name: value.cpu().numpy() for name, value in vectors.items()}
    found = []
    for i, example in enumerate(examples):
        sizes = {"block": len(example["input_ids"]), "atom": len(example["atom_ids"])}
        found.append({name: value[i, : sizes.get(name.split("_")[1])] for name, value in vectors.items()})
    return found


def rows(level, index, example, vectors, tokens):
    """Rows of the Parquet file for one example; `vectors` are columns -> arrays."""
    base = {"index": index, "name": example["name"]}
    names, origins = [tokens[token] for token in example["input_ids"]], example["block_origins"]
    if level == "complex":
        parts = {"tokens": names, "block_origins": origins, "atom_names": example["atom_origins"]}
        return [{**base, **parts, **{column: list(array) for column, array in vectors.items()}}]
    segments, found = example["token_type_ids"], []
    for i, block in enumerate(range(len(names)) if level == "block" else example["atom_to_block"]):
        row = {**base, level: i, "block": block, "segment": segments[block], "origin": origins[block], "token": names[block]}
        if level == "atom":
            row["atom_name"] = example["atom_origins"][i]
        found.append({**row, **{column: array[i] for column, array in vectors.items()}})
    return found


def schema(level, columns, dtype):
    """Of the Parquet file; `columns` are names of columns -> names of representations."""
    vector, texts = pa.list_(pa.float64() if dtype == "float64" else pa.float32()), pa.list_(pa.string())
    fields = [("index", pa.int64()), ("name", pa.string())]
    if level == "complex":
        nested = {column for column, name in columns.items() if level_of([name]) != "complex"}
        if nested:
            fields += [("tokens", texts), ("block_origins", texts), ("atom_names", texts)]
        return pa.schema(fields + [(column, pa.list_(vector) if column in nested else vector) for column in columns])
    fields += [("atom", pa.int64())] if level == "atom" else []
    fields += [("block", pa.int64()), ("segment", pa.int64()), ("token", pa.string()), ("origin", pa.string())]
    fields += [("atom_name", pa.string())] if level == "atom" else []
    return pa.schema(fields + [(column, vector) for column in columns])


# parts ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """What is written of every complex, and how it is computed."""

    columns: dict  # of the Parquet file -> names of representations
    pooling: str | None
    segment: int | None
    dtype: str
    max_blocks: int  # of a batch
    num_threads: int

    @property
    def level(self):
        return level_of(self.columns.values())

    @property
    def schema(self):
        return schema(self.level, self.columns, self.dtype)


def split_parts(sizes):
    """Numbers of blocks -> list of arrays of consecutive indices, the parts of the input; the same however many processes."""
    most = min(max(int(sizes.sum()) // 64, _PART_BLOCKS[0]), _PART_BLOCKS[1])
    number = (np.cumsum(sizes) - sizes) // most
    return np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(number)) + 1)


def part_table(model, tokens, wanted, indices, examples) -> pa.Table:
    """Rows of one part in the order of the input; `indices` are the places of the examples in it."""
    names, tables = list(wanted.columns.values()), []
    for batch in batches(np.array([len(example["input_ids"]) for example in examples]), wanted.max_blocks):
        found, chosen = [], [examples[i] for i in batch]
        for i, example, vectors in zip(batch, chosen, embed(model, chosen, names, wanted.pooling, wanted.segment)):
            vectors = {column: vectors[name] for column, name in wanted.columns.items()}
            found += rows(wanted.level, indices[i], example, vectors, tokens)
        found = [{key: row[key] for key in wanted.schema.names} for row in found]
        tables.append(pa.Table.from_pylist(found, schema=wanted.schema))
    order = [(name, "ascending") for name in ("index", wanted.level) if name in wanted.schema.names]
    return pa.concat_tables(tables).sort_by(order)


@functools.lru_cache(1)
def _model(name, dtype, device):
    return load_model(name, dtype, device)


def _embed_part(name, device, wanted, task):
    """In whatever process: (number of the part, indices, examples) -> (number, table)."""
    torch.set_num_threads(wanted.num_threads)
    model, processor = _model(name, wanted.dtype, device)
    number, indices, examples = task
    tokens = processor.tokenizer.convert_ids_to_tokens(range(len(processor.tokenizer)))
    return number, part_table(model, tokens, wanted, indices, examples)


class Parts:
    """The folder in which finished parts wait for the others.

    Args:
        output (`Path`): the file that is made of them.
        begun (`dict`): what the vectors depend on.
    """

    def __init__(self, output, begun):
        self.output, self.folder, self.begun = output, output.with_name(f"{output.name}.parts"), begun
        self.lock = FileLock(self.folder / "lock", timeout=0)

    def open(self):
        """Begins, or goes on.

        Raises:
            `StructureError`: if the folder is in use, or was begun with something else.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire()
        except Timeout:
            raise StructureError("in_use", f"{self.folder}: another process is writing it.") from None
        file = self.folder / "begun.json"
        if file.exists():
            found = differences(json.loads(file.read_text(encoding="utf-8")), json.loads(json.dumps(self.begun)))
            if found:
                raise StructureError(
                    "other_command",
                    f"{self.folder}: was begun otherwise: {'; '.join(found)}. Repeat that command, or remove the folder.",
                )
            print(f"{self.folder}: goes on with what was begun.")
        else:
            write_text(file, json.dumps(self.begun))
        for file in self.folder.glob("*.tmp*"):
            file.unlink()

    def path(self, number):
        return self.folder / f"part-{number:06d}.parquet"

    def write(self, number, table):
        with replacing(self.path(number)) as temporary:
            pq.write_table(table, temporary)
            sync(temporary)

    def join(self, count, table_schema):
        """Puts all parts into the output; returns the number of rows."""
        written = 0
        with replacing(self.output) as temporary:
            with pq.ParquetWriter(temporary, table_schema) as writer:
                for number in range(count):
                    try:
                        table = pq.read_table(self.path(number), schema=table_schema)
                    except pa.ArrowInvalid as error:
                        raise StructureError(
                            "damaged_part", f"{self.path(number)}: cannot be read ({error}); remove it."
                        ) from error
                    writer.write_table(table)
                    written += len(table)
            sync(temporary)
        return written

    def remove(self):
        self.lock.release()
        shutil.rmtree(self.folder)


# the script -----------------------------------------------------------------------------------------------------------------


def _columns(dataset, name):
    return (table[name] for table in dataset.select_columns([name]).with_format("arrow").iter(batch_size=10_000))


def read_input(arguments, interfaces, model, processor, cache):
    """Dataset of what is to be embedded, indices of those that can be, and the report."""
    dataset, report = interfaces.read(
        arguments.input_file, processor, cache, arguments.num_proc, arguments.max_samples,
        engine=arguments.engine, ray_address=arguments.ray_address,
    )  # fmt: skip
    dataset = for_model(dataset, model.config, arguments.input_file)
    usable = np.arange(len(dataset))
    if arguments.segment is not None:
        last = []  # segment of each complex
        for ids in _columns(dataset, "token_type_ids"):
            ends = np.cumsum(pc.list_value_length(ids).to_numpy())
            last.append(np.maximum.reduceat(pc.list_flatten(ids).to_numpy(), np.concatenate([[0], ends[:-1]])))
        segments = np.concatenate(last)
        usable = np.flatnonzero(segments >= arguments.segment)
        for index in np.flatnonzero(segments < arguments.segment).tolist():
            name = dataset[index]["name"]
            report.kept -= 1
            message = f"{segments[index] + 1} segments, none is number {arguments.segment}."
            report.reject(name, StructureError("no_segment", message))
        if not len(usable):
            raise StructureError("no_segment", f"{arguments.input_file}: nothing has a segment {arguments.segment}.")
    return dataset, usable, report


def what_vectors_depend_on(arguments, interfaces, wanted, model, processor, device):
    """As `Parts` compares it."""
    weights = hashlib.sha256(model.config.to_json_string(use_diff=False).encode())
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(tensor.cpu().contiguous().numpy().tobytes())
    code = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(ROOT.glob("*_atomica.py")))).hexdigest()
    settings = {
        **asdict(wanted), **asdict(interfaces), "max_samples": arguments.max_samples, "model": weights.hexdigest()[:16],
        "device": torch.device(device).type, "code": code[:16], "torch": torch.__version__,
    }  # fmt: skip
    path = arguments.input_file
    return {"inputs": [(path, input_fingerprint(path, processor, arguments.max_samples))], "settings": settings}


def check(arguments):
    """Raises `StructureError` for options that cannot be; returns columns of the file -> names of representations."""
    for name in ("max_blocks_per_batch", "num_threads", "num_proc"):
        if getattr(arguments, name) < 1:
            raise StructureError("usage", f"--{name} is {getattr(arguments, name)}, expected a positive number.")
    check_engine(arguments)
    names = arguments.representations or [LEVELS[arguments.level]]
    if arguments.representations and arguments.level != "complex":
        raise StructureError("usage", "--level and --representations exclude each other: the names have a level of their own.")
    try:
        check_representations(names, arguments.pooling, arguments.segment)
    except ValueError as error:
        raise StructureError("usage", f"--representations, --pooling, --segment: {error}") from error
    if arguments.segment is not None and arguments.segment < 0:
        raise StructureError("usage", f"--segment is {arguments.segment}, expected 0 or more.")
    if Path(arguments.output_file).is_dir():
        raise StructureError("usage", f"--output_file {arguments.output_file} is a folder, expected the name of a file.")
    if arguments.map and Path(arguments.map).suffix.lower() not in (*PICTURES, PAGE):
        raise StructureError("usage", f"--map {arguments.map}: expected a name that ends in {', '.join((*PICTURES, PAGE))}.")
    if arguments.map and level_of(names[:1]) != level_of(names):
        raise StructureError(
            "usage", f"--map draws the first of --representations, but {names[0]} has lists; name another first."
        )
    return {name: name for name in names} if arguments.representations else {"embedding": names[0]}


def device_of(arguments, state):
    """Of this process."""
    if state.num_processes == 1:
        return arguments.device or best_device()
    if arguments.engine == "ray":
        raise StructureError("usage", "--engine ray divides the work itself; start it with python.")
    if arguments.device not in (None, state.device.type):
        raise StructureError("usage", f"--device {arguments.device}, but the processes were started for {state.device.type}.")
    return str(state.device)


def run(arguments, interfaces, columns, state):
    """One process of a run: its share of the parts, and in the first process, the output."""
    output, device, first = Path(arguments.output_file), device_of(arguments, state), state.is_main_process
    model, processor = _model(arguments.model_name_or_path, arguments.dtype, "cpu" if arguments.engine == "ray" else device)
    max_blocks = arguments.max_blocks_per_batch
    if model.config.attend_to_padding:
        if first:
            print("This model attends to padding: complexes are embedded one by one, so that no vector depends on others.")
        max_blocks = 1
    wanted = Wanted(columns, arguments.pooling, arguments.segment, arguments.dtype, max_blocks, arguments.num_threads)
    parts = Parts(output, what_vectors_depend_on(arguments, interfaces, wanted, model, processor, device))
    try:
        written, report = make_parts(arguments, interfaces, state, parts, model, processor, wanted, device)
    finally:
        parts.lock.release()
    if first:
        widths = model.representation_widths(arguments.pooling)
        wide = ", ".join(f"{name} {widths[name]}" for name in columns.values())
        hint = interfaces.hint(arguments.input_file, report)
        print(f"{output}: {written} vectors, one per {wanted.level}. Widths: {wide}. Input: {report.summary()}{hint}")
        if arguments.map:
            print("\n".join(map_of_parquet(str(output), arguments.map, column=next(iter(columns)))))


def make_parts(arguments, interfaces, state, parts, model, processor, wanted, device):
    """The share of this process, and in the first the whole; returns the number of rows (None in others) and the report."""
    first, output = state.is_main_process, parts.output
    with state.main_process_first():
        if first:
            with writing(output):
                parts.open()
        try:
            dataset, usable, report = read_input(arguments, interfaces, model, processor, parts.folder / "input")
        except StructureError as error:
            if first and error.code != "cannot_write" and not list(parts.folder.glob("part-*")):
                parts.remove()
            raise
    sizes = np.concatenate([pc.list_value_length(ids).to_numpy() for ids in _columns(dataset, "input_ids")])
    shares = split_parts(sizes[usable])
    left = [[number for number in range(len(shares)) if not parts.path(number).exists()]]
    (left,) = broadcast_object_list(left)  # others may have finished some since
    tasks = (
        (number, usable[shares[number]].tolist(), [dataset[int(i)] for i in usable[shares[number]]])
        for number in left[state.process_index :: state.num_processes]
    )
    function = functools.partial(_embed_part, arguments.model_name_or_path, device, wanted)
    gpus = int(torch.device(device).type == "cuda")
    results = run_tasks(function, tasks, arguments.engine, at_once=1, address=arguments.ray_address, num_gpus=gpus)
    done = len(usable) - sum(len(shares[number]) for number in left)
    with tqdm(total=len(usable), initial=done, desc="Embedding", unit="complex", disable=not first) as bar:
        for turn, (number, table) in enumerate(results):
            with writing(output):
                parts.write(number, table)
            everyone = left[turn * state.num_processes : (turn + 1) * state.num_processes]  # the others are about as fast
            bar.update(sum(len(shares[other]) for other in everyone))
    state.wait_for_everyone()
    if not first:
        return None, report
    with writing(output):
        written = parts.join(len(shares), wanted.schema)
        write_text(output.with_name(output.name + ".report.json"), json.dumps(report.to_dict(), indent=1))
    parts.remove()
    return written, report


def main(argv=None):
    parser = ScriptParser([EmbeddingArguments, Interfaces], description=__doc__)
    arguments, interfaces = parser.parse_args_into_dataclasses(argv)
    columns, threads = check(arguments), torch.get_num_threads()
    interfaces.check(arguments.input_file)
    on_cpu = (arguments.device or best_device()) == "cpu"  # else torchrun on a machine without a GPU would start separate runs
    state = PartialState(cpu=on_cpu, timeout=timedelta(hours=24))  # the others wait while the first process reads
    _model.cache_clear()  # a folder may hold another model by now
    try:
        run(arguments, interfaces, columns, state)
    finally:
        torch.set_num_threads(threads)
    if state.num_processes > 1:
        state.destroy_process_group()


if __name__ == "__main__":
    import run_embedding  # so that other processes find its functions

    run_script(run_embedding.main, stopped="stopped; the same command goes on from there.")
