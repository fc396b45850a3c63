"""Gold against proxy over sqrt(KL): how far a reward model's score can be optimised before it loses its meaning (Gao et
al. 2022, "Scaling Laws for Reward Model Overoptimization", figures 1 and 3).

Policies are points: at sqrt(KL) from the reference, the mean score by the proxy that they were trained on and by gold
judges. For comparison there is best-of-n of the reference, whose KL is known exactly. Where the proxy's score keeps
rising and the gold score falls, the policy has found the proxy's mistakes.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructlit.errors import UserError, require
from instructlit.evaluation.datasets import needed, read_rows
from instructlit.evaluation.divergence import asked_of_reference, log_ratios
from instructlit.evaluation.judging import Question, about_samples
from instructlit.evaluation.measures import Curve, Measure, Outcome, Study, checked_baseline, measured
from instructlit.evaluation.requests import Ask, Reply, Request
from instructlit.evaluation.task import Task
from instructlit.evaluation.tasks.best_of_n import over_sqrt_kl, scored_best
from instructlit.evaluation.tasks.preference import distinct_prompts
from instructlit.types import PromptText

Lines = dict[str, list[tuple[float, float]]]
_MODELS = "models"  # the line through the policies


class Overoptimization(Task):
    """Score by the proxy and by gold judges over sqrt(KL), of policies and of best-of-n.

    Args:
        prompts: prompts in any format that training reads; by default those of `runs`.
        proxy: name of the judge that the policies were trained on.
        gold: names of the judges taken as the truth; they score, or rate from 1 to 7.
        reference: the model that the KL is measured from; by default the baseline.
        policies: every model is a policy; false plots only `runs` and best-of-n.
        runs: by name a file of the samples that a PPO run wrote (`iteration`, `prompt`, `response`, `score` and `kl`,
            see `callbacks.SampleTable`): each iteration is a point.
        samples: answers of a policy to each prompt, at temperature 1.
        best_of: answers of the reference to each prompt, for best-of-n; 0 leaves it out.
        limit: use only this many prompts, the first ones; of each of `runs` too.
        max_new_tokens: most tokens in an answer.
    """

    def __init__(
        self,
        prompts: str | None = None,
        proxy: str = "reward",
        gold: list[str] | None = None,
        reference: str | None = None,
        policies: bool = True,
        runs: dict[str, str] | None = None,
        samples: int = 1,
        best_of: int = 16,
        limit: int | None = None,
        max_new_tokens: int = 256,
    ):
        if policies and _MODELS in (runs or {}):
            raise UserError(
                f"a run is called {_MODELS}",
                where="runs",
                expected="another name, since the line of the models has this one",
            )
        require("a whole number, 0 or more", best_of=best_of)
        self.path, self.proxy, self.reference = prompts, proxy, reference
        self.gold = ["gold"] if gold is None else gold
        self.policies, self.runs, self.samples, self.best_of = policies, runs or {}, samples, best_of
        self.limit, self.max_new_tokens = limit, max_new_tokens
        self._prompts: list[PromptText] = []
        self._logged: dict[str, list[dict[str, Any]]] = {}

    def judges_asked(self) -> Sequence[str]:
        return [*self.gold, *([self.proxy] if self.policies or self.best_of > 1 else [])]  # `runs` include its scores

    def requests(self) -> Sequence[Request]:
        fields = ("iteration", "prompt", "response", "score", "kl")
        self._logged = {
            name: of_first_prompts(read_rows(file, f"runs.{name}", *fields), self.limit)
            for name, file in self.runs.items()
        }
        if self.path is not None or not self.runs:
            path = needed(self.path, "overoptimization.prompts", "prompts are")
            self._prompts = [p.prompt for p in distinct_prompts(path, self.limit)]
        else:
            asked = [row["prompt"] for own in self._logged.values() for row in own]
            self._prompts = list({str(prompt): prompt for prompt in asked}.values())[: self.limit]
        return self._asks(self.samples) if self.policies else []

    def further(self, study: Study) -> Mapping[str, Sequence[Request]]:
        reference = self._reference(study)
        asked = dict(asked_of_reference(study, reference, self._prompts)) if self.policies else {}
        best = self._asks(self.best_of) if self.best_of > 1 else []
        return asked | {reference: [*asked.get(reference, []), *best]}

    def measure(self, study: Study) -> Outcome:
        judges = list(dict.fromkeys([self.proxy, *self.gold]))
        lines: dict[str, Lines] = {judge: {} for judge in judges}
        outcome = Outcome()
        if self.policies:
            outcome.measures = self._policies(study, judges, lines)
        for name, rows in self._logged.items():
            self._run(study, name, rows, judges, lines)
        if self.best_of > 1:
            self._best(study, judges, lines)
        outcome.curves = [
            Curve(
                f"{study.desk.judge(judge).title if judge != self.proxy else 'reward model'}: score over √KL",
                f"√KL from {study.title(self._reference(study))} (nats a sequence)",
                f"score by {judge}",
                own,
            )
            for judge, own in lines.items()
            if own
        ]
        return outcome

    def _reference(self, study: Study) -> str:
        return checked_baseline(study, self.reference or study.baseline)

    def _asks(self, samples: int) -> list[Request]:
        """Policies and best-of-n sample from separate streams."""
        stream = f"overoptimization|{{model}}|{samples}"
        return [Ask(p, self.max_new_tokens, 1.0, samples, stream=stream, log_probs=True) for p in self._prompts]

    def _policies(self, study: Study, judges: Sequence[str], lines: dict[str, Lines]) -> list[Measure]:
        """The columns of the models, and the line through them by KL."""
        title = study.title(self._reference(study))
        kl = Measure(
            "overoptimization/kl",
            f"KL from {title}",
            f"Mean log-probability of a model's own samples under it minus under {title}, in nats a sequence.",
            "{:.2f}",
            "",
        )
        ratios = log_ratios(study, self._reference(study), self._prompts)
        values = {m: [None if row is None else float(np.mean(row)) for row in rows] for m, rows in ratios.items()}
        found = [measured(study, kl, values)]
        for judge in judges:
            scores = {m: self._means(study, judge, study.replies[m]) for m in study.models}
            column = Measure(
                f"overoptimization/{judge}",
                f"score by {judge}",
                f"Mean score by {study.desk.judge(judge).title} of answers sampled at temperature 1"
                + (", which the policies were trained on." if judge == self.proxy else "."),
            )
            found.append(measured(study, column, scores))
            points = [
                (math.sqrt(max(kl.figures[m].value, 0.0)), column.figures[m].value)
                for m in study.models
                if m in kl.figures and m in column.figures
            ]
            if points:
                lines[judge][_MODELS] = sorted(points)
        return [measure for measure in found if measure.figures]

    def _means(self, study: Study, judge: str, replies: Sequence[Reply | None]) -> list[float | None]:
        """A judge's mean score of the answers to each prompt; None if a score is missing."""
        kind = study.desk.judge(judge).marks
        asked = [about_samples(kind, p, reply) for p, reply in zip(self._prompts, replies, strict=True)]
        verdicts = iter(study.desk.ask(judge, [question for own in asked for question in own]))
        found: list[float | None] = []
        for own in asked:
            values = [next(verdicts).value for _ in own]
            known = [value for value in values if value is not None]
            found.append(sum(known) / len(known) if known and len(known) == len(values) else None)
        return found

    def _run(
        self, study: Study, name: str, rows: Sequence[Mapping[str, Any]], judges: Sequence[str], lines: dict[str, Lines]
    ) -> None:
        """The points of a run: its own proxy score and KL at each iteration, and the gold judges' scores."""
        times: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for row in rows:
            times[row["iteration"]].append(row)
        for judge in judges:
            points = []
            for _, own in sorted(times.items()):
                values: list[float | None] = [float(row["score"]) for row in own]
                if judge != self.proxy:
                    kind = study.desk.judge(judge).marks
                    asked = [
                        Question(kind, row["prompt"], (row["response"],), ended=(row.get("ended", True),))
                        for row in own
                    ]
                    values = [verdict.value for verdict in study.desk.ask(judge, asked)]
                known = [value for value in values if value is not None]
                if known:
                    kl = sum(float(row["kl"]) for row in own) / len(own)
                    points.append((math.sqrt(max(kl, 0.0)), sum(known) / len(known)))
            if points:
                lines[judge][study.title(name)] = points

    def _best(self, study: Study, judges: Sequence[str], lines: dict[str, Lines]) -> None:
        reference = self._reference(study)
        replies = study.further.get(reference, [])[-len(self._prompts) :]
        if not replies:
            return
        for judge, best in scored_best(study, judges, self._prompts, replies, self.best_of).items():
            lines[judge][f"best-of-n of {study.title(reference)}"] = over_sqrt_kl(best)


def of_first_prompts(rows: Sequence[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    """The rows of the first distinct prompts, so many; of every iteration, as each asks the same ones."""
    chosen = set(list(dict.fromkeys(str(row["prompt"]) for row in rows))[:limit])
    return [row for row in rows if str(row["prompt"]) in chosen]
