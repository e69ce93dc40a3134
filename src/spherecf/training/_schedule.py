"""Learning rates as a function of how far the training has come: nothing to save, nothing to restore."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from spherecf.errors import InputError
from spherecf.training._settings import ScheduleSettings

SCHEDULES = ("cosine", "polynomial", "step", "plateau", "constant")


def lr_factor(
    settings: ScheduleSettings, epochs: int, progress: float, history: Sequence[Mapping[str, Any]] = ()
) -> float:
    """What the base learning rate is multiplied by.

    Args:
        settings: name and parameters.
        epochs: of the whole training.
        progress: epochs done so far, with fraction: 2.5 in the middle of the third.
        history: facts of the finished epochs; ``"plateau"`` looks at their loss, on held-out people if any.

    Formulas, with t = (progress - warmup) / (epochs - warmup):
        cosine: (1 + cos(pi t)) / 2. polynomial: (1 - t)^power. constant: 1.
        step: gamma^k, k the finished periods of ``step_size`` epochs, or the ``milestones`` passed.
        plateau: gamma^k, k how often the loss had not fallen by 1e-4 (relative) for more than ``patience``
        epochs. Before ``warmup`` epochs, any of them is multiplied by progress / warmup.

    Raises:
        InputError: an unknown name.

    Example:
        >>> halving = ScheduleSettings("step", step_size=2, gamma=0.5)
        >>> [lr_factor(halving, 30, epoch) for epoch in (0.0, 1.9, 2.0, 4.0)]
        [1.0, 1.0, 0.5, 0.25]
    """
    warm = settings.warmup
    ramp = min(1.0, progress / warm) if warm > 0 else 1.0
    share = min(1.0, max(0.0, (progress - warm) / (epochs - warm))) if epochs > warm else 0.0
    if settings.name == "cosine":
        return ramp * 0.5 * (1 + math.cos(math.pi * share))
    if settings.name == "polynomial":
        return float(ramp * (1 - share) ** settings.power)
    if settings.name == "step":
        passed = sum(progress >= mile for mile in settings.milestones)
        periods = passed if settings.milestones else int(progress) // settings.step_size
        return float(ramp * settings.gamma**periods)
    if settings.name == "plateau":
        return float(ramp * settings.gamma ** _plateaus(history, settings.patience))
    if settings.name == "constant":
        return ramp
    raise InputError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {settings.name!r}")


def _plateaus(history: Sequence[Mapping[str, Any]], patience: int) -> int:
    found, best, waited = 0, math.inf, 0
    for facts in history:
        loss = facts.get("held_out_loss", facts["train_loss"])
        # Losses of densities may be negative: compare by their size.
        if loss < best - 1e-4 * abs(best) if math.isfinite(best) else True:
            best, waited = loss, 0
        else:
            waited += 1
        if waited > patience:
            found, waited = found + 1, 0
    return found
