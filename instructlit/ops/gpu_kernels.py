"""Whether kernels of Triton run on a device."""

import warnings
from functools import lru_cache
from importlib.util import find_spec

import torch


@lru_cache(maxsize=8)
def kernels_run(device: torch.device) -> bool:
    """True on a GPU where Triton, which comes with torch's builds for CUDA, compiles and starts a kernel; if it does
    not, a warning says why."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    try:
        from instructlit.ops import log_probs_kernels

        log_probs_kernels.norms_and_entropies(torch.zeros(1, 16, device=device), 1.0)
    except Exception as error:  # of many kinds: Triton needs a C compiler and Python's headers
        warnings.warn(f"Triton's kernels, which are faster, do not work on {device}: {error}", stacklevel=2)
        return False
    return True
