"""Lightning's W&B logger, made safe to name in a config: it never waits for an answer and never loses a run."""

import netrc
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger

from instructlit.errors import UserError, extra_of, first_line, require
from instructlit.redaction import words_without_secrets

if TYPE_CHECKING:
    from wandb import Run

X_AXES = {"ppo/*": "ppo/episodes"}
"""Metrics that are shown against another axis than the step. Each row holds `trainer/global_step` too."""


class WandbLogger(LightningWandbLogger):
    """Logs to Weights & Biases or, without a key or a network, to a folder that `wandb sync` uploads later.

    Args:
        project: the project, in which artifacts of one name are versions of one thing.
        name: name of this run; None lets W&B make one up.
        group: name that all runs of a pipeline share (SFT, reward model, PPO); None takes $WANDB_RUN_GROUP.
        job_type: the stage, to tell the runs of a group apart.
        tags: words to find the run by.
        notes: what this run is for.
        save_dir: folder under which `wandb/` is made.
        entity: user or team; None takes your default.
        id: id of the run; give that of an interrupted one to continue it.
        offline: write to the folder only, whether or not there is a key and a network.
        online_timeout: seconds to wait for the server before going offline.
        finish_timeout: seconds to wait at the end of the run for pending uploads; what is left stays in the run's
            folder for `wandb sync`. 0 waits without limit, as do versions of wandb without this setting.
    """

    def __init__(
        self,
        project: str = "instructlit",
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        save_dir: str = "runs",
        entity: str | None = None,
        id: str | None = None,
        offline: bool = False,
        online_timeout: float = 30.0,
        finish_timeout: float = 600.0,
    ):
        require("a finite number above 0", "WandbLogger.", online_timeout=online_timeout)
        require("a finite number, 0 or more", "WandbLogger.", finish_timeout=finish_timeout)
        options = {"group": group, "job_type": job_type, "tags": tags, "notes": notes, "entity": entity}
        try:
            super().__init__(
                project=project,
                name=name,
                save_dir=os.path.abspath(save_dir),  # wandb's service may have been started in another folder
                id=id,
                offline=offline,
                **{key: value for key, value in options.items() if value is not None},
            )
        except ModuleNotFoundError as error:
            raise UserError(
                "the package wandb is not installed",
                where="trainer.logger",
                fix=f"{extra_of('wandb')}, or log to CSV files with --config configs/logger/csv.yaml",
            ) from error
        self._wandb_init.pop("anonymous", None)  # newer wandb warns of it even where it is None
        self.online_timeout, self.finish_timeout = online_timeout, finish_timeout
        self.why_offline: str | None = None
        self._axes: dict[str, float] = {}

    @property
    @rank_zero_experiment
    def experiment(self) -> "Run":
        """The run; the first call starts it."""
        import wandb

        if self._experiment is None:
            self._experiment = wandb.run or self._start()
            for names, axis in X_AXES.items():
                self._experiment.define_metric(names, step_metric=axis)
            for names in ("sft/*", "pretrain/*", "reward/*", "dpo/*", "perf/*"):
                self._experiment.define_metric(names, step_metric="trainer/global_step")
        return self._experiment  # type: ignore[return-value]

    @property
    def identity(self) -> str | None:
        """The run's id."""
        return self._experiment.id if self._experiment is not None else None

    def take_up(self, identity: str) -> None:
        """Continue the run of that id, unless the config names one."""
        if self._id is None:
            self._id = identity
            self._wandb_init |= {"id": identity, "resume": "allow"}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write a row of the history; each holds the value of its x-axis, validation and tables included."""
        for names, axis in X_AXES.items():
            if axis in metrics:
                self._axes[axis] = metrics[axis]
            elif axis in self._axes and any(name.startswith(names.removesuffix("*")) for name in metrics):
                metrics = {**metrics, axis: self._axes[axis]}
        super().log_metrics(metrics, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        super().finalize(status)
        if self._experiment is None or self._experiment.disabled:
            return
        gone = None if self.why_offline else unreachable(str(self._experiment.settings.base_url))
        if gone:
            _say(f"{gone}. At its end the run waits at most {self.finish_timeout:g} seconds for it")
        if gone or self.why_offline:
            _say(f"the run is in {self.folder}; upload it with: wandb sync {self.folder}")

    @property
    def folder(self) -> Path:
        """Where this run's files are."""
        return Path(self.experiment.dir).parent

    def _start(self) -> "Run":
        import wandb

        os.makedirs(str(self._save_dir), exist_ok=True)  # else wandb moves to the system's temporary folder
        mode = os.environ.get("WANDB_MODE", "online")
        if mode == "disabled":
            return wandb.init(mode="disabled", **self._wandb_init)
        with _line_without_secrets():
            return self._begun(mode)

    def _begun(self, mode: str) -> "Run":
        """The run, online if possible, else offline with the reason printed."""
        import wandb

        self.why_offline = "`offline` is set" if self._offline else None
        if mode in ("offline", "dryrun"):
            self.why_offline = f"WANDB_MODE is {mode}"
        if self.why_offline is None:
            server = str(wandb.setup().settings.base_url)
            key, known = find_credentials(server)
            self.why_offline = (
                unreachable(server)
                if known
                else f"no API key was found for {server} (wandb login, or WANDB_API_KEY, gives one)"
            )
            if self.why_offline is None:
                try:
                    # An explicit key, since without one wandb asks at the terminal and a run would wait for ever.
                    options: dict[str, Any] = {"api_key": key, "init_timeout": self.online_timeout}
                    if "finish_timeout" in wandb.Settings.model_fields:
                        options["finish_timeout"] = self.finish_timeout
                    return wandb.init(settings=wandb.Settings(**options), **self._wandb_init)
                except wandb.Error as error:
                    self.why_offline = first_line(error)
        run = wandb.init(mode="offline", **self._wandb_init)
        _say(f"offline, since {self.why_offline}. Nothing is lost: wandb sync {Path(run.dir).parent} uploads the run")
        return run


@contextmanager
def _line_without_secrets() -> Iterator[None]:
    """Inside the block sys.argv, which wandb keeps with a run, holds no secret."""
    words = sys.argv
    sys.argv = words_without_secrets(words)
    try:
        yield
    finally:
        sys.argv = words


def find_credentials(server: str) -> tuple[str | None, bool]:
    """The API key for a server from the environment or ~/.netrc, and whether there are any credentials at all."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key, True
    if os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return None, True
    places = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for path in [Path(place).expanduser() for place in places if place]:
        try:
            found = netrc.netrc(path).authenticators(urlsplit(server).hostname or "")
        except (OSError, netrc.NetrcParseError):
            continue
        if found and found[2]:
            return found[2], True
    return None, False


def unreachable(server: str, seconds: float = 5.0) -> str | None:
    """Why the server cannot be reached, None where it answers. Proxies of the environment are used."""
    try:
        with urllib.request.urlopen(server, timeout=seconds):
            return None
    except urllib.error.HTTPError:
        return None  # it answered
    except (OSError, ValueError) as error:
        return f"{server} cannot be reached ({getattr(error, 'reason', error)})"


def _say(text: str) -> None:
    print(f"W&B: {text}", file=sys.stderr, flush=True)
