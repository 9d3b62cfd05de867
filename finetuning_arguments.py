# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""The options of `run_finetune.py`."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg

from atomica_hf import StructureError
from atomica_hf.configuration_atomica import ENERGY_UNITS, POOLINGS, REGRESSION_LOSSES
from hyperparameter_search import load_optuna
from metrics_atomica import METRICS
from script_arguments import ScriptParser
from splitting import SPLITS


PROBES = ("linear_probe", "random_forest")
STRATEGIES = ("finetune", "freeze", "gradual", "scratch", *PROBES)
HEAD_OPTIONS = ("pooling", "energy_unit", "regression_loss")  # of the configuration, where they are given
DEFAULT_NOISE = 0.1  # angstrom


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
        metadata={"choices": list(POOLINGS)},
        help="What a head or a probe reads: by default what the model's configuration says. graph: h_graph. "
        "mean_std_global, mean_component_normalized: z_graph, pooled like this. Heads only: block_sum, the sum of the outputs "
        "of all blocks; pair_energy, the interaction energy of the partners of a complex, a sum over pairs of atoms.",
    )
    energy_unit: str | None = HfArg(
        default=None, metadata={"choices": list(ENERGY_UNITS)}, help="With --pooling pair_energy: unit of the labels."
    )
    regression_loss: str | None = HfArg(
        default=None,
        metadata={"choices": list(REGRESSION_LOSSES)},
        help="Loss of numbers: mse by default; mae and huber (delta 1) are led less by the farthest labels.",
    )
    keep_hydrogens: bool = HfArg(
        default=False, help="Hydrogens become atoms of the blocks too, as they are for models trained with them."
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


def make_parser(description):
    """Own options first, then those of the Trainer that are usually set, then all others."""
    usage = "%(prog)s --train_file FILE --output_dir FOLDER [options], or one JSON file with options"
    parser = ScriptParser(ARGUMENTS, usage=usage, description=description)
    usual = next(group for group in parser._action_groups if group.title == FinetuningArguments._argument_group_name)
    others = parser.add_argument_group("all other options of the Trainer, as Transformers explains them")
    for action in list(usual._group_actions):
        if action.dest not in USUAL:
            usual._group_actions.remove(action)
            others._group_actions.append(action)
    return parser


def parse(argv, description=None):
    """Words of a command line, or the name of one JSON file -> `Options`, whose mistakes are `StructureError`s."""
    parser = make_parser(description)
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
    sums = model.pooling in ("block_sum", "pair_energy") and model.strategy in PROBES
    refuse(sums, f"--pooling {model.pooling} is not for --strategy {model.strategy}, which has no outputs of blocks.")
    for name in HEAD_OPTIONS:
        value, overrides = getattr(model, name), (model.config_overrides or "").split(",")
        twice = value is not None and any(text.split("=")[0].strip() == name for text in overrides)
        refuse(twice, f"--{name} {value} and --config_overrides {model.config_overrides} both say the {name}.")
    useless = [name for name in ("energy_unit", "regression_loss") if getattr(model, name) and model.strategy in PROBES]
    refuse(useless, f"--{' and --'.join(useless)} {'is' if len(useless) == 1 else 'are'} not for --strategy {model.strategy}.")
    named = [name for name in (*HEAD_OPTIONS, "keep_hydrogens") if getattr(model, name)]
    alone = training.do_predict and data.train_file is None
    refuse(alone and named, f"--do_predict takes --{' and --'.join(named)} from the folder; they are for training.")
    refuse(model.pooling is not None and data.block_labels, "--pooling is for labels of a whole complex, not of its blocks.")
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
