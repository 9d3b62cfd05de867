"""The course of the learning rate, the running mean of the weights, and the guard."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pretraining_arguments import SCHEDULES, UsageError
from pretraining_optimization import NOT_FINITE, SPIKE, Guard, make_ema, make_scheduler


def rates(steps, total, **options):
    given = {
        "lr_scheduler_type": "cosine_with_restarts", "learning_rate": 1.0, "final_learning_rate": 0.1, "num_warmup_steps": 0,
        "num_cycles": 1, "cycle_steps": None, "num_decay_steps": None, **options,
    }  # fmt: skip
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=given["learning_rate"])
    scheduler = make_scheduler(optimizer, SimpleNamespace(**given), total)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosines_with_warm_restarts_are_those_of_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=7, eta_min=0.1)  # what ATOMICA uses
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(20, 20, cycle_steps=7) == pytest.approx(expected)
    assert rates(21, 21, num_cycles=3)[:20] == pytest.approx(expected)


def test_every_schedule_warms_up_and_ends_where_it_should():
    for kind in SCHEDULES:
        found = rates(101, 100, lr_scheduler_type=kind, num_warmup_steps=10)
        if kind != "constant":
            assert found[:11] == sorted(found[:11]) and found[0] < 0.5
        assert max(found) == pytest.approx(1.0) and found[10] == pytest.approx(1.0)
        end = {"linear": 0.0}.get(kind, 1.0 if kind.startswith("constant") else 0.1)
        assert found[-1] == pytest.approx(end), kind
    stable = rates(101, 100, lr_scheduler_type="warmup_stable_decay", num_warmup_steps=10, num_decay_steps=20)
    assert stable[10:81] == pytest.approx([1.0] * 71) and stable[90] == pytest.approx(0.55)
    with pytest.raises(UsageError, match="60 steps of warm-up and 50 of decay"):
        rates(1, 100, lr_scheduler_type="warmup_stable_decay", num_warmup_steps=60, num_decay_steps=50)


def test_the_running_mean_is_the_formula():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    ema = make_ema(model, 0.9)
    mean = None
    for _ in range(5):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        ema.update_parameters(model)
        weight = model.weight.detach().clone()
        mean = weight if mean is None else 0.9 * mean + 0.1 * weight
    assert torch.allclose(ema.module.weight, mean) and not ema.module.weight.requires_grad
    assert not torch.allclose(ema.module.weight, model.weight)


def test_the_guard_skips_what_is_not_finite_and_spikes():
    guard = Guard(most=3, spike_factor=5)
    assert [guard.reason_to_skip(norm) for norm in (1.0, 100.0, math.nan)] == [None, None, NOT_FINITE]  # few norms, no spike
    for _ in range(20):
        assert guard.reason_to_skip(1.0) is None
    assert guard.reason_to_skip(5.1) == SPIKE and guard.reason_to_skip(4.9) is None
    assert guard.skipped == 2 and not guard.exhausted
    other = Guard(most=3, spike_factor=5)
    other.load(guard.state())
    assert other.reason_to_skip(5.1) == SPIKE and other.skipped == 3
    assert [other.reason_to_skip(math.inf) for _ in range(2)] == [NOT_FINITE] * 2 and other.exhausted
    assert Guard(most=1).reason_to_skip(1e9) is None
