# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""The tasks of `run_benchmark.py`: where their data is, what is predicted, how it is split, and what counts.

Most tasks are files that `run_finetune.py` reads as they are. Dimers and complexes need a file to be made first: `prepare`
does so, and says what it left out.
"""

import hashlib
import json
import re
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import gemmi
import networkx
from rdkit import Chem

from atomic_files import write_table, write_text
from atomica_hf import StructureError
from atomica_hf.component_atomica import read_bytes
from atomica_hf.structure_atomica import INDEX_COLUMNS, format_of, index_file, read_table
from baselines import BASELINES
from metrics_atomica import CLASS_METRICS, CLASSES, MULTI_LABEL, PRIMARY, REGRESSION, REGRESSION_METRICS
from splitting import SPLITS, check_fractions


NAME = re.compile(r"[\w.+-]+")
POCKET_DISTANCE = 12.0  # angstrom; more than any interface that is read
FAMILY_IDENTITY = 0.4  # of the shorter sequence: complexes with chains this alike are one group
_NO_MATTER = ("title", "group", "units", "source", "licence", "files", "baselines")  # what no number of a cell depends on


@dataclass(frozen=True)
class BenchmarkTask:
    """One column of the scoreboard.

    Args:
        name (`str`): short, for commands and folders.
        files (`tuple` of (`str`, `tuple[str]`)): paths below the data folder, the first that exists is taken; the columns of
            labels in each (`("all",)` is every column of numbers).
        problem_type (`str`): one of `metrics_atomica.PRIMARY`.
        metrics (`tuple[str]`): of `metrics_atomica`; the first is that of the scoreboard.
        title, units, source, licence (`str`): for people.
        group (`str`): the tables are made by group.
        smiles_column (`str`): where it is not clear.
        split (`str`): one of `splitting.SPLITS`; `split_column` and `group_column` as for `run_finetune.py`.
        split_fractions (`tuple`): shares of training, validation and test set.
        resplit (`bool`): whether each seed also has a split of its own, for small sets.
        baselines (`tuple[str]`): of `baselines.BASELINES`.
        prepare (`str`): one of `PREPARATIONS`, for data that `run_finetune.py` does not read as it is.
    """

    name: str
    files: tuple
    problem_type: str
    metrics: tuple
    title: str = ""
    units: str = ""
    source: str = "not stated"
    licence: str = "not stated"
    group: str = "own"
    smiles_column: str | None = None
    split: str = "scaffold"
    split_column: str | None = None
    group_column: str | None = None
    split_fractions: tuple = (0.8, 0.1, 0.1)
    resplit: bool = False
    baselines: tuple = BASELINES
    prepare: str | None = None

    @property
    def metric(self):
        return self.metrics[0]

    @property
    def heading(self):
        return self.title or self.name

    def settings(self):
        """What numbers depend on besides the data, ready for JSON."""
        return {name: value for name, value in json.loads(json.dumps(asdict(self))).items() if name not in _NO_MATTER}

    def split_in_words(self):
        shares = "/".join(f"{100 * share:g}" for share in self.split_fractions)
        words = {
            "random": f"random, {shares}",
            "scaffold": f"scaffold without chance, {shares}",
            "scaffold_balanced": f"scaffold, shuffled, {shares}",
            "column": f"given by the column {self.split_column}",
            "group": f"by {self.group_column}, {shares}",
        }[self.split]
        return f"{words}, another for each seed" if self.resplit else words


_ERROR = ("rmse", "mae", "pearson", "spearman")
_AUC = ("roc_auc", "pr_auc")
_MAE = ("mae", "rmse", "pearson", "spearman")
_TOX21 = (
    "NR-AR", "NR-AR-LBD", "NR-AhR", "NR-Aromatase", "NR-ER", "NR-ER-LBD", "NR-PPAR-gamma", "SR-ARE", "SR-ATAD5", "SR-HSE",
    "SR-MMP", "SR-p53",
)  # fmt: skip


def _moleculenet(name, title, files, problem, source, **more):
    places = tuple((f"{folder}{file}", tuple(columns)) for file, columns in files for folder in ("moleculenet/", ""))
    metrics = _ERROR if problem == REGRESSION else _AUC
    return BenchmarkTask(name, places, problem, metrics, title, group="moleculenet", source=source, **more)


TASKS = (
    _moleculenet(
        "esol", "ESOL",
        (("delaney.csv", ["logp"]), ("delaney-processed.csv", ["measured log solubility in mols per litre"])),
        REGRESSION, "Delaney 2004, in MoleculeNet", units="log10(mol/L)", smiles_column="smiles",
    ),
    _moleculenet(
        "freesolv", "FreeSolv", (("freesolv.csv", ["freesolv"]), ("SAMPL.csv", ["expt"])), REGRESSION,
        "Mobley and Guthrie 2014, in MoleculeNet", units="kcal/mol", smiles_column="smiles",
    ),
    _moleculenet(
        "lipo", "Lipo", (("lipo.csv", ["lipo"]), ("Lipophilicity.csv", ["exp"])), REGRESSION,
        "ChEMBL (AstraZeneca), in MoleculeNet", units="logD at pH 7.4", smiles_column="smiles",
    ),
    _moleculenet(
        "bbbp", "BBBP", (("BBBP.csv", ["p_np"]),), CLASSES, "Martins et al. 2012, in MoleculeNet", smiles_column="smiles"
    ),
    _moleculenet(
        "bace", "BACE", (("bace.csv", ["Class"]),), CLASSES, "Subramanian et al. 2016, in MoleculeNet", smiles_column="mol"
    ),
    _moleculenet(
        "clintox", "ClinTox", ((f"clintox.csv{end}", ["FDA_APPROVED", "CT_TOX"]) for end in ("", ".gz")), MULTI_LABEL,
        "Gayvert et al. 2016, in MoleculeNet", smiles_column="smiles",
    ),
    _moleculenet(
        "tox21", "Tox21", ((f"tox21.csv{end}", _TOX21) for end in ("", ".gz")), MULTI_LABEL,
        "Tox21 Data Challenge 2014, in MoleculeNet", smiles_column="smiles",
    ),
    _moleculenet(
        "sider", "SIDER", ((f"sider.csv{end}", ["all"]) for end in ("", ".gz")), MULTI_LABEL,
        "Kuhn et al. 2016, in MoleculeNet", smiles_column="smiles",
    ),
    BenchmarkTask(
        "dimer_energy",
        tuple((f"{folder}dimers.sdf{end}", ("interaction_energy",)) for folder in ("dimers/", "") for end in (".gz", "")),
        REGRESSION, _MAE, "Dimer energy", "kcal/mol", "Non-Covalent Interactions Atlas (NCIA_*) and older sets",
        group="complexes", split="column", split_column="split", baselines=("mean",), prepare="dimers",
    ),
    BenchmarkTask(
        "ligand_affinity",
        tuple((f"{folder}affinities.csv", ("pAff",)) for folder in ("complexes/protein_ligand/", "protein_ligand/", "")),
        REGRESSION, _MAE, "Ligand pAff", "-log10(mol/L)", "protein-ligand-benchmark of the Open Force Field Initiative",
        "CC BY 4.0", "complexes", split="group", group_column="target", split_fractions=(0.7, 0.1, 0.2), resplit=True,
        prepare="ligands",
    ),
    BenchmarkTask(
        "protein_affinity",
        tuple((f"{folder}ppi_affinity_prodigy.csv", ("dG_exp_kcal_mol",)) for folder in ("complexes/protein_protein/",
              "protein_protein/", "")),
        REGRESSION, _MAE, "Protein-protein dG", "kcal/mol", "PRODIGY set on Docking Benchmark 5 structures", group="complexes",
        split="group", group_column="family", split_fractions=(0.6, 0.2, 0.2), resplit=True, baselines=("mean",),
        prepare="proteins",
    ),
)  # fmt: skip


# tasks of users -----------------------------------------------------------------------------------------------------------


def read_tasks(path):
    """A JSON list, or a table, of own tasks -> list of `BenchmarkTask`.

    Each has `name`, `file`, `label_columns` and `problem_type`, and may have the other arguments of `BenchmarkTask` but
    `files` and `prepare`. In a table several values stand in one cell with semicolons between them.

    Raises:
        `StructureError`: if one of them cannot be understood.
    """
    if Path(path).suffix.lower() == ".json":
        try:
            rows = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StructureError("bad_tasks", f"{path}: not a JSON file that can be read ({error}).") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise StructureError("bad_tasks", f"{path}: expected a list of objects, one for each task.")
    else:
        rows = [{key: value for key, value in row.items() if value} for row in read_table(path)]
    return [_own_task(row, f"{path}, task {number}") for number, row in enumerate(rows, 1)]


def _own_task(row, where):
    def refuse(condition, message):
        if condition:
            raise StructureError("bad_tasks", f"{where}: {message}.")

    known = {field.name for field in fields(BenchmarkTask)} - {"files", "prepare"} | {"file", "label_columns"}
    needed = ("name", "file", "label_columns", "problem_type")
    missing, unknown = [name for name in needed if not row.get(name)], sorted(set(row) - known)
    refuse(missing, f"no {', '.join(missing)}")
    refuse(unknown, f"{', '.join(unknown)} is not known, expected {', '.join(sorted(known))}")
    several = lambda value: tuple(value) if isinstance(value, list) else tuple(str(value).split(";"))
    row = dict(row)
    row["files"] = ((str(row.pop("file")), several(row.pop("label_columns"))),)
    for name in ("metrics", "baselines", "split_fractions"):
        if name in row:
            row[name] = several(row[name])
    if "resplit" in row:
        refuse(str(row["resplit"]).lower() not in ("true", "false"), f"resplit is {row['resplit']!r}, expected true or false")
        row["resplit"] = str(row["resplit"]).lower() == "true"
    refuse(row["problem_type"] not in PRIMARY, f"problem_type is {row['problem_type']!r}, expected {', '.join(PRIMARY)}")
    row.setdefault("metrics", _ERROR if row["problem_type"] == REGRESSION else _AUC)
    if not row.get("split"):
        row["split"] = "column" if row.get("split_column") else "group" if row.get("group_column") else "scaffold"
    try:
        row["split_fractions"] = tuple(map(float, row.get("split_fractions", (0.8, 0.1, 0.1))))
    except ValueError as error:
        raise StructureError("bad_tasks", f"{where}: split_fractions: {error}.") from error
    check_fractions(row["split_fractions"])
    task = BenchmarkTask(**row)
    choices = REGRESSION_METRICS if task.problem_type == REGRESSION else CLASS_METRICS
    refuse(not NAME.fullmatch(str(task.name)), f"the name {task.name!r} has other signs than letters, digits and . _ + -")
    refuse(task.split not in SPLITS, f"split is {task.split!r}, expected one of {', '.join(SPLITS)}")
    refuse(task.split == "column" and not task.split_column, "split is column, and there is no split_column")
    refuse(task.split == "group" and not task.group_column, "split is group, and there is no group_column")
    for values, allowed, what in ((task.metrics, choices, "metrics"), (task.baselines, BASELINES, "baselines")):
        wrong = [value for value in values if value not in allowed]
        refuse(wrong, f"{what} names {', '.join(wrong)}, expected of {', '.join(allowed)}")
    return task


def choose_tasks(names, own=()):
    """Names of tasks, of groups, or `all` -> list of `BenchmarkTask`, each once, in the order of the table of tasks.

    Raises:
        `StructureError`: for a name that is not known, or that two tasks have.
    """
    table = {}
    for task in (*TASKS, *own):
        if task.name in table:
            raise StructureError("bad_tasks", f"Two tasks are called {task.name!r}; give one of them another name.")
        table[task.name] = task
    groups = list(dict.fromkeys(task.group for task in table.values()))
    unknown = [name for name in names if name not in (*table, *groups, "all")]
    if unknown or not names:
        what = f"There is no task {unknown[0]!r}" if unknown else "No task is named"
        raise StructureError("bad_tasks", f"{what}; there are {', '.join(table)}; or {', '.join(groups)}; or all.")
    return [task for task in table.values() if {task.name, task.group, "all"} & set(names)]


def describe(tasks):
    """Lines on where each task expects its data, for people."""
    lines = []
    for task in tasks:
        lines.append(f"{task.name}  ({task.heading}; {task.group})")
        for file, columns in task.files:
            lines.append(
                f"    {file}: {', '.join(columns)}" + (f"; SMILES in {task.smiles_column}" if task.smiles_column else "")
            )
        units = f" in {task.units}" if task.units else ""
        lines.append(
            f"    {task.problem_type.replace('_', ' ')}{units}; {', '.join(task.metrics)}; split {task.split_in_words()}"
        )
        if task.prepare:
            lines.append(f"    {PREPARATIONS[task.prepare].__doc__.splitlines()[0]}")
        lines.append(f"    source: {task.source}; licence: {task.licence}")
    return "\n".join(lines)


# data ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskData:
    """What `run_finetune.py` is given.

    Args:
        path (`Path`): file to train on.
        label_columns (`tuple[str]`): of it.
        hash (`str`): of all that the file says, and of the files that it names.
        notes (`tuple[str]`): what was left out in making it.
    """

    path: Path
    label_columns: tuple
    hash: str
    notes: tuple = ()


def _sha(*parts):
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else str(part).encode())
        found.update(b"\0")
    return found.hexdigest()


def content_hash(path):
    """Hash of a file or folder, and of the structure files that an index names."""
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return _sha(*(part for file in files for part in (file.relative_to(path).as_posix(), file.read_bytes())))
    parts = [path.read_bytes()]
    if format_of(path) in ("csv", "tsv"):
        rows = read_table(path)
        if all(column in rows[0] for column in INDEX_COLUMNS):
            named = sorted({index_file(path, row) for row in rows})
            # without the paths themselves: the same files in another folder are the same data
            parts = [json.dumps([{key: row[key] for key in row if key != "pdb_path"} for row in rows])]
            parts += [file.read_bytes() if file.is_file() else b"" for file in named]
    return _sha(*parts)


def find_data(task, data_dir, folder):
    """The data of a task; what has to be made first is made in `folder`, unless it is there and its sources are the same.

    Raises:
        `StructureError`: if no file of the task is in the data folder, or it lacks a column.
    """
    found = [(Path(data_dir) / file, columns) for file, columns in task.files if (Path(data_dir) / file).exists()]
    if not found:
        places = ", ".join(str(Path(data_dir) / file) for file, _ in task.files)
        raise StructureError("missing_file", f"{task.name}: no data, expected {places}.")
    path, columns = found[0]
    if task.prepare is None:
        return TaskData(path.resolve(), columns, content_hash(path))
    path, notes = prepare(task, path, Path(folder))
    return TaskData(path.resolve(), columns, content_hash(path), tuple(notes))


def prepare(task, path, folder):
    """Makes the train file of a task in `folder`; returns (path, notes)."""
    make, stamp = PREPARATIONS[task.prepare], folder / "prepared.json"
    code = Path(__file__).read_bytes()
    sources = [path, *sorted(file for pattern in _BESIDE[task.prepare] for file in path.parent.glob(pattern))]
    now = _sha(code, *(part for file in sources for part in (file.name, file.read_bytes())))
    try:
        known = json.loads(stamp.read_text(encoding="utf-8"))
        if known["sources"] == now and (folder / known["file"]).exists():
            return folder / known["file"], known["notes"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file, notes = make(path, folder)
    write_text(stamp, json.dumps({"sources": now, "file": file, "notes": notes}, indent=1))
    return folder / file, notes


def _columns(path, rows, needed):
    missing = [column for column in needed if column not in rows[0]]
    if missing:
        raise StructureError("no_column", f"{path}: no column {', '.join(missing)}; there are {', '.join(rows[0])}.")


def prepare_dimers(path, folder):
    """Sets called NCIA_* are for training (a tenth of their dimers, at all distances, for validation), all others for test.

    The validation set is chosen by a hash of the dimer's name, so that it does not depend on the order or number of records.
    """
    text = read_bytes(path).decode("utf-8", errors="replace").replace("\r\n", "\n")
    records, skipped = [], 0
    for record in re.split(r"^\$\$\$\$\n", text, flags=re.MULTILINE):
        if not record.strip():
            continue
        dataset = re.search(r"^> .*<dataset>.*\n(.*)", record, re.MULTILINE)
        if dataset is None:
            skipped += 1
            continue
        title = record.split("\n", 1)[0].strip()
        dimer = title.rsplit("_", 1)[0]  # without the distance
        part = "test"
        if dataset[1].strip().startswith("NCIA_"):
            part = "validation" if int(_sha(dimer)[:8], 16) % 10 == 0 else "train"
        records.append(f"{record.rstrip()}\n\n>  <split>\n{part}\n\n$$$$\n")
    if not records:
        raise StructureError("bad_data", f"{path}: no record has the property 'dataset'.")
    write_text(folder / "dimers.sdf", "".join(records))
    return "dimers.sdf", [f"{skipped} records without the property 'dataset' are left out."] * bool(skipped)


def _ligand_files(folder):
    """Name of a ligand -> RDKit molecule, from one SDF or one for each ligand below `02_ligands`."""
    found = {}
    for file in sorted((folder / "02_ligands").rglob("*.sdf")):
        for mol in Chem.SDMolSupplier(str(file), removeHs=False):
            if mol is not None:
                name = mol.GetProp("_Name") if mol.HasProp("_Name") and mol.GetProp("_Name") else file.stem
                found[file.stem if file.stem.startswith("lig_") else name] = mol
    return found


def _pocket(protein, mol, name):
    """The residues around a ligand, and the ligand as the residue LIG of a chain of its own, as a gemmi structure."""
    search = gemmi.NeighborSearch(protein[0], gemmi.UnitCell(), POCKET_DISTANCE).populate(include_h=False)
    positions = mol.GetConformer().GetPositions()
    near = set()
    for xyz in positions:
        for mark in search.find_atoms(gemmi.Position(*xyz), "\0", radius=POCKET_DISTANCE):
            near.add((mark.chain_idx, mark.residue_idx))
    result, model = gemmi.Structure(), gemmi.Model(1)
    result.name = name
    for i, chain in enumerate(protein[0]):
        kept = gemmi.Chain(chain.name)
        for j, residue in enumerate(chain):
            if (i, j) in near:
                kept.add_residue(residue)
        if len(kept):
            model.add_chain(kept)
    taken = {chain.name for chain in protein[0]}
    ligand, residue = gemmi.Chain(next(letter for letter in "LMNOPQRSTUVWXYZ" if letter not in taken)), gemmi.Residue()
    residue.name, residue.seqid, residue.het_flag = "LIG", gemmi.SeqId("1"), "H"
    for number, (source, xyz) in enumerate(zip(mol.GetAtoms(), positions), 1):
        if source.GetAtomicNum() > 1:
            atom = gemmi.Atom()
            atom.name, atom.element = f"{source.GetSymbol()}{number}", gemmi.Element(source.GetAtomicNum())
            atom.pos = gemmi.Position(*xyz)
            residue.add_atom(atom)
    ligand.add_residue(residue)
    model.add_chain(ligand)
    result.add_model(model)
    return result, ligand.name


def prepare_ligands(path, folder):
    """Each ligand's pose is put into its protein, of which the residues near it are kept; the table becomes an index."""
    rows, index, without = read_table(path), [], []
    _columns(path, rows, ("target", "ligand", "pAff"))
    poses, proteins = {}, {}
    for row in rows:
        target, name = row["target"], row["ligand"]
        if target not in poses:
            poses[target] = _ligand_files(path.parent / target)
            files = sorted((path.parent / target / "01_protein").rglob("protein.pdb"))
            proteins[target] = gemmi.read_structure(str(files[0])) if files else None
        mol, protein = poses[target].get(name), proteins[target]
        if mol is None or protein is None:
            without.append(f"{target}/{name}")
            continue
        structure, chain = _pocket(protein, mol, f"{target}_{name}")
        file = f"{target}_{name}.pdb"
        structure.write_pdb(str(folder / file))
        sides = "_".join(c.name for c in structure[0] if c.name != chain)
        index.append(
            {
                "pdb_id": f"{target}_{name}", "pdb_path": file, "chain1": sides, "chain2": chain, "lig_code": "LIG",
                "lig_smiles": Chem.MolToSmiles(Chem.RemoveHs(mol)), "lig_resi": "1", "target": target, "pAff": row["pAff"],
            }
        )  # fmt: skip
    if not index:
        raise StructureError("bad_data", f"{path}: no ligand has a pose and a protein, for example {without[0]}.")
    write_table(folder / "index.csv", index)
    return "index.csv", [f"{len(without)} ligands without a pose or a protein are left out: {', '.join(without[:5])}."] * bool(
        without
    )


