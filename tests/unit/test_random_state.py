"""The random state that a rank goes on from where a checkpoint has none of it."""

import random

import numpy as np
import torch

from instructlit.modules.random_state import own_share, random_state, restore_random_state


def draws() -> tuple[float, ...]:
    """The next number of each of the three."""
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002


def test_a_rank_more_than_there_were_goes_on_apart_from_all_others() -> None:
    kept = [random_state()]
    before = draws()

    def drawn(rank: int) -> tuple[float, ...]:
        restore_random_state(own_share(kept, rank))
        return draws()

    assert drawn(0) == before
    more = [drawn(rank) for rank in (1, 2)]
    for own in zip(before, *more, strict=True):
        assert len(set(own)) == 3, own
    assert drawn(1) == more[0]


def test_finding_a_share_draws_nothing() -> None:
    kept = [random_state()]
    draws()
    now = random_state()
    own_share(kept, 1)
    expected = draws()
    restore_random_state(now)
    assert draws() == expected
