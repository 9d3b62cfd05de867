# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""What the periodic table says of an element: numbers that relate elements to each other, also to those that a training lacks.

Electronegativities: Pauling's scale, as the package mendeleev has it (of Kr: Pauling's revised value); where there is none, no
number is made up.
"""

from functools import cache

import torch


NUM_DESCRIPTORS = 21  # 18 groups, the period and its square, electronegativity
_NOBLE_GASES = (0, 2, 10, 18, 36, 54, 86, 118)
_CARBON = 2.55
# fmt: off
_ELECTRONEGATIVITIES = (
    2.20, None, 0.98, 1.57, 2.04, 2.55, 3.04, 3.44, 3.98, None, 0.93, 1.31, 1.61, 1.90, 2.19, 2.58, 3.16, None, 0.82, 1.00,
    1.36, 1.54, 1.63, 1.66, 1.55, 1.83, 1.88, 1.91, 1.90, 1.65, 1.81, 2.01, 2.18, 2.55, 2.96, 3.00, 0.82, 0.95, 1.22, 1.33,
    1.60, 2.16, 2.10, 2.20, 2.28, 2.20, 1.93, 1.69, 1.78, 1.96, 2.05, 2.10, 2.66, 2.60, 0.79, 0.89, 1.10, 1.12, 1.13, 1.14,
    None, 1.17, None, 1.20, None, 1.22, 1.23, 1.24, 1.25, None, 1.00, 1.30, 1.50, 1.70, 1.90, 2.20, 2.20, 2.20, 2.40, 1.90,
    1.80, 1.80, 1.90, 2.00, 2.20, None, 0.70, 0.90, 1.10, 1.30, 1.50, 1.70, 1.30, 1.30,
)
# fmt: on


def period_and_group(number: int):
    """Period 1-7 and group 1-18 of an element by its atomic number; those of the f block belong to group 3."""
    period = next(i for i, noble in enumerate(_NOBLE_GASES[1:], 1) if number <= noble)
    place, length = number - _NOBLE_GASES[period - 1], _NOBLE_GASES[period] - _NOBLE_GASES[period - 1]
    if place <= 2 and number != 2:
        return period, place
    return period, max(3, 18 - (length - place))


def _descriptors(number):
    period, group = period_and_group(number)
    known = _ELECTRONEGATIVITIES[number - 1] if number <= len(_ELECTRONEGATIVITIES) else None
    relative = 0.0 if known is None else known - _CARBON
    return [float(group == i) for i in range(1, 19)] + [period / 3, (period / 3) ** 2 / 3, relative]


@torch.compiler.assume_constant_result
def element_descriptors(num_tokens: int, first: int, dtype=torch.float32, device=None):
    """A row for each atom token, `(num_tokens, NUM_DESCRIPTORS)`: zeros for those before `first`, the token of hydrogen."""
    return _element_descriptors(num_tokens, first, dtype, device)


@cache
def _element_descriptors(num_tokens, first, dtype, device):
    rows = [[0.0] * NUM_DESCRIPTORS] * first + [_descriptors(number) for number in range(1, num_tokens - first + 1)]
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=dtype, device=device)


__all__ = ["NUM_DESCRIPTORS", "element_descriptors", "period_and_group"]
