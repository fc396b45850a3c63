"""`instructlit world compare`: which of two policies the world's gold scorer prefers."""

import tempfile
from pathlib import Path

from instructlit.errors import UserError
from instructlit.evaluation.runner import Evaluation
from instructlit.files import write_json
from instructlit.tools.evaluate.run import Loading, subject
from instructlit.tools.outputs import check_output
from instructlit.tools.world.gold import GoldJudge
from instructlit.tools.world.tasks import Answers


def world_compare(
    ours: str,
    theirs: str,
    data: str = "data",
    seed: int = 1,
    prompts: int = 1000,
    answers: int = 2,
    max_new_tokens: int = 32,
    output: str | None = None,
) -> None:
    """Let two policies answer the world's test prompts, and report how often the gold scorer prefers ours; ties count
    as half.

    Args:
        ours: model folder.
        theirs: model folder.
        data: the world's data folder.
        seed: seed of the sampling.
        prompts: test prompts that both answer.
        answers: answers to each.
        max_new_tokens: longest answer.
        output: JSON file for the figures, in addition to the printed output.
    """
    if output is not None:
        check_output(output)
    loading = Loading("auto", "float32", "auto", 512, "auto")
    task = Answers(data, seed=seed, samples=answers, max_new_tokens=max_new_tokens, limit=prompts)
    with tempfile.TemporaryDirectory() as folder:
        results = Evaluation(
            [subject("ours", ours, loading), subject("theirs", theirs, loading)],
            {"answers": task},
            {"gold": GoldJudge(data)},
            Path(folder),
            baseline="theirs",
            base="theirs",
            seed=seed,
            tell=lambda text: None,
        ).run()
    for what, why in results.failures.items():
        raise UserError(why, where=what)
    figures = {measure.name: measure.figures for measure in results.outcomes["answers"].measures}
    won, ratings = figures["preference/gold/win_rate"]["ours"], figures["world/rating"]
    found = {"ours": ours, "theirs": theirs, "prompts": won.n, "preference": won.value}
    found |= {"preference_low": won.low, "preference_high": won.high}
    found |= {f"rating_{name}": figure.value for name, figure in ratings.items()}
    if output is not None:
        write_json(output, found)
    print(f"{ours} is preferred to {theirs}: {won.value:.1%} ({won.low:.1%} to {won.high:.1%}), {won.n} prompts")
    print(f"mean rating {ratings['ours'].value:.2f} against {ratings['theirs'].value:.2f}")
