"""GAE by hand, its two limits, its end, the shaped reward it starts from, and the rollout that is built of it."""

import math

import pytest
import torch
from stage_helpers import prompt_batch
from torch import tensor
from torch.testing import assert_close

from instructlit.ops import RunningMoments, gae, missing_eos, shape_rewards, whiten
from instructlit.ops.rewards import MissingEOS
from instructlit.rollout.collect import Shaping, build_rollout
from instructlit.rollout.engine import as_generation

NAN = math.nan


def test_gae_by_hand() -> None:
    """gamma 1/2, lambda 1/2, so that each step back takes a quarter of the advantage; two pads with junk."""
    rewards = tensor([[1.0, 2.0, 3.0, NAN, 99.0]])
    values = tensor([[10.0, 20.0, 30.0, 99.0, NAN]])
    mask = tensor([[True, True, True, False, False]])
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5)
    # delta: 3 - 30 = -27 (no value after the end); 2 + 15 - 20 = -3; 1 + 10 - 10 = 1
    # A: -27; -3 - 27/4 = -9.75; 1 - 9.75/4 = -1.4375
    assert advantages.tolist() == [[-1.4375, -9.75, -27.0, 0.0, 0.0]]
    assert returns.tolist() == [[8.5625, 10.25, 3.0, 0.0, 0.0]]


def test_the_recipe_takes_a_twentieth_off_a_step() -> None:
    """Gamma 1 and lambda 0.95 of the code that InstructGPT's goes back to (Ziegler et al. 2019, Stiennon et al. 2020),
    by themselves and as PPO has them."""
    rewards, values = tensor([[0.0, 0.0, 1.0]], dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    expected = tensor([[0.95**2, 0.95, 1.0]], dtype=torch.float64)
    shaping, mask = Shaping(), torch.ones(1, 3, dtype=torch.bool)
    assert_close(gae(rewards, values, mask)[0], expected)
    assert_close(gae(rewards, values, mask, shaping.gamma, shaping.lam)[0], expected)


def test_each_row_ends_where_it_ends() -> None:
    rewards = tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 5.0], [7.0, 7.0, 7.0]])
    mask = tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]]).bool()
    _, returns = gae(rewards, torch.full((3, 3), 4.0), mask, lam=1.0)
    assert returns.tolist() == [[3, 2, 1], [1, 0, 0], [0, 0, 0]]


def ragged(rows: int = 6, width: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    lengths = torch.randint(0, width + 1, (rows, 1))
    mask = torch.arange(width) < lengths
    return torch.randn(rows, width, dtype=torch.float64), torch.randn(rows, width, dtype=torch.float64), mask


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_at_lambda_one_it_is_monte_carlo(gamma: float) -> None:
    rewards, values, mask = ragged()
    advantages, returns = gae(rewards, values, mask, gamma, lam=1.0)
    for row, length in enumerate(mask.sum(1).tolist()):
        for t in range(length):
            to_go = sum(gamma ** (s - t) * rewards[row, s].item() for s in range(t, length))
            assert math.isclose(returns[row, t].item(), to_go, abs_tol=1e-12)
            assert math.isclose(advantages[row, t].item(), to_go - values[row, t].item(), abs_tol=1e-12)


def test_at_lambda_zero_it_is_the_one_step_error() -> None:
    rewards, values, mask = ragged()
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lam=0.0)
    for row, length in enumerate(mask.sum(1).tolist()):
        for t in range(length):
            after = values[row, t + 1].item() if t + 1 < length else 0.0
            error = rewards[row, t].item() + 0.9 * after - values[row, t].item()
            assert math.isclose(advantages[row, t].item(), error, abs_tol=1e-12)


def test_a_true_value_function_has_no_advantage() -> None:
    rewards, _, mask = ragged()
    values = torch.where(mask, rewards, 0.0).flip(1).cumsum(1).flip(1)
    advantages, returns = gae(rewards, values, mask)
    assert advantages.abs().max() < 1e-12
    assert_close(returns, torch.where(mask, values, 0.0))


