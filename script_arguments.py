# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""How the scripts begin and end: their command lines, and one line instead of a traceback."""

import argparse
import copy
import os
import sys
from pathlib import Path

import torch
from transformers import HfArgumentParser

from atomica_hf import StructureError


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as it is written, options with their defaults, and without --the-same-with-dashes."""

    def _format_action_invocation(self, action):
        shown = copy.copy(action)
        shown.option_strings = [name for name in action.option_strings if "-" not in name[2:]] or action.option_strings
        return super()._format_action_invocation(shown)


class ScriptParser(HfArgumentParser):
    """`HfArgumentParser` that ends the script at words it does not know as at other mistakes, without a traceback."""

    def __init__(self, dataclass_types, **kwargs):
        super().__init__(dataclass_types, **{"formatter_class": HelpFormatter, **kwargs})

    def parse_known_args(self, args=None, namespace=None):
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"not understood: {' '.join(unknown)} (see --help)")
        return found, unknown


def run_script(main, *errors, stopped="stopped."):
    """Runs `main`, and ends the process with the code it returns. What is wrong with the input or the options, and Ctrl-C,
    are said in one line on standard error, with code 1.

    Args:
        main (`Callable`): without arguments.
        errors: exceptions whose message is for the user, besides `StructureError` and `OSError`.
        stopped (`str`): what Ctrl-C leaves, and how to go on.
    """
    try:
        sys.exit(main())
    except (StructureError, OSError, *errors) as error:
        message = f"error: {error}"
    except KeyboardInterrupt:
        message = stopped
    message = f"{Path(sys.argv[0]).name}: {message}"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        sys.stdout.flush()
        print(message, file=sys.stderr, flush=True)
        os._exit(1)  # else taking DDP down can wait without end for the other processes
    sys.exit(message)
