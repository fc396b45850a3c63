"""Defaults of the command line, and those of a module's own signature where an overlay may change a part of them."""

import inspect
from typing import Any

import torch

from instructlit.cli.config import Config
from instructlit.cli.types import classes_of, import_class, parameters

DEFAULTS: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {
        # The datamodules shard their own data, in an order that does not depend on the number of ranks.
        "use_distributed_sampler": False,
        "logger": {"class_path": "instructlit.callbacks.CSVLogger", "init_args": {"save_dir": "runs"}},
    },
}


def from_signature(layers: list[Config]) -> Config:
    """The optimiser that the model class of `layers` would make by itself, written out as a config.

    A module says its default as `lambda params: AdamW(params, lr=1e-5, ...)`, which no overlay can reach into. Written
    out, an overlay that names another class keeps the learning rate, and a saved config tells it.
    """
    path = next((p for layer in reversed(layers) if isinstance(p := layer.get(("model", "class_path")), str)), None)
    if path is None:
        return Config()
    try:
        module = import_class(path, [], "model.class_path")
        defaults = {name: p.default for name, p in inspect.signature(module).parameters.items()}
    except Exception:
        return Config()  # whatever is wrong with the class is said by the check that follows
    found = {}
    for name, parameter in (parameters(module) or {}).items():
        default = defaults.get(name)
        makes = classes_of(parameter.hint)
        if inspect.isfunction(default) and makes and all(issubclass(c, torch.optim.Optimizer) for c in makes):
            found[name] = written_out(default([torch.nn.Parameter(torch.zeros(1))]))
    return Config({"model": {"init_args": found}}) if found else Config()


def written_out(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser as class_path and the init_args that are not the class's own defaults."""
    kind = type(optimizer)
    args: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        value = optimizer.defaults.get(name, parameter.default)
        if name in optimizer.defaults and (value != parameter.default or name == "lr"):
            args[name] = list(value) if isinstance(value, tuple) else value
    path = f"{kind.__module__}.{kind.__qualname__}"
    return {"class_path": path.replace(f"torch.optim.{kind.__name__.lower()}.", "torch.optim."), "init_args": args}
