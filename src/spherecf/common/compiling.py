"""torch.compile for networks of repeated blocks."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spherecf.common.arrays import triton_runs_on
from spherecf.errors import InputError

_MAX_VARIANTS = 64  # compiled versions per class of blocks: by stage, mode, and fixed or dynamic batch size


def compiled(network: nn.Module, any_batch: bool = False) -> Any:
    """Compile a network block by block, in place, or as a whole if no class of blocks repeats.

    Blocks of the same class and size share compiled code, so that the compile time does not grow with depth.

    Args:
        network: to compile; blocks are compiled at their first call.
        any_batch: True for one version that takes any number of images; False for a faster one, which is
            compiled again when the number changes.

    Raises:
        InputError: the network is on a GPU for which torch cannot compile here.
    """
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    if device.type == "cuda" and not torch.version.hip and not triton_runs_on(device):
        raise InputError(
            f"cannot compile for {device}: expected compute capability 7.0 or more, Triton and a C compiler "
            "(see the log for what Triton says); set engine.compile = false, or use --engine torch"
        )
    kinds = Counter(type(module) for module in network.modules())
    blocks = _repeated_blocks(network, kinds)
    if not blocks or any(getattr(module, "checkpointing", False) for module in network.modules()):
        return torch.compile(network, dynamic=any_batch or None)
    limits = torch._dynamo.config  # the name in torch 2.6, an alias in later versions
    limits.cache_size_limit = max(limits.cache_size_limit, _MAX_VARIANTS)
    for block in blocks:
        block.compile()
        call: Any = block._compiled_call_impl
        block._compiled_call_impl = partial(_call_static, call, any_batch)
    return network


def _repeated_blocks(module: nn.Module, kinds: Mapping[type, int]) -> list[nn.Module]:
    """The outermost modules that contain layers and whose class occurs more than once."""
    blocks = []
    for child in module.children():
        repeats = kinds[type(child)] > 1 and not isinstance(child, nn.Sequential | nn.ModuleList)
        has_layers = type(child).forward is not nn.Module.forward and any(True for _ in child.children())
        blocks += [child] if repeats and has_layers else _repeated_blocks(child, kinds)
    return blocks


def _call_static(call: Callable[..., Any], any_batch: bool, *arguments: Any) -> Any:
    # Map sizes differ between stages. Marked static, they give one specialised version per stage instead of a
    # slower dynamic one for all; only the number of images may vary.
    for x in arguments:
        if isinstance(x, Tensor):
            torch._dynamo.mark_static(x, list(range(1, x.ndim)))
            if any_batch:
                torch._dynamo.maybe_mark_dynamic(x, 0)
    return call(*arguments)