def test_returns_are_made_before_whitening() -> None:
    rewards, values, mask = ragged()
    advantages, returns = gae(rewards, values, mask)
    assert_close(returns[mask] - values[mask], advantages[mask])
    assert (whiten(advantages, mask) - advantages)[mask].abs().max() > 0.01


def test_shaped_rewards_by_hand() -> None:
    """The example of `instructlit.types.Rollout`, and a policy less sure than the reference, which is paid for it."""
    old = tensor([[-1.0, -2.0, NAN], [-3.0, -1.0, -1.0]])
    ref = tensor([[-1.5, -2.0, NAN], [-1.0, -1.0, -1.0]])
    mask = tensor([[1, 1, 0], [1, 1, 1]]).bool()
    assert_close(
        shape_rewards(tensor([3.0, -4.0]), old, ref, mask, beta=0.1), tensor([[-0.05, 3.0, 0.0], [0.2, 0.0, -4.0]])
    )


def test_without_penalty_each_row_sums_to_its_score() -> None:
    old, ref, mask = ragged()
    scores = torch.arange(1.0, 7.0, dtype=torch.float64)
    rewards = shape_rewards(scores, old, ref, mask, beta=0.0)
    assert rewards.sum(1).tolist() == torch.where(mask.any(1), scores, 0.0).tolist()
    assert ((rewards != 0).sum(1) == mask.any(1)).all()  # once, not at every token
    assert (rewards[~mask] == 0).all()


def test_scores_must_be_one_a_row() -> None:
    with pytest.raises(ValueError, match="one per row"):
        shape_rewards(torch.zeros(1), torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3).bool(), 0.1)


def test_rules_for_a_response_that_did_not_end() -> None:
    scores, ended = tensor([2.0, 5.0]), tensor([True, False])
    assert missing_eos(scores, ended, "replace", -1.0).tolist() == [2, -1]
    assert missing_eos(scores, ended, "subtract", 1.5).tolist() == [2, 3.5]
    assert missing_eos(scores, ended, "keep", -1.0).tolist() == [2, 5]
    with pytest.raises(ValueError, match="reward responses for not ending"):
        missing_eos(scores, ended, "subtract", -1.0)
    with pytest.raises(ValueError, match="rule"):
        missing_eos(scores, ended, "subtracted", 1.0)  # type: ignore[arg-type]


def test_a_replaced_score_does_not_reach_other_advantages() -> None:
    old, ref, mask = ragged(4, 5)
    mask[:, 0] = True
    values, ended = torch.randn(4, 5), tensor([True, False, True, True])

    def advantages(raw: float) -> torch.Tensor:
        scores = missing_eos(tensor([1.0, raw, -2.0, 0.5]), ended, "replace", -1.0)
        return whiten(gae(shape_rewards(scores, old, ref, mask, 0.02), values, mask)[0], mask)

    assert torch.equal(advantages(3.0), advantages(-1000.0))


@pytest.mark.parametrize("rule", ["subtract", "keep"])
def test_until_ended_responses_differ_scores_are_only_moved(char_tokenizer, rule: MissingEOS) -> None:
    ids, moments, zeros = tensor([[97, 2], [97, 2], [97, 98]]), RunningMoments(), torch.zeros(3, 2)
    shaping = Shaping(missing_eos=rule, missing_eos_value=0.0, normalize_scores=True)

    def ruled(ids: torch.Tensor, scores: list[float]) -> list[float]:
        """Each response's whole reward: without a KL penalty, its score as it was normalised."""
        got = as_generation(prompt_batch(["x"] * 3), ids, zeros, char_tokenizer)
        rollout = build_rollout(got, tensor(scores), zeros, zeros, shaping, 0.0, moments, lambda sums: sums)
        return rollout.rewards.sum(dim=1).tolist()

    assert ruled(tensor([[97, 98]] * 3), [0.1, 0.7, -0.3]) == pytest.approx([0.1, 0.7, -0.3]), "none ended"
    assert ruled(ids, [0.7, 0.7, -0.3]) == pytest.approx([0, 0, -1]), "those that did are alike"
    assert ruled(ids, [1.7, 1.7, -0.3]) == pytest.approx([1, 1, -3]), "mean 1.2, standard deviation 0.5"


