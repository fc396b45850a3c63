"""What the main job must show, on results made up so that one claim at a time fails."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from instructlit.tools.quickstart import _judge
from instructlit.tools.quickstart.verdict import criteria, holds, needed, verdict


def results(seed: int = 1) -> dict[str, Any]:
    preference = {"base": 0.12, "prompted": 0.23, "sft": 0.5, "ppo": 0.55, "ppo_ptx": 0.57}
    perplexity = {"base": 3.3, "prompted": 3.3, "sft": 3.5, "ppo": 5.5, "ppo_ptx": 4.5}
    models = [
        {
            "name": name,
            "preference": value,
            "preference_low": value - 0.03,
            "preference_high": value + 0.03,
            "perplexity": perplexity[name],
        }
        for name, value in preference.items()
    ]
    return {"seed": seed, "reward_accuracy": 0.66, "labeler_agreement": 0.73, "models": models}


def changed(name: str, **values: float) -> dict[str, Any]:
    found = copy.deepcopy(results())
    for model in found["models"]:
        if model["name"] == name:
            model.update(values)
    return found


def failing(found: dict[str, Any]) -> list[str]:
    return [criterion.name for criterion in criteria(found) if not criterion.holds]


def test_all_hold() -> None:
    assert failing(results()) == []
    assert holds(results())


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (changed("base", preference=0.23), ["order"]),
        (changed("prompted", preference=0.5), ["order"]),
        (changed("ppo_ptx", preference=0.49, preference_low=0.46), ["order", "interval"]),
        (changed("ppo_ptx", preference_low=0.5), ["interval"]),
        (changed("ppo_ptx", perplexity=4.51), ["tax"]),
        (changed("ppo", perplexity=3.4), ["tax"]),
        ({**results(), "reward_accuracy": 0.59}, ["reward"]),
        ({**results(), "reward_accuracy": 0.74}, ["reward"]),
    ],
)
def test_each_claim_fails_alone(found: dict[str, Any], names: list[str]) -> None:
    assert failing(found) == names


def test_ppo_itself_need_not_beat_sft() -> None:
    assert failing(changed("ppo", preference=0.3)) == []


def test_four_of_five() -> None:
    assert [needed(n) for n in (1, 4, 5, 10)] == [1, 4, 4, 8]
    bad = {**results(5), "reward_accuracy": 0.5}
    assert verdict([results(n) for n in range(4)] + [bad])["holds"]
    assert not verdict([results(n) for n in range(3)] + [bad, bad])["holds"]


def test_the_verdict_is_printed_kept_and_decides_the_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = []
    for number, accuracy in ((11, 0.66), (12, 0.5)):
        run = tmp_path / f"seed-{number}"
        run.mkdir()
        (run / "results.json").write_text(json.dumps({**results(number), "reward_accuracy": accuracy}))
        runs.append(run)
    with pytest.raises(SystemExit) as stop:
        _judge(runs, tmp_path)
    assert stop.value.code == 1
    assert "holds for 1 of 2 seeds; 2 are needed" in capsys.readouterr().out
    kept = json.loads((tmp_path / "verdict.json").read_text())
    assert [run["holds"] for run in kept["runs"]] == [True, False]
    assert kept["runs"][1]["criteria"]["reward"]["holds"] is False
    _judge(runs[:1], tmp_path)
