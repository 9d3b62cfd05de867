# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""The command lines of the scripts."""

import argparse
import copy

from transformers import HfArgumentParser


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