def test_scores_are_normalised_by_those_of_all_ranks_before_the_missing_eos_rule(char_tokenizer, on_ranks) -> None:
    """A cut response loses the penalty as it is given, not over the standard deviation."""
    ids, none = tensor([[97, 2], [97, 2], [97, 2], [97, 98]]), torch.zeros(4, 2)
    got, scores = as_generation(prompt_batch(["x"] * 4), ids, none, char_tokenizer), tensor([1.0, 1, 7, 5])

    def ruled(rows: torch.Tensor, reduce) -> torch.Tensor:
        part, shaping = none[rows], Shaping(missing_eos="subtract", missing_eos_value=1.5, normalize_scores=True)
        made = build_rollout(got.rows(rows), scores[rows], part, part, shaping, 0.0, RunningMoments(), reduce)
        return made.rewards.sum(dim=1)

    # mean 3 and variance 8 of the three that ended
    expected = [-(0.5**0.5), -(0.5**0.5), 2**0.5, 0.5**0.5 - 1.5]
    for ranks in (1, 2):
        assert torch.cat(on_ranks(ruled, torch.arange(4).chunk(ranks))).tolist() == pytest.approx(expected)


W = 6**-0.5  # a variance of 6 whitened


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("options", "rewards", "advantages", "returns"),
    [
        ({}, [0, 5, 0, 0, 0], [4, 4, -1, -1, -1], [5, 5, 0, 0, 0]),
        ({"missing_eos_value": -2.0}, [0, 5, 0, 0, -2], [4, 4, -3, -3, -3], [5, 5, -2, -2, -2]),
        ({"gamma": 0.5}, [0, 5, 0, 0, 0], [1.5, 4, -1, -1, -1], [2.5, 5, 0, 0, 0]),
        ({"lam": 0.5}, [0, 5, 0, 0, 0], [2, 4, -0.25, -0.5, -1], [3, 5, 0.75, 0.5, 0]),
        # mean 1 and standard deviation 2; the mean stays
        ({"whiten_rewards": True}, [0.5, 3, 0.5, 0.5, 0.5], [2.5, 2, 0.5, 0, -0.5], [3.5, 3, 1.5, 1, 0.5]),
        # mean 1 and variance 6; values learn from what was there before
        ({"whiten_advantages": True}, [0, 5, 0, 0, 0], [3 * W, 3 * W, -2 * W, -2 * W, -2 * W], [5, 5, 0, 0, 0]),
    ],
)
def test_every_rule_of_shaping_by_hand(
    char_tokenizer, on_ranks, ranks: int, options: dict, rewards: list, advantages: list, returns: list
) -> None:
    """A response of two tokens and a cut one of three, every value 1; on one rank, and each on a rank of its own."""
    shaping = Shaping(**({"missing_eos_value": 0.0, "whiten_advantages": False, "lam": 1.0} | options))
    ids, none = tensor([[97, 2, 0], [97, 98, 99]]), torch.zeros(2, 3)
    got, scores = as_generation(prompt_batch(["x", "x"]), ids, none, char_tokenizer), tensor([5.0, 6.0])

    def build(rows: torch.Tensor, reduce) -> tuple[torch.Tensor, ...]:
        part, values = got.rows(rows), torch.ones(len(rows), 3)
        made = build_rollout(part, scores[rows], none[rows], values, shaping, 0.0, RunningMoments(), reduce)
        assert torch.equal(made.scores, scores[rows]), "as the reward gave them"
        return tuple(x[made.response_mask] for x in (made.rewards, made.advantages, made.returns))

    parts = on_ranks(build, torch.arange(2).chunk(ranks))
    for found, expected in zip(zip(*parts, strict=True), (rewards, advantages, returns), strict=True):
        assert torch.cat(found).tolist() == pytest.approx(expected)
