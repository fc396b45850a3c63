"""Defaults of the command line, and those of a module's signature that an overlay may change in part."""

import inspect
from typing import Any

import torch
from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from instructlit.cli.config import Config
from instructlit.cli.types import classes_of, import_class, parameters
from instructlit.errors import class_path

DEFAULTS: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {
        # The datamodules shard their own data, in an order that does not depend on the number of ranks.
        "use_distributed_sampler": False,
        "logger": {"class_path": "instructlit.callbacks.CSVLogger", "init_args": {"save_dir": "runs"}},
    },
}


def from_signature(layers: list[Config]) -> Config:
    """The optimiser that the model class of `layers` would create by default, written out as a config.

    A module says its default as `lambda params: AdamW(params, lr=1e-5, ...)`, which no overlay can reach into. Written
    out, an overlay that names another class keeps the learning rate, and a saved config records it.
    """
    path = next((p for layer in reversed(layers) if isinstance(p := layer.get(("model", "class_path")), str)), None)
    if path is None:
        return Config()
    try:
        module = import_class(path, [], "model.class_path")
        defaults = {name: p.default for name, p in inspect.signature(module).parameters.items()}
    except Exception:
        return Config()  # the check that follows reports what is wrong with the class
    found = {}
    for name, parameter in (parameters(module) or {}).items():
        if (optimizer := made_by(defaults.get(name), parameter.hint)) is not None:
            found[name] = written_out(optimizer)
    return Config({"model": {"init_args": found}}) if found else Config()


def made_by(default: Any, hint: Any) -> torch.optim.Optimizer | None:
    """The optimiser that a default such as `lambda params: AdamW(...)` makes; None for any other default."""
    makes = classes_of(hint)
    if not inspect.isfunction(default) or not makes or not all(issubclass(c, torch.optim.Optimizer) for c in makes):
        return None
    return default([torch.nn.Parameter(torch.zeros(1))])


def written_out(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser as class_path and the init_args that are not the class's own defaults."""
    kind = type(optimizer)
    args: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        value = optimizer.defaults.get(name, parameter.default)
        if name in optimizer.defaults and (value != parameter.default or name == "lr"):
            args[name] = list(value) if isinstance(value, tuple) else value
    path = class_path(kind)
    return {"class_path": path.replace(f"torch.optim.{kind.__name__.lower()}.", "torch.optim."), "init_args": args}


class Help(DefaultHelpFormatter):
    """Shows the default of an optimiser as `AdamW(lr=1e-05)`, not as the function that makes it."""

    def _expand_help(self, action: Any) -> str:
        text = super()._expand_help(action)
        try:
            optimizer = made_by(action.default, getattr(action, "_typehint", None))
        except Exception:  # one that takes matrices only, such as Muon
            optimizer = None
        if optimizer is None:
            return text
        args = ", ".join(f"{name}={value}" for name, value in written_out(optimizer)["init_args"].items())
        return text.replace(str(action.default), f"{type(optimizer).__name__}({args})")


class Parser(LightningArgumentParser):
    """Lightning's parser, whose help, that of a class included, `Help` formats."""

    def __init__(self, *args: Any, formatter_class: type[Help] = Help, **kwargs: Any):
        super().__init__(*args, formatter_class=formatter_class, **kwargs)
