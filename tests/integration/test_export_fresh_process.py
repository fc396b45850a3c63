"""Exported folders in a process that never sees instructlit, and our own loader in another: the same numbers."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EOS_ID, PAD_ID, make_char_tokenizer
from stage_helpers import train_a_little
from torch import Tensor

from instructlit.models.adapters import Lora
from instructlit.models.backbone import Backbone, load_causal_lm, load_scalar_model
from instructlit.models.export import export_folder
from instructlit.tools.export import export

TEXTS = ["say red: der", "count: one two three", "no"]
SHIFT = -0.75

# Both scripts take a JSON list of jobs and print a JSON list of answers, so that each starts only once.
PLAIN = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
texts = json.loads(sys.argv[2])
def scores(folder, tokenizer, together):
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    ended = [text + tokenizer.eos_token for text in texts]
    groups = [ended] if together else [[text] for text in ended]
    found = [model(**tokenizer(g, return_tensors="pt", padding=True)).logits[:, 0] for g in groups]
    return {"scores": torch.cat(found).tolist(), "shift": model.config.reward_shift}
def logits(folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model(tokenizer(texts[0], return_tensors="pt").input_ids).logits.tolist()
answers = []
with torch.no_grad():
    for job in json.loads(sys.argv[1]):
        tokenizer = AutoTokenizer.from_pretrained(job["folder"])
        if job["kind"] == "causal":
            answers.append(logits(job["folder"], tokenizer))
        else:
            answers.append(scores(job["folder"], tokenizer, job["together"]))
assert "instructlit" not in sys.modules
print(json.dumps(answers))
"""

OURS = """
import json, sys, torch
from instructlit.models.backbone import Backbone, load_scalar_model
rows = [[ord(c) for c in text] + [2] for text in json.loads(sys.argv[2])]
width = max(map(len, rows))
ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
answers = []
with torch.no_grad():
    for job in json.loads(sys.argv[1]):
        model = load_scalar_model(Backbone(job["folder"]), require_head=True).eval()
        answers.append(model.score(ids, mask).tolist())
print(json.dumps(answers))
"""


@dataclass
class Job:
    """An exported folder; `together`: plain transformers may score it in a batch."""

    folder: str
    kind: str
    together: bool = True


@dataclass
class Exported:
    """What the model computed before it was written, and what fresh processes compute from the folder."""

    before: Tensor
    plain: Any
    ours: Any


def fresh(script: str, jobs: list[Job]) -> Any:
    arguments = [json.dumps([asdict(job) for job in jobs]), json.dumps(TEXTS)]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def batch(texts: list[str]) -> tuple[Tensor, Tensor]:
    rows = [[ord(c) for c in text] + [EOS_ID] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return ids, mask


def reward_folder(
    base: Path, path: Path, lora: Lora | None = None, pad_is_eos: bool = False, merge: bool = True
) -> tuple[Job, Tensor]:
    model = load_scalar_model(Backbone(str(base), lora=lora))
    train_a_little(model)
    model.set_shift(SHIFT)
    with torch.no_grad():
        scores = model.score(*batch(TEXTS))
    export_folder(model, make_char_tokenizer(pad_is_eos), path, merge=merge)
    return Job(str(path), "scalar" if merge else "adapters", together=not pad_is_eos), scores


def merged_adapters(base: Path, path: Path, lora: Lora) -> tuple[Job, Tensor]:
    """Adapters and head written alone, then merged with their trunk by the command."""
    alone, scores = reward_folder(base, path.with_name(f"{path.name}-alone"), lora, merge=False)
    export(alone.folder, str(path))
    return Job(str(path), "scalar"), scores


def policy_folder(base: Path, path: Path, lora: Lora | None = None) -> tuple[Job, Tensor]:
    model = load_causal_lm(Backbone(str(base), lora=lora))
    train_a_little(model)
    ids = torch.tensor([[ord(c) for c in TEXTS[0]]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    export_folder(model, make_char_tokenizer(), path)
    return Job(str(path), "causal"), logits


@pytest.fixture(scope="module")
def exported(
    tiny_llama_dir: Path, tiny_gpt2_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Exported]:
    """Every case written here and read back by two fresh processes."""
    at, lora = tmp_path_factory.mktemp("exported"), Lora(rank=4)
    makers: dict[str, Callable[[Path], tuple[Job, Tensor]]] = {
        "reward": lambda path: reward_folder(tiny_llama_dir, path),
        "reward-lora": lambda path: reward_folder(tiny_gpt2_dir, path, lora),
        "reward-lora-pad-is-eos": lambda path: reward_folder(tiny_llama_dir, path, lora, pad_is_eos=True),
        "reward-adapters": lambda path: reward_folder(tiny_llama_dir, path, lora, merge=False),
        "reward-adapters-merged": lambda path: merged_adapters(tiny_llama_dir, path, lora),
        "policy": lambda path: policy_folder(tiny_gpt2_dir, path),
        "policy-lora": lambda path: policy_folder(tiny_llama_dir, path, lora),
    }
    made = {name: make(at / name) for name, make in makers.items()}
    for_plain = [name for name in made if name != "reward-adapters"]
    for_ours = [name for name in made if name.startswith("reward")]
    plain = dict(zip(for_plain, fresh(PLAIN, [made[name][0] for name in for_plain]), strict=True))
    ours = dict(zip(for_ours, fresh(OURS, [made[name][0] for name in for_ours]), strict=True))
    return {name: Exported(before, plain.get(name), ours.get(name)) for name, (_, before) in made.items()}


@pytest.mark.parametrize("name", ["reward", "reward-lora", "reward-lora-pad-is-eos", "reward-adapters-merged"])
def test_plain_transformers_scores_the_same_less_the_shift(exported: dict[str, Exported], name: str) -> None:
    found = exported[name]
    assert found.plain["shift"] == SHIFT
    torch.testing.assert_close(torch.tensor(found.plain["scores"]) + SHIFT, found.before, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "name", ["reward", "reward-lora", "reward-lora-pad-is-eos", "reward-adapters", "reward-adapters-merged"]
)
def test_our_loader_scores_the_same_with_head_and_shift(exported: dict[str, Exported], name: str) -> None:
    found = exported[name]
    assert found.before.std() > 1e-3  # scores all alike would agree by accident
    torch.testing.assert_close(torch.tensor(found.ours), found.before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["policy", "policy-lora"])
def test_plain_transformers_gives_a_policys_logits(exported: dict[str, Exported], name: str) -> None:
    found = exported[name]
    torch.testing.assert_close(torch.tensor(found.plain), found.before, atol=1e-5, rtol=0)
