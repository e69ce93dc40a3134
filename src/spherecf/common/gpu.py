"""Which GPUs run our own kernels. Imports torch and, where there is a GPU, Triton."""

import logging
from functools import cache

import torch

log = logging.getLogger(__name__)


@cache
def triton_runs_on(device: torch.device, capability: tuple[int, int] = (7, 0)) -> bool:
    """Whether Triton compiles for this device: an NVIDIA GPU of at least this capability, and a C compiler.

    Where a GPU is left without it, the log says why, once: what runs instead gives the same results.
    """
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < capability:
        return False
    try:
        from triton.runtime import driver

        driver.active.get_current_target()  # builds what launches kernels
    except Exception as error:  # whatever the tool chain raises
        reason = str(error).strip().splitlines()[:1]
        log.warning("Triton does not work here, computing without it (slower, same results): %s", reason)
        return False
    return True
