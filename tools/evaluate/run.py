"""Runs `instructlit evaluate`: from its options to results on disk, in the terminal and in W&B."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from instructlit.data.sources import SUFFIXES
from instructlit.dtypes import AutoDtype
from instructlit.errors import UserError
from instructlit.evaluation.language_model import (
    LanguageModel,
    check_language_model,
    dtype_on,
    load_language_model,
    ready,
    usable_device,
)
from instructlit.evaluation.runner import Evaluation, Results
from instructlit.evaluation.subjects import FileSubject, ModelSubject, Subject
from instructlit.files import write_json, write_text
from instructlit.tools.evaluate.page import Section, report
from instructlit.tools.evaluate.results import as_json, from_json
from instructlit.tools.evaluate.suite import Suite, built, chosen, judges_of, read_suite
from instructlit.tools.evaluate.table import print_results
from instructlit.tools.outputs import check_folder


@dataclass(frozen=True)
class Loading:
    """How models are loaded."""

    template: str
    dtype: AutoDtype
    device: str
    batch_size: int
    weights: str


def run(
    models: Sequence[str],
    suite: str,
    tasks: Sequence[str] | None,
    judges: Sequence[str],
    options: Sequence[str],
    output: str,
    *,
    baseline: str | None,
    base: str | None,
    limit: int | None,
    seed: int,
    loading: Loading,
    wandb: str | None,
    dry_run: bool,
    redraw: bool,
) -> int:
    """The whole command; the exit status."""
    check_folder(output)
    folder, read = Path(output), read_suite(suite)
    sections = [built(Section, spec, f"section {place}") for place, spec in enumerate(read.sections, start=1)]

    def finished(results: Results) -> int:
        status = finish(results, folder, sections, read.turned)
        if wandb:
            from instructlit.tools.evaluate.wandb_log import log

            log(results, wandb, results.suite, folder)
        return status

    if redraw:
        return finished(from_json(_earlier(folder)))
    usable_device(loading.device)  # before tasks read their data
    subjects = subjects_of(read, models, loading)
    _check_weights(loading, subjects)
    names = [s.name for s in subjects]
    evaluation = Evaluation(
        subjects,
        chosen(read, tasks, options, limit, seed),
        judges_of(read, judges, folder),
        folder,
        baseline=_role(baseline, read.baseline, "sft", names, "baseline"),
        base=_role(base, read.base, "base", names, "base"),
        seed=seed,
        suite=read.name,
        titles={name: spec["title"] for name, spec in read.models.items() if "title" in spec},
        tell=lambda text: print(text, flush=True),
    )
    evaluation.on_task = lambda results: _keep(results, folder)
    results = evaluation.run(dry=dry_run)
    if not results.failures:  # a task that cannot run asks nobody
        _tell_unasked(judges, results)
    if dry_run:
        if results.unmade and evaluation.judges:
            print(f"what judges will be asked about these {results.unmade:,} replies is known only once they are made")
        elif not results.plan:
            print("no questions are left for a judge")
        return 2 if results.failures else 0
    _keep(results, folder)  # also where no task was measured
    return finished(results)


def _tell_unasked(judges: Sequence[str], results: Results) -> None:
    """Say which judges of the command line no task asks: a task asks those that its own options name."""
    for name in (text.partition("=")[0] for text in judges):
        if name in results.unasked:
            print(f"no task asks the judge {name}: tasks ask those named in their options, as TASK.judges=[{name}]")


def finish(results: Results, folder: Path, sections: Sequence[Section], turned: bool) -> int:
    """Write the tasks' files beside results.json, draw the page, print the table; returns the exit status."""
    for outcome in results.outcomes.values():
        for name, text in outcome.files.items():
            write_text(folder / name, text)
    write_text(folder / "report.html", report(results, folder, sections))
    print_results(results, turned)
    print(f"written: {folder / 'results.json'}, {folder / 'report.html'}")
    return 2 if results.failures else 0


def _keep(results: Results, folder: Path) -> None:
    write_json(folder / "results.json", as_json(results))


def _earlier(folder: Path) -> Any:
    """The results of an earlier evaluation.

    Raises:
        UserError: there are none.
    """
    path = folder / "results.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError("has no results", where=str(path), fix="run the evaluation first, without --redraw") from error


