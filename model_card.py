# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Markdown that several scripts write: the head of model cards, as the Hub reads it, and tables."""

import re
from pathlib import Path

from huggingface_hub import ModelCardData


TAGS = ("chemistry", "biology", "molecules")


def front_matter(tags=(), base_model=None, metrics=()):
    """YAML between two lines of dashes, with which a card begins.

    Args:
        tags (`Iterable[str]`): besides `TAGS`.
        base_model (`str`): what the model was trained from. It is named if it is a name on the Hub (`owner/name`): a folder
            here would lead nowhere.
        metrics (`Iterable[str]`): names of the metrics that the card reports.
    """
    known = base_model and re.fullmatch(r"[\w.-]+/[\w.-]+", str(base_model)) and not Path(base_model).exists()
    data = ModelCardData(
        library_name="transformers",
        license="apache-2.0",
        tags=list(dict.fromkeys((*TAGS, *tags))),
        base_model=str(base_model) if known else None,
        metrics=list(metrics) or None,
    )
    return f"---\n{data.to_yaml().strip()}\n---\n"


def markdown_table(header, rows):
    """Lines of text cells under a header."""
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)])
