"""A process of a run that is killed: the others stop within a minute and say so, whatever they are doing."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from processes import environment, stage_folder

SCRIPT = """
import os, sys, time
from dataclasses import fields
from pathlib import Path
import stage_runs
from stage_runs import Files, Shortness, run_stage

where, folder = sys.argv[1], Path(sys.argv[2])
rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


class Slow(Shortness):
    def reward(self, prompt, response):
        if where == "rollout":
            (folder / f"pid-{rank}").write_text(str(os.getpid()))
            time.sleep(600)
        return super().reward(prompt, response)


stage_runs.Shortness = Slow
files = Files(folder / "model", *(folder / f"{f.name}.jsonl" for f in fields(Files)[1:]))
if where == "step":
    import lightning.pytorch as pl

    class Tell(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            (folder / f"pid-{rank}").write_text(str(os.getpid()))
            time.sleep(0.2)

    callbacks = [Tell()]
else:
    callbacks = []
name = "ppo" if where == "rollout" else "sft"
if __name__ == "__main__":
    from instructlit.cli.errors import report
    try:
        run_stage(name, files, folder / "out", False, callbacks, batches=10_000, devices=2, strategy="ddp",
                  limit_val_batches=0)
    except BaseException as error:
        sys.exit(report(error))
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_llama_dir: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    return stage_folder(tmp_path, tiny_llama_dir)


def killed(folder: Path, launcher: list[str], where: str, victim: int) -> tuple[float, str, list[int]]:
    """Start two processes, kill one when both are at work; seconds until all are gone, their words, and their ids."""
    errors = folder / "stderr"
    with errors.open("w") as file:
        command = [*launcher, str(folder / "script.py"), where, str(folder)]
        run = subprocess.Popen(command, cwd=folder, env=environment(), stdout=file, stderr=file, start_new_session=True)
    try:
        ids = [_when_there(folder / f"pid-{rank}", run, errors) for rank in range(2)]
        began = time.monotonic()
        os.kill(ids[victim], signal.SIGKILL)
        while any(_alive(pid) for pid in ids) and time.monotonic() - began < 60:
            run.poll()
            time.sleep(0.1)
        return time.monotonic() - began, errors.read_text(), [pid for pid in ids if _alive(pid)]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait(timeout=30)


def _when_there(path: Path, run: subprocess.Popen[bytes], errors: Path) -> int:
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up:
        assert run.poll() is None, errors.read_text()[-3000:]
        if path.is_file() and (text := path.read_text()):
            return int(text)
        time.sleep(0.1)
    raise AssertionError(f"{path.name} never came: {errors.read_text()[-3000:]}")


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


LIGHTNING = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize(
    ("launcher", "where", "victim"),
    [
        pytest.param(LIGHTNING, "step", 1, id="Lightning's launcher, a collective at every step"),
        pytest.param(LIGHTNING, "rollout", 0, id="Lightning's launcher, its own process, no collective for long"),
        pytest.param(TORCHRUN, "rollout", 1, id="torchrun, no collective for long"),
    ],
)
def test_the_others_stop_and_say_why(folder: Path, launcher: list[str], where: str, victim: int) -> None:
    seconds, said, left = killed(folder, launcher, where, victim)
    assert not left, f"after {seconds:.0f} s there is still a process; stderr: {said[-3000:]}"
    assert re.search(rf"instructlit: process {victim} of the run was lost", said), said[-3000:]
    assert "Traceback" not in said.partition("instructlit: process")[0]
