"""Rewards that hang, raise or answer nonsense: one message, whatever they are doing when their time is over."""

import ctypes
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from instructlit.errors import UserError
from instructlit.rollout import RewardFunction, TextReward, checked_scores
from instructlit.rollout.time_limit import within
from instructlit.types import Prompt, Responses

LATE = UserError("too late", where="somewhere")


def busy() -> None:
    while True:
        pass


def careless() -> None:
    """Takes every `Exception` for a passing trouble."""
    while True:
        try:
            time.sleep(100)
        except Exception:
            continue


WAITS: dict[str, Callable[[], Any]] = {
    "sleep": lambda: time.sleep(100),
    "sleep in C": lambda: ctypes.CDLL(None).sleep(100),
    "a Python loop": busy,
    "a child process": lambda: subprocess.run(["sleep", "100"]),
    "a lock that is never given back": lambda: [lock.acquire() for lock in [threading.Lock()] * 2],
    "code that catches exceptions": careless,
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_interrupted(name: str) -> None:
    before = signal.getsignal(signal.SIGUSR2)
    with pytest.raises(UserError, match="too late"):
        within(0.2, WAITS[name], LATE)
    assert signal.getsignal(signal.SIGUSR2) == before


def test_who_is_in_time_is_let_alone() -> None:
    assert within(60.0, lambda: 3, LATE) == 3
    assert within(None, lambda: 4, LATE) == 4
    with pytest.raises(KeyError):
        within(60.0, lambda: {}["x"], LATE)
    assert "time-limit" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("seconds", [1e12, float("inf")])
def test_a_limit_beyond_what_can_be_waited_for_is_one_all_the_same(seconds: float) -> None:
    def watched() -> bool:
        time.sleep(0.05)
        return "time-limit" in {thread.name for thread in threading.enumerate()}

    assert within(seconds, watched, LATE)


def test_a_limit_that_ends_just_then_hurts_nobody_else() -> None:
    """Ends and limits at the same moment, many times: what comes after is never interrupted."""
    outcomes = set()
    for _ in range(60):
        try:
            outcomes.add(within(0.002, lambda: time.sleep(0.002), LATE))
        except UserError:
            outcomes.add("late")
        time.sleep(0.001)
    assert outcomes <= {None, "late"}


def test_a_signal_of_somebody_else_reaches_whom_it_is_for() -> None:
    """A scheduler may send the same one before a job's time is over."""
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    try:
        assert within(60.0, lambda: signal.raise_signal(signal.SIGUSR2), LATE) is None
        with pytest.raises(UserError):
            within(0.2, lambda: time.sleep(100), LATE)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert heard == [signal.SIGUSR2]


MUTEX = """
import ctypes, sys
from instructlit.errors import UserError
from instructlit.rollout import time_limit
time_limit.GRACE_SECONDS = 0.3
libc = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(mutex)
def work():
    libc.pthread_mutex_lock(mutex)  # for ever: a wait for a mutex begins again after every signal
if {main}:
    time_limit.within(0.2, work, UserError("too late", where="my.Reward.score"))
else:
    import threading
    late = UserError("too late", where="my.Reward.score")
    thread = threading.Thread(target=time_limit.within, args=(0.2, work, late))
    thread.start()
    thread.join()
"""


@pytest.mark.parametrize("main", [True, False])
def test_code_in_c_that_cannot_be_interrupted_ends_the_process_with_the_message(main: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MUTEX.format(main=main)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("instructlit: my.Reward.score: too late")
    assert "Traceback" not in done.stderr


def responses() -> Responses:
    ids = torch.tensor([[97, 2], [98, 2], [99, 2]])
    ones = torch.ones_like(ids, dtype=torch.bool)
    return Responses(
        [Prompt("one"), Prompt([{"role": "user", "content": "two"}]), Prompt("three")],
        ["a", "b", "c"], ids, ones, ids, ones, torch.ones(3, dtype=torch.bool),
    )  # fmt: skip


class Hangs(TextReward):
    def reward(self, prompt: Any, response: str) -> float:
        if response == "b":
            time.sleep(100)
        return 0.0


class Raises(TextReward):
    def reward(self, prompt: Any, response: str) -> float:
        return {"a": 1.0, "b": 2.0}[response]


class Returns(TextReward):
    def __init__(self, *values: Any):
        self.values = iter(values)

    def reward(self, prompt: Any, response: str) -> float:
        return next(self.values)


class Whole(RewardFunction):
    def __init__(self, scores: Any):
        self.scores = scores

    def score(self, responses: Responses) -> Tensor:
        if isinstance(self.scores, BaseException):
            raise self.scores
        return self.scores


def fault(reward: RewardFunction) -> UserError:
    with pytest.raises(UserError) as caught:
        checked_scores(reward, responses(), 0.3)
    return caught.value


def test_who_hangs_is_named_with_the_response_it_was_at() -> None:
    error = fault(Hangs())
    assert error.where == f"{Hangs.__module__}.Hangs.score"
    assert "within 0.3 seconds; it was at response 1: 'b' to the prompt 'two'" in error.what


def test_who_raises_is_named_with_line_and_response() -> None:
    error = fault(Raises())
    line = Path(__file__).read_text().splitlines().index('        return {"a": 1.0, "b": 2.0}[response]') + 1
    assert error.where == f"{Raises.__module__}.Raises.reward"
    assert f"raised KeyError: 'c' ({__file__}:{line}) for response 2: 'c' to the prompt 'three'" in error.what


@pytest.mark.parametrize("value", ["1", None, True, np.bool_(True), 1j])
def test_what_is_no_number_is_named_with_its_response(value: Any) -> None:
    assert "for response 1: 'b' to the prompt 'two'" in fault(Returns(0.0, value, 0.0)).what


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        ([1.0, 2.0, 3.0], "returned list for 3 responses"),
        (torch.zeros(3, 1), r"returned \(3, 1\)"),
        (torch.zeros(2), r"returned \(2,\)"),
        (torch.ones(3, dtype=torch.complex64), "returned torch.complex64 for 3 responses"),
        (torch.ones(3, device="meta"), "returned a tensor without numbers, on the meta device for 3 responses"),
        (torch.tensor([0.0, torch.nan, 1.0]), "returned nan for response 1: 'b' to the prompt 'two'"),
        (torch.tensor([0.0, 1.0, -torch.inf]), "returned -inf for response 2"),
        (ConnectionError("away"), "raised ConnectionError: away .* for 3 responses, the first: 'a'"),
        (SystemExit(0), "raised SystemExit: 0 .* for 3 responses, the first: 'a'"),
    ],
)
def test_nonsense_is_named_with_what_was_expected(scores: Any, found: str) -> None:
    error = fault(Whole(scores))
    assert error.where == f"{Whole.__module__}.Whole.score"
    assert error.expected
    with pytest.raises(UserError, match=found):
        raise error


def test_other_numbers_are_taken() -> None:
    numbers = Returns(np.float32(1.5), np.int64(2), 3)
    assert checked_scores(numbers, responses(), 5.0).tolist() == [1.5, 2.0, 3.0]
    assert checked_scores(Whole(torch.tensor([1, 2, 3])), responses(), 5.0).tolist() == [1.0, 2.0, 3.0]
