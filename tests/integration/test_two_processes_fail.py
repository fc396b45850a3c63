"""What fails on one of two processes is decided by both, or ends both: none goes on alone, none waits for ever."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import environment, stage_folder

SCRIPT = """
import os, sys
from dataclasses import fields
from pathlib import Path
import lightning.pytorch as pl
import torch
from forks import forked
from lightning.pytorch.callbacks import ModelCheckpoint
import stage_runs
from stage_runs import Files, Shortness
from instructlit.cli.errors import report
from instructlit.data.json_rows import JsonLines
from instructlit.errors import UserError
from instructlit.losses import LossSum
from instructlit.modules.nonfinite import NonFinite, StepGuard
from instructlit.rollout import WorkerEngine

rank = int(os.environ.get("LOCAL_RANK", "0"))
for what in sys.argv[2:]:
    folder = Path(sys.argv[1]) / what
    if rank == 0 and (status := forked([sys.argv[1], what], seconds=300)) is not None:
        (folder / "status").write_text(str(status))
        continue
    if rank == 0:
        os.chdir(folder)
        os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    break
else:
    sys.exit()


class Fault(pl.Callback):
    done = False

    def on_fit_start(self, trainer, module):
        if what == "nan":
            module.guard = StepGuard(NonFinite("skip"))

    def on_train_batch_start(self, trainer, module, batch, index):
        if rank == 1 and index == 1 and what == "nan" and not self.done:
            self.done, loss = True, module.token_loss

            def poisoned(part):
                module.token_loss = loss
                found = loss(part)
                return LossSum(found.total * torch.nan, found.count)

            module.token_loss = poisoned
        if rank == 1 and index == 2 and what == "loading":
            module.engine._process.kill()
        if rank == 1 and index == 2 and what == "sampling":
            sync = module.engine.sync

            def killed_after(*given):
                sync(*given)
                module.engine._process.kill()

            module.engine.sync = killed_after
        if rank == 1 and index == 1 and what == "row":
            def gone(self, index):
                raise UserError("the file was changed", where="d.jsonl")
            JsonLines.__getitem__ = gone

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if what in ("loading", "sampling"):
            gap = float(trainer.logged_metrics["ppo/engine/gap"])
            with (folder / f"gaps-{rank}").open("a") as file:
                print(gap, module.engine.folder, file=file)

    def on_train_end(self, trainer, module):
        flat = torch.cat([p.detach().flatten() for p in module.parameters()])
        told = f"{flat.double().sum().item()!r} {module.guard.skipped} {trainer.global_step}"
        (folder / f"end-{rank}").write_text(told)


class Fails(Shortness):
    calls = 0

    def reward(self, prompt, response):
        self.calls += 1
        if rank == 1 and self.calls > 3:
            raise ConnectionError("the scoring service is away")
        return super().reward(prompt, response)


stage_runs.Shortness = Fails if what == "reward" else Shortness
files = Files(folder / "model", *(folder / f"{f.name}.jsonl" for f in fields(Files)[1:]))
name = "ppo" if what in ("reward", "loading", "sampling") else "sft"
try:
    pl.seed_everything(1, verbose=False)
    module, data, own = stage_runs.stage(name, files)
    if what in ("loading", "sampling"):
        module.engine = WorkerEngine()
    pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", logger=False, default_root_dir=folder, max_epochs=-1, max_steps=6,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
        callbacks=[Fault(), ModelCheckpoint(folder / "ckpt", save_top_k=0)],
    ).fit(module, datamodule=data)
except BaseException as error:
    sys.exit(report(error))
"""


CASES = ["nan", "reward", "loading", "sampling", "row"]
Ended = Callable[[str], tuple[Path, int, str]]
"""The folder, status and stderr of a case's run."""

pytestmark = pytest.mark.timeout(900)  # the first test waits for all the processes


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, tiny_llama_dir: Path) -> Ended:
    """Every case run in two processes of its own; the first of them is a fork, the second Lightning starts."""
    root = tmp_path_factory.mktemp("fail")
    (root / "script.py").write_text(SCRIPT)
    for what in CASES:
        (root / what).mkdir()
        stage_folder(root / what, tiny_llama_dir)
    command = [sys.executable, str(root / "script.py"), str(root), *CASES]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return lambda what: (root / what, int((root / what / "status").read_text()), (root / what / "stderr").read_text())


def test_a_gradient_that_is_not_finite_on_one_is_skipped_by_both(ended: Ended) -> None:
    folder, status, said = ended("nan")
    assert status == 0, said[-3000:]
    first, second = ((folder / f"end-{rank}").read_text() for rank in range(2))
    assert first == second
    total, skipped, steps = first.split()
    assert (skipped, steps) == ("1", "6")
    assert "nan" not in total
    (told,) = [line for line in said.splitlines() if "was not taken" in line and "UserWarning" in line]
    lines = told.partition("demonstrations.jsonl: ")[2].partition(":")[0].split(", ")
    assert len(lines) == 4, "the rows of both processes' shares"


def test_a_reward_that_fails_on_one_ends_both_with_one_message_and_a_checkpoint(ended: Ended) -> None:
    folder, status, said = ended("reward")
    assert status == 2, said[-3000:]
    assert said.count("the scoring service is away") == 1, said[-3000:]
    assert "Fails.reward: raised ConnectionError" in said
    assert "Traceback" not in said
    assert (folder / "ckpt" / "failed.ckpt").is_file()


@pytest.mark.parametrize("when", ["loading", "sampling"])
def test_engines_outside_have_the_weights_of_every_step_and_one_that_ends_ends_both(ended: Ended, when: str) -> None:
    """Each process has a worker of its own, which reads the weights that the first has written."""
    folder, status, said = ended(when)
    assert status == 2, said[-3000:]
    told = [(folder / f"gaps-{rank}").read_text().splitlines() for rank in range(2)]
    assert len(told[0]) == len(told[1]) == 2, "rollouts before the worker was gone"
    assert all(float(line.split()[0]) < 1e-5 for lines in told for line in lines)
    assert len({line.split()[1] for lines in told for line in lines}) == 1, "one folder for both"
    assert said.count("the sampling process ended with status -9") == 1, said[-3000:]
    assert "Traceback" not in said
    assert (folder / "ckpt" / "failed.ckpt").is_file()


def test_a_row_that_cannot_be_read_on_one_ends_the_other_too(ended: Ended) -> None:
    folder, status, said = ended("row")
    assert status != 0
    assert "instructlit: d.jsonl: the file was changed" in said, said[-3000:]
    assert "instructlit: process 1 of the run stopped with an error of its own" in said, said[-3000:]
    assert not (folder / "end-0").exists()
