"""`instructlit evaluate`: models side by side, in the terminal, as JSON and as one page."""

from typing import Literal


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
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    batch_size: int = 32,
    weights: Literal["auto", "raw", "ema"] = "auto",
    wandb: str | None = None,
    dry_run: bool = False,
    redraw: bool = False,
) -> int:
    """Measure models with a suite of tasks: every figure with its 95 % interval and its count.

    Writes results.json, report.html, replies.jsonl and verdicts.jsonl. Run it again to go on where it was stopped:
    what was answered and judged is not asked again. What a judge will cost is said before it is asked. A model or a
    task that fails is named and left out, and the status is then 2.

    Args:
        models: NAME=PATH each, beside those of the suite: a Hugging Face folder or Hub name, a checkpoint of a stage,
            or a .jsonl of prompt and response. The first is the baseline and the base where no other is named.
        suite: a suite that is shipped (instructgpt, released, reward, world) or a YAML file.
        tasks: the suite's tasks to run; all of them when not given.
        judges: NAME=KIND:WHAT each, beside those of the suite: reward:FOLDER, local:FOLDER, api:MODEL, people:FILE,
            function:PACKAGE.NAME, perspective:TOXICITY, detoxify:original, classifier:FOLDER, world:FOLDER.
        options: TASK.OPTION=VALUE each, such as ifeval.data=prompts.jsonl, over what the suite says.
        output: folder of the results.
        baseline: the model that preferences are measured against; the suite's, else one called sft, else the first.
        base: the model that the alignment tax is measured from; the suite's, else one called base, else the first.
        limit: the first so many prompts of every task that has a limit.
        seed: of resampling, and of the sampling of tasks that have a seed.
        template: of prompts, as for training.
        dtype: dtype to compute in; "auto" is bfloat16 on a GPU and float32 elsewhere.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", ...
        batch_size: answers decoded together.
        weights: of a checkpoint: "auto" takes the moving average where one is kept.
        wandb: project of Weights & Biases to log the results to.
        dry_run: say what would be asked of models, and of judges about the replies that are there, and stop.
        redraw: draw the page and print the table of the results that are in the output folder, and stop.
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
