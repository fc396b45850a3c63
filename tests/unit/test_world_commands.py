"""The small parts of labelling and measuring that need no model."""

import pytest

from instructlit.errors import UserError
from instructlit.tools.world import measure
from instructlit.tools.world.label import parse_source, summary
from instructlit.world import Verdict


def verdict(**changed: object) -> Verdict:
    plain = {"attempted": True, "constraints": None, "grounded": None, "truthful": None, "rude": False}
    return Verdict(**{**plain, "score": 0.5, "rating": 4, **changed})  # type: ignore[arg-type]


def test_a_source_is_a_folder_and_a_temperature() -> None:
    assert parse_source("models/sft") == ("models/sft", 1.0)
    assert parse_source("models/sft@1.3") == ("models/sft", 1.3)
    assert parse_source("a@b/model@0.5") == ("a@b/model", 0.5)
    for wrong in ("models/sft@hot", "models/sft@0", "models/sft@-1"):
        with pytest.raises(UserError, match="is not a temperature"):
            parse_source(wrong)


def test_summary_counts_pairs_and_ties() -> None:
    records = [{"ranks": [1, 2, 2, 3]}, {"ranks": [1, 1, 1, 1]}]
    assert summary(records) == {"prompts": 2, "completions": 8, "pairs": 12, "ties": 1 + 6}


def test_rates_are_over_the_answers_they_apply_to() -> None:
    groups = [
        [verdict(constraints=True, grounded=False), verdict(constraints=False, grounded=True, rating=6)],
        [verdict(truthful=True), verdict(truthful=False)],
    ]
    probe = [[verdict(truthful=False, constraints=True), verdict(truthful=False)]]
    found = measure.rates(groups, probe)
    assert found == {"rating": 4.5, "constraints": 0.5, "hallucination": 0.5, "truthful": 0.25}


def test_preference_compares_gold_scores_prompt_by_prompt() -> None:
    ours = [[verdict(score=0.9)], [verdict(score=0.1)], [verdict(score=0.5)]]
    theirs = [[verdict(score=0.5)]] * 3
    assert measure.preference(ours, theirs)["preference"] == pytest.approx(0.5)
    assert measure.preference(theirs, theirs)["preference_low"] == 0.5
    assert measure.rude_share([[verdict(rude=True), verdict()], [verdict(), verdict()]]) == 0.25


def test_counts_name_what_a_number_rests_on() -> None:
    groups = [[verdict(constraints=True), verdict()], [verdict(grounded=True, truthful=True), verdict()]]
    assert measure.counts(groups, probe=18) == {
        "test prompts": 2,
        "with a constraint": 1,
        "bound to a context": 1,
        "with a misconception": 19,
        "answers to each": 2,
    }
