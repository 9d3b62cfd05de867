# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Files -> `Structure`: everything a path holds, by its content and ending, as work to be done; or a reason why not."""

import codecs
import csv
import io
import math
import re
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

from .component_atomica import Component, Origin, ReadReport, Structure, StructureError, read_bytes
from .macromolecule_atomica import (
    AMINO_ACID_NAMES,
    BUFFERS,
    INTERFACE_DISTANCE,
    MODALITIES,
    NUCLEOTIDE_NAMES,
    Interface,
    ReadOptions,
    list_interfaces,
    read_interface,
    read_macromolecule,
)
from .molecule_atomica import (
    bonds_by_distance,
    embed,
    mol2_records,
    sdf_records,
    structure_from_mol,
    structure_from_mol2_record,
    structure_from_mols,
    structure_from_sdf_record,
    structure_from_smiles,
    structure_from_xyz_record,
    xyz_records,
)


MACROMOLECULE_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif", ".bcif")
MOLECULE_SUFFIXES = (".sdf", ".sd", ".mol", ".mol2", ".xyz")
TABLE_SUFFIXES = (".smi", ".smiles", ".csv", ".tsv", ".parquet")
SMILES_COLUMNS = ("smiles", "canonical_smiles", "mol", "molecule")
INDEX_COLUMNS = ("pdb_path", "chain1", "chain2")
_HEAD = 100_000  # characters by which a format is recognised
_FORMATS = {
    **dict.fromkeys(MACROMOLECULE_SUFFIXES, "macromolecule"), ".sdf": "sdf", ".sd": "sdf", ".mol": "sdf", ".mol2": "mol2",
    ".xyz": "xyz", ".smi": "smi", ".smiles": "smi", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
}  # fmt: skip
_RECORDS = {
    "sdf": (sdf_records, structure_from_sdf_record),
    "mol2": (mol2_records, structure_from_mol2_record),
    "xyz": (xyz_records, structure_from_xyz_record),
}


