"""A suite: a YAML file of judges and tasks by `class_path`, with the command line's options applied on top."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from instructlit.cli.check import unfit, unknown
from instructlit.cli.config import read
from instructlit.cli.fit import readable
from instructlit.cli.making import Unmade, fault_of
from instructlit.cli.types import describe, import_class, parameters
from instructlit.errors import UserError, require
from instructlit.evaluation.judging import Judge
from instructlit.evaluation.task import Task

_JUDGES = "instructlit.evaluation.judges"
KINDS = {
    "reward": (f"{_JUDGES}.RewardJudge", "model"),
    "local": (f"{_JUDGES}.LocalJudge", "model"),
    "api": (f"{_JUDGES}.EndpointJudge", "model"),
    "people": (f"{_JUDGES}.PeopleJudge", "labels"),
    "function": (f"{_JUDGES}.FunctionJudge", "function"),
    "perspective": (f"{_JUDGES}.PerspectiveScorer", "attribute"),
    "detoxify": (f"{_JUDGES}.DetoxifyScorer", "model"),
    "classifier": (f"{_JUDGES}.HuggingFaceClassifier", "model"),
    "world": ("instructlit.tools.world.gold.GoldJudge", "data"),
}
"""The kinds of judge on the command line: each one's class, and the option that the word after the colon sets."""


@dataclass
class Suite:
    """The contents of a suite file.

    Args:
        name: the file's name without its extension.
        judges: class_path and init_args by name.
        tasks: the same.
        models: path, prefix and title by name.
        sections: additional parts of the page.
        baseline: the model that preferences are measured against, if it names one.
        base: the model that the alignment tax is measured from, if it names one.
        turned: the terminal shows one column per model and one row per measure.
    """

    name: str
    judges: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)
    sections: list[Any] = field(default_factory=list)
    baseline: str | None = None
    base: str | None = None
    turned: bool = False


def read_suite(name: str) -> Suite:
    """The suite of a file, or the built-in one of that name.

    Raises:
        UserError: no such suite, not YAML, or keys and values that a suite does not take.
    """
    path = Path(name).expanduser()
    config = read(name if path.suffix or path.is_file() else f"configs/evaluate/{name}.yaml", "--suite")
    known = {key: hint for key, hint in get_type_hints(Suite).items() if key != "name"}
    for key, value in config.values.items():
        where = config.where((str(key),))
        if key not in known:
            raise unknown(str(key), known, where, "key")
        if value is not None and (problem := unfit(value, known[key], where)):
            raise problem
    suite = Suite(path.stem, **{key: value for key, value in config.values.items() if value is not None})
    suite.models = {n: _model(told, config.where(("models", str(n)))) for n, told in suite.models.items()}
    parts = [("judges", suite.judges), ("tasks", suite.tasks), ("sections", dict(enumerate(suite.sections)))]
    for part, inner, spec in ((part, inner, spec) for part, specs in parts for inner, spec in specs.items()):
        if not isinstance(spec, dict) or "class_path" not in spec or not set(spec) <= {"class_path", "init_args"}:
            where = config.where((part, str(inner)))
            raise UserError("does not name a class and its options", where=where, expected="class_path and init_args")
    return suite


def _model(told: Any, where: str) -> dict[str, str]:
    """A model of a suite: its path, or a mapping with its path."""
    spec = {"path": told} if isinstance(told, str) else told
    if not isinstance(spec, dict) or "path" not in spec or not set(spec) <= {"path", "prefix", "title"}:
        raise UserError("is not a model", where=where, expected="a path, or a mapping of path, prefix and title")
    return spec


def chosen(
    suite: Suite, tasks: Sequence[str] | None, options: Sequence[str], limit: int | None, seed: int | None = None
) -> dict[str, Task]:
    """The suite's tasks, constructed with the command line's options.

    Raises:
        UserError: an unknown task or option, or a value that is not valid.
    """
    for name in tasks or []:
        if name not in suite.tasks:
            raise unknown(name, suite.tasks, "--tasks", "task")
    specs = {
        n: {"class_path": s["class_path"], "init_args": dict(s.get("init_args") or {})} for n, s in suite.tasks.items()
    }
    for option in options:
        path, equals, value = option.partition("=")
        name, _, key = path.partition(".")
        if not equals or not key:
            raise UserError(f"`{option}` is not an option of a task", where="--options", expected="TASK.OPTION=VALUE")
        if name not in specs:
            raise unknown(name, specs, f"--options {option}", "task")
        specs[name]["init_args"][key] = value_of(value, f"--options {option}")
    found = {}
    for name in tasks or specs:
        for key, value in (("limit", limit), ("seed", seed)):
            if value is not None and takes(specs[name]["class_path"], key):
                specs[name]["init_args"][key] = value
        if isinstance(most := specs[name]["init_args"].get("limit"), int):
            require("a whole number above 0", f"task {name}: ", limit=most)
        found[name] = built(Task, specs[name], f"task {name}")
    return found


def judges_of(suite: Suite, given: Sequence[str], folder: Path) -> dict[str, Judge]:
    """The suite's judges and those of the command line.

    Raises:
        UserError: a judge that cannot be constructed.
    """
    specs = dict(suite.judges)
    for text in given:
        name, equals, told = text.partition("=")
        kind, colon, what = told.partition(":")
        if not equals or not colon or kind not in KINDS:
            raise UserError(
                f"`{text}` does not name a judge",
                where="--judges",
                expected=f"NAME=KIND:WHAT, KIND one of {', '.join(KINDS)}",
            )
        class_path, option = KINDS[kind]
        arguments = {option: what}
        if kind == "people":
            arguments["tasks"] = str(folder / f"to_label_{name}.jsonl")
        specs[name] = {"class_path": class_path, "init_args": arguments}
    return {name: built(Judge, spec, f"judge {name}") for name, spec in specs.items()}


def value_of(text: str, where: str) -> Any:
    """The value given for an option on the command line.

    Raises:
        UserError: it is not YAML.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"`{text}` is not valid here", where=where, expected="a YAML value") from error


def takes(class_path: str, option: str) -> bool:
    """Whether a task has an option of that name."""
    return option in inspect.signature(import_class(class_path, [Task], "tasks")).parameters


def built(kind: type, spec: Mapping[str, Any], where: str) -> Any:
    """The object of a class_path.

    Raises:
        UserError: no such class, or options that are not valid for it.
    """
    found = import_class(spec["class_path"], [kind], where)
    known = list(inspect.signature(found).parameters)
    given = spec.get("init_args") or {}
    for option in given:
        if option not in known:
            raise unknown(option, known, where)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "part", fail_untyped=False)  # as `fit` takes them
    try:
        return parser.instantiate(parser.parse_object({"part": dict(spec)}))["part"]
    except Exception as error:
        own = fault_of(error)  # the class raised it, the parser wrapped it
        own = own.at(where) if isinstance(own, Unmade) else own
        raise own or _unfit(found, given, where) or UserError(readable(str(error)), where=where) from error


def _unfit(found: type, given: Mapping[str, Any], where: str) -> UserError | None:
    """What is wrong with a class's options, where the parser's message would only name a type that it expected."""
    for name, (hint, required) in (parameters(found) or {}).items():
        if required and given.get(name) is None:
            return UserError(f"{found.__name__} needs `{name}`", where=where, expected=describe(hint))
        if name in given and (problem := unfit(given[name], hint, f"{where}: {name}")):
            return problem
    return None
