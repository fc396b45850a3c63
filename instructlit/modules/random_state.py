"""The global random states of Python, NumPy and PyTorch, so that a resumed run draws what an unbroken one would."""

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """The states now, in types a checkpoint can hold without pickled code."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - the global state is what libraries draw from
    state: dict[str, Any] = {
        "python": list(random.getstate()),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()  # of this process's own device
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore a `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def own_share(states: list[dict[str, Any]], rank: int) -> dict[str, Any]:
    """The state that a rank resumes with: its own or, if there are fewer states than ranks, one unlike all others."""
    if rank < len(states):
        return states[rank]
    before = random_state()
    restore_random_state(states[0])
    seed = int(torch.randint(2**31, ())) + rank
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    mine = random_state()
    restore_random_state(before)
    return mine