def suffix_of(path) -> str:
    """Lower-case ending, `.gz` aside."""
    suffixes = [s.lower() for s in Path(path).suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_structure_file(path) -> bool:
    return suffix_of(path) in MACROMOLECULE_SUFFIXES + MOLECULE_SUFFIXES


def _text(path) -> str:
    return read_bytes(path).decode("utf-8-sig", errors="replace").replace("\0", " ")


def format_of(path) -> str:
    """`macromolecule`, `sdf`, `mol2`, `xyz`, `smi`, `csv`, `tsv` or `parquet`: by content where that is plain, else by ending.

    Raises:
        `StructureError`: if neither is known.
    """
    data = read_bytes(path)
    if data[:4] == b"PAR1":
        return "parquet"
    if b"dataBlocks" in data[:4096]:
        return "macromolecule"
    text = data[: 2 * _HEAD].decode("utf-8-sig", errors="replace")[:_HEAD]
    first = text[:5000].replace("\r\n", "\n").split("\n")
    if "@<TRIPOS>" in text:
        return "mol2"
    if any(re.search(r"\bV[23]000\s*$", line) for line in first[:12]):
        return "sdf"
    if text.lstrip()[:5].lower() == "data_" or "\nloop_" in text or re.search(r"^(ATOM  |HETATM)", text, re.MULTILINE):
        return "macromolecule"
    if len(first) > 2 and first[0].strip().isdigit() and re.match(r"\s*[A-Za-z]{1,2}(\s+-?\d+\.\d*){3}", first[2]):
        return "xyz"
    kind = _FORMATS.get(suffix_of(path))
    if kind is None:
        known = " ".join(MACROMOLECULE_SUFFIXES + MOLECULE_SUFFIXES + TABLE_SUFFIXES)
        ending = suffix_of(path) or "nothing"
        raise StructureError("unknown_format", f"{path}: files ending in {ending!r} are not known; expected {known}.")
    return kind


def _decode_table(path) -> str:
    """Text of a table: UTF-8, or what its byte order mark says.

    Raises:
        `StructureError`: for any other encoding.
    """
    data = read_bytes(path)
    marks = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
             (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
    encoding = next((name for mark, name in marks if data.startswith(mark)), "utf-8-sig")
    zeros = data[:4096].count(0)
    try:
        if encoding == "utf-8-sig" and zeros > 1 and zeros > len(data[:4096]) // 4:
            raise StructureError(
                "bad_table", f"{path}: looks like UTF-16 without a byte order mark ({zeros} zero bytes), expected UTF-8."
            )
        return data.decode(encoding).replace("\0", " ")
    except UnicodeDecodeError as error:
        line, found = data.count(b"\n", 0, error.start) + 1, data[error.start]
        guess = encoding.upper() if encoding != "utf-8-sig" else "another encoding, such as Windows-1252 or Latin-1"
        damage = "damaged or cut short" if encoding != "utf-8-sig" else f"byte 0x{found:02X} in line {line} is not UTF-8"
        raise StructureError("bad_table", f"{path}: the text is in {guess} ({damage}), expected UTF-8.") from error


def _number_repeated(header):
    """Names of columns -> the same, where a name that came before gets a number, as pandas does it: `y`, `y.1`, `y.2`."""
    names = []
    for name in header:
        number, new = 0, name
        while new in names or (number and new in header):
            number += 1
            new = f"{name}.{number}"
        names.append(new)
    return names


def read_table(path, notes=None, strict=False):
    """Rows of a `.smi`, `.csv`, `.tsv` or `.parquet` file as dictionaries of texts; `.smi` gives the columns `smiles`, `name`.
    Of columns with the same name the second is called `name.1`, and so on.

    Args:
        notes (`list`): gets a line for what is odd but can be read; without it that is a warning.
        strict (`bool`): whether a row with more cells than the header is an error; else what it has too many is left out.

    Raises:
        `StructureError`: if it has no rows, is no table, has two columns with SMILES of one name, or is neither UTF-8 nor
            begins with a byte order mark.
    """
    kind = format_of(path)
    if kind == "parquet":
        return _parquet_rows(path)
    text = _decode_table(path)
    if kind == "smi":
        rows = []
        for line in text.split("\n"):
            fields = line.split(None, 1)
            if fields:
                rows.append({"smiles": fields[0], "name": fields[1].strip() if len(fields) > 1 else ""})
    else:
        rows = _delimited_rows(path, text, "\t" if kind == "tsv" else ",", notes, strict)
    if not rows:
        raise StructureError("empty_file", f"{path}: no rows were found in it.")
    return rows


def _delimited_rows(path, text, delimiter, notes, strict):
    def note(line):
        if notes is None:
            warnings.warn(line, stacklevel=4)
        else:
            notes.append(line)

    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise StructureError("bad_table", f"{path}: not a table that can be read: {error}.") from error
    header = [column.strip() for column in lines[0][1]] if lines else []
    column = smiles_column(header)
    if column is not None and header.count(column) > 1:
        raise StructureError("bad_table", f"{path}: the column {column!r} stands {header.count(column)} times in its header.")
    names = _number_repeated(header)
    if repeated := [name for name, count in Counter(header).items() if count > 1]:
        new = [name for name in names if name not in header]
        note(f"{path}: {', '.join(repeated)}: more than once in the header; the later ones are called {', '.join(new)}.")
    wide = [(number, cells) for number, cells in lines[1:] if any(cell.strip() for cell in cells[len(header) :])]
    if wide and strict:
        raise StructureError(
            "bad_table",
            f"{path}: line {wide[0][0]} has {len(wide[0][1])} cells, expected {len(header)} as in the header (a cell with a "
            "comma in it needs quotes).",
        )
    if wide:
        note(f"{path}: {len(wide)} rows have more cells than the header, which are left out; the first is line {wide[0][0]}.")
    return [dict(zip(names, cells)) for _, cells in lines[1:] if any(cell.strip() for cell in cells)]


def _parquet_rows(path):
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"{path}: reading Parquet needs the package pyarrow: pip install pyarrow") from error
    try:
        rows = pq.read_table(io.BytesIO(read_bytes(path))).to_pylist()
    except (ValueError, OSError) as error:
        raise StructureError("bad_table", f"{path}: not Parquet that can be read: {error}.") from error
    if not rows:
        raise StructureError("empty_file", f"{path}: no rows were found in it.")
    return [{str(key): "" if value is None else str(value) for key, value in row.items()} for row in rows]


def smiles_column(columns):
    """The column that holds SMILES, by its name; None if there is none."""
    lower = {column.lower(): column for column in reversed(list(columns))}
    return next((lower[name] for name in SMILES_COLUMNS if name in lower), None)


def read_smiles(path, column=None) -> list[str]:
    """The SMILES of a table, in its order; empty cells are left out.

    Args:
        column (`str`): their column; by default the one with a usual name.

    Raises:
        `StructureError`: if it is missing, is no table that can be read, or has no such column.
    """
    kind = format_of(path)
    if kind not in ("smi", "csv", "tsv", "parquet"):
        raise StructureError("unknown_format", f"{path}: no table with SMILES ({kind}), expected {' '.join(TABLE_SUFFIXES)}.")
    rows = read_table(path)
    name = column or smiles_column(rows[0])
    if name not in rows[0]:
        wanted = repr(column) if column else "for SMILES"
        raise StructureError("no_smiles_column", f"{path}: no column {wanted}; there are {', '.join(rows[0])}.")
    return [text for row in rows if (text := row.get(name, "").strip())]


def index_file(path, row) -> Path:
    """The structure file that a row of an index CSV names; relative paths are relative to the CSV."""
    file = Path((row.get("pdb_path") or "").strip())
    return file if file.is_absolute() else Path(path).parent / file


def _index_row(path, row, options):
    """One row of ATOMICA's index CSV -> list of `Structure`, with the label of the row if it has one."""
    value = lambda key: (row.get(key) or "").strip()  # noqa: E731
    file = index_file(path, row)
    side_b = value("chain2")
    code = value("lig_code")
    chains = [re.sub("[,_]", "", side) for side in (value("chain1"), side_b)]
    name = "_".join([value("pdb_id") or file.name.split(".")[0], *chains])
    if code:
        name = f"{name}_{code}"
        number = value("lig_resi").removesuffix(".0")
        name += f"_{number}" if number else ""
        side_b = ":".join([side_b, code] + ([number] if number else []))
    label = _label(name, value("label"))
    structures = read_interface(file, value("chain1"), side_b, value("lig_smiles") or None, name=name, options=options)
    return [replace(structure, label=label) for structure in structures]


def _label(name, text):
    """Number of a label; None if it is blank or NaN, as tables write what is missing."""
    try:
        label = float(text or "nan")
    except ValueError:
        label = math.inf
    if math.isinf(label):
        raise StructureError("bad_label", f"{name}: the label is {text[:40]!r}, expected one number.")
    return None if math.isnan(label) else label


def list_inputs(path, options: ReadOptions | None = None, **changes):
    """Everything a path holds, as work to be done. A folder is searched for structure files; tables, SDF, MOL2 and XYZ files
    are split into rows and records.

    Args:
        path (`str` or `Path`): a file or folder.
        options (`ReadOptions`): how to read; single ones can be given by name.

    Returns:
        List of (name, function, arguments); each call gives a `Structure` or a list of them, or raises `StructureError`, and
        can be made in another process.

    Raises:
        `StructureError`: if the path is missing, empty, or of a kind that is not known.
    """
    path, options = Path(path), replace(options or ReadOptions(), **changes)
    if not path.exists():
        raise StructureError("missing_file", f"{path}: no such file or folder.")
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and is_structure_file(p))
        if not files:
            known = " ".join(MACROMOLECULE_SUFFIXES + MOLECULE_SUFFIXES)
            raise StructureError("empty_folder", f"{path}: no structure files in it ({known}, also .gz).")
        return [work for file in files for work in _file_of_folder(file, path, options)]
    kind = format_of(path)
    if kind == "macromolecule":
        return [(path.name, read_macromolecule, (str(path), None, None, options))]
    if kind in _RECORDS:
        split, read = _RECORDS[kind]
        records = enumerate(split(_text(path)), 1)
        work = [
            (title or f"{path.name} record {i}", read, (title or f"{path.name} record {i}", text, options.seed))
            for i, (title, text) in records
        ]
        if not work:
            raise StructureError("empty_file", f"{path}: no records were found in it.")
        return work
    rows = read_table(path)
    if all(column in rows[0] for column in INDEX_COLUMNS):
        return [(f"{path.name} row {i}", _index_row, (str(path), row, options)) for i, row in enumerate(rows, 1)]
    column = smiles_column(rows[0])
    if column is None:
        raise StructureError(
            "no_smiles_column",
            f"{path}: the columns are {', '.join(map(str, rows[0]))}; expected one of {', '.join(SMILES_COLUMNS)}, or an "
            f"index of complexes with {', '.join(INDEX_COLUMNS)}.",
        )
    title = next((c for c in ("name", "id", "ID", "Name") if c in rows[0]), None)
    work = []
    for i, row in enumerate(rows, 1):
        smiles = row.get(column, "").strip()
        name = (title and row.get(title, "").strip()) or smiles or f"row {i}"
        work.append((f"{path.name} row {i}: {name}", _smiles_row, (smiles, name, row, options)))
    return work


