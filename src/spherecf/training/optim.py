"""Optimizers by name, gradient clipping over ranks, and an optimizer of selected rows of a large matrix."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spherecf.training.config import OptimizerSettings
from spherecf.training.distributed import Ranks


def make_optimizer(parameters: Iterable[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Create an optimizer of the trainable parameters; groups store their base rate as ``initial_lr``."""
    trainable = [p for p in parameters if p.requires_grad]
    matrices = [p for p in trainable if p.ndim > 1 or settings.decay_vectors]
    vectors = [p for p in trainable if p.ndim <= 1 and not settings.decay_vectors]
    # Weight decay of biases would pull kappa towards 1; that of normalisations would pull channels to 0.
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # Always on a GPU: a single kernel, which can skip a step without synchronising with the CPU.
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
    """Scale every group's base rate; return the rate of the first group, for the log."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
    return float(optimizers[0].param_groups[0]["lr"])


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step_if_finite` supports this optimizer."""
    return all(group["fused"] for group in optimizer.param_groups)


def keep_kernels(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A saved optimizer state with the ``fused`` and ``foreach`` options of the given optimizer."""
    for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        saved |= {name: group[name] for name in ("fused", "foreach") if name in group}
    return state


def with_momentum(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Initialise the momentum buffers of a fused SGD to zero; return the optimizer.

    Otherwise torch 2.13 leaves them uninitialised if the first step is skipped.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["fused"] and group.get("momentum") else ():
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def step_if_finite(finite: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take a step of a fused optimizer only if ``finite``, a scalar that stays on the device, is True.

    This is the mechanism by which gradient scalers skip a step: weights and optimizer state are not changed.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> optimizer = make_optimizer([weight], OptimizerSettings(fused=True))
        >>> weight.grad = torch.full((2,), torch.nan)
        >>> step_if_finite(torch.isfinite(weight.grad).all(), optimizer)
        >>> weight.tolist()
        [1.0, 1.0]
    """
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    with_momentum(optimizer).step()
    del optimizer.found_inf  # type: ignore[attr-defined]


def clip_gradients(
    replicated: Sequence[nn.Parameter],
    sharded: Sequence[nn.Parameter],
    settings: OptimizerSettings,
    ranks: Ranks,
) -> Tensor:
    """Clip gradients by value, then by the norm over all parameters of all ranks.

    Args:
        replicated: parameters that every rank has, with gradients already summed over ranks.
        sharded: parameters of this rank only.
        settings: ``clip_value`` and ``clip_norm``, 0 for no limit.
        ranks: over which the sharded parameters are distributed.

    Returns:
        The norm before clipping by norm, a scalar tensor.
    """
    gradients = [p.grad for p in (*replicated, *sharded) if p.grad is not None]
    if settings.clip_value:
        torch._foreach_clamp_min_(gradients, -settings.clip_value)
        torch._foreach_clamp_max_(gradients, settings.clip_value)
    # The norm must be the same on every rank: replicated parameters count once, sharded ones are summed.
    sharded_square = ranks.sum_(_squared_norm(sharded, ranks).reshape(1))[0]
    norm = (_squared_norm(replicated, ranks) + sharded_square).sqrt()
    if settings.clip_norm:
        scale = (settings.clip_norm / (norm + 1e-6)).clamp(max=1.0)  # as in torch's clip_grad_norm_
        torch._foreach_mul_(gradients, scale)
    return norm


def _squared_norm(parameters: Sequence[nn.Parameter], ranks: Ranks) -> Tensor:
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=ranks.device)
    return torch.stack(torch._foreach_norm(gradients)).square().sum()


class RowOptimizer:
    """Optimizes a large matrix by updating only selected rows in each step, for sampled classifiers.

    All other rows and their momentum stay unchanged, also by weight decay. Works with any optimizer whose
    state has the shape of its parameter.

    Attributes:
        weight: (rows, dim) the whole matrix, without gradient.
        active: (selected, dim) the parameter of this step.
        optimizer: of ``active``.
    """

    def __init__(self, weight: Tensor, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> None:
        self.weight, self._make = weight, make
        self._state: dict[str, Tensor] = {}
        self._rows: Tensor | None = None
        self.active = nn.Parameter(weight)
        self.optimizer = make([self.active])

    def select_rows(self, rows: Tensor | None) -> nn.Parameter:
        """Make these rows (selected,), or all rows if None, the parameter of the next step."""
        if rows is None and self._rows is None:
            return self.active
        self._rows = rows
        self.active = nn.Parameter(self.weight if rows is None else self.weight[rows])
        for group in self.optimizer.param_groups:
            group["params"] = [self.active] if group["params"] else []
        # The optimizer stores its state by parameter: give the new parameter the state of its rows.
        self.optimizer.state.clear()
        if self._state:
            full = self.weight.shape
            self.optimizer.state[self.active] = {
                name: value if value.shape != full or rows is None else value[rows]
                for name, value in self._state.items()
            }
        return self.active

    def write_back(self) -> None:
        """Copy the updated rows and their state into the whole matrix, after the optimizer's step."""
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
        """Weights and optimizer state of all rows, and the optimizer's scalars."""
        return {"weight": self.weight, **self._state}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore `state`."""
        with torch.no_grad():
            self.weight.copy_(state["weight"])
        self._state = {name: value for name, value in state.items() if name != "weight"}
        if self._rows is None and self._state:
            self.optimizer.state[self.active] = dict(self._state)
