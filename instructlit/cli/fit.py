"""`instructlit fit|validate|test|predict`: LightningCLI, with any module and any datamodule by class_path.

What this adds to Lightning's: configs are composed before they are parsed (`cli.config`), checked with one message
for one mistake (`cli.check`), saved without secrets (`callbacks.save_config`), and a checkpoint is read as data, never
as code.
"""

import inspect
import logging
import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from instructlit.callbacks.common import rehearses, say
from instructlit.callbacks.progress import StageProgress
from instructlit.callbacks.save_config import SaveConfig
from instructlit.checkpoints import state_of
from instructlit.cli.check import FILES, Checker, options_of
from instructlit.cli.config import Config, Key, compose, dotted
from instructlit.cli.defaults import DEFAULTS, Parser, from_signature
from instructlit.cli.files import check_checkpoint, check_files
from instructlit.cli.making import Unmade, fault_of, place_of
from instructlit.cli.memory import is_out_of_memory, out_of_memory
from instructlit.cli.processes import check_slurm, take_rank
from instructlit.cli.resume import MODES, Mode, continue_from
from instructlit.cli.trainer import made
from instructlit.cli.types import Parameter, import_class, parameters
from instructlit.errors import UserError, require

USAGE = "instructlit {name} --config RECIPE [--config OVERLAY ...] [--key.of.the.config value ...]"
HELP = """\
A config has three parts: `model` (which stage, on which model), `data`, and `trainer`. Later configs override
earlier ones, and command-line options override all of them:

  instructlit {name} --config configs/sft/world.yaml --config configs/optimizer/adamw_8bit.yaml --trainer.max_steps 100

The options of a part, each explained in one sentence:

  instructlit {name} --model.help instructlit.modules.SFTModule     also RewardModule, PPOModule, or a class of your own
  instructlit {name} --data.help instructlit.data.DemonstrationData also TextData, ComparisonData, PromptData
  instructlit {name} --config RECIPE --print_config                 print the complete config, and run nothing

The Trainer's own options follow.
"""

# A config is written with every default, and that of a str argument may be an enum member, as in Lightning's Timer.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))