def _file_of_folder(file, folder, options):
    """Work of one file; a file that cannot even be opened becomes work that raises its reason, so that the others go on."""
    try:
        return list_inputs(file, options)
    except StructureError as error:
        return [(str(file.relative_to(folder)), _raise, (error.code, str(error)))]


def _raise(code, message):
    raise StructureError(code, message)


def _smiles_row(smiles, name, row, options):
    structures = []
    for i in range(options.num_conformers):
        structure = structure_from_smiles(smiles, name if not i else f"{name} #{i + 1}", options.seed + i)
        structure.properties = {key: value for key, value in row.items() if key and value}
        structures.append(structure)
    return structures


def read_structures(path, report: ReadReport | None = None, options: ReadOptions | None = None, **changes):
    """Yields every `Structure` of a file or folder; what cannot be read goes into `report`, or raises without one (or with a
    strict one). Options as for `list_inputs`."""
    for name, function, arguments in list_inputs(path, options, **changes):
        try:
            found = function(*arguments)
        except StructureError as error:
            if report is None:
                raise
            report.reject(name, error)
            continue
        for structure in found if isinstance(found, list) else [found]:
            if report is not None:
                report.keep(structure.notes)
            yield structure


__all__ = [
    "AMINO_ACID_NAMES", "BUFFERS", "INTERFACE_DISTANCE", "MODALITIES", "NUCLEOTIDE_NAMES", "Component", "Interface", "Origin",
    "ReadOptions", "ReadReport", "Structure", "StructureError", "bonds_by_distance", "embed", "format_of",
    "is_structure_file", "list_inputs", "list_interfaces", "read_interface", "read_macromolecule", "read_smiles",
    "read_structures", "structure_from_mol", "structure_from_mols", "structure_from_smiles",
]  # fmt: skip
