"""Logs the results to Weights & Biases: every figure, a table of all of them, the samples and the page."""

from pathlib import Path
from typing import Any

from instructlit.callbacks.wandb_logger import WandbLogger
from instructlit.evaluation.runner import Results
from instructlit.tools.evaluate.results import figure_row

ANSWERS = ("task", "prompt", "model", "answer", "marks")
COLUMNS = ("rows", "row", "measure", "value", "low", "high", "n")


def log(results: Results, project: str, suite: str, folder: Path) -> None:
    """Log everything as one run; without a key or a network the run is kept in a folder for `wandb sync`."""
    import wandb

    logger = WandbLogger(project=project, name=f"evaluate-{suite}", job_type="evaluate", save_dir=str(folder))
    run: Any = logger.experiment
    found = figures(results)
    run.log(
        {f"evaluate/{measure}/{row}": told["value"] for _, row, measure, told in found}
        | {
            "evaluate/figures": wandb.Table(
                columns=list(COLUMNS), data=[[rows, row, m, *told.values()] for rows, row, m, told in found]
            ),
            "evaluate/samples": wandb.Table(columns=list(ANSWERS), data=samples(results)),
            "evaluate/report": wandb.Html(str(folder / "report.html")),
        }
    )
    logger.finalize("success")
    run.finish()


def figures(results: Results) -> list[tuple[str, str, str, dict[str, Any]]]:
    """Table, row, measure and figure of everything that was measured."""
    return [
        (measure.rows, row, measure.name, figure_row(figure))
        for outcome in results.outcomes.values()
        for measure in outcome.measures
        for row, figure in measure.figures.items()
    ]


def samples(results: Results) -> list[Any]:
    """One row for each answer that the page shows."""
    return [
        [
            task,
            str(row["prompt"]),
            model,
            text,
            ", ".join(m if isinstance(m, str) else m[0] for m in row["marks"].get(model, [])),
        ]
        for task, outcome in results.outcomes.items()
        for row in outcome.samples
        for model, text in row["answers"].items()
    ]