class _OneLine(yaml.SafeDumper):
    """Every string quoted, so that none is read as another type, and no YAML aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_OneLine.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def run(name: str, layers: list[Config], args: list[str]) -> int:
    """Run Lightning's `name` (fit, validate, test, predict).

    Args:
        name: the subcommand.
        layers: the configs given, from weak to strong.
        args: the other command-line options.
    """
    quiet()
    if any(word in ("-h", "--help") for word in args):
        print(HELP.format(name=name))
    if any(word in ("-h", "--help") or word.partition("=")[0].endswith(".help") for word in args):
        try:
            with suppress(SystemExit):  # how argparse exits after printing the help
                InstructCLI(name, args)
        except ArgumentError as error:
            raise UserError(readable(str(error)), fix="give the import path of a class after it") from error
        return 0
    config = composed([*layers, classes_on_line(args)])
    tell(config.notes)
    check(name, config, args)
    printing = any(word.startswith("--print_config") for word in args)
    if not printing:
        check_files(config, pairs_of(args))
    try:
        # jsonargparse takes a config's text as well as its path.
        InstructCLI(name, ["--config", written(config.values), *args])
    except SystemExit:
        if not printing:
            raise
    except ArgumentError as error:
        raise UserError(readable(str(error))) from error
    except Exception as error:
        if (fault := fault_of(error)) is None:
            raise
        raise located(fault, config, args) from error
    return 0


def tell(notes: Sequence[str]) -> None:
    """Print what was dropped where the configs and the options were merged."""
    for note in notes:
        print(f"instructlit: {note}", file=sys.stderr)


def written(values: dict[str, Any]) -> str:
    """A config as one line of YAML. JSON would do, except that YAML reads its `Infinity` as text."""
    return yaml.dump(values, Dumper=_OneLine, default_flow_style=True, width=sys.maxsize, sort_keys=False)


def composed(layers: list[Config]) -> Config:
    """The layers merged over the defaults."""
    return compose([Config(DEFAULTS), from_signature(layers), *layers], accepted_by)


def classes_on_line(args: Sequence[str]) -> Config:
    """`--model package.Module` and `--data package.Data` as a config of their own."""
    named = {option: value for option, value in pairs_of(args) if option in ("model", "data") and value}
    found = {k: v for k, v in named.items() if re.fullmatch(r"[A-Za-z_][\w.]*", v) and not v.endswith(FILES)}
    return Config({k: {"class_path": v} for k, v in found.items()}, {(k, "class_path"): f"--{k}" for k in found})


def located(error: UserError, config: Config, args: Sequence[str]) -> UserError:
    """A message about an argument (`policy.path`), with the file and line, or the option, that set it."""
    if error.where is None:
        where = place_of(error.kind, config, pairs_of(args)) if isinstance(error, Unmade) else None
    elif not re.fullmatch(r"[A-Za-z_][\w.]*", error.where):
        where = None
    else:
        named = dotted(error.where)
        on_line = [option for option, _ in pairs_of(args) if dotted(option)[-len(named) :] == named]
        where = f"--{on_line[0]}" if on_line else config.locate(error.where) or owner_of(error.where, config)
    return error.at(where) if where else error


def owner_of(name: str, config: Config) -> str | None:
    """The option for an argument that no config sets: `padding_token` is `--data.init_args.padding_token`."""
    head = name.partition(".")[0]
    for part in ("data", "model"):
        path = config.get((part, "class_path"))
        if isinstance(path, str) and head in (accepted_by(path) or ()):
            return f"--{part}.init_args.{name}"
    return None


def check(name: str, config: Config, args: Sequence[str] = ()) -> None:
    """Raise UserError at the first mistake in a composed config or in the options given with it."""
    pairs = pairs_of(args)
    options, groups = signature(name)
    checker = Checker(config, options, groups, [tuple(option.rstrip("+").split(".")) for option, _ in pairs])
    for option, value in pairs:
        if (key := checker.check_option(option, value)) is not None:
            layer = Config(nested(key, {"class_path": value}), {(*key, "class_path"): f"--{option}"})
            checker.config = compose([checker.config, layer], accepted_by)
            tell(checker.config.notes)
    checker.check()
    if "model" not in checker.config.values and not any(option.startswith("model") for option, _ in pairs):
        raise UserError(
            "no model is given", expected="a stage's recipe, --config configs/….yaml, or --model class_path"
        )
    named = dict(pairs)
    on_line = named.get("trainer.strategy.class_path") or named.get("trainer.strategy")
    strategy = on_line or checker.config.get(("trainer", "strategy", "class_path"))
    check_checkpoint(named.get("ckpt_path") or config.values.get("ckpt_path"), strategy)


def pairs_of(args: Sequence[str]) -> list[tuple[str, str | None]]:
    """The options that set a value."""
    return options_of(args, lambda option: option == "print_config")


def nested(key: Key, value: Any) -> dict[str, Any]:
    """`value` at `key` in a tree of its own."""
    return {key[0]: nested(key[1:], value) if key[1:] else value}


def signature(name: str) -> tuple[dict[str, Parameter], dict[str, type]]:
    """The top-level keys of `instructlit <name>`, and those whose class is fixed."""
    method = getattr(pl.Trainer, name)
    skipped = LightningCLI.subcommands()[name]
    extra = {
        p.name: Parameter(p.annotation, False)
        for p in inspect.signature(method).parameters.values()
        if p.name not in ("self", *skipped)
    }
    hints = {
        "seed_everything": bool | int,
        "trainer": pl.Trainer,
        "model": pl.LightningModule,
        "data": pl.LightningDataModule,
    }
    if name == "fit":
        extra["resume"] = Parameter(Mode, False)
    return {**{k: Parameter(h, False) for k, h in hints.items()}, **extra}, {"trainer": pl.Trainer}


def accepted_by(path: str) -> set[str] | None:
    """The argument names of the class at `path`; None where they are unknown, also for an invalid path."""
    try:
        found = parameters(import_class(path, [], path))
    except Exception:
        return None
    return set(found) if found is not None else None


def readable(message: str) -> str:
    """The useful part of a message from jsonargparse: its first line and the innermost reason."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    reasons = [
        line for line in lines[1:] if not line.startswith(("Given value", "Errors:", "Subtypes:", "Does not validate"))
    ]
    needed = re.search(r"the following arguments are required: .+", message)
    if needed:  # the alternatives listed after it, such as null, do not help
        reasons = [needed[0]]
    reasons = [line for line in reasons if "NoneType" not in line] or reasons
    return "\n  ".join([lines[0], *reasons[-1:]]) if lines else message


