"""The result table: its columns with their meaning, and the table as the terminal shows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TITLES = {
    "base": "base",
    "prompted": "base + prefix",
    "sft": "SFT",
    "ppo": "PPO",
    "ppo_ptx": "PPO-ptx",
}
"""The models in the order of the table, by the name they have in results.json."""


@dataclass(frozen=True)
class Column:
    """One column: its key in results.json, its head, how its number is written and what it means."""

    key: str
    head: str
    form: str  # for str.format
    better: str  # "up", "down" or ""
    meaning: str


COLUMNS = (
    Column(
        "preference",
        "preferred to SFT",
        "{:.1%}",
        "up",
        "How often the gold scorer puts the model's answer above SFT's answer to the same prompt, ties counted half; "
        "50 % is SFT itself. The interval is at 95 %, prompts taken as the units.",
    ),
    Column("rating", "rating", "{:.2f}", "up", "The gold scorer's mark for an answer, 1 (worst) to 7, averaged."),
    Column(
        "constraints",
        "follows constraints",
        "{:.1%}",
        "up",
        "Of the prompts with an explicit constraint (“in two words”, “in capitals”), the share answered within it.",
    ),
    Column(
        "hallucination",
        "hallucinates",
        "{:.1%}",
        "down",
        "Of the prompts that must be answered from a given context, the share answered with something not in it.",
    ),
    Column(
        "truthful",
        "truthful",
        "{:.1%}",
        "up",
        "Of the questions about which the corpus repeats a misconception, the share answered with the truth.",
    ),
    Column("toxicity", "rude", "{:.1%}", "down", "Of the prompts that tempt to rudeness, the share answered rudely."),
    Column(
        "toxicity_respectful",
        "rude if asked for respect",
        "{:.1%}",
        "down",
        "The same prompts, after an instruction to be respectful.",
    ),
    Column(
        "kl",
        "KL from SFT",
        "{:.2f}",
        "",
        "How far the model's answers have moved from SFT: log-probability of its own samples under it minus under SFT, "
        "in nats a sequence.",
    ),
    Column(
        "perplexity",
        "corpus perplexity",
        "{:.2f}",
        "down",
        "How surprised the model is by held-out text of the pretraining corpus. "
        "A rise over the base model is the alignment tax.",
    ),
)

TASKS = Column(
    "tasks",
    "corpus task",
    "{:.1%}",
    "up",
    "Right choices on a held-out task made of corpus text, by the lowest mean log-loss a token, "
    "without any instruction.",
)


def columns(results: Mapping[str, Any]) -> list[tuple[str, Column]]:
    """Head and column for everything the results hold, one for each corpus task."""
    rows: list[tuple[str, Column]] = [(column.head, column) for column in COLUMNS]
    for task in _tasks(results):
        rows.append((f"task: {task}", TASKS))
    return rows


def cell(model: Mapping[str, Any], head: str, column: Column) -> str:
    """The number of one cell as text, a dash where there is none."""
    value = model.get("tasks", {}).get(head.removeprefix("task: ")) if column is TASKS else model.get(column.key)
    return "-" if value is None else column.form.format(value if abs(value) > 5e-5 else 0.0)


def interval(model: Mapping[str, Any]) -> str:
    """The interval of the preference, nothing where it is a point."""
    low, high = model["preference_low"], model["preference_high"]
    return "" if low == high else f"{low:.1%} to {high:.1%}"


def print_results(results: Mapping[str, Any]) -> None:
    """The result table in the terminal: models across, so that it fits in eighty columns."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"instructlit quickstart, seed {results['seed']}", caption=_caption(results), padding=(0, 0, 0, 1)
    )
    table.add_column("")
    models = results["models"]
    for model in models:
        table.add_column(str(TITLES.get(model["name"], model["name"])), justify="right")
    for head, column in columns(results):
        table.add_row(head, *(cell(model, head, column) for model in models))
        if column.key == "preference":
            table.add_row("95 % interval", *(interval(model).replace("% to ", "-") for model in models))
    Console().print(table)


def _caption(results: Mapping[str, Any]) -> str:
    accuracy, agreement = results["reward_accuracy"], results["labeler_agreement"]
    return f"reward model right on {accuracy:.1%} of held-out pairs; two labelers agree on {agreement:.1%}"


def _tasks(results: Mapping[str, Any]) -> list[str]:
    return list(results["models"][0].get("tasks", {})) if results["models"] else []
