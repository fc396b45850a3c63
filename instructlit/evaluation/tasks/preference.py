"""Which model's answers are preferred: win rates against a baseline on the same prompts, and ratings from 1 to 7.

Every pair is judged in both orders and counts as the mean of the two, so that a position bias favours neither model;
equal answers tie without being judged. A pair counts only if both verdicts were readable.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from instructlit.data.readers import open_source
from instructlit.data.records import prompts_of
from instructlit.data.sources import Source
from instructlit.evaluation import intervals
from instructlit.evaluation.datasets import needed
from instructlit.evaluation.intervals import Figure
from instructlit.evaluation.judging import Kind, Question, Verdict
from instructlit.evaluation.length_control import length_controlled
from instructlit.evaluation.measures import (
    PERCENT,
    Measure,
    Outcome,
    Study,
    answer_rows,
    checked_baseline,
    first_rows,
    measured,
    noted,
)
from instructlit.evaluation.requests import Ask, Request
from instructlit.evaluation.task import Task
from instructlit.evaluation.tasks.verdicts import ask_each
from instructlit.types import Prompt

Scores = list[float | None]


class Preference(Task):
    """Win rate of each model against the baseline, and its rating.

    Args:
        prompts: prompts in any format that training reads; `use_case` gives figures by use case.
        judges: names of the judges that compare.
        raters: names of the judges that rate; by default those that compare, if they can rate or score.
        limit: use only this many prompts, the first ones.
        max_new_tokens: most tokens in an answer.
        temperature: 0 is greedy, as in the paper.
        samples_shown: prompts whose answers the report shows.
    """

    def __init__(
        self,
        prompts: str | None = None,
        judges: list[str] | None = None,
        raters: list[str] | None = None,
        limit: int | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        samples_shown: int = 12,
    ):
        self.judges = list(dict.fromkeys(["judge"] if judges is None else judges))
        self.raters = None if raters is None else list(dict.fromkeys(raters))
        self.path, self.limit, self.samples_shown = prompts, limit, samples_shown
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self._prompts: list[Prompt] = []

    def judges_asked(self) -> Sequence[str]:
        return [*self.judges, *(self.raters or ())]

    def requests(self) -> Sequence[Request]:
        self._prompts = distinct_prompts(needed(self.path, "preference.prompts", "prompts are"), self.limit)
        return [Ask(p.prompt, self.max_new_tokens, self.temperature) for p in self._prompts]

    def measure(self, study: Study) -> Outcome:
        baseline = checked_baseline(study, study.baseline)
        outcome = Outcome()
        texts = {model: study.texts(model) for model in study.models}
        groups = [p.use_case for p in self._prompts]
        raters = self._raters(study)
        suffix = "" if len(raters) == 1 else " ({})"
        preferred: dict[str, dict[str, Scores]] = {}
        rated: dict[str, dict[str, Scores]] = {}
        for judge in self.judges:
            preferred[judge] = self._preference(study, outcome, judge, baseline, texts, groups)
        for judge in raters:
            rated[judge] = self._ratings(study, outcome, judge, suffix.format(judge), texts, groups)
        outcome.measures += agreement(preferred, rated)

        scales = {judge: " / 7" if "rate" in study.desk.judge(judge).answers else "" for judge in raters}

        def marks(model: str, i: int) -> list[str]:
            found = []
            for judge, rows in preferred.items():
                value = rows.get(model, [None] * (i + 1))[i]
                if value is not None:
                    found.append(f"{judge}: {'better' if value > 0.5 else 'worse' if value < 0.5 else 'tie'}")
            for judge, rows in rated.items():
                if (value := rows[model][i]) is not None:
                    found.append(f"{judge}: {value:.3g}{scales[judge]}")
            return found

        rows = answer_rows(study, [p.prompt for p in self._prompts], marks, groups=groups)
        outcome.samples = first_rows(rows, self.samples_shown)
        return outcome

    def _raters(self, study: Study) -> list[str]:
        if self.raters is not None:
            return self.raters
        rating: set[Kind] = {"rate", "score"}
        return [judge for judge in self.judges if rating & study.desk.judge(judge).answers]

    def _preference(
        self,
        study: Study,
        outcome: Outcome,
        judge: str,
        baseline: str,
        texts: dict[str, list[str | None]],
        groups: list[str | None],
    ) -> dict[str, Scores]:
        title = study.desk.judge(judge).title
        scores: dict[str, Scores] = {}
        controlled: dict[str, Figure] = {}
        unread: dict[str, int] = {}
        orders: list[tuple[Verdict, Verdict]] = []
        for model in study.models:
            if model == baseline:
                scores[model] = [0.5 if text is not None else None for text in texts[model]]
            else:
                scores[model], own = self._against(study, judge, model, baseline)
                orders += own
                unread[model] = sum(a.unreadable or b.unreadable for a, b in own)
            controlled |= _controlled(study, model, scores[model], texts[model], texts[baseline])
        suffix = "" if len(self.judges) == 1 else f" ({judge})"
        raw = Measure(
            f"preference/{judge}/win_rate",
            f"preferred to {baseline}{suffix}",
            f"Share of prompts on which {title} prefers the model's answer to {baseline}'s, ties half, both orders of "
            "every pair averaged.",
            PERCENT,
        )
        outcome.measures.append(
            noted(measured(study, raw, scores, share=True, groups=groups), unread, "pairs with an unreadable verdict")
        )
        outcome.measures.append(
            Measure(
                f"preference/{judge}/length_controlled_win_rate",
                f"the same, length-controlled{suffix}",
                "The win rate that a logistic regression on the difference in length gives for equal lengths.",
                PERCENT,
                figures=controlled,
                notes=[
                    f"{model}: all answers differ by the same length, which says nothing about equal lengths"
                    for model, figure in controlled.items()
                    if math.isnan(figure.value)
                ],
            )
        )
        if study.desk.judge(judge).both_orders:
            outcome.measures += position_bias(judge, orders)
        return scores

    def _against(
        self, study: Study, judge: str, model: str, baseline: str
    ) -> tuple[Scores, list[tuple[Verdict, Verdict]]]:
        """Scores by prompt, and the two verdicts on every pair that was judged."""
        ours, theirs = study.texts(model), study.texts(baseline)
        ends = list(zip(study.ended(model), study.ended(baseline), strict=True))
        shown = [
            i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a is not None and b is not None and a != b
        ]
        pairs = [
            Question("compare", self._prompts[i].prompt, (str(ours[i]), str(theirs[i])), ended=ends[i]) for i in shown
        ]
        turned = [replace(q, answers=q.answers[::-1], ended=q.ended[::-1]) for q in pairs]
        verdicts = study.desk.ask(judge, pairs + turned)
        orders = list(zip(verdicts[: len(pairs)], verdicts[len(pairs) :], strict=True))
        scores: Scores = [0.5 if a is not None and a == b else None for a, b in zip(ours, theirs, strict=True)]
        for i, (there, back) in zip(shown, orders, strict=True):
            if there.value is not None and back.value is not None:
                scores[i] = (there.value + 1 - back.value) / 2
        return scores, orders

    def _ratings(
        self,
        study: Study,
        outcome: Outcome,
        judge: str,
        suffix: str,
        texts: dict[str, list[str | None]],
        groups: list[str | None],
    ) -> dict[str, Scores]:
        kind: Kind = "rate" if "rate" in study.desk.judge(judge).answers else "score"

        def question(prompt: Prompt, text: str | None, end: bool) -> Question | None:
            return None if text is None else Question(kind, prompt.prompt, (text,), ended=(end,))

        rows = {model: zip(self._prompts, texts[model], study.ended(model), strict=True) for model in study.models}
        found = ask_each(study, judge, {model: [question(*row) for row in own] for model, own in rows.items()})
        measure = Measure(
            f"preference/{judge}/rating",
            f"rating{suffix}",
            f"Mean rating by {study.desk.judge(judge).title} on a scale from 1 (worst) to 7 (best).",
            "{:.2f}",
        )
        if kind == "score":
            measure.name, measure.title = f"preference/{judge}/score", f"score by {judge}"
            measure.meaning = f"Mean score by {study.desk.judge(judge).title}, which has its own scale."
        measured(study, measure, found.values, groups=groups)
        if measure.figures:
            outcome.measures.append(noted(measure, found.unread, "answers with an unreadable rating"))
        elif any(found.unread.values()):
            outcome.notes.append(f"{judge} gave no readable rating, so there is no column for it")
        return found.values


def distinct_prompts(path: str, limit: int | None) -> list[Prompt]:
    """The distinct prompts of a source: a repeated prompt is not a second trial."""
    found: dict[str, Prompt] = {}
    for _, prompt in prompts_of(open_source(Source(path), "prompts")):
        found.setdefault(str(prompt.prompt), prompt)
    return list(found.values())[:limit]


def position_bias(judge: str, orders: Sequence[tuple[Verdict, Verdict]]) -> list[Measure]:
    """How often a judge names the same position in both orders: 0 if it reads the answers, 1 if it does not."""
    decided = [(a.value, b.value) for a, b in orders if a.value in (0.0, 1.0) and b.value in (0.0, 1.0)]
    if not decided:
        return []
    first = [float(a == b == 1.0) for a, b in decided]
    same = [float(a == b) for a, b in decided]
    bias = Measure(
        f"preference/{judge}/position_bias",
        "position bias",
        "Of the pairs decided in both orders, the share in which the judge named the same position twice, whatever "
        "answer was there.",
        PERCENT,
        "down",
        {judge: intervals.share(same)},
        rows="judges",
    )
    bias.notes.append(
        f"{judge}: the first position twice in {np.mean(first):.1%}, the second in {np.mean(same) - np.mean(first):.1%}"
    )
    return [bias]


def agreement(preferred: dict[str, dict[str, Scores]], rated: dict[str, dict[str, Scores]]) -> list[Measure]:
    """How often two judges agree on a pair, and how their ratings correlate, for every two judges."""
    found = [_same_choices(preferred, one, other) for one, other in combinations(preferred, 2)]
    found += [_like_ratings(rated, one, other) for one, other in combinations(rated, 2)]
    return [measure for measure in found if measure is not None]


def _same_choices(preferred: dict[str, dict[str, Scores]], one: str, other: str) -> Measure | None:
    same = [
        float(np.sign(a - 0.5) == np.sign(b - 0.5))
        for model in preferred[one]
        for a, b in zip(preferred[one][model], preferred[other][model], strict=True)
        if a is not None and b is not None and a != 0.5 and b != 0.5
    ]
    if not same:
        return None
    return Measure(
        f"preference/{one}/agreement_with_{other}",
        f"agrees with {other}",
        "Of the pairs that both judges decided (no ties), the share on which they name the same one.",
        PERCENT,
        figures={one: intervals.share(same)},
        rows="judges",
    )


def _like_ratings(rated: dict[str, dict[str, Scores]], one: str, other: str) -> Measure | None:
    pairs = np.array(
        [
            (a, b, prompt)
            for model in rated[one]
            for prompt, (a, b) in enumerate(zip(rated[one][model], rated[other][model], strict=True))
            if a is not None and b is not None
        ]
    )
    if len(pairs) < 3 or not pairs[:, :2].std(axis=0).min() > 0:
        return None
    return Measure(
        f"preference/{one}/rating_correlation_with_{other}",
        f"rating correlation with {other}",
        "Pearson correlation of the two judges' ratings of the same answers.",
        "{:.2f}",
        figures={one: intervals.correlation(*pairs.T)},
        rows="judges",
    )


def _controlled(
    study: Study, model: str, scores: Scores, ours: list[str | None], theirs: list[str | None]
) -> dict[str, Figure]:
    rows = [i for i, score in enumerate(scores) if score is not None]
    if not rows:
        return {}
    longer = np.array([len(str(ours[i])) - len(str(theirs[i])) for i in rows], dtype=float)
    return {model: length_controlled(np.array([scores[i] for i in rows], dtype=float), longer, study.seed)}
