"""What tasks share that put one statement about every answer to a judge."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from instructlit.evaluation.judging import Question
from instructlit.evaluation.measures import Study
from instructlit.types import PromptText


@dataclass(frozen=True)
class Statement:
    """What a judge is to decide on.

    Args:
        name: short, as in a metric's path.
        text: the statement, in words.
    """

    name: str
    text: str


@dataclass
class Decisions:
    """A judge's decisions on one statement.

    Args:
        values: for each model one value a prompt: 1 it holds, 0 it does not, None where there is none.
        unread: for each model how many verdicts could not be read.
    """

    values: dict[str, list[float | None]] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)


def decide(
    study: Study,
    judge: str,
    statement: Statement,
    prompts: Sequence[PromptText],
    answers: dict[str, list[str | None]],
    references: Sequence[str],
) -> Decisions:
    """What the judge says of every model's answer to every prompt.

    Args:
        study: gives the desk.
        judge: its name.
        statement: what is to be decided.
        prompts: P of them.
        answers: for each model P answers; None is not asked about.
        references: P texts that the judge may lean on.
    """
    found = Decisions()
    for model, texts in answers.items():
        there = [i for i, text in enumerate(texts) if text is not None]
        asked = [
            Question("decide", prompts[i], (str(texts[i]),), statement.text, references[i], statement.name)
            for i in there
        ]
        verdicts = study.desk.ask(judge, asked)
        found.values[model] = [None] * len(prompts)
        for i, verdict in zip(there, verdicts, strict=True):
            found.values[model][i] = verdict.value
        found.unread[model] = sum(verdict.unreadable for verdict in verdicts)
    return found
