"""Builds the module or datamodule that configs name without a run: neither constructor loads weights or files."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ArgumentParser

from instructlit.cli.check import Checker
from instructlit.cli.config import Config, read
from instructlit.cli.fit import composed, located, readable, signature
from instructlit.cli.making import fault_of
from instructlit.errors import UserError

BASES = {"model": pl.LightningModule, "data": pl.LightningDataModule}


def checked(paths: Sequence[str]) -> Config:
    """The configs merged in order.

    Raises:
        UserError: a key or value in them is wrong, as `fit` would say.
    """
    config = composed([read(path) for path in paths])
    Checker(config, *signature("fit")).check()
    return config


def built(config: Config, part: str, where: str) -> Any:
    """What `part` of a composed config stands for.

    Args:
        config: the composed config.
        part: "model" or "data".
        where: the file that an error message names.

    Raises:
        UserError: the config has no such part, or what it says cannot be built.
    """
    if part not in config.values:
        raise UserError(f"the config has no `{part}`", where=where, expected=f"a recipe with a `{part}` part")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BASES[part], part, fail_untyped=False)  # as Lightning's command line takes them
    try:
        options: Any = parser.instantiate(parser.parse_object({part: config.values[part]}))
    except Exception as error:
        fault = fault_of(error) or UserError(readable(str(error)), where=f"{where}: {part}")
        raise located(fault, config, ()) from error
    return options[part]
