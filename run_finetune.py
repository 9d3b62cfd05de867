# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Fine-tunes or probes Atomica on labelled molecules and complexes, and predicts for new ones.

python run_finetune.py --model_name_or_path my-atomica --train_file solubility.csv --label_columns logS --output_dir soluble
python run_finetune.py --do_predict --model_name_or_path soluble --predict_file new.smi --output_dir predictions

The output folder holds the model with its processor, a card, the split, every prediction, and the numbers: on validation and
test set, with confidence intervals, beside those of simple models (--baselines). Options may also stand in one JSON file.
"""

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from huggingface_hub.constants import HF_HOME
from rdkit import Chem
from safetensors import SafetensorError
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.hf_argparser import HfArg

from atomic_files import replacing, write_text
from atomica_hf import (
    ROOT,
    AtomicaCollator,
    AtomicaConfig,
    AtomicaForSequenceClassification,
    AtomicaForTokenClassification,
    AtomicaModel,
    AtomicaProcessor,
    StructureError,
)
from atomica_hf.modeling_atomica import REPRESENTATION_POOLINGS
from baselines import fit_predict
from finetuning_data import (
    Encoded,
    ExampleStore,
    LabelledExamples,
    Labels,
    Source,
    align_block_labels,
    check_model,
    encode_source,
    read_labels,
    read_source,
    reject_unaligned,
)
from finetuning_report import PROBES, stack, write_predictions, write_results
from hyperparameter_search import STUDY_FILE, TRIALS_FILE, load_optuna, search
from metrics_atomica import (
    CLASS_METRICS,
    CLASSES,
    LOWER_IS_BETTER,
    METRICS,
    MULTI_LABEL,
    PRIMARY,
    REGRESSION,
    REGRESSION_METRICS,
    scores,
)
from model_loading import load_model as load_encoder
from noisy_nodes import (
    DenoisingCollator,
    EpochOfNoise,
    NoisyExamples,
    attach_denoising_head,
    detach_denoising_head,
)
from run_embedding import batches, embed
from script_arguments import ScriptParser, run_script
from splitting import SETS, SPLITS, canonical_smiles, check_split, make_split, read_split, shared_molecules, write_split


STRATEGIES = ("finetune", "freeze", "gradual", "scratch", *PROBES)
RECORD_FILE = "finetuning.json"
RECORD_KEYS = ("strategy", "columns", "problem", "classes", "of_blocks", "num_conformers", "members", "pooling")
VECTORS_FILE = "probe_vectors.parquet"
DEFAULT_NOISE = 0.1  # angstrom


# options ------------------------------------------------------------------------------------------------------------------


@dataclass
class ModelArguments:
    _argument_group_name = "model"
    model_name_or_path: str | None = HfArg(default=None, help="Folder or hub id of a pretrained, or fine-tuned, model.")
    processor_name_or_path: str | None = HfArg(
        default=None, help="Processor and tokenizer; by default those of the model, or of this repository."
    )
    config_name: str | None = HfArg(default=None, help="Without a pretrained model: configuration of the new one.")
    config_overrides: str | None = HfArg(
        default=None, help="Without a pretrained model: changes of the configuration, such as hidden_size=16,edge_size=16."
    )
    strategy: str | None = HfArg(
        default=None,
        metadata={"choices": list(STRATEGIES)},
        help="finetune: train everything. freeze: the head only. gradual: the head, then layer by layer from the top. "
        "linear_probe, random_forest: scikit-learn on vectors, without a model on those of random weights. scratch: train "
        "everything from random weights. By default finetune, or scratch without a model.",
    )
    unfreeze_every: int = HfArg(default=1, help="For --strategy gradual: epochs between two layers.")
    reset_head: bool = HfArg(default=False, help="Replace the head of a fine-tuned checkpoint by a new one.")
    pooling: str | None = HfArg(
        default=None,
        metadata={"choices": list(REPRESENTATION_POOLINGS)},
        help="For probes: use z_graph, pooled like this, instead of h_graph.",
    )
    probe_regularization: float = HfArg(default=1.0, help="Of linear probes: alpha of the ridge, 1 / C of the logistic.")


@dataclass
class DataArguments:
    _argument_group_name = "data"
    train_file: str | None = HfArg(
        default=None,
        help="Labelled data: .csv .tsv .parquet with SMILES, .sdf, an index of complexes, a prepared dataset, or a hub name.",
    )
    smiles_column: str | None = HfArg(default=None, help="Column with SMILES, where it is not clear.")
    label_columns: list[str] = HfArg(default_factory=list, help="Columns with labels; 'all' is every column of numbers.")
    problem_type: str | None = HfArg(
        default=None, metadata={"choices": list(METRICS)}, help="Kind of labels; by default what they look like."
    )
    block_labels: bool = HfArg(
        default=False, help='Labels of blocks: a list with one per block, or {"A:GLY:12": label}, as JSON.'
    )
    split: str = HfArg(default="random", metadata={"choices": list(SPLITS)}, help="How rows become three sets.")
    split_fractions: list[float] = HfArg(
        default_factory=lambda: [0.8, 0.1, 0.1], help="Shares of training, validation and test set."
    )
    split_column: str | None = HfArg(default=None, help="Column with train, validation or test; sets --split column.")
    group_column: str | None = HfArg(default=None, help="Column whose values stay in one set; sets --split group.")
    split_file: str | None = HfArg(default=None, help="A split.json of an earlier run, instead of --split.")
    split_seed: int = HfArg(default=0, help="Seed of the split.")
    num_conformers: int = HfArg(
        default=1, help="Conformers of each SMILES: each is a training example, and their predictions are averaged."
    )
    max_samples: int | None = HfArg(default=None, help="Read only this many rows.")
    preprocessing_num_workers: int = HfArg(default=1, help="Processes that build structures.")
    cache_dir: str = HfArg(default=str(Path(HF_HOME) / "atomica"), help="Where built structures are kept for later runs.")
    predict_file: str | None = HfArg(default=None, help="With --do_predict: what to predict for; labels are not needed.")
    predictions_file: str | None = HfArg(default=None, help="CSV of these predictions (in --output_dir, named after the file).")


@dataclass
class RunArguments:
    _argument_group_name = "training and numbers"
    num_seeds: int = HfArg(default=1, help="Train this many models, with seeds from --seed on, and average their predictions.")
    early_stopping_patience: int | None = HfArg(default=None, help="Stop after this many validations that were no better.")
    class_weights: str | None = HfArg(
        default=None, metadata={"choices": ["balanced"]}, help="Weigh classes by how rare they are in the training set."
    )
    baselines: bool = HfArg(default=False, help="Also train simple models on the same split: mean, ECFP4, descriptors.")
    hyperparameter_search: int | None = HfArg(
        default=None,
        help="First search learning rate, batch size and weight decay around those given, in so many trials (needs optuna), "
        "by the validation set.",
    )
    num_bootstrap: int = HfArg(default=1000, help="Resamples for the confidence intervals.")
    coordinate_noise: float | None = HfArg(
        default=None,
        help="Gaussian noise on the atoms of training examples, standard deviation in angstrom; by default 0.1 with "
        "--noisy_nodes_weight or --teacher, else none.",
    )
    noisy_nodes_weight: float = HfArg(
        default=0.0, help="Weight of a second loss: to predict that noise. Its head is taken off at the end."
    )
    teacher: str | None = HfArg(default=None, help="Fine-tuned folder that labels --unlabeled for the training set.")
    unlabeled: str | None = HfArg(default=None, help="Unlabelled data for --teacher.")


@dataclass
class FinetuningArguments(TrainingArguments):
    """Those of the Trainer, with defaults for small data sets and small models."""

    _argument_group_name = "the Trainer"
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for the model, numbers, predictions and checkpoints."}
    )
    num_train_epochs: float = field(default=50.0, metadata={"help": "Passes over the training set."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Largest learning rate of AdamW."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Examples of one process per step."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Examples of one process per validation step."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to validate: epoch or steps."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint; as --eval_strategy."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the training loss."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept besides the best."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the model that was best in validation."})
    metric_for_best_model: str | None = field(
        default="auto", metadata={"help": "What best means: by default rmse or roc_auc, or the loss if that is not defined."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights and order; the first one with --num_seeds."})
    do_predict: bool = field(default=False, metadata={"help": "Predict for --predict_file, after training or without."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "Continue a run of the same options: latest, or a checkpoint folder."}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Upload the folder at the end (of the first seed)."})
    ddp_timeout: int = field(default=86400, metadata={"help": "Seconds; the others wait while one process builds structures."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Not used here."})

    def __post_init__(self):
        if self.output_dir is None:
            raise StructureError("usage", "--output_dir is missing: a folder for the model and its numbers.")
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # else torchrun would start separate runs
        super().__post_init__()


@dataclass
class Options:
    """All options of a run."""

    model: ModelArguments
    data: DataArguments
    run: RunArguments
    training: FinetuningArguments

    @property
    def is_main(self):
        return self.training.process_index == 0

    @property
    def shows_progress(self):
        return self.is_main and not self.training.disable_tqdm


ARGUMENTS = (ModelArguments, DataArguments, RunArguments, FinetuningArguments)
USUAL = {*FinetuningArguments.__annotations__, "weight_decay", "lr_scheduler_type", "warmup_steps", "use_cpu", "report_to",
         "gradient_accumulation_steps", "bf16", "disable_tqdm", "hub_model_id"}  # fmt: skip
USUAL -= {"ddp_timeout", "remove_unused_columns"}


def make_parser():
    """Own options first, then those of the Trainer that are usually set, then all others."""
    usage = "%(prog)s --train_file FILE --output_dir FOLDER [options], or one JSON file with options"
    parser = ScriptParser(ARGUMENTS, usage=usage, description=__doc__)
    usual = next(group for group in parser._action_groups if group.title == FinetuningArguments._argument_group_name)
    others = parser.add_argument_group("all other options of the Trainer, as Transformers explains them")
    for action in list(usual._group_actions):
        if action.dest not in USUAL:
            usual._group_actions.remove(action)
            others._group_actions.append(action)
    return parser


def parse(argv):
    parser = make_parser()
    if len(argv) == 1 and argv[0].endswith(".json"):
        try:
            return Options(*parser.parse_json_file(argv[0]))
        except StructureError:
            raise
        except (OSError, ValueError, TypeError) as error:
            raise StructureError("usage", f"{argv[0]}: not a JSON file with options ({error}).") from error
    try:
        return Options(*parser.parse_args_into_dataclasses(argv))
    except StructureError:
        raise
    except ValueError as error:  # of TrainingArguments
        raise StructureError("usage", str(error)) from error


def check_options(options):
    """Settles what options imply. Raises `StructureError` for those that contradict each other."""
    model, data, run, training = options.model, options.data, options.run, options.training

    def refuse(condition, message):
        if condition:
            raise StructureError("usage", message)

    model.strategy = model.strategy or ("finetune" if model.model_name_or_path else "scratch")
    refuse(
        data.train_file is None and not training.do_predict, "--train_file is missing (or --do_predict with --predict_file)."
    )
    refuse(training.do_predict and data.predict_file is None, "--do_predict needs --predict_file.")
    refuse(data.predict_file is not None and not training.do_predict, "--predict_file needs --do_predict.")
    refuse(data.predictions_file is not None and not training.do_predict, "--predictions_file needs --do_predict.")
    is_folder = data.predictions_file is not None and Path(data.predictions_file).is_dir()
    refuse(is_folder, f"--predictions_file {data.predictions_file} is a folder, expected a file.")
    refuse(Path(training.output_dir).is_file(), f"--output_dir {training.output_dir} is a file, expected a folder.")
    needs_model = model.strategy not in ("scratch", *PROBES) and model.model_name_or_path is None
    refuse(needs_model, f"--strategy {model.strategy} needs --model_name_or_path.")
    trained_before = model.strategy == "scratch" and model.model_name_or_path is not None
    refuse(trained_before, "--strategy scratch takes no --model_name_or_path: use --config_name for a configuration.")
    changed = model.model_name_or_path is not None and (model.config_name or model.config_overrides)
    refuse(changed, "--config_name and --config_overrides are for models without --model_name_or_path.")
    refuse(model.pooling is not None and model.strategy not in PROBES, f"--pooling is for {' and '.join(PROBES)}.")
    refuse(data.split_column and data.group_column, "--split_column and --group_column exclude each other.")
    refuse((run.teacher is None) != (run.unlabeled is None), "--teacher and --unlabeled belong together.")
    refuse(run.teacher and model.strategy in PROBES, "--teacher is not for probes.")
    refuse(run.coordinate_noise and model.strategy in PROBES, "--coordinate_noise is not for probes.")
    useless = run.noisy_nodes_weight and model.strategy in ("freeze", *PROBES)
    refuse(useless, f"--noisy_nodes_weight is not for --strategy {model.strategy}, which leaves the encoder as it is.")
    if run.coordinate_noise is None:
        run.coordinate_noise = DEFAULT_NOISE if run.noisy_nodes_weight or run.teacher else 0.0
    refuse(run.noisy_nodes_weight and not run.coordinate_noise, "--noisy_nodes_weight needs --coordinate_noise.")
    refuse(data.block_labels and model.strategy in PROBES, f"--strategy {model.strategy} has no labels of blocks.")
    refuse(run.num_seeds > 1 and model.strategy in PROBES, f"--num_seeds is not for --strategy {model.strategy}.")
    for name, least, where in (
        ("num_seeds", 1, run), ("num_bootstrap", 0, run), ("num_conformers", 1, data), ("preprocessing_num_workers", 1, data),
        ("unfreeze_every", 1, model), ("max_samples", 1, data), ("early_stopping_patience", 1, run),
        ("per_device_train_batch_size", 1, training), ("per_device_eval_batch_size", 1, training),
        ("hyperparameter_search", 1, run), ("learning_rate", 0, training), ("coordinate_noise", 0, run),
        ("noisy_nodes_weight", 0, run),
    ):  # fmt: skip
        value = getattr(where, name)
        refuse(value is not None and value < least, f"--{name} is {value}, expected at least {least}.")
    refuse(not model.probe_regularization > 0, f"--probe_regularization is {model.probe_regularization}, expected more than 0.")
    refuse(training.dataloader_drop_last, "--dataloader_drop_last would leave out predictions.")
    stops = run.early_stopping_patience is not None and str(training.eval_strategy.value) == "no"
    refuse(stops, "--early_stopping_patience needs --eval_strategy epoch or steps.")
    if run.hyperparameter_search is not None:
        refuse(model.strategy in PROBES, f"--hyperparameter_search is not for --strategy {model.strategy}.")
        refuse(str(training.eval_strategy.value) == "no", "--hyperparameter_search needs --eval_strategy epoch or steps.")
        refuse(training.world_size > 1, "--hyperparameter_search runs in one process; then train in several.")
        load_optuna()
    explicit = str(training.resume_from_checkpoint).lower() not in ("none", "false", "true", "latest")
    refuse(run.num_seeds > 1 and explicit, "With --num_seeds, --resume_from_checkpoint must be latest.")
    both = data.split_file is not None and (data.split_column or data.group_column)
    refuse(both, "--split_file excludes --split_column and --group_column.")
    data.split = "column" if data.split_column else "group" if data.group_column else data.split
    refuse(data.split == "column" and not data.split_column, "--split column needs --split_column.")
    refuse(data.split == "group" and not data.group_column, "--split group needs --group_column.")


# the task -----------------------------------------------------------------------------------------------------------------


@dataclass
class Task:
    """What is learnt: labelled rows, their examples, and which set each is in."""

    source: Source
    labels: Labels
    encoded: Encoded
    split: dict
    notes: list = dataclasses.field(default_factory=list)  # for people: in the printed report and the card

    @property
    def problem(self):
        return self.labels.problem

    def rows(self, part):
        """Rows of a set that have an example."""
        return [row for row in self.split[part] if self.encoded.items[row]]

    def block_labels(self, row):
        example = self.encoded.store.example(self.encoded.items[row][0])
        return align_block_labels(self.labels.values[row], example)

    def targets(self, rows):
        """Labels of rows as `metrics_atomica` wants them, and the row of each (of each block, if they have labels)."""
        if not self.labels.of_blocks:
            return np.asarray(self.labels.values)[rows], np.array(rows)
        parts = [self.block_labels(row) for row in rows]
        flat = np.concatenate(parts) if parts else np.zeros(0)
        return flat if self.problem == CLASSES else flat[:, None], np.repeat(rows, [len(part) for part in parts])


def _has_label(labels):
    if labels.of_blocks:
        return {row for row, value in enumerate(labels.values) if value is not None}
    return set(np.flatnonzero(~np.isnan(labels.values.reshape(len(labels.values), -1)).all(1)).tolist())


def split_rows(source, labels, data):
    """The split of the rows that have a label and, where they are SMILES, a molecule; whether a conformer was found does not
    matter here.

    Raises:
        `StructureError`: if a set is empty.
    """
    usable = _has_label(labels)
    if data.split_file is not None:
        found = read_split(data.split_file, len(source.rows))
        labelled = {part: [row for row in rows if row in usable] for part, rows in found.items()}
        return check_split(labelled, _needed_sets(data), f"{data.split_file} (of rows with a label)")
    if source.kind == "smiles":
        usable = {row for row in usable if source.smiles[row] and Chem.MolFromSmiles(source.smiles[row]) is not None}
    if not usable:
        raise StructureError("nothing_usable", f"{source.path}: no row has both a label and a SMILES string that can be read.")
    column = data.split_column or data.group_column
    values = source.column(column) if column else None
    found = make_split(
        data.split, len(source.rows), source.smiles, values, data.split_fractions, data.split_seed, usable, column
    )
    if data.split == "random":
        name = "the random split"
    elif data.split == "column":
        name = f"the split by {column}"
    else:
        group = column or "scaffold"
        name = f"the split by {group} (rows of one {group} stay in one set)"
    return check_split(found, _needed_sets(data), f"{source.path}: {name}")


def _needed_sets(data):
    no_test = data.split != "column" and data.split_fractions[-1] == 0
    return SETS[:2] if no_test else SETS


def check_training_set(task):
    """Raises `StructureError` if nothing can be learnt from the training set."""
    values, _ = task.targets(task.rows("train"))
    columns = values.reshape(len(values), -1).T
    kinds = [len(np.unique(column[~np.isnan(column)])) for column in columns]
    if max(kinds, default=0) < 2:
        what = "one value only" if task.problem == REGRESSION else "one class only"
        raise StructureError(
            "one_class", f"The training set has {what} of {', '.join(task.labels.columns)}; try another split."
        )


def notes_of(task):
    """Lines on what is odd about a split, for people."""
    source, labels, notes = task.source, task.labels, list(task.source.notes)
    split = {part: task.rows(part) for part in SETS}
    targets, _ = task.targets(split["train"])
    if source.kind in ("smiles", "records") and any(source.smiles):
        shared = shared_molecules(source.smiles, split)
        parts = [f"{shared[part]} of {len(split[part])} {part} molecules" for part in reversed(SETS[1:]) if split[part]]
        notes.append(f"{' and '.join(parts)} have the same canonical SMILES as a training molecule.")
    left = {row for row in _has_label(labels) if task.encoded.items[row]} - {row for rows in split.values() for row in rows}
    if left:
        notes.append(f"{len(left)} usable rows with a label are in no set.")
    if labels.problem == CLASSES:
        there = set(targets[~np.isnan(targets)].astype(int).tolist())
        missing, what = [name for i, name in enumerate(labels.classes) if i not in there], "has no example of the class"
    else:
        varied = [len(np.unique(column[~np.isnan(column)])) > 1 for column in targets.T]
        missing, what = [name for name, one in zip(labels.columns, varied) if not one], "has no two different labels of"
    if missing:
        notes.append(f"The training set {what} {', '.join(missing)}: nothing is learnt of it.")
    return notes


def prepare_task(options, processor):
    """Reads, splits and builds, in this order, so that what is wrong shows before what takes long.

    Raises:
        `StructureError`: if no model can be trained on it.
    """
    data = options.data
    source = read_source(data.train_file, processor, data.smiles_column, data.max_samples)
    excluded = [column for column in (data.split_column, data.group_column) if column]
    labels = read_labels(source, data.label_columns, data.problem_type, None, data.block_labels, excluded)
    if options.run.class_weights and labels.problem == REGRESSION:
        raise StructureError("usage", f"--class_weights is for classes; {', '.join(labels.columns)}: numbers to predict.")
    split = split_rows(source, labels, data)
    encoded = build(source, processor, options)
    if labels.of_blocks:
        reject_unaligned(labels, source, encoded)
    task = Task(source, labels, encoded, split)
    try:
        check_split({part: task.rows(part) for part in SETS}, _needed_sets(data))
    except StructureError as error:
        raise StructureError(error.code, f"After structures were built: {error}\n{encoded.report.summary()}") from error
    check_training_set(task)
    task.notes += notes_of(task)
    if options.is_main:
        print("\n".join(task.notes))
    return task


def build(source, processor, options):
    """Examples of a source; the main process builds them, the others find them on disk."""
    with options.training.main_process_first(desc="building structures"):
        store = ExampleStore(Path(options.data.cache_dir) / "structures.sqlite")
        workers = options.data.preprocessing_num_workers
        encoded = encode_source(source, processor, store, options.data.num_conformers, workers, options.shows_progress)
    if options.is_main:
        lost = f"; {encoded.lost_conformers} conformers of others failed" if encoded.lost_conformers else ""
        print(f"{source.path}: {encoded.report.summary()}{lost}")
    return encoded


# models -------------------------------------------------------------------------------------------------------------------


def load_processor(options, folder=None):
    """That of a folder, or the one that the options name."""
    name = folder or options.model.processor_name_or_path or options.model.model_name_or_path or str(ROOT)
    try:
        return AtomicaProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise StructureError("no_processor", f"{name}: no Atomica processor there ({str(error).splitlines()[0]}).") from error


def load_config(name):
    """Raises `StructureError` if there is no Atomica model."""
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise StructureError("no_model", f"{name}: no Atomica model there ({str(error).splitlines()[0]}).") from error
    if config.model_type != "atomica":
        raise StructureError("no_model", f"{name}: a checkpoint of model type {config.model_type!r}, expected 'atomica'.")
    return config


def model_class(of_blocks):
    return AtomicaForTokenClassification if of_blocks else AtomicaForSequenceClassification


def has_head(config):
    """Whether a checkpoint was fine-tuned."""
    return any(name.endswith("Classification") for name in config.architectures or ())


def check_head(config, labels, name):
    """Raises `StructureError` if the head of a fine-tuned checkpoint is not for these labels."""
    wanted = model_class(labels.of_blocks).__name__
    differences = []
    if wanted not in config.architectures:
        differences.append(f"is {config.architectures[0]}, expected {wanted}")
    if config.num_labels != labels.num_labels:
        differences.append(f"has num_labels {config.num_labels}, expected {labels.num_labels}")
    if config.problem_type not in (None, labels.problem):
        differences.append(f"has problem_type {config.problem_type!r}, expected {labels.problem!r}")
    if differences:
        raise StructureError("other_head", f"{name}: {'; '.join(differences)}. Use --reset_head to train a new head.")


def label_settings(labels):
    """Entries of the configuration."""
    names = {i: str(name) for i, name in enumerate(labels.names)}
    return {"problem_type": labels.problem, "id2label": names, "label2id": {name: i for i, name in names.items()}}


def new_config(arguments, vocab_size, labels):
    """Of a model without pretrained weights.

    Raises:
        `StructureError`: for overrides that are not known or do not fit.
    """
    config = load_config(arguments.config_name) if arguments.config_name else AtomicaConfig()
    try:
        if arguments.config_overrides:
            config.update_from_string(arguments.config_overrides)
        values = {**config.to_dict(), "vocab_size": vocab_size, **label_settings(labels)}
        for name in ("num_labels", "architectures", "transformers_version", "model_type"):
            values.pop(name, None)
        return AtomicaConfig(**values)
    except (ValueError, AttributeError, KeyError) as error:
        raise StructureError("usage", f"--config_overrides {arguments.config_overrides}: {error}") from error


def make_model(options, labels, vocab_size, seed, scale):
    """A model with a head for the labels, which works on standardised targets.

    Args:
        vocab_size (`int`): tokens of the processor.
        seed (`int`): of what is drawn.
        scale (`tuple` of two arrays `(num_labels,)`): mean and standard deviation of the targets; None for classes.

    Raises:
        `StructureError`: if the checkpoint does not fit.
    """
    arguments, name = options.model, options.model.model_name_or_path
    cls = model_class(labels.of_blocks)
    set_seed(seed)
    if name is None:
        return cls(new_config(arguments, vocab_size, labels))
    config = load_config(name)
    if config.vocab_size != vocab_size:
        message = f"{name}: the model has {config.vocab_size} block tokens, the tokenizer {vocab_size}."
        raise StructureError("other_vocabulary", message)
    try:
        if has_head(config) and not arguments.reset_head:
            check_head(config, labels, name)
            model = cls.from_pretrained(name, **label_settings(labels), dtype=torch.float32)
            if scale is not None:
                unscale_head(model, *scale)
            return model
        encoder = AtomicaModel.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, StructureError):
            raise
        raise StructureError("no_model", f"{name}: no weights of Atomica there ({str(error).splitlines()[0]}).") from error
    for key, value in label_settings(labels).items():
        setattr(config, key, value)
    model = cls(config)
    model.atomica.load_state_dict(encoder.state_dict())
    return model


def target_scale(task, pooling):
    """Mean and standard deviation of each target in the training set, arrays `(num_labels,)`; None for classes. With the
    pooling `block_sum`, zero and the root mean square: a sum over blocks has no place for a mean."""
    if task.problem != REGRESSION:
        return None
    values, _ = task.targets(task.rows("train"))
    there = ~np.isnan(values)
    mean = np.array([value[known].mean() if known.any() else 0.0 for value, known in zip(values.T, there.T)])
    std = np.array([value[known].std() if known.any() else 0.0 for value, known in zip(values.T, there.T)])
    if pooling == "block_sum":
        mean, std = np.zeros_like(mean), np.sqrt(mean**2 + std**2)
    return mean, np.where(std > 0, std, 1.0)


@torch.no_grad()
def scale_head(model, mean, std):
    """Puts the units of the targets into the last layer: a model of standardised targets then predicts in their own units."""
    last = model.classifier.layers[-1]
    mean, std = (torch.tensor(value, dtype=last.weight.dtype, device=last.weight.device) for value in (mean, std))
    last.weight.mul_(std[:, None])
    last.bias.mul_(std).add_(mean)


def unscale_head(model, mean, std):
    """The inverse of `scale_head`."""
    scale_head(model, np.zeros_like(mean), 1 / std)
    scale_head(model, -mean / std, np.ones_like(std))


def layer_groups(model):
    """Modules of the encoder from the top down, for gradual unfreezing: each layer, with what reads it out."""
    encoder = model.atomica
    groups = [[encoder.pooler, encoder.block_encoder.readout_in, encoder.block_encoder.readout_out]]
    groups += [[layer] for layer in reversed(encoder.block_encoder.layers)]
    groups += [[encoder.atom_to_block_attention, encoder.atom_encoder.readout_in, encoder.atom_encoder.readout_out]]
    groups += [[layer] for layer in reversed(encoder.atom_encoder.layers)]
    return groups + [[encoder]]  # embeddings and what else is left


class GradualUnfreezing(TrainerCallback):
    """The head alone for `every` epochs, then one more group of `layer_groups` every so many epochs."""

    def __init__(self, every):
        self.every = every

    def on_epoch_begin(self, args, state, control, model=None, **kwargs):
        model.atomica.requires_grad_(False)
        for modules in layer_groups(model)[: int(state.epoch + 1e-6) // self.every]:
            for module in modules:
                module.requires_grad_(True)


# training -----------------------------------------------------------------------------------------------------------------


def class_weights(task):
    """Balanced weights: of each class, or of the positives of each task; from the training set."""
    values, _ = task.targets(task.rows("train"))
    if task.problem == CLASSES:
        counts = np.bincount(values[~np.isnan(values)].astype(np.int64), minlength=task.labels.num_labels)
        return torch.tensor(counts.sum() / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)
    positive, negative = (values == 1).sum(0), (values == 0).sum(0)
    return torch.tensor(np.where(positive * negative > 0, negative / np.maximum(positive, 1), 1.0), dtype=torch.float32)


def weighted_loss(logits, labels, weights, problem):
    """Weighted mean over the labels that are there; shapes as for the model."""
    weights = weights.to(logits)
    if problem == CLASSES:
        classes = torch.where(labels.isnan(), -100, labels).long().flatten() if labels.is_floating_point() else labels.flatten()
        total = F.cross_entropy(logits.flatten(0, -2), classes, weights, reduction="sum")
        return total / weights[classes[classes >= 0]].sum().clamp_min(1e-6)
    there = labels >= 0
    losses = F.binary_cross_entropy_with_logits(logits, labels.clamp_min(0).nan_to_num(), pos_weight=weights, reduction="none")
    return (losses * there).sum() / there.sum().clamp_min(1)


class FinetuningTrainer(Trainer):
    """The Trainer with balanced classes, a loss of noise, and an encoder that stays as it is if it is frozen.

    Args:
        weights (`torch.Tensor`): of classes; see `class_weights`.
        frozen (`bool`): whether the encoder is frozen; its dropout is then off.
        noise_weight (`float`): of the loss of a denoising head. It is logged as `noise_loss`, that of predicting nothing as
            `noise_baseline`; `loss` stays that of the labels.
    """

    def __init__(self, *args, weights=None, frozen=False, noise_weight=0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.weights, self.frozen, self.noise_weight = weights, frozen, noise_weight
        self.noise_losses = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        plain = self.accelerator.unwrap_model(model)
        if self.frozen:
            plain.atomica.eval()
        outputs = model(**inputs)
        loss = outputs.loss
        if self.weights is not None:
            weighted = weighted_loss(outputs.logits, inputs["labels"], self.weights, plain.config.problem_type)
            loss = weighted + 0.0 * loss  # distributed training wants every parameter in the graph
        if "noise_loss" in outputs:
            self.noise_losses.append(torch.stack([outputs["noise_loss"], outputs["noise_baseline"]]).detach())
            loss = loss + self.noise_weight * outputs["noise_loss"]
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, *args, **kwargs):
        if "loss" in logs and self.noise_losses:
            means = self.accelerator.gather(torch.stack(self.noise_losses).mean(0)).view(-1, 2).mean(0)
            logs["noise_loss"], logs["noise_baseline"] = means.tolist()
            logs["loss"] -= self.noise_weight * logs["noise_loss"]
            self.noise_losses.clear()
        super().log(logs, *args, **kwargs)

    def create_model_card(self, *args, **kwargs):
        """The card is written at the end of the run, with its numbers."""


def to_predictions(logits, problem, scale=None):
    """Logits `(..., num_labels)` -> predictions in the units of the labels, or probabilities."""
    logits = torch.as_tensor(np.asarray(logits)).double()
    if problem == CLASSES:
        return logits.softmax(-1).numpy()
    if problem == MULTI_LABEL:
        return logits.sigmoid().numpy()
    return logits.numpy() if scale is None else logits.numpy() * scale[1] + scale[0]


def average_by_row(predictions, dataset):
    """Predictions of examples -> row -> their mean over the examples of the row. Those of blocks lose their padding."""
    found = {}
    for i, (row, item) in enumerate(dataset.items):
        value = predictions[i]
        if value.ndim == 2:
            value = value[: len(dataset.store.example(item)["input_ids"])]
        found.setdefault(row, []).append(value)
    return {row: np.mean([v for v in values if v.shape == values[0].shape], axis=0) for row, values in found.items()}


def validation_metrics(task, dataset, scale):
    """The function that the Trainer calls after each validation."""
    rows, metric = task.rows("validation"), METRICS[task.problem]()
    targets, _ = task.targets(rows)

    def compute(found):
        predictions = average_by_row(to_predictions(found.predictions, task.problem, scale), dataset)
        result = metric.compute(predictions=stack(predictions, rows), references=targets)
        return {name: value for name, value in result.items() if name != "num_tasks"}

    return compute


def best_metric(task):
    """Name of the metric that chooses the best model: the loss where the usual one is not defined on the validation set."""
    name = PRIMARY[task.problem]
    targets, _ = task.targets(task.rows("validation"))
    shape = (len(targets), task.labels.num_labels)
    value = scores(task.problem, np.full(shape, 0.5), targets)[name]
    return "loss" if np.isnan(value) else name


def training_arguments(options, task, seed, folder):
    """Arguments of the Trainer for one seed."""
    first = seed == options.training.seed
    push = options.training.push_to_hub and first
    changes = {"output_dir": str(folder), "seed": seed, "push_to_hub": push, "hub_strategy": "end", "label_names": ["labels"]}
    arguments = dataclasses.replace(options.training, **changes)
    metric = best_metric(task) if arguments.metric_for_best_model == "auto" else arguments.metric_for_best_model
    metric = metric.removeprefix("eval_")
    known = ("loss", *(REGRESSION_METRICS if task.problem == REGRESSION else CLASS_METRICS))
    if metric not in known:
        raise StructureError("usage", f"--metric_for_best_model is {metric!r}, expected one of {', '.join(known)}.")
    arguments.metric_for_best_model, arguments.greater_is_better = metric, metric not in LOWER_IS_BETTER
    if options.model.strategy == "gradual":
        arguments.ddp_find_unused_parameters = True
    return arguments


def last_checkpoint(folder):
    """The last checkpoint in a folder that was written to its end; None if there is none."""
    found = []
    for path in Path(folder).glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))  # the Trainer writes it last
            found.append((int(path.name.removeprefix("checkpoint-")), str(path)))
        except (OSError, ValueError):
            continue
    return max(found)[1] if found else None


def check_checkpoint(checkpoint, config):
    """Raises `StructureError` if the model of a checkpoint is not the one that is to be trained on."""
    before, now = load_config(checkpoint).to_dict(), config.to_dict()
    unlike = [name for name in now if name in before and before[name] != now[name]]
    unlike = [name for name in unlike if name not in ("architectures", "dtype", "transformers_version", "_name_or_path")]
    if unlike:
        differences = "; ".join(f"has {name} {before[name]!r}, expected {now[name]!r}" for name in unlike)
        raise StructureError("other_model", f"{checkpoint}: {differences}. A run can be resumed only as it was started.")


def checkpoint_of(options, folder):
    """Checkpoint to resume from, or None.

    Raises:
        `StructureError`: if there is none, or one that would be overwritten.
    """
    given, last = options.training.resume_from_checkpoint, last_checkpoint(folder)
    if given is None or str(given).lower() == "false":
        if last is not None:
            raise StructureError(
                "usage",
                f"{folder} has checkpoints of an earlier run: continue it with --resume_from_checkpoint latest, or name "
                "another folder.",
            )
        return None
    if str(given).lower() in ("latest", "true"):
        return last
    if not (Path(given) / "trainer_state.json").exists():
        raise StructureError("usage", f"--resume_from_checkpoint {given}: no checkpoint there.")
    return str(given)


def make_trainer(options, task, extra, processor, seed, folder, **changes):
    """(Trainer, scale of the targets) of one seed.

    Args:
        extra: the function of `pseudo_labels`, or None.
        changes: of the training arguments, for a search: the Trainer then makes its model anew for each trial.
    """
    pooling = "graph"
    if options.model.model_name_or_path:
        pooling = load_config(options.model.model_name_or_path).pooling
    elif options.model.config_name or options.model.config_overrides:
        pooling = new_config(options.model, len(processor.tokenizer), task.labels).pooling
    scale = target_scale(task, "graph" if task.labels.of_blocks else pooling)
    frozen, noise_weight = options.model.strategy == "freeze", options.run.noisy_nodes_weight

    def make():
        model = make_model(options, task.labels, len(processor.tokenizer), seed, scale)
        model.atomica.requires_grad_(not frozen)
        return attach_denoising_head(model) if noise_weight else model

    model = make()
    check_model(task.encoded, model.config, task.source.path)
    values = training_labels(task.labels, scale)
    sets = [LabelledExamples(task.encoded, task.rows(part), model.config, values, task.labels.of_blocks) for part in SETS[:2]]
    if extra is not None:
        sets[0] = torch.utils.data.ConcatDataset([sets[0], extra(model.config, scale)])
    arguments = dataclasses.replace(training_arguments(options, task, seed, folder), **changes)
    callbacks = []
    if options.run.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(options.run.early_stopping_patience))
    if options.model.strategy == "gradual":
        callbacks.append(GradualUnfreezing(options.model.unfreeze_every))
    if options.run.coordinate_noise:
        sets[0] = NoisyExamples(sets[0], options.run.coordinate_noise, seed)
        callbacks.append(EpochOfNoise(sets[0]))
    weights = class_weights(task) if options.run.class_weights and task.problem != REGRESSION else None
    trainer = FinetuningTrainer(
        None if changes else model, arguments, DenoisingCollator() if noise_weight else AtomicaCollator(), sets[0], sets[1],
        model_init=make if changes else None, compute_metrics=validation_metrics(task, sets[1], scale), callbacks=callbacks,
        weights=weights, frozen=frozen, noise_weight=noise_weight,
    )  # fmt: skip
    return trainer, scale


def training_labels(labels, scale):
    """Labels as the model learns them: standardised, if they are numbers."""
    if scale is None:
        return labels.values
    mean, std = scale
    if not labels.of_blocks:
        return ((labels.values - mean) / std).astype(np.float32)
    number = lambda value: (value - float(mean[0])) / float(std[0])
    plain = lambda value: {k: number(v) for k, v in value.items()} if isinstance(value, dict) else [number(v) for v in value]
    return [None if value is None else plain(value) for value in labels.values]


def train_one(options, task, extra, processor, seed, folder):
    """Trains with one seed, saves the model in `folder`, and predicts every row. Returns (predictions by row, trainer)."""
    trainer, scale = make_trainer(options, task, extra, processor, seed, folder)
    checkpoint = checkpoint_of(options, folder)
    if checkpoint is not None:
        check_checkpoint(checkpoint, trainer.accelerator.unwrap_model(trainer.model).config)
    trainer.train(resume_from_checkpoint=checkpoint)
    model = detach_denoising_head(trainer.accelerator.unwrap_model(trainer.model))
    model.requires_grad_(True)
    if scale is not None:
        scale_head(model, *scale)
    predictions = predict_rows(trainer, task.encoded, task.problem)
    if trainer.is_world_process_zero():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return predictions, trainer


def predict_rows(trainer, encoded, problem):
    """Row -> prediction of a trained model for all rows that have examples.

    Raises:
        `StructureError`: if they are not finite.
    """
    rows = [row for row, items in enumerate(encoded.items) if items]
    dataset = LabelledExamples(encoded, rows, trainer.accelerator.unwrap_model(trainer.model).config)
    trainer.compute_metrics = None
    logits = trainer.predict(dataset).predictions
    found = average_by_row(to_predictions(logits, problem), dataset)
    if not all(np.isfinite(value).all() for value in found.values()):
        raise StructureError(
            "not_finite", "Predictions are not finite numbers: training diverged (try a smaller --learning_rate)."
        )
    return found


def mean_of(members):
    """Predictions by row of several models -> their means."""
    return {row: np.mean([member[row] for member in members], axis=0) for row in members[0]}


# predicting ---------------------------------------------------------------------------------------------------------------


def read_record(folder):
    """What a run remembers of itself. Raises `StructureError` if the folder is not of one."""
    message = f"{folder}: not a folder that run_finetune.py wrote (no {RECORD_FILE} that can be read)."
    try:
        record = json.loads((Path(folder) / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StructureError("no_model", message) from error
    if not isinstance(record, dict) or not set(RECORD_KEYS) <= set(record):
        raise StructureError("no_model", message)
    return record


def load_member(cls, folder):
    """Raises `StructureError` if there is no model of this class."""
    try:
        return cls.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise StructureError("no_model", f"{folder}: no model that can be read ({str(error).splitlines()[0]}).") from error


def labels_of_record(record, num_rows):
    """`Labels` without values."""
    shape = (num_rows,) if record["classes"] is not None else (num_rows, len(record["columns"]))
    values = [None] * num_rows if record["of_blocks"] else np.full(shape, np.nan)
    return Labels(record["columns"], record["problem"], values, record["classes"], record["of_blocks"])


def predict_folder(folder, path, options):
    """A trained folder and a file -> (record, source, examples, predictions by row, each the mean over the members)."""
    record = read_record(folder)
    processor = load_processor(options, folder)
    if record["strategy"] not in PROBES:
        cls = model_class(record["of_blocks"])
        models = [load_member(cls, Path(folder) / member) for member in record["members"]]
    source = read_source(path, processor, options.data.smiles_column, options.data.max_samples)
    data = dataclasses.replace(options.data, num_conformers=record["num_conformers"])
    encoded = build(source, processor, dataclasses.replace(options, data=data))
    if record["strategy"] in PROBES:
        return record, source, encoded, predict_probe(folder, record, encoded)
    members = []
    for model in models:
        check_model(encoded, model.config, path)
        arguments = dataclasses.replace(options.training, eval_strategy="no", load_best_model_at_end=False)
        trainer = Trainer(model, arguments, AtomicaCollator())
        members.append(predict_rows(trainer, encoded, record["problem"]))
    return record, source, encoded, mean_of(members)


def run_prediction(options, folder):
    """Writes the predictions of a trained folder for `--predict_file`."""
    data = options.data
    record, source, encoded, predictions = predict_folder(folder, data.predict_file, options)
    if not options.is_main:
        return
    name = f"predictions-{Path(data.predict_file).name.split('.')[0]}.csv"
    output = Path(data.predictions_file or Path(options.training.output_dir) / name)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(output, source, labels_of_record(record, len(source.rows)), encoded, predictions)
    print(f"{output}: predictions for {len(predictions)} of {len(source.rows)} rows.")


def pseudo_labels(options, task):
    """The teacher's predictions for the unlabelled file, as a function (config, scale) -> training examples.

    Raises:
        `StructureError`: if the teacher was trained for other labels.
    """
    labels = task.labels
    if options.run.teacher is None:
        return None
    record, source, encoded, predictions = predict_folder(options.run.teacher, options.run.unlabeled, options)
    if labels.of_blocks or (record["columns"], record["problem"], record["classes"]) != (
        labels.columns, labels.problem, labels.classes
    ):  # fmt: skip
        raise StructureError(
            "other_head",
            f"--teacher {options.run.teacher}: learnt {', '.join(record['columns'])} ({record['problem']}), "
            f"expected {', '.join(labels.columns)} ({labels.problem}).",
        )
    rows = sorted(predictions)
    held = [task.source.smiles[row] for part in SETS[1:] for row in task.rows(part)]
    held, more = set(canonical_smiles(held)) - {None}, canonical_smiles([source.smiles[row] for row in rows])
    task.notes.append(
        f"{sum(one in held for one in more)} of {len(rows)} molecules of --unlabeled are in validation or test set."
    )

    def examples(config, scale):
        values = np.stack([predictions[row] for row in rows]).astype(np.float32)
        full = np.full((len(source.rows), *values.shape[1:]), np.nan, dtype=np.float32)
        full[rows] = values if scale is None else (values - scale[0]) / scale[1]
        if labels.problem == CLASSES:
            full = np.where(np.isnan(full[:, 0]), np.nan, full.argmax(1))
        check_model(encoded, config, options.run.unlabeled)
        return LabelledExamples(encoded, rows, config, full)

    return examples


# probes -------------------------------------------------------------------------------------------------------------------


def vectors_of(model, encoded, pooling=None, progress=True):
    """(rows, vectors `(n, width)`): h_graph, or z_graph with a pooling, each the mean over the examples of a row."""
    dataset = LabelledExamples(encoded, range(len(encoded.items)), model.config)
    sizes = np.array([len(dataset[i]["input_ids"]) for i in range(len(dataset))])
    most = 1 if model.config.attend_to_padding else 2000
    name, found = "z_graph" if pooling else "h_graph", {}
    for batch in tqdm(list(batches(sizes, most)), desc="Embedding", unit="batch", disable=not progress):
        for i, vectors in zip(batch, embed(model, [dataset[i] for i in batch], (name,), pooling)):
            found.setdefault(dataset.items[i][0], {})[i] = vectors[name].astype(np.float64)
    rows = sorted(found)
    means = [np.mean([found[row][i] for i in sorted(found[row])], axis=0) for row in rows]
    return rows, np.stack(means).astype(np.float32)


def probe_models(kind, regularization=1.0, balanced=False, seed=0):
    """(maker of a classifier, maker of a regressor) of scikit-learn."""
    weight = "balanced" if balanced else None
    if kind == "linear_probe":
        classifier = lambda: make_pipeline(
            StandardScaler(), LogisticRegression(C=1 / regularization, class_weight=weight, max_iter=5000)
        )
        return classifier, lambda: make_pipeline(StandardScaler(), Ridge(alpha=regularization))
    options = {"n_estimators": 500, "random_state": seed}
    return lambda: RandomForestClassifier(class_weight=weight, **options), lambda: RandomForestRegressor(**options)


def fit_probe(record, vectors, labels, others):
    """Trains the probe of a record on vectors `(n, width)` and their labels, predicts for others."""
    classifier, regressor = probe_models(record["strategy"], record["regularization"], record["balanced"], record["seed"])
    num_classes = None if record["classes"] is None else len(record["classes"])
    return fit_predict(classifier, regressor, record["problem"], vectors, labels, others, num_classes)


def predict_probe(folder, record, encoded):
    """Row -> prediction of a saved probe, which is trained again on the vectors saved with it."""
    model, _ = load_encoder(str(folder))
    table = pq.read_table(Path(folder) / VECTORS_FILE).to_pydict()
    labels = np.array(table["labels"], dtype=np.float64)
    labels = labels[:, 0] if record["classes"] is not None else labels
    rows, vectors = vectors_of(model, encoded, record["pooling"])
    return dict(zip(rows, fit_probe(record, np.array(table["vector"], dtype=np.float32), labels, vectors)))


def run_probe(options, task, record, folder):
    """Vectors once, of the pretrained model or else of random weights, then scikit-learn. Saves encoder, processor, and the
    vectors of the training set with their labels.

    Returns:
        Predictions by row.
    """
    if options.model.model_name_or_path:
        model, processor = load_encoder(options.model.model_name_or_path)
    else:
        processor = load_processor(options)
        set_seed(options.training.seed)
        model = AtomicaModel(new_config(options.model, len(processor.tokenizer), task.labels)).eval()
    check_model(task.encoded, model.config, task.source.path)
    rows, vectors = vectors_of(model, task.encoded, record["pooling"], options.shows_progress)
    where = {row: i for i, row in enumerate(rows)}
    train = task.rows("train")
    targets, _ = task.targets(train)
    chosen = vectors[[where[row] for row in train]]
    table = {"row": train, "vector": list(chosen), "labels": list(targets.reshape(len(train), -1))}
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    with replacing(folder / VECTORS_FILE) as temporary:
        pq.write_table(pa.table(table), temporary)
    return dict(zip(rows, fit_probe(record, chosen, targets, vectors)))


# the run --------------------------------------------------------------------------------------------------------------------


def record_of(options, labels, members):
    """What `--do_predict` has to know."""
    return {
        "strategy": options.model.strategy, "columns": labels.columns, "problem": labels.problem, "classes": labels.classes,
        "of_blocks": labels.of_blocks, "num_conformers": options.data.num_conformers, "members": members,
        "pooling": options.model.pooling, "regularization": options.model.probe_regularization,
        "balanced": options.run.class_weights == "balanced", "seed": options.training.seed,
    }  # fmt: skip


def fingerprint(options, task):
    """What must not change when a run is resumed, besides the split and the configuration."""
    labels = task.labels
    values = labels.values if labels.of_blocks else labels.values.tolist()
    of_labels = hashlib.sha256(json.dumps([labels.columns, labels.problem, labels.classes, values]).encode()).hexdigest()[:16]
    run = options.run
    return {
        "strategy": options.model.strategy, "labels": of_labels, "num_conformers": options.data.num_conformers,
        "class_weights": run.class_weights, "teacher": run.teacher and Path(run.teacher).name,
        "coordinate_noise": run.coordinate_noise, "noisy_nodes_weight": run.noisy_nodes_weight,
    }  # fmt: skip


def save_split(options, task, folder):
    """Writes split.json. Raises `StructureError` if a run that is resumed had another one, or other labels."""
    file, now = folder / "split.json", fingerprint(options, task)
    resumed = checkpoint_of(options, folder)
    before = file if file.exists() or resumed is None else Path(resumed).parent / "split.json"
    if before.exists() and options.training.resume_from_checkpoint:
        if read_split(before, len(task.source.rows)) != task.split:
            raise StructureError("bad_split", f"{before}: the run that is resumed had another split.")
        known = json.loads(before.read_text(encoding="utf-8")).get("run", {})
        for name in [name for name in now if name in known and known[name] != now[name]]:
            what = "other labels" if name == "labels" else f"{name} {known[name]!r}, expected {now[name]!r}"
            raise StructureError("other_run", f"{before}: the run that is resumed had {what}.")
    if options.is_main and not (file.exists() and resumed):
        folder.mkdir(parents=True, exist_ok=True)
        kind = "file" if options.data.split_file else options.data.split
        write_split(file, task.split, kind=kind, seed=options.data.split_seed, run=now)


def member_folders(options):
    """Seed -> where its model goes: the first in the folder itself, the others in folders inside it."""
    seeds = [options.training.seed + i for i in range(options.run.num_seeds)]
    return {seed: f"seed-{seed}" if i else "." for i, seed in enumerate(seeds)}


def parameters_of(cls, folder):
    return sum(parameter.numel() for parameter in cls.from_pretrained(folder).parameters())


def choose_hyperparameters(options, task, extra, processor, folder):
    """Puts the best values of a search into the options, and says so in the notes."""
    count, seed = options.run.hyperparameter_search, options.training.seed
    changes = {"save_strategy": "no", "load_best_model_at_end": False, "report_to": "none", "push_to_hub": False}
    trainer, _ = make_trainer(options, task, extra, processor, seed, folder, **changes)
    best = search(trainer, count, folder, seed, trained=checkpoint_of(options, folder) is not None)
    for name, value in best.items():
        setattr(options.training, name, value)
    values = ", ".join(f"{name} {value:.3g}" for name, value in best.items())
    task.notes.append(
        f"Best of {count} trials ({TRIALS_FILE}): {values}. The validation set chose them, so its numbers flatter the model."
    )
    print(task.notes[-1])


def train_all(options, task, processor, folder):
    """Every seed, one after another, and then the numbers of their mean."""
    extra = pseudo_labels(options, task)
    if options.run.hyperparameter_search:
        choose_hyperparameters(options, task, extra, processor, folder)
    found, members = [], member_folders(options)
    for seed, member in members.items():
        found.append((seed, *train_one(options, task, extra, processor, seed, folder / member)))
    if options.is_main:
        write_text(folder / RECORD_FILE, json.dumps(record_of(options, task.labels, list(members.values())), indent=1))
        average = mean_of([predictions for _, predictions, _ in found])
        first = found[0][2].state.log_history
        size = parameters_of(model_class(task.labels.of_blocks), folder)
        write_results(options, task, average, first, size, [(seed, predictions) for seed, predictions, _ in found])
    if options.training.push_to_hub:
        found[0][2].push_to_hub(commit_message="Upload model")


def main(argv=None):
    options = parse(sys.argv[1:] if argv is None else argv)
    check_options(options)
    folder = Path(options.training.output_dir)
    if options.data.train_file is None:
        run_prediction(options, options.model.model_name_or_path or folder)
        return
    found = [checkpoint_of(options, folder / member) for member in member_folders(options).values()]
    searched = options.run.hyperparameter_search and (folder / STUDY_FILE).exists()
    if searched and not options.training.resume_from_checkpoint:
        raise StructureError(
            "usage",
            f"{folder} has a search of an earlier run: continue it with --resume_from_checkpoint latest, or name another "
            "folder.",
        )
    if str(options.training.resume_from_checkpoint).lower() in ("latest", "true") and not any(found) and not searched:
        raise StructureError("usage", f"--resume_from_checkpoint latest: no checkpoint in {folder}.")
    processor = load_processor(options)
    if options.training.do_predict:
        read_source(options.data.predict_file, processor, options.data.smiles_column, options.data.max_samples)
    task = prepare_task(options, processor)
    save_split(options, task, folder)
    if options.model.strategy in PROBES:
        record = record_of(options, task.labels, ["."])
        if options.is_main:
            predictions = run_probe(options, task, record, folder)
            write_text(folder / RECORD_FILE, json.dumps(record, indent=1))
            write_results(options, task, predictions, [], parameters_of(AtomicaModel, folder))
    else:
        train_all(options, task, processor, folder)
    if options.training.do_predict:
        run_prediction(options, folder)


if __name__ == "__main__":
    run_script(main, stopped="stopped; --resume_from_checkpoint latest goes on from the last checkpoint, if there is one.")
