"""Optimisers by name, gradient clipping over ranks, and an optimiser of selected rows of a large matrix."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spherecf.training.config import OptimizerSettings
from spherecf.training.distributed import Ranks


def make_optimizer(parameters: Iterable[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer over these parameters; every group has its base rate as ``initial_lr``."""
    trainable = [p for p in parameters if p.requires_grad]
    matrices = [p for p in trainable if p.ndim > 1 or settings.decay_vectors]
    vectors = [p for p in trainable if p.ndim <= 1 and not settings.decay_vectors]
    # A decayed bias would pull kappa towards 1, and a decayed normalisation its channel towards 0.
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # On a GPU always: one kernel, and one that can pass over a step without being asked by the processor.
    fused = settings.fused or any(p.is_cuda for p in trainable)
    common: dict[str, Any] = {"lr": settings.lr, "fused": fused or None}
    if settings.name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, momentum=settings.momentum, **common)
    elif settings.name == "adam":
        optimizer = torch.optim.Adam(groups, **common)
    else:
        optimizer = torch.optim.AdamW(groups, **common)
    for group in optimizer.param_groups:
        group["initial_lr"] = settings.lr
    return optimizer


def set_lr(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> float:
    """Scale every group's base rate; the rate of the first group, for the log."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
    return float(optimizers[0].param_groups[0]["lr"])


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step_where` can be used."""
    return all(group["fused"] for group in optimizer.param_groups)


def keep_kernels(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A saved state of an optimizer that was computed otherwise, fused or not, as this one computes."""
    for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        saved |= {name: group[name] for name in ("fused", "foreach") if name in group}
    return state


def prepared(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer, its momentum begun.

    A fused SGD takes its first momentum from uninitialised memory if that step is passed over (torch 2.13).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["fused"] and group.get("momentum") else ():
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def step_where(finite: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """A step of a fused optimizer, none if ``finite`` is False: a scalar that stays on the device.

    By the same way a gradient scaler has them pass over an overflow; weights and state remain as they are.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> optimizer = make_optimizer([weight], OptimizerSettings(fused=True))
        >>> weight.grad = torch.full((2,), torch.nan)
        >>> step_where(torch.isfinite(weight.grad).all(), optimizer)
        >>> weight.tolist()
        [1.0, 1.0]
    """
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    prepared(optimizer).step()
    del optimizer.found_inf  # type: ignore[attr-defined]


def bound_gradients(
    replicated: Sequence[nn.Parameter],
    sharded: Sequence[nn.Parameter],
    settings: OptimizerSettings,
    ranks: Ranks,
) -> Tensor:
    """Clip by value, then by the norm over all parameters of all ranks; the norm before, a scalar tensor.

    Args:
        replicated: the same on every rank, their gradients summed already.
        sharded: of this rank alone.
    """
    gradients = [p.grad for p in (*replicated, *sharded) if p.grad is not None]
    if settings.clip_value:
        torch._foreach_clamp_min_(gradients, -settings.clip_value)
        torch._foreach_clamp_max_(gradients, settings.clip_value)
    # The norm must be the same on every rank: replicated parameters count once, sharded ones are summed.
    sharded_square = ranks.sum_(_square(sharded, ranks).reshape(1))[0]
    norm = (_square(replicated, ranks) + sharded_square).sqrt()
    if settings.clip_norm:
        scale = (settings.clip_norm / (norm + 1e-6)).clamp(max=1.0)  # as in torch's clip_grad_norm_
        torch._foreach_mul_(gradients, scale)
    return norm


def _square(parameters: Sequence[nn.Parameter], ranks: Ranks) -> Tensor:
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=ranks.device)
    return torch.stack(torch._foreach_norm(gradients)).square().sum()


class RowOptimizer:
    """An optimizer of a matrix that updates selected rows in each step, as sampled classifiers need.

    The other rows and their momentum remain as they are, without weight decay. For any optimizer whose state
    has the shape of its parameter.

    Attributes:
        weight: (rows, dim) the whole matrix; no gradient.
        active: (selected, dim) the parameter of this step.
        optimizer: over ``active``.
    """

    def __init__(self, weight: Tensor, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> None:
        self.weight, self._make = weight, make
        self._state: dict[str, Tensor] = {}
        self._rows: Tensor | None = None
        self.active = nn.Parameter(weight)
        self.optimizer = make([self.active])

    def select_rows(self, rows: Tensor | None) -> nn.Parameter:
        """Make these rows (selected,), None for all, the parameter of the next step."""
        if rows is None and self._rows is None:
            return self.active
        self._rows = rows
        self.active = nn.Parameter(self.weight if rows is None else self.weight[rows])
        for group in self.optimizer.param_groups:
            group["params"] = [self.active] if group["params"] else []
        # The optimizer keeps its state by parameter: give the new one the state of its rows.
        self.optimizer.state.clear()
        if self._state:
            full = self.weight.shape
            self.optimizer.state[self.active] = {
                name: value if value.shape != full or rows is None else value[rows]
                for name, value in self._state.items()
            }
        return self.active

    def write_back(self) -> None:
        """After the optimizer's step: copy the updated rows and their state into the whole matrix."""
        state = dict(self.optimizer.state.get(self.active, {}))
        if self._rows is None:
            self._state = {name: value for name, value in state.items() if value is not None}
            return
        with torch.no_grad():
            self.weight[self._rows] = self.active.detach()
            for name, value in state.items():
                if value is None:
                    continue
                if value.shape != self.active.shape:  # a step counter
                    self._state[name] = value
                    continue
                if name not in self._state:
                    self._state[name] = torch.zeros_like(self.weight)
                self._state[name][self._rows] = value

    def state(self) -> dict[str, Tensor]:
        """Weight and optimizer state of all rows, and the optimizer's scalars."""
        return {"weight": self.weight, **self._state}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore `state`."""
        with torch.no_grad():
            self.weight.copy_(state["weight"])
        self._state = {name: value for name, value in state.items() if name != "weight"}
        if self._rows is None and self._state:
            self.optimizer.state[self.active] = dict(self._state)