def _sequences(file):
    """One-letter sequences of the protein chains of a file."""
    lines = read_bytes(file).decode("utf-8", errors="replace").splitlines()
    structure = gemmi.read_pdb_string("\n".join(line[:78] for line in lines))  # some have numbers where charges belong
    structure.setup_entities()
    found = [gemmi.one_letter_code([residue.name for residue in chain.get_polymer()]) for chain in structure[0]]
    return [sequence for sequence in found if len(sequence) > 5]


def families(sequences, identity=FAMILY_IDENTITY):
    """Number of the family of each complex: those with chains that are alike, directly or through others, are one.

    Args:
        sequences (`list[list[str]]`): of the chains of each complex.
        identity (`float`): share of the shorter sequence that is the same in an alignment.
    """
    graph, scoring = networkx.Graph(), gemmi.AlignmentScoring("b")  # BLOSUM62
    graph.add_nodes_from(range(len(sequences)))

    def alike(one, other):
        matches = gemmi.align_string_sequences(list(one), list(other), [], scoring).match_count
        return matches >= identity * min(len(one), len(other))

    for i, first in enumerate(sequences):
        for j in range(i):
            if any(alike(one, other) for one in first for other in sequences[j]):
                graph.add_edge(i, j)
    found = [0] * len(sequences)
    for number, members in enumerate(sorted(networkx.connected_components(graph), key=min)):
        for member in members:
            found[member] = number
    return found


