"""FSDP2 on two processes against one process: losses, gradient norms, weights, averages and metrics of ten steps.

The bound: a metric may differ by 2e-6 of its size (of 1 where it is smaller), a weight by 1e-6, weights being of size
1.
Both sides compute in float32 and add the same numbers in another order; the steps are plain gradient descent, so that a
weight's change is its gradient. Measured: 1.1e-6 and 6.6e-7.
"""

from pathlib import Path

import pytest
import torch
from fsdp2_processes import Left, distance, launch, left_in, prepared

METRIC_BOUND, WEIGHT_BOUND = 2e-6, 1e-6
ALONE = ["pretrain", "sft", "sft_lora", "sft_bf16", "reward", "ppo", "ppo_ptx", "ppo_lora", "ppo_scored"]
TOGETHER = {
    **{name: name for name in ALONE},
    "pretrain_accumulated": "pretrain",
    "sft_accumulated": "sft",
    "sft_checkpointing": "sft",
    "sft_compiled": "sft",
    "sft_offload": "sft",
    "reward_accumulated": "reward",
    "reward_shared": "reward",
    "ppo_accumulated": "ppo",
}
"""Jobs on two processes, and the job on one process that each must agree with."""
ODD = ["ppo_silent", "ppo_wordless", "ppo_stopped"]

pytestmark = pytest.mark.timeout(900)  # the first test waits for all the processes


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, tiny_llama_dir: Path) -> Left:
    """All jobs, run once."""
    folder = prepared(tmp_path_factory.mktemp("fsdp2"), tiny_llama_dir)
    launch(folder, (1, ALONE), (2, [*TOGETHER, *ODD]))
    return left_in(folder)


def worst(a: list[dict[str, float]], b: list[dict[str, float]]) -> tuple[float, str]:
    """The largest relative difference between the metrics of two runs, and where."""
    assert [row.keys() for row in a] == [row.keys() for row in b]
    return max((abs(x[n] - y[n]) / max(1.0, abs(x[n])), n) for x, y in zip(a, b, strict=True) for n in x)


@pytest.mark.parametrize("name", [name for name in TOGETHER if name != "sft_bf16"])
def test_two_processes_compute_what_one_does(left: Left, name: str) -> None:
    alone, first, second = left(TOGETHER[name], 1, 0), left(name, 2, 0), left(name, 2, 1)
    assert len(alone["rows"]) == (5 if name.startswith("ppo") else 10)
    assert distance(first["weights"], second["weights"]) == 0, "the ranks have drifted apart"
    assert worst(alone["rows"], first["rows"])[0] < METRIC_BOUND, worst(alone["rows"], first["rows"])
    assert distance(alone["weights"], first["weights"]) < WEIGHT_BOUND
    if name.startswith("ppo"):
        assert distance(alone["average"], first["average"]) < WEIGHT_BOUND


def test_ten_steps_move_the_weights_by_much_more_than_the_bound(left: Left) -> None:
    for name in ("pretrain", "reward", "ppo"):
        before, after = left(name, 1, 0)["rows"][0], left(name, 1, 0)["rows"][-1]
        assert worst([before], [{n: after[n] for n in before}])[0] > 1e3 * METRIC_BOUND


def test_bfloat16_is_computed_in_and_weights_stay_in_float32(left: Left) -> None:
    exact, alone, cut = left("sft", 2, 0), left("sft_bf16", 1, 0), left("sft_bf16", 2, 0)
    # three digits: on one process the residual stream is float32, between units of shards it is bfloat16
    assert worst(alone["rows"], cut["rows"])[0] < 2e-2
    assert worst(exact["rows"], cut["rows"])[0] > 1e-4
    assert {weight.dtype for weight in cut["weights"].values()} == {torch.float32}


def test_weights_are_gathered_before_a_rollout_and_never_inside_it(left: Left) -> None:
    found = left("ppo", 2, 0)
    assert sum(found["lengths"]) > 20
    assert sum(found["gathers"]) == 0
    # policy, value network and reference of three units each (two blocks and the rest): once a rollout
    assert found["rollout_gathers"] == [9] * 5


def test_a_rank_whose_responses_are_all_empty_keeps_step(left: Left) -> None:
    for name in ("ppo_silent", "ppo_wordless"):
        first, second = left(name, 2, 0), left(name, 2, 1)
        assert second["lengths"][-1] == 1 < first["lengths"][-1]
        assert len(first["rows"]) == len(second["rows"]) == 5
        assert distance(first["weights"], second["weights"]) == 0
        assert distance(first["average"], second["average"]) == 0
        assert all(torch.isfinite(weight).all() for weight in first["weights"].values())


def test_uneven_shares_of_a_batch_are_each_counted_once(left: Left) -> None:
    alone, first, second = left("ppo", 1, 0), left("ppo", 2, 0), left("ppo", 2, 1)
    assert {len(first["samples"]), len(second["samples"])} == {2, 3}
    key = "response"
    both = sorted(row[key] for row in (*first["samples"], *second["samples"]))
    assert both == sorted(row[key] for row in alone["samples"])


def test_a_run_away_policy_stops_both_ranks_in_the_same_rollout(left: Left) -> None:
    first, second = left("ppo_stopped", 2, 0), left("ppo_stopped", 2, 1)
    assert first["episodes"] == second["episodes"] < 20


def test_an_export_that_cannot_be_written_is_told_to_every_rank(left: Left) -> None:
    for rank in (0, 1):  # one that went on to the next model would have waited for the other for ever
        assert left("ppo", 2, rank)["export_fault"] == "there is a file of that name"
