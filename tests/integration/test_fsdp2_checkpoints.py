"""Sharded checkpoints and what is exported from shards."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from fsdp2_processes import Left, distance, launch, left_in, prepared
from safetensors.torch import load_file

from instructlit.errors import UserError
from instructlit.modules.strategy import checked
from instructlit.tools.export import export

JOBS = ["sft_adam", "sft_8bit", "sft_lora_adam", "reward_adam", "ppo_adam"]
ROUNDING = 1e-6
"""Bound on weights and moments after three more steps on another number of processes; all are of size 1 or less."""

PLAIN = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
answers = []
for folder in sys.argv[1:]:
    ids = AutoTokenizer.from_pretrained(folder)("say red: der", return_tensors="pt").input_ids
    kind = AutoModelForSequenceClassification if "reward" in folder else AutoModelForCausalLM
    with torch.no_grad():
        answers.append(kind.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits.tolist())
assert "instructlit" not in sys.modules
print(json.dumps(answers))
"""

pytestmark = pytest.mark.timeout(900)  # the first test waits for all the processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama_dir: Path) -> Path:
    """Where all jobs have run: unbroken, broken off and continued, on two processes and from one number to another."""
    folder = prepared(tmp_path_factory.mktemp("checkpoints"), tiny_llama_dir)
    halves = [f"{job}@half" for job in JOBS]
    wholes, resumed = ([f"{job}@{how}" for job in JOBS] for how in ("whole", "resumed"))
    from1, from2 = ([f"{job}@from{n}" for job in JOBS] for n in (1, 2))
    launch(
        folder,
        (1, [*halves, "sft_best"]),
        (2, [*wholes, *halves, *resumed, *from1, "sft_best"]),
        (1, from2),
    )
    return folder


@pytest.fixture(scope="module")
def left(folder: Path) -> Left:
    return left_in(folder)


@pytest.mark.parametrize("job", JOBS)
def test_a_resumed_run_is_bit_identical_on_as_many_processes(left: Left, job: str) -> None:
    for rank in (0, 1):
        whole, half, resumed = (left(f"{job}@{how}", 2, rank) for how in ("whole", "half", "resumed"))
        assert whole["rows"][: len(half["rows"])] == half["rows"]
        assert whole["rows"][len(half["rows"]) :] == resumed["rows"] != []
        for kind in {"weights", "optimizer", "average"} & whole.keys():
            assert distance(whole[kind], resumed[kind]) == 0, kind
            assert distance(whole[kind], half[kind]) > 1e-4, kind


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_checkpoint_loads_on_another_number_of_processes(left: Left, job: str, before: int, after: int) -> None:
    saved, other = left(f"{job}@half", before, 0), left(f"{job}@from{before}", after, 0)
    for kind in {"weights", "optimizer", "average"} & saved.keys():
        names = saved[kind].keys() - {"model.shift"}  # set once more after the last checkpoint
        assert distance({n: saved[kind][n] for n in names}, {n: other["loaded"][kind][n] for n in names}) == 0, kind
    if job == "sft_8bit":
        assert {value.dtype for value in saved["optimizer"].values()} == {torch.uint8, torch.float32}
    elif job != "ppo_adam":  # whose further rollouts are shuffled by another number of streams
        whole = left(f"{job}@whole", 2, 0)
        for kind in ("weights", "optimizer"):
            names = whole[kind].keys() - {"model.shift"}
            rounding = distance({n: whole[kind][n] for n in names}, {n: other[kind][n] for n in names})
            assert rounding < ROUNDING, kind


def test_an_exported_folder_says_in_plain_transformers_what_the_shards_said(folder: Path, left: Left) -> None:
    folders = [folder / f"{job}@half-2" / "model" for job in JOBS] + [folder / "ppo_adam@half-2" / "model-ema"]
    command = [sys.executable, "-c", PLAIN, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [torch.tensor(answer) for answer in json.loads(done.stdout.splitlines()[-1])]
    said = [left(f"{job}@half", 2, 1)["answers"] for job in JOBS] + [left("ppo_adam@half", 2, 1)["answers_average"]]
    for name, a, b in zip(folders, found, said, strict=True):
        torch.testing.assert_close(a.flatten(), b.flatten(), atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert (found[-1] - found[-2]).abs().max() > 1e-4  # the average is not the raw weights


@pytest.mark.parametrize(
    ("job", "weights", "made"),
    [
        ("sft_adam", "raw", "model"),
        ("sft_lora_adam", "raw", "model"),
        ("ppo_adam", "raw", "model"),
        ("ppo_adam", "ema", "model-ema"),
    ],
)
def test_the_export_command_makes_the_same_folder_from_shards(
    folder: Path, tmp_path: Path, job: str, weights: Literal["raw", "ema"], made: str
) -> None:
    own = folder / f"{job}@half-2"
    export(str(own / "last.ckpt"), str(tmp_path / "made"), weights=weights)
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "made", own / made))
    assert distance(ours, theirs) == 0


def test_the_best_checkpoint_is_exported_and_training_has_its_weights_again(folder: Path, left: Left) -> None:
    alone, cut = (load_file(folder / f"sft_best-{n}" / "model" / "model.safetensors") for n in (1, 2))
    assert distance(alone, cut) < ROUNDING
    last = {name.removeprefix("policy."): value for name, value in left("sft_best", 2, 0)["weights"].items()}
    assert distance(cut, last) > 1e-4
    assert distance(left("sft_best", 1, 0)["weights"], left("sft_best", 2, 0)["weights"]) < ROUNDING


def test_a_single_file_is_refused_as_a_sharded_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "one.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"one\.ckpt: is not a sharded checkpoint but that of an unsharded run"):
        checked(tmp_path / "one.ckpt")
