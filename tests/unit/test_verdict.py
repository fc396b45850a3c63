"""What the quickstart must show, on results made up so that one claim at a time fails."""

import json
from pathlib import Path
from typing import Any

import pytest

from instructlit.tools.quickstart import _judge
from instructlit.tools.quickstart.verdict import criteria, holds, needed, verdict


def results(seed: int = 1, **rows: dict[str, float]) -> dict[str, Any]:
    """The results.json of a run on which all holds; `rows` change figures: `ppo={"value": 0.3}` of the preference,
    `ppo_perplexity`, `reward` and `labelers` of what their name says."""
    preference = {"base": 0.12, "prompted": 0.23, "sft": 0.5, "ppo": 0.55, "ppo_ptx": 0.57}
    perplexity = {"base": 3.3, "prompted": 3.3, "sft": 3.5, "ppo": 5.5, "ppo_ptx": 4.5}
    figures = {
        "preference/gold/win_rate": {
            name: {"value": value, "low": value - 0.03, "high": value + 0.03} | rows.get(name, {})
            for name, value in preference.items()
        },
        "perplexity/corpus/token": {
            name: {"value": value} | rows.get(f"{name}_perplexity", {}) for name, value in perplexity.items()
        },
        "reward_model/accuracy": {"reward": {"value": 0.66} | rows.get("reward", {})},
        "world/labeler_agreement": {"labelers": {"value": 0.73}},
    }
    return {"seed": seed, "measures": [{"name": name, "figures": own} for name, own in figures.items()]}


def failing(found: dict[str, Any]) -> list[str]:
    return [criterion.name for criterion in criteria(found) if not criterion.holds]


def test_all_hold() -> None:
    assert failing(results()) == []
    assert holds(results())


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (results(base={"value": 0.23}), ["order"]),
        (results(prompted={"value": 0.5}), ["order"]),
        (results(ppo_ptx={"value": 0.49, "low": 0.46}), ["order", "interval"]),
        (results(ppo_ptx={"low": 0.5}), ["interval"]),
        (results(ppo_ptx_perplexity={"value": 4.51}), ["tax"]),
        (results(ppo_perplexity={"value": 3.4}), ["tax"]),
        (results(reward={"value": 0.59}), ["reward"]),
        (results(reward={"value": 0.74}), ["reward"]),
    ],
)
def test_each_claim_fails_alone(found: dict[str, Any], names: list[str]) -> None:
    assert failing(found) == names


def test_ppo_itself_need_not_beat_sft() -> None:
    assert failing(results(ppo={"value": 0.3})) == []


def test_four_of_five() -> None:
    assert [needed(n) for n in (1, 4, 5, 10)] == [1, 4, 4, 8]
    bad = results(5, reward={"value": 0.5})
    assert verdict([results(n) for n in range(4)] + [bad])["holds"]
    assert not verdict([results(n) for n in range(3)] + [bad, bad])["holds"]


def test_the_verdict_is_printed_kept_and_decides_the_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = []
    for number, accuracy in ((11, 0.66), (12, 0.5)):
        run = tmp_path / f"seed-{number}"
        run.mkdir()
        (run / "results.json").write_text(json.dumps(results(number, reward={"value": accuracy})))
        runs.append(run)
    with pytest.raises(SystemExit) as stop:
        _judge(runs, tmp_path)
    assert stop.value.code == 1
    assert "the claims hold for 1 of 2 seeds; 2 are needed" in capsys.readouterr().out
    kept = json.loads((tmp_path / "verdict.json").read_text())
    assert [run["holds"] for run in kept["runs"]] == [True, False]
    assert kept["runs"][1]["criteria"]["reward"]["holds"] is False
    _judge(runs[:1], tmp_path)
