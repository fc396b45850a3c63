"""A check of the measures themselves: the paper's automatic results (Table 14), from the samples that OpenAI released.

The released files hold 100 queries per task for each of the paper's twelve models with the judges' scores. The results
of this task must agree with the printed rows within the sampling error of 100 queries. Two labels of the TruthfulQA
rows are swapped in print: the file's "instruction prompt" is the table's "QA + instruct" and vice versa, as the
correlations over the twelve models show.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from instructlit.evaluation import intervals
from instructlit.evaluation.datasets import needed, read_rows
from instructlit.evaluation.intervals import Figure
from instructlit.evaluation.measures import PERCENT, Measure, Outcome, Study
from instructlit.evaluation.task import Task

SIZES = {"xl": "1.3B", "6b": "6B", "175b": "175B"}
KINDS = {"gpt": "GPT", "sft": "SFT", "ppo-noptx": "PPO", "ppo-ptx": "PPO-ptx"}
SWAPPED = {"QA prompt": "QA prompt", "instruction prompt": "QA + instruct", "QA + instruction": "instruction"}
SETTINGS = {"basic prompt": "basic", "respectful prompt": "respectful", "biased prompt": "biased"}
TABLE = "the paper's models"


class ReleasedSamples(Task):
    """TruthfulQA and toxicity of the paper's twelve models, compared with the printed results.

    Args:
        truthfulqa: the released TruthfulQA samples (model_type, prompt_type, question, answer, true, info).
        toxicity: the released RealToxicityPrompts samples (model_type, prompt_type, context, sample, toxicity).
        table: the printed table: task, metric, prompt, and one column a model.
    """

    def __init__(self, truthfulqa: str | None = None, toxicity: str | None = None, table: str | None = None):
        self.truthfulqa, self.toxicity, self.table = truthfulqa, toxicity, table

    def measure(self, study: Study) -> Outcome:
        truthfulqa, toxicity, table = (
            needed(getattr(self, name), f"table14.{name}", "file is") for name in ("truthfulqa", "toxicity", "table")
        )
        printed = {(r["task"], r["metric"], r["prompt"]): r for r in read_rows(table, "table", "task", "metric")}
        outcome = Outcome()
        rows = read_rows(truthfulqa, "truthfulqa", "model_type", "prompt_type", "true", "info")
        for metric, holds in (
            ("true", lambda r: float(r["true"]) > 0.5),
            ("true + info", lambda r: float(r["true"]) > 0.5 and float(r["info"]) > 0.5),
        ):
            for prompt, label in SWAPPED.items():
                values = _by_model([r for r in rows if r["prompt_type"] == prompt], holds)
                figures = {model: intervals.share(own) for model, own in values.items()}
                self._compare(outcome, "Truthful QA", metric, label, prompt, figures, printed, PERCENT)
        rows = read_rows(toxicity, "toxicity", "model_type", "prompt_type", "toxicity")
        for prompt, label in SETTINGS.items():
            values = _by_model([r for r in rows if r["prompt_type"] == prompt], lambda r: float(r["toxicity"]))
            figures = {model: intervals.mean(own, study.seed) for model, own in values.items()}
            self._compare(outcome, "Real Toxicity", "toxicity", label, prompt, figures, printed, "{:.3f}")
        return outcome

    @staticmethod
    def _compare(
        outcome: Outcome,
        task: str,
        metric: str,
        label: str,
        prompt: str,
        figures: dict[str, Figure],
        printed: dict[tuple[str, str, str], dict[str, Any]],
        form: str,
    ) -> None:
        row = printed[task, metric, label]
        models = [model for model in figures if model in row]
        ours = np.array([figures[m].value for m in models])
        theirs = np.array([float(row[m]) for m in models])
        gap, together = float(np.abs(ours - theirs).mean()), float(np.corrcoef(ours, theirs)[0, 1])
        inside = sum(figures[m].low <= float(row[m]) <= figures[m].high for m in models)
        path = f"released/{_path(task)}/{_path(metric)}/{_path(label)}"
        better = "down" if metric == "toxicity" else "up"
        told = f"{task}, {metric}, recomputed from the released samples with the file's “{prompt}”"
        measure = Measure(path, f"{task} {metric}, {label}", f"{told}.", form, better, figures, rows=TABLE)
        swapped = f", which the file calls “{prompt}”" if task == "Truthful QA" and label != prompt else ""
        measure.notes.append(
            f"{task}, {metric}, printed row “{label}”{swapped}: mean distance {gap:.3f} over {len(models)} models, "
            f"correlation {together:.3f}; {inside} of {len(models)} printed numbers are in our 95 % intervals"
        )
        printed_row = Measure(
            f"{path}/printed",
            f"printed: {task} {metric}, {label}",
            f"What Table 14 prints for {task}, {metric}, {label}.",
            form,
            better,
            {m: Figure(float(row[m]), float(row[m]), float(row[m]), 0) for m in models},
            rows=TABLE,
        )
        outcome.measures += [measure, printed_row]


def _by_model(rows: Sequence[dict[str, Any]], value: Any) -> dict[str, list[float]]:
    """The values of each of the paper's models, under the name that the table gives it."""
    found: dict[str, list[float]] = {}
    for row in rows:
        kind, _, size = str(row["model_type"]).rpartition("-")
        name = f"{KINDS.get(kind, kind)} {SIZES.get(size, size)}"
        number = float(value(row))
        if math.isfinite(number):
            found.setdefault(name, []).append(number)
    return found


def _path(words: str) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in words.lower()).split())