def subjects_of(read: Suite, given: Sequence[str], loading: Loading) -> list[Subject]:
    """The suite's models, with those of the command line in their places or after them.

    Raises:
        UserError: a name is given twice, or an entry is not NAME=PATH.
    """
    specs = {name: dict(spec) for name, spec in read.models.items()}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise UserError(
                f"`{text}` does not name a model", where="--models", expected="NAME=PATH, such as sft=runs/sft/export"
            )
        specs[name] = {**specs.get(name, {}), "path": path}
    names = [text.partition("=")[0] for text in given]
    if len(set(names)) < len(names):
        raise UserError(
            f"two models have the same name: {', '.join(names)}", where="--models", expected="NAME=PATH, each name once"
        )
    return [subject(name, spec["path"], loading, spec.get("prefix", "")) for name, spec in specs.items()]


def subject(name: str, path: str, loading: Loading, prefix: str = "") -> Subject:
    """What NAME=PATH stands for.

    Raises:
        UserError: a file of answers that cannot be read.
    """
    if path.lower().endswith(SUFFIXES):
        return FileSubject(name, path)
    options: dict[str, Any] = asdict(loading)
    del options["batch_size"], options["device"]
    load, check = partial(load_model, name, path, loading), partial(check_model, name, path, loading)
    return ModelSubject(name, path, load, options, prefix, partial(_beneath, path), check)


def _check_weights(loading: Loading, subjects: Sequence[Subject]) -> None:
    """Refuse a choice of weights where no model holds both kinds: a folder has one, whatever is asked for.

    Raises:
        UserError: no model is a checkpoint.
    """
    paths = [Path(one.path).expanduser() for one in subjects if isinstance(one, ModelSubject)]
    if loading.weights != "auto" and not any(map(_is_checkpoint, paths)):
        raise UserError(
            "no model is a checkpoint, and a model folder holds one kind of weights",
            where="--weights",
            expected="a checkpoint among --models, or no --weights",
            fix="PPO exports the moving average beside its folder: name FOLDER-ema",
        )


def check_model(name: str, path: str, loading: Loading) -> None:
    """Check a folder, a Hub name or a checkpoint without loading its weights."""
    if _is_checkpoint(Path(path).expanduser()):
        _checkpoint(name, path, weights=False)
    else:
        check_language_model(path, f"--models {name}", loading.template)


def load_model(name: str, path: str, loading: Loading) -> LanguageModel:
    """The model from a folder, a Hub name or a checkpoint of a stage."""
    if not _is_checkpoint(Path(path).expanduser()):
        return load_language_model(
            path,
            template=loading.template,
            dtype=loading.dtype,
            device=loading.device,
            where=f"--models {name}",
            batch_size=loading.batch_size,
        )
    from instructlit.modules.stage_checkpoint import rebuilt, tokenizer_of

    checkpoint = _checkpoint(name, path)
    average = (checkpoint["instructlit"].get("ppo") or {}).get("ema") is not None
    weights = ("ema" if average else "raw") if loading.weights == "auto" else loading.weights
    print(f"{name}: {'the moving average of the weights' if weights == 'ema' else 'the weights'} of {path}")
    place = usable_device(loading.device)
    network = rebuilt(checkpoint, weights, path, dtype_on(place, loading.dtype))
    return ready(network, tokenizer_of(checkpoint), place, loading.template, loading.batch_size)


def _checkpoint(name: str, path: str, weights: bool = True) -> dict[str, Any]:
    """The checkpoint of a stage that trains a language model.

    Raises:
        UserError: it is a reward model's, or not one of ours.
    """
    from instructlit.modules.stage_checkpoint import read_checkpoint

    checkpoint = read_checkpoint(Path(path).expanduser(), weights)
    if checkpoint["instructlit"]["stage"] == "reward":
        raise UserError(
            f"{path} is a reward model",
            where=f"--models {name}",
            expected="a language model",
            fix=f"export it, and use it as a judge: --judges {name}=reward:FOLDER",
        )
    return checkpoint


def _beneath(path: str) -> list[str]:
    """Where a checkpoint takes its frozen trunk and its tokenizer from."""
    from instructlit.modules.stage_checkpoint import read_checkpoint, tokenizer_path

    place = Path(path).expanduser()
    if not _is_checkpoint(place):
        return []
    checkpoint = read_checkpoint(place, weights=False)
    return [checkpoint["instructlit"]["backbone"]["path"], tokenizer_path(checkpoint)]


def _is_checkpoint(path: Path) -> bool:
    from instructlit.modules.strategy import is_sharded_checkpoint

    return path.is_file() or (path.is_dir() and is_sharded_checkpoint(path))


def _role(given: str | None, suited: str | None, usual: str, names: Sequence[str], what: str) -> str:
    """The model in a role: the one named, else the usual one, else the first."""
    if given is not None and given not in names:
        raise UserError(f"{given} is not one of the models", where=f"--{what}", expected=f"one of {', '.join(names)}")
    if given is not None:
        return given
    return next((name for name in (suited, usual) if name and name in names), names[0] if names else "")
