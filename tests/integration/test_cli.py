"""The command as a user calls it: from a folder of their own, with a module of their own."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cli_stand_in
import pytest
import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only

from instructlit.cli import COMMANDS, LIGHTNING, main

COMMAND = [sys.executable, "-m", "instructlit"]
HEAVY = {"torch", "lightning", "transformers", "jsonargparse", "yaml", "numpy", "rich"}
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder."""
    (tmp_path / "recipe.yaml").write_text(cli_stand_in.RECIPE)
    for name in cli_stand_in.ROWS:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def call(folder: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs the command in this process: importing Lightning anew for each call takes seconds."""

    def called(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            status = main(words)
        except SystemExit as left:  # argparse leaves so after --help
            status = int(left.code or 0)
        out, err = capfd.readouterr()
        return status, out, err

    return called


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; from instructlit.cli import main; status = main(['--help']); "
        f"print('heavy:', sorted({HEAVY!r} & set(sys.modules))); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert "heavy: []" in done.stdout


@pytest.mark.parametrize(
    ("own", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
    ids=["nothing said", "a number", "a policy"],
)
def test_threads_that_wait_sleep_soon_unless_the_caller_says_how_they_wait(own: dict[str, str], spins: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    program = "from instructlit.cli import main; main(['--version']); import torch"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | own | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    )
    told = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)  # by each copy of the library
    assert told
    assert set(told) == {spins}


def test_a_module_in_the_working_directory_trains(tmp_path: Path) -> None:
    (tmp_path / "my_parts.py").write_text(Path(cli_stand_in.__file__).read_text())
    (tmp_path / "recipe.yaml").write_text(cli_stand_in.RECIPE.replace("cli_stand_in", "my_parts"))
    for name in cli_stand_in.ROWS:
        (tmp_path / name).touch()
    # as the console script starts: without the current folder on the search path
    script = "import sys; sys.path[:] = [p for p in sys.path if p]; from instructlit.cli import main; sys.exit(main())"
    words = ["fit", "--config", "recipe.yaml", "--config", "configs/optimizer/adamw.yaml", "--model.policy.path", "x"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "Tip:" not in done.stderr
    config = yaml.safe_load((tmp_path / "runs" / "lightning_logs" / "version_0" / "config.yaml").read_text())
    assert config["model"]["class_path"] == "my_parts.Module"
    assert config["model"]["init_args"]["policy"]["path"] == "x"
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-5


def test_a_run_saves_its_config_and_goes_on_from_its_checkpoint(folder: Path, call: Call) -> None:
    (folder / "keep.yaml").write_text(
        "trainer: {callbacks+: [{class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
        "init_args: {dirpath: ckpt, save_last: true, every_n_train_steps: 1}}]}"
    )
    status, _, err = call(
        "fit",
        "--config",
        "recipe.yaml",
        "--config",
        "keep.yaml",
        "--trainer.logger.version",
        "0",
        "--seed_everything=3",
    )
    assert status == 0, err
    saved = folder / "runs" / "lightning_logs" / "version_0" / "config.yaml"
    assert yaml.safe_load(saved.read_text())["seed_everything"] == 3
    assert torch.load(folder / "ckpt" / "last.ckpt", weights_only=True)["global_step"] == 2

    # the saved config is a recipe; a second run in the same log folder keeps the first one's
    status, _, err = call("fit", "--config", str(saved), "--ckpt_path", "ckpt/last.ckpt", "--trainer.max_steps", "4")
    assert status == 0, err
    assert torch.load(folder / "ckpt" / "last.ckpt", weights_only=True)["global_step"] == 4
    assert yaml.safe_load(saved.read_text())["trainer"]["max_steps"] == 2
    assert yaml.safe_load(saved.with_name("config-2.yaml").read_text())["trainer"]["max_steps"] == 4


def test_a_checkpoint_is_data_and_not_code(folder: Path, call: Call) -> None:
    torch.save({"state_dict": {}, "code": Path("x"), "pytorch-lightning_version": "2.6.0"}, folder / "bad.ckpt")
    status, _, err = call("fit", "--config", "recipe.yaml", "--ckpt_path", "bad.ckpt")
    assert status != 0
    assert "weights_only" in err or "Weights only" in err


@pytest.mark.parametrize(
    "launcher",
    [
        {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"},
        {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
    ],
)
def test_more_processes_than_the_trainer_is_for_are_refused(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch, launcher: dict[str, str]
) -> None:
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    status, _, err = call("fit", "--config", "recipe.yaml")
    assert status == 2
    assert "2 processes were started, but the trainer is set up for 1" in err
    assert "--trainer.devices" in err
    assert "--trainer.strategy ddp" in err


def test_tasks_of_slurm_that_are_not_counted_by_machine_are_refused(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "2")
    status, _, err = call("fit", "--config", "recipe.yaml")
    assert status == 2
    assert err.startswith("instructlit: SLURM_NTASKS: is 2, but SLURM_NTASKS_PER_NODE is not set")
    assert "SLURM_JOB_NAME=interactive" in err


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1", "WORLD_SIZE": "2"},
        {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "0"},  # a batch script that calls no srun
        {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_NAME": "interactive"},
    ],
)
def test_variables_that_lie_around_take_no_log_from_a_run(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as Lightning reads it from them when it is imported
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    status, _, err = call("fit", "--config", "recipe.yaml")
    assert status == 0, err
    assert list((folder / "runs").rglob("metrics.csv"))


def test_print_config_shows_everything_and_runs_nothing(folder: Path, call: Call) -> None:
    timer = "--trainer.callbacks+=lightning.pytorch.callbacks.Timer"  # whose default for a string is an enum's member
    status, out, _ = call("fit", "--config", "recipe.yaml", "--trainer.max_steps", "7", timer, "--print_config")
    assert status == 0
    shown = yaml.safe_load(out)
    assert shown["trainer"]["callbacks"][-1]["init_args"]["interval"] == "step"
    assert shown["trainer"]["max_steps"] == 7
    assert shown["trainer"]["use_distributed_sampler"] is False
    assert shown["seed_everything"] == 0
    assert not (folder / "runs").exists()


def test_infinity_is_a_number_and_a_text_is_a_text(folder: Path, call: Call) -> None:
    text = "off: [1e5]\n.inf null é"
    overlay = {"policy": {"path": text, "revision": ".inf"}, "optimizer": {"init_args": {"eps": math.inf}}}
    (folder / "over.yaml").write_text(yaml.safe_dump({"model": {"init_args": overlay}}))
    status, out, err = call("fit", "--config", "recipe.yaml", "--config", "over.yaml", "--print_config")
    assert status == 0, err
    shown = yaml.safe_load(out)["model"]["init_args"]
    assert shown["optimizer"]["init_args"]["eps"] == math.inf
    assert shown["policy"]["path"] == text
    assert shown["policy"]["revision"] == ".inf"


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "prompt,completion\nhi,ho\n"), ("a.json", '[{"prompt": "hi"}, {"prompt": "ho"}]'), ("a.jsonl", "")],
)
def test_a_data_file_is_named_and_not_read_as_a_config(folder: Path, call: Call, name: str, content: str) -> None:
    (folder / name).write_text(content)
    whole = "[{path: " + name + ", weight: 2}, " + name + "]"
    options = {"tokenizer": "models/base", "train": name, "validation": whole, "test": f"{{path: {name}}}"}
    words = [f"--data.init_args.{option}={value}" for option, value in options.items()]
    recipe = {"model": yaml.safe_load(cli_stand_in.RECIPE)["model"]}
    (folder / "model.yaml").write_text(yaml.safe_dump(recipe))
    data = "--data=instructlit.data.DemonstrationData"
    status, out, err = call("fit", "--config", "model.yaml", data, *words, "--print_config")
    assert status == 0, err
    shown = yaml.safe_load(out)["data"]["init_args"]
    assert shown["train"] == name
    assert shown["validation"][0]["path"] == shown["test"]["path"] == name
    assert shown["validation"][0]["weight"] == 2
    assert shown["validation"][1] == name


@pytest.mark.parametrize("name", ["fit", "validate"])
def test_help_of_a_lightning_command(call: Call, name: str) -> None:
    status, out, _ = call(name, "--help")
    assert status == 0
    assert f"instructlit {name} --config RECIPE" in out
    assert "--trainer.max_steps" in out


def test_help_of_a_class(call: Call) -> None:
    status, out, _ = call("fit", "--model.help", "cli_stand_in.Module")
    assert status == 0
    assert "how it is packed." in out
    assert "default: AdamW(lr=0.002, betas=[0.9, 0.95])," in " ".join(out.split())
    status, _, err = call("fit", "--trainer.callbacks.help")
    assert (status, "give the import path of a class after it" in err, "Traceback" in err) == (2, True, False)


def test_mistakes_are_one_message_and_status_2(call: Call) -> None:
    status, out, err = call("fit", "--config", "recipee.yaml")
    told = "instructlit: --config: there is no file `recipee.yaml`\n  expected: did you mean recipe.yaml?\n"
    assert (status, out, err) == (2, "", told)
    status, out, err = call("fit", "--config", "recipe.yaml", "--trainer.max_step", "3")
    told = "instructlit: --trainer.max_step: unknown option `max_step`\n  expected: did you mean --trainer.max_steps?\n"
    assert (status, out, err) == (2, "", told)
    status, out, err = call("fit", "--config", "recipe.yaml", "--data.train", "c.jsonl")
    assert (status, out, err) == (2, "", "instructlit: --data.train: there is no file or folder `c.jsonl`\n")
    status, out, err = call("fit", "--config", "recipe.yaml", "stray")
    assert (status, out, err) == (2, "", "instructlit: unrecognized arguments: stray\n")


def test_a_mistake_found_while_training_is_told_with_its_place(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "recipe.yaml").write_text(cli_stand_in.RECIPE.replace("path: base", "path: nowhere"))
    status, _, err = call("fit", "--config", "recipe.yaml")
    assert status == 2
    assert "instructlit: recipe.yaml:5: model.init_args.policy.path: there is no folder `nowhere`" in err
    assert "Traceback" not in err
    monkeypatch.setenv("INSTRUCTLIT_DEBUG", "1")
    status, _, err = call("fit", "--config", "recipe.yaml")
    assert status == 2
    assert "Traceback" in err


RESUMES = ("--trainer.callbacks+", "instructlit.callbacks.ResumeCheckpoint", "--trainer.callbacks.dirpath")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--trainer.devices", "rubbish"), "--trainer.devices: `devices` selected with `CPUAccelerator` should be an"),
        (("--trainer.accelerator", "rubbish"), "--trainer.accelerator: You selected an invalid accelerator name"),
        (("--trainer.fast_dev_run", "-1"), "--trainer.fast_dev_run: fast_dev_run=-1 is not a valid configuration"),
        (("--trainer.max_time", "rubbish"), "--trainer.max_time: `Timer(duration='rubbish')` is not a valid duration"),
        (("--trainer.check_val_every_n_epoch", "0"), "--trainer.check_val_every_n_epoch: found 0\n"),
        (("--trainer.val_check_interval", "0"), "--trainer.val_check_interval: found 0\n"),
        (("--trainer.num_sanity_val_steps", "-5"), "--trainer.num_sanity_val_steps: found -5\n"),
        (("--trainer.log_every_n_steps", "-1"), "--trainer.log_every_n_steps: found -1\n"),
        (("--trainer.min_steps", "-1"), "--trainer.min_steps: found -1\n"),
        (("--trainer.min_epochs", "-1"), "--trainer.min_epochs: found -1\n"),
        (("--trainer.max_time.seconds", "-5"), "trainer.max_time: is -5 seconds, so nothing would be trained\n"),
        (("--trainer.max_time", "00:00:00:00"), "--trainer.max_time: is 0 seconds, so nothing would be trained\n"),
        (("--trainer.barebones", "true"), "\n  to do: add --trainer.logger false\n"),
        ((*RESUMES, "a", *RESUMES, "b"), "trainer.callbacks: Found more than one stateful callback"),
        (
            (*RESUMES, "a", "--trainer.enable_checkpointing", "false"),
            "--trainer.enable_checkpointing: is false, but ResumeCheckpoint saves checkpoints\n",
        ),
        (("--seed_everything", "-1"), "--seed_everything: found -1\n  expected: a seed, from 0 to 4294967295\n"),
    ],
)
def test_what_the_trainer_refuses_is_told_with_its_option(call: Call, words: tuple[str, ...], told: str) -> None:
    status, _, err = call("fit", "--config", "recipe.yaml", *words)
    assert (status, told in err, "Traceback" in err) == (2, True, False)


def test_a_class_that_refuses_to_be_made_is_told_in_one_message(folder: Path, call: Call) -> None:
    """As loggers do whose library is not installed."""
    lines = ["from lightning.pytorch.loggers import CSVLogger", "class Needy(CSVLogger):", "    def __init__(self):"]
    (folder / "needy.py").write_text("\n".join([*lines, "        raise ModuleNotFoundError('install the library')"]))
    status, _, err = call("fit", "--config", "recipe.yaml", "--trainer.logger", "needy.Needy")
    assert (status, "Traceback" in err) == (2, False)
    told = f"needy.Needy cannot be constructed: ModuleNotFoundError: install the library ({folder / 'needy.py'}:4)\n"
    assert f"instructlit: --trainer.logger: {told}" in err


def test_a_list_that_is_too_short_is_told_with_its_line(folder: Path, call: Call) -> None:
    """It was only `Expected a NoneType`."""
    recipe = cli_stand_in.RECIPE.replace("betas: [0.9, 0.95]", "betas: [0.9]")
    (folder / "short.yaml").write_text(recipe)
    status, _, err = call("fit", "--config", "short.yaml")
    assert status == 2
    told = "short.yaml:10: model.init_args.optimizer.init_args.betas: `[0.9]` is not valid here\n"
    assert f"instructlit: {told}  expected: a list of (a number, a number)\n" in err


FRAGILE = """\
import lightning.pytorch as pl
import torch
def lookup():
    return {}["absent"]
class Module(pl.LightningModule):
    def __init__(self, width: int = 1):
        lookup()
class Data(pl.LightningDataModule):
    def __init__(self, width: int = 1):
        lookup()
class Callback(pl.Callback):
    def __init__(self, width: int = 1):
        lookup()
class Optimizer(torch.optim.AdamW):
    def __init__(self, params, lr: float = 1.0):
        lookup()
"""


@pytest.mark.parametrize(
    ("option", "name"),
    [("model", "Module"), ("data", "Data"), ("trainer.callbacks+", "Callback"), ("model.optimizer", "Optimizer")],
)
def test_a_class_of_the_users_that_fails_as_it_is_made_is_told_with_its_option_and_line(
    folder: Path, call: Call, option: str, name: str
) -> None:
    (folder / "fragile.py").write_text(FRAGILE)
    try:
        status, _, err = call("fit", "--config", "recipe.yaml", f"--{option}", f"fragile.{name}")
    finally:
        sys.modules.pop("fragile", None)
    told = f"fragile.{name} cannot be constructed: KeyError: 'absent' ({folder / 'fragile.py'}:4)\n"
    assert (status, "Traceback" in err) == (2, False)
    assert f"instructlit: --{option}: {told}" in err


def test_a_class_of_a_library_that_fails_as_it_is_made_is_told_with_the_line_of_the_config(
    folder: Path, call: Call
) -> None:
    saver = "lightning.pytorch.callbacks.ModelCheckpoint"
    lines = ["trainer:", "  callbacks:", f"    - class_path: {saver}", "      init_args: {save_top_k: -7}"]
    (folder / "saver.yaml").write_text("\n".join(lines))
    status, _, err = call("fit", "--config", "recipe.yaml", "--config", "saver.yaml")
    assert (status, "Traceback" in err) == (2, False)
    assert "instructlit: saver.yaml:3: trainer.callbacks.0.class_path: lightning." in err
    told = "MisconfigurationException: Invalid value for save_top_k=-7. Must be >= -1\n"
    assert f"ModelCheckpoint cannot be constructed: {told}" in err


@pytest.mark.parametrize(
    ("hook", "words"), [("__init__", "sys.exit(3)"), ("on_train_batch_end", "exit(0)"), ("on_train_end", "sys.exit()")]
)
def test_code_of_the_users_that_leaves_does_not_end_a_run_as_if_it_were_done(
    folder: Path, call: Call, hook: str, words: str
) -> None:
    lines = ["import sys", "from lightning.pytorch import Callback", "class Leaving(Callback):"]
    lines += [f"    def {hook}(self, *args, **kwargs):", f"        {words}"]
    (folder / "leaving.py").write_text("\n".join(lines))
    callback = ("--trainer.callbacks+", "leaving.Leaving")
    try:
        status, _, err = call("fit", "--config", "recipe.yaml", *RESUMES, "resume", *callback)
    finally:
        sys.modules.pop("leaving", None)
    told = f"{folder / 'leaving.py'}:5: {words.removeprefix('sys.')} was called before the command had finished\n"
    assert (status, "Traceback" in err) == (2, False)
    assert f"instructlit: {told}" in err
    assert not (folder / "resume" / "finished.json").exists()


def test_a_barebones_trainer_gets_no_progress_bar_of_ours(call: Call) -> None:
    wanted = {"barebones": "true", "logger": "false", "log_every_n_steps": "0", "enable_progress_bar": "null"}
    words = [word for option, value in wanted.items() for word in (f"--trainer.{option}", value)]
    assert call("fit", "--config", "recipe.yaml", *words)[0] == 0


def test_our_own_fault_shows_its_trace_and_an_interrupt_does_not(call: Call) -> None:
    status, _, err = call("fit", "--config", "recipe.yaml", "--model.policy.path", "bug")
    assert status == 1
    assert "ZeroDivisionError: a fault of the program" in err


def test_an_interrupt_is_no_fault(folder: Path) -> None:
    # in a process of its own: Lightning takes the signal handlers with it
    words = ["fit", "--config", "recipe.yaml", "--model.policy.path", "stop"]
    environment = os.environ | {"PYTHONPATH": str(Path(cli_stand_in.__file__).parent)}
    done = subprocess.run([*COMMAND, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 130
    assert done.stderr.endswith("instructlit: stopped at your request\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", [name for name, (target, _) in COMMANDS.items() if target != LIGHTNING])
def test_every_tool_has_help_with_a_sentence_for_each_option(call: Call, name: str) -> None:
    status, out, _ = call(*name.split(), "--help")
    assert status == 0
    assert f"usage: instructlit {name}" in out
    lines = out.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("  --") and " CONFIG" not in line:
            told = " ".join([line, *lines[number + 1 : number + 3]]).split("(type", 1)[0].split("(required", 1)[0]
            assert len(told.split()) > 3, f"{name}: {line.strip()} has no sentence"
