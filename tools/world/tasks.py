"""What is measured of models in the embedded world, as tasks of `instructlit evaluate`; the suite is `world`.

Answers are sampled at temperature 1 from the full softmax, several to a prompt, since that distribution is what PPO
optimises and what the KL is measured on; greedy answers would hide how far it has spread or sharpened. Two samples of a
prompt are not independent trials, so the intervals take prompts as units.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructlit.errors import UserError
from instructlit.evaluation import Answer, Ask, Measure, Outcome, Question, Request, Study, Task, measured
from instructlit.evaluation.divergence import asked_of_reference, log_ratios
from instructlit.evaluation.intervals import Figure, wins
from instructlit.evaluation.measures import PERCENT, checked_baseline
from instructlit.tools.world.folder import read_prompts
from instructlit.types import Prompt
from instructlit.world import respectful

Verdicts = list[dict[str, Any]]
"""The gold scorer's verdicts on a model's answers to one prompt, each with its `score`."""

CHIPS = (
    ("attempted", "did the task", "wrong task"),
    ("constraints", "kept the constraint", "broke the constraint"),
    ("grounded", "within the context", "made up"),
    ("truthful", "true", "misconception"),
)
"""Key of a verdict, the label for True and the label for False; None has no label."""


class WorldTask(Task):
    """Sampled answers to prompts of the world, judged by its gold scorer.

    Args:
        data: the world's data folder.
        gold: name of the gold scorer among the judges.
        seed: seed of the sampling.
        samples: answers to each prompt.
        max_new_tokens: longest answer.
    """

    def __init__(
        self, data: str = "data", gold: str = "gold", seed: int = 1, samples: int = 2, max_new_tokens: int = 32
    ):
        self.data, self.gold, self.seed = Path(data), gold, seed
        self.samples, self.max_new_tokens = samples, max_new_tokens

    def judges_asked(self) -> Sequence[str]:
        return [self.gold]

    def asks(self, prompts: Sequence[Prompt], respect: bool = False, log_probs: bool = False) -> list[Request]:
        """The prompts, or the prompts with a request to be respectful, with one stream of random numbers per model."""
        stream = f"evaluate|{self.seed}|{{model}}|{prompts[0].prompt}|{respect}" if prompts else ""
        texts = [respectful(str(p.prompt)) if respect else str(p.prompt) for p in prompts]
        return [Ask(text, self.max_new_tokens, 1.0, self.samples, stream=stream, log_probs=log_probs) for text in texts]

    def judged(self, study: Study, prompts: Sequence[Prompt], start: int = 0) -> dict[str, list[Verdicts | None]]:
        """By model and prompt the verdicts on its answers to the requests from `start` on, by the plain prompt."""
        found: dict[str, list[Verdicts | None]] = {}
        for model in study.models:
            replies = study.replies[model][start : start + len(prompts)]
            texts = [reply.texts if isinstance(reply, Answer) else [] for reply in replies]
            asked = [
                Question("score", p.prompt, (text,)) for p, own in zip(prompts, texts, strict=True) for text in own
            ]
            verdicts = iter(study.desk.ask(self.gold, asked))
            rows = [[next(verdicts) for _ in own] for own in texts]
            found[model] = [
                [{"score": v.value, **json.loads(v.said)} for v in own] if own and all(v.said for v in own) else None
                for own in rows
            ]
        return found


class Answers(WorldTask):
    """How good answers are: preference over the baseline's, rating, constraints, hallucination, truth, and the KL.

    Args:
        data: as for all tasks of the world, with prompts_test.jsonl and prompts_truthful.jsonl.
        gold: the same.
        seed: the same.
        samples: the same.
        max_new_tokens: the same.
        limit: use only this many distinct test prompts, the first ones.
    """

    def __init__(
        self,
        data: str = "data",
        gold: str = "gold",
        seed: int = 1,
        samples: int = 2,
        max_new_tokens: int = 32,
        limit: int = 1000,
    ):
        super().__init__(data, gold, seed, samples, max_new_tokens)
        self.limit = limit
        self._prompts: list[Prompt] = []
        self._probe: list[Prompt] = []

    def requests(self) -> Sequence[Request]:
        self._prompts = distinct(read_prompts(self.data / "prompts_test.jsonl"))[: self.limit]
        self._probe = distinct(read_prompts(self.data / "prompts_truthful.jsonl"))
        return self.asks(self._prompts, log_probs=True) + self.asks(self._probe)

    def further(self, study: Study) -> Mapping[str, Sequence[Request]]:
        return asked_of_reference(study, study.baseline, self._texts)

    @property
    def _texts(self) -> list[str]:
        return [str(prompt.prompt) for prompt in self._prompts]

    def measure(self, study: Study) -> Outcome:
        baseline = checked_baseline(study, study.baseline)
        test, probe = self.judged(study, self._prompts), self.judged(study, self._probe, len(self._prompts))
        cases = [prompt.use_case for prompt in self._prompts]
        outcome = Outcome([self._preference(study, test, baseline, cases)])
        outcome.measures += [
            pooled(study, _RATING, test, lambda v: v["rating"], groups=cases),
            pooled(study, _CONSTRAINTS, test, lambda v: v["constraints"], share=True),
            pooled(
                study, _HALLUCINATES, test, lambda v: None if v["grounded"] is None else not v["grounded"], share=True
            ),
            pooled(study, _TRUTHFUL, {m: test[m] + probe[m] for m in test}, lambda v: v["truthful"], share=True),
        ]
        ratios = log_ratios(study, baseline, self._texts)
        column = Measure(
            "world/kl",
            f"KL from {study.title(baseline)}",
            f"How far the model's answers have moved from {study.title(baseline)}: log-probability of its own samples "
            "under it minus under that model, which reads the plain prompt, in nats a sequence.",
            "{:.2f}",
            "",
        )
        counts = {m: [0.0 if row is None else float(len(row)) for row in rows] for m, rows in ratios.items()}
        sums = {m: [None if row is None else sum(row) for row in rows] for m, rows in ratios.items()}
        outcome.measures.append(measured(study, column, sums, weights=counts))
        outcome.samples = self._samples(study, test)
        outcome.files = {"answers.jsonl": "".join(json.dumps(row) + "\n" for row in self._rows(study, test))}
        return outcome

    def _preference(
        self, study: Study, test: dict[str, list[Verdicts | None]], baseline: str, cases: list[str | None]
    ) -> Measure:
        title = study.title(baseline)
        column = Measure(
            "preference/gold/win_rate",
            f"preferred to {title}",
            f"How often the gold scorer puts the model's answer above {title}'s to the same prompt, over all pairs "
            f"of samples, ties counted half; 50 % is {title} itself.",
            PERCENT,
            chance=0.5,
        )
        won, made = {}, {}
        for model in study.models:
            pairs = zip(test[model], test[baseline], strict=True)
            sides = [([v["score"] for v in a or []], [v["score"] for v in b or []]) for a, b in pairs]
            own = wins([a for a, _ in sides], [b for _, b in sides])
            won[model], made[model] = own[0].tolist(), own[1].tolist()
        return measured(study, column, won, weights=made, share=True, groups=cases)

    def _samples(self, study: Study, test: dict[str, list[Verdicts | None]]) -> list[dict[str, Any]]:
        """The first prompt of each use case with the first answer each model drew."""
        first: dict[str | None, int] = {}
        for i, prompt in enumerate(self._prompts):
            first.setdefault(prompt.use_case, i)
        found = []
        for case, i in first.items():
            known = [m for m in study.models if test[m][i]]
            answers = {m: reply.texts[0] for m in known if isinstance(reply := study.replies[m][i], Answer)}
            marks = {m: _marks((test[m][i] or [{}])[0]) for m in answers}
            found.append({"prompt": self._prompts[i].prompt, "group": case, "answers": answers, "marks": marks})
        return found

    def _rows(self, study: Study, test: dict[str, list[Verdicts | None]]) -> list[dict[str, Any]]:
        """Every prompt with the first answer of each model and the verdict on it."""
        return [
            {
                "prompt": prompt.prompt,
                "use_case": prompt.use_case,
                "answers": [
                    {"model": m, "text": reply.texts[0], **verdicts[0]}
                    for m in study.models
                    if (verdicts := test[m][i]) and isinstance(reply := study.replies[m][i], Answer)
                ],
            }
            for i, prompt in enumerate(self._prompts)
        ]


class Rudeness(WorldTask):
    """The share of rude answers to prompts that tempt to rudeness, as they are and after a request to be respectful.

    Args:
        data: as for all tasks of the world, with prompts_toxicity.jsonl.
        gold: the same.
        seed: the same.
        samples: the same.
        max_new_tokens: the same.
    """

    _prompts: Sequence[Prompt] = ()

    def requests(self) -> Sequence[Request]:
        self._prompts = distinct(read_prompts(self.data / "prompts_toxicity.jsonl"))
        return self.asks(self._prompts) + self.asks(self._prompts, respect=True)

    def measure(self, study: Study) -> Outcome:
        plain, asked = self.judged(study, self._prompts), self.judged(study, self._prompts, len(self._prompts))
        return Outcome(
            [
                pooled(study, _RUDE, plain, lambda v: v["rude"], share=True),
                pooled(study, _RUDE_RESPECTFUL, asked, lambda v: v["rude"], share=True),
            ]
        )


class LabelerAgreement(Task):
    """How often two labelers who rank the same held-out completions agree, as `instructlit world label` measured it.

    Args:
        data: the world's data folder, with agreement.json.
    """

    def __init__(self, data: str = "data"):
        self.file = Path(data) / "agreement.json"

    def measure(self, study: Study) -> Outcome:
        try:
            value = float(json.loads(self.file.read_text(encoding="utf-8"))["labeler_agreement"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                "has no labeler agreement", where=str(self.file), fix="run `instructlit world label` first"
            ) from error
        column = Measure(
            "world/labeler_agreement",
            "agreement of two labelers",
            "Share of held-out pairs that a second labeler orders as the first one did, without those tied by either: "
            "the accuracy that a reward model could reach.",
            PERCENT,
            "",
            {"labelers": Figure(value, value, value, 0)},
            rows="reward models",
        )
        return Outcome([column])


def distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts without repetitions of a text: a prompt asked twice is not a second trial."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        found.setdefault(str(prompt.prompt), prompt)
    return list(found.values())


def pooled(
    study: Study,
    column: Callable[[], Measure],
    verdicts: Mapping[str, Sequence[Verdicts | None]],
    value: Callable[[dict[str, Any]], float | None],
    share: bool = False,
    groups: Sequence[str | None] | None = None,
) -> Measure:
    """The mean of `value` over all answers to which it applies, with prompts as the units.

    Args:
        study: gives base and seed.
        column: makes the measure to be filled.
        verdicts: by model, one entry per prompt.
        value: of a verdict; None where it does not apply.
        share: the value is 0 or 1.
        groups: of the prompts.
    """
    sums: dict[str, list[float | None]] = {}
    counts: dict[str, list[float]] = {}
    for model, rows in verdicts.items():
        own = [[float(x) for v in row or [] if (x := value(v)) is not None] for row in rows]
        sums[model] = [sum(values) if values else None for values in own]
        counts[model] = [float(len(values)) for values in own]
    return measured(study, column(), sums, weights=counts, share=share, groups=groups)


def _marks(verdict: Mapping[str, Any]) -> list[Any]:
    """The rating from 1 to 7, and the criteria that apply, each with whether it is good."""
    marks: list[Any] = [f"{verdict['rating']} / 7"] if "rating" in verdict else []
    marks += [
        (yes if verdict[key] else no, bool(verdict[key])) for key, yes, no in CHIPS if verdict.get(key) is not None
    ]
    return marks + ([("rude", False)] if verdict.get("rude") else [])


def _column(name: str, title: str, meaning: str, form: str, better: str) -> Callable[[], Measure]:
    return lambda: Measure(f"world/{name}", title, meaning, form, better)


_RATING = _column("rating", "rating", "Mean rating of an answer by the gold scorer, 1 (worst) to 7.", "{:.2f}", "up")
_CONSTRAINTS = _column(
    "constraints",
    "follows constraints",
    "Of the prompts with an explicit constraint (“in two words”, “in capitals”), the share answered within it.",
    PERCENT,
    "up",
)
_HALLUCINATES = _column(
    "hallucination",
    "hallucinates",
    "Of the prompts that must be answered from a given context, the share answered with something not in it.",
    PERCENT,
    "down",
)
_TRUTHFUL = _column(
    "truthful",
    "truthful",
    "Of the questions about which the corpus repeats a misconception, the share answered with the truth.",
    PERCENT,
    "up",
)
_RUDE = _column("rude", "rude", "Of the prompts that tempt to rudeness, the share answered rudely.", PERCENT, "down")
_RUDE_RESPECTFUL = _column(
    "rude_respectful",
    "rude if asked for respect",
    "The same prompts, after an instruction to be respectful.",
    PERCENT,
    "down",
)
