"""What tasks share that ask a judge one thing about every answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from instructlit.evaluation.judging import Question
from instructlit.evaluation.measures import Study
from instructlit.types import PromptText


@dataclass(frozen=True)
class Statement:
    """A statement for a judge to decide on.

    Args:
        name: short, as in a metric's path.
        text: the statement, in words.
    """

    name: str
    text: str


@dataclass
class Verdicts:
    """A judge's verdicts on every model's answers.

    Args:
        values: for each model one value per prompt, as the kind of question defines it; None if there is none.
        unread: for each model how many verdicts could not be read.
    """

    values: dict[str, list[float | None]] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)


def ask_each(study: Study, judge: str, questions: Mapping[str, Sequence[Question | None]]) -> Verdicts:
    """A judge's verdicts on one question about each answer.

    Args:
        study: gives the desk.
        judge: its name.
        questions: for each model one question per prompt; None if there is no answer.
    """
    found = Verdicts()
    for model, asked in questions.items():
        verdicts = study.desk.ask(judge, [question for question in asked if question is not None])
        values = iter([verdict.value for verdict in verdicts])
        found.values[model] = [None if question is None else next(values) for question in asked]
        found.unread[model] = sum(verdict.unreadable for verdict in verdicts)
    return found


def decide(
    study: Study,
    judge: str,
    statement: Statement,
    prompts: Sequence[PromptText],
    answers: Mapping[str, Sequence[str | None]],
    references: Sequence[str],
) -> Verdicts:
    """Whether the statement holds for each model's answer to each prompt, according to the judge: 1 yes, 0 no.

    Args:
        study: gives the desk.
        judge: its name.
        statement: the statement to decide on.
        prompts: P prompts.
        answers: for each model P answers; None is skipped.
        references: P texts that the judge may rely on.
    """

    def question(prompt: PromptText, text: str | None, reference: str) -> Question | None:
        return None if text is None else Question("decide", prompt, (text,), statement.text, reference, statement.name)

    rows = {model: zip(prompts, texts, references, strict=True) for model, texts in answers.items()}
    return ask_each(study, judge, {model: [question(*row) for row in own] for model, own in rows.items()})