def prepare_proteins(path, folder):
    """Chains A and B of PDBID_target.pdb(.gz) beside the table; complexes with similar chains are one family."""
    rows, files, without = read_table(path), [], []
    _columns(path, rows, ("pdb_id", "dG_exp_kcal_mol"))
    for row in rows:
        stem = f"{row['pdb_id']}_target.pdb"
        file = next((path.parent / name for name in (stem, f"{stem}.gz") if (path.parent / name).exists()), None)
        if file is None:
            without.append(row["pdb_id"])
        else:
            files.append((row, file))
    if not files:
        raise StructureError("bad_data", f"{path}: no structure beside it, for example {without[0]}_target.pdb.")
    index = [
        {
            "pdb_id": row["pdb_id"], "pdb_path": str(file.resolve()), "chain1": "A", "chain2": "B",
            "family": f"family {number}", "dG_exp_kcal_mol": row["dG_exp_kcal_mol"],
        }
        for (row, file), number in zip(files, families([_sequences(file) for _, file in files]))
    ]  # fmt: skip
    write_table(folder / "index.csv", index)
    return "index.csv", [f"{len(without)} rows without a structure are left out: {', '.join(without[:5])}, ..."] * bool(without)


_BESIDE = {"dimers": (), "ligands": ("*/01_protein/**/*.pdb", "*/02_ligands/**/*.sdf"), "proteins": ("*_target.pdb*",)}
PREPARATIONS = {"dimers": prepare_dimers, "ligands": prepare_ligands, "proteins": prepare_proteins}
