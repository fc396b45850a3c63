"""`instructlit evaluate`: models side by side, in the terminal, as JSON and as one page."""

from typing import Literal

from instructlit.dtypes import AutoDtype


def evaluate(
    models: list[str] | None = None,
    *,
    suite: str = "instructgpt",
    tasks: list[str] | None = None,
    judges: list[str] | None = None,
    options: list[str] | None = None,
    output: str = "evaluation",
    baseline: str | None = None,
    base: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    template: str = "auto",
    dtype: AutoDtype = "auto",
    device: str = "auto",
    batch_size: int = 32,
    weights: Literal["auto", "raw", "ema"] = "auto",
    wandb: str | None = None,
    dry_run: bool = False,
    redraw: bool = False,
) -> int:
    """Measure models with a suite of tasks: every figure with its 95 % interval and its count.

    Writes results.json, report.html, replies.jsonl and verdicts.jsonl. The same command resumes where it stopped:
    existing replies and verdicts are not asked for again. The cost of a judge is printed before it is asked. A model or
    a task that fails is named and left out, and the exit status is then 2.

    Args:
        models: NAME=PATH each, in addition to those of the suite: a Hugging Face folder or Hub name, a checkpoint of a
            stage, or a .jsonl of prompt and response. The first is the baseline and the base where no other is named.
        suite: a built-in suite (instructgpt, released, reward, world) or a YAML file.
        tasks: the suite's tasks to run; all of them when not given.
        judges: NAME=KIND:WHAT each, in addition to those of the suite: reward:FOLDER, local:FOLDER, api:MODEL,
            people:FILE, function:PACKAGE.NAME, perspective:TOXICITY, detoxify:original, classifier:FOLDER,
            world:FOLDER.
        options: TASK.OPTION=VALUE each, such as ifeval.data=prompts.jsonl, overriding the suite.
        output: folder of the results.
        baseline: the model that preferences are measured against; the suite's, else one called sft, else the first.
        base: the model that the alignment tax is measured from; the suite's, else one called base, else the first.
        limit: use only this many prompts, the first ones, of every task that has a limit.
        seed: seed of the bootstrap, and of sampling in tasks that have a seed.
        template: template of the prompts, as in training.
        dtype: dtype to compute in; "auto" is bfloat16 on a GPU and float32 elsewhere.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", ...
        batch_size: answers decoded together.
        weights: which weights of a checkpoint: "auto" takes the moving average if there is one.
        wandb: project of Weights & Biases to log the results to.
        dry_run: report what models would be asked, and what judges would be asked about existing replies, and stop.
        redraw: draw the page and print the table again from the results in the output folder, log them if --wandb is
            given, and stop.
    """
    from instructlit.tools.evaluate.run import Loading, run

    loading = Loading(template, dtype, device, batch_size, weights)
    return run(
        models or [],
        suite,
        tasks,
        judges or [],
        options or [],
        output,
        baseline=baseline,
        base=base,
        limit=limit,
        seed=seed,
        loading=loading,
        wandb=wandb,
        dry_run=dry_run,
        redraw=redraw,
    )