class InstructCLI(LightningCLI):
    """LightningCLI for one subcommand, with a saved config, our progress bar, and safe checkpoints.

    Args:
        name: the subcommand.
        args: its options, after the configs are composed and checked.
    """

    def __init__(self, name: str, args: list[str]):
        self.name = name
        strict = {"exit_on_error": False}
        command = {**strict, "usage": USAGE.format(name=name), "description": ""}
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=SaveConfig,
            parser_class=Parser,
            parser_kwargs={"prog": "instructlit", **strict, name: command},
            seed_everything_default=DEFAULTS["seed_everything"],
            args=[name, *args],
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the one asked for: building the parsers of the other three takes time."""
        return {self.name: LightningCLI.subcommands()[self.name]}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse our own list, without Lightning's warning that sys.argv holds another."""
        self.config = parser.parse_args(args)

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(error, self.model, self.datamodule, self.trainer) from error

    def _parse_ckpt_path(self) -> None:
        """Configs and command line apply; the arguments stored in a checkpoint do not override them."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add our one option to Lightning's."""
        if self.name == "fit":
            parser.add_argument("--resume", type=Mode, default="auto", help=MODES)

    def _set_seed(self) -> None:
        require("a seed, from 0 to 4294967295", seed_everything=self._get(self.config, "seed_everything"))
        super()._set_seed()

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "fit" and kwargs.get("ckpt_path") is None:
            config = next((c.resolved for c in self.trainer.callbacks if isinstance(c, SaveConfig)), {})  # type: ignore[attr-defined]
            mode = self._get(self.config_init, "resume", default="auto")
            kwargs["ckpt_path"] = continue_from(mode, config, self.trainer, self.model, self.datamodule)
        elif kwargs.get("ckpt_path") is not None:
            kwargs["ckpt_path"] = state_of(kwargs["ckpt_path"])
        if kwargs.get("weights_only", False) is None:
            kwargs["weights_only"] = True  # a checkpoint is data; pickled code in it is refused
        return kwargs

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        if "_parameters" not in vars(self.model):  # which torch and Lightning would miss one after the other
            kind = type(self.model)
            raise UserError(
                f"`{kind.__name__}.__init__` does not call `super().__init__`",
                where="model.class_path",
                expected="that call, before anything is set",
            )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The Trainer, with our progress bar where the config names none."""
        config = self._get(self.config_init, "trainer", default={})
        callbacks = config.get("callbacks") or []
        callbacks = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
        wanted = config.get("enable_progress_bar") is not False and not config.get("barebones")
        if wanted and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(StageProgress())
        check_slurm()
        trainer = made(
            lambda: super(InstructCLI, self).instantiate_trainer(callbacks=callbacks, **kwargs), callbacks, config
        )
        take_rank(trainer)
        if rehearses(trainer):
            say("trainer.fast_dev_run: no model, checkpoint or sample file is written")
        return trainer


def quiet() -> None:
    """Hide Lightning's advertisements and the warnings about its own internals."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda r: "Tip:" not in r.getMessage())
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
    # Our datamodules return an empty list where there is no validation data.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
