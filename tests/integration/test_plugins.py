"""The examples of docs/plugging-in.md, from a folder outside of the package and by the command line."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stage_runs import COMPARISONS
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from instructlit.cli import main
from instructlit.data import ComparisonData, load_tokenizer
from instructlit.data.collate import EncodedPrompt, collate_prompts
from instructlit.models.backbone import Backbone, load_causal_lm
from instructlit.rollout import CachedEngine, Sampling
from instructlit.types import Prompt

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PAGE = (ROOT / "docs" / "plugging-in.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(
    tmp_path: Path,
    tiny_llama_dir: Path,
    prompts_file: Path,
    jsonl: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """A user's folder: the examples, models and data where the YAML files expect them; it is the working directory."""
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    for name in ("base", "sft"):
        shutil.copytree(tiny_llama_dir, tmp_path / "models" / name)
    (tmp_path / "data").mkdir()
    shutil.copy(prompts_file, tmp_path / "data" / "prompts.jsonl")
    shutil.copy(jsonl("comparisons", COMPARISONS), tmp_path / "data" / "comparisons.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "my_rlhf"]:
        del sys.modules[name]


def fit(config: str, **options: object) -> int:
    words = [w for name, value in options.items() for w in (f"--{name.replace('__', '.')}", str(value))]
    return main(["fit", "--config", config, "--trainer.accelerator", "cpu", *words])


def metrics(folder: Path) -> set[str]:
    """Names in the CSV log of the run."""
    (path,) = (folder / "runs").rglob("metrics.csv")
    return set(path.read_text().splitlines()[0].split(","))


def test_the_page_shows_the_files_as_they_are() -> None:
    shown = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))
    files = {str(path.relative_to(ROOT)) for path in EXAMPLES.rglob("*") if path.suffix in (".py", ".yaml")}
    assert set(shown) == {name for name in files if not name.endswith("__init__.py")}
    for name, text in shown.items():
        assert text == (ROOT / name).read_text(encoding="utf-8"), f"{name} differs from the page"


def test_dpo_from_the_command_line_to_a_folder_that_transformers_loads(folder: Path) -> None:
    assert fit("dpo.yaml", data__batch_size=4, data__validation_fraction=0.5, model__optimizer__lr=1e-3) == 0
    assert metrics(folder) >= {f"dpo/{s}/{m}" for s in ("train", "val") for m in ("loss", "accuracy", "margin")}
    record = json.loads((folder / "models" / "dpo" / "instructlit.json").read_text())
    assert record["stage"] == "dpo"
    assert record["parents"][0]["path"] == "models/sft"
    assert record["data"][0]["path"] == "data/comparisons.jsonl"
    assert record["config"]["model"]["init_args"]["beta"] == 0.1
    assert record["checkpoint"]["monitor"] == "dpo/val/accuracy"
    kept = torch.load(record["checkpoint"]["path"], weights_only=True)["state_dict"]
    assert not any("frozen" in name for name in kept)
    model = AutoModelForCausalLM.from_pretrained(folder / "models" / "dpo")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, kept[f"policy.{name}"])


@pytest.mark.slow
def test_dpo_in_a_process_of_its_own(folder: Path) -> None:
    """As a user starts it: the examples on PYTHONPATH, another working directory."""
    work = folder / "elsewhere"
    shutil.copytree(folder / "models", work / "models")
    shutil.copytree(folder / "data", work / "data")
    command = [
        sys.executable,
        "-m",
        "instructlit",
        "fit",
        "--config",
        str(folder / "dpo.yaml"),
        "--data.batch_size",
        "4",
    ]
    command += ["--data.validation_fraction", "0.5", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert (work / "models" / "dpo" / "model.safetensors").exists()


def test_ppo_with_a_rule_an_engine_an_optimiser_and_a_callback(folder: Path) -> None:
    options = {
        "model__episodes": 8,
        "data__batch_size": 4,
        "model__minibatch_size": 2,
        "model__sampling__max_new_tokens": 5,
    }
    assert fit("ppo_rules.yaml", **options, trainer__val_check_interval=1) == 0
    assert metrics(folder) >= {"ppo/objective/score", "ppo/val/repetition", "ppo/policy/ratio_mean"}
    rows = [json.loads(line) for line in (folder / "samples" / "ppo_validation.jsonl").read_text().splitlines()]
    assert {row["iteration"] for row in rows} == {0, 2, 4}
    assert (folder / "models" / "ppo" / "model.safetensors").exists()
    record = json.loads((folder / "models" / "ppo" / "instructlit.json").read_text())
    assert record["config"]["model"]["init_args"]["reward"]["class_path"] == "my_rlhf.reward.Rules"


def test_sft_on_a_datamodule_of_ones_own(folder: Path) -> None:
    assert fit("sft_sums.yaml", data__examples=40, data__batch_size=8, trainer__max_epochs=2) == 0
    assert metrics(folder) >= {"sft/train/loss", "sft/val/loss"}
    assert (folder / "models" / "sums" / "model.safetensors").exists()


def test_a_misspelt_option_of_ones_own_class_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("dpo.yaml", model__betta=0.2) == 2
    error = capsys.readouterr().err
    assert "betta" in error
    assert "beta" in error.replace("betta", "")


def test_a_loader_without_a_batch_leaves_no_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer rows than a batch, of which the example's loader keeps none: the base model is not to pass for trained."""
    assert fit("sft_sums.yaml", data__examples=10, data__batch_size=16) == 2
    assert "data: the data has no training batch" in capsys.readouterr().err
    assert not (folder / "models" / "sums").exists()


PARTS = """
from collections import deque

import lightning.pytorch as pl

from instructlit.models.backbone import Backbone
from instructlit.modules import SFTModule


class Begun(SFTModule):
    def __init__(self, policy: Backbone):
        self.path = policy.path


class Window(pl.Callback):
    def __init__(self):
        self.lengths = None

    def on_train_batch_end(self, *args):
        self.lengths = deque([1], maxlen=4)

    def state_dict(self):
        return {"lengths": self.lengths}
"""


def test_a_module_that_is_not_set_up_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "my_rlhf" / "parts.py").write_text(PARTS)
    assert fit("sft_sums.yaml", model="my_rlhf.parts.Begun") == 2
    assert "`Begun.__init__` does not call `super().__init__`" in capsys.readouterr().err


def test_a_checkpoint_that_holds_more_than_data_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "my_rlhf" / "parts.py").write_text(PARTS)
    options: dict[str, object] = {"data__examples": 16, "trainer__callbacks+": "my_rlhf.parts.Window"}
    assert fit("sft_sums.yaml", **options, trainer__max_epochs=1) == 0
    (path,) = folder.rglob("*.ckpt")
    capsys.readouterr()
    assert fit("sft_sums.yaml", **options, ckpt_path=path) == 2
    error = capsys.readouterr().err
    assert "ckpt_path: the checkpoint holds a collections.deque" in error
    assert "--weights_only false" in error
    assert fit("sft_sums.yaml", **options, ckpt_path=path, weights_only="false") == 0


# -- the numbers -------------------------------------------------------------------------------------------------------


def test_dpo_is_the_papers_loss_on_a_pair(folder: Path, jsonl: Callable[..., Path]) -> None:
    """-log sigmoid(beta (log-ratio of the winner - log-ratio of the loser)), summed token by token by hand."""
    from my_rlhf.dpo import DPO  # type: ignore[import-not-found]

    rows = [{"prompt": "ab", "completions": ["cd", "e"], "ranks": [2, 1]}] * 4
    data = ComparisonData("models/sft", str(jsonl("pair", rows)), batch_size=1, validation_fraction=0.0)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    module = DPO(Backbone("models/sft"), beta=0.5)
    module.configure_model()
    module.log = lambda *args, **kwargs: None
    assert float(module.training_step(batch, 0)) == pytest.approx(0.6931, abs=1e-4)  # policy and reference are one

    with torch.no_grad():
        for parameter in module.policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)

    def log_ratio(text: str, start: int) -> float:
        ids = torch.tensor([[ord(c) for c in text] + [2]])
        total = 0.0
        for model, sign in ((module.policy, 1.0), (module.frozen[0], -1.0)):
            table = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
            total += sign * sum(float(table[t - 1, ids[0, t]]) for t in range(start, ids.shape[1]))
        return total

    difference = log_ratio("abe", 2) - log_ratio("abcd", 2)
    expected = -logsigmoid(torch.tensor(0.5 * difference))
    assert abs(difference) > 0.01
    assert float(module.training_step(batch, 0)) == pytest.approx(float(expected), abs=1e-5)


def test_lion_steps_by_the_sign_of_the_momentum(folder: Path) -> None:
    from my_rlhf.optimizer import Lion  # type: ignore[import-not-found]

    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
    optimizer = Lion([weight], lr=0.1, beta1=0.5, beta2=0.5)
    weight.grad = torch.tensor([3.0, -3.0, 0.0])
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.9, 1.1, 1.0])
    weight.grad = torch.tensor([-1.0, 2.0, 1.0])  # momentum (1.5, -1.5, 0): half of each is (0.25, 0.25, 0.5)
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.8, 1.0, 0.9])


@pytest.mark.parametrize(
    ("response", "score"), [("please", 1.0), ("Please no", 0.0), ("thanks please", 2.0), ("a b c d", -1.0), ("", 0.0)]
)
def test_rules(folder: Path, response: str, score: float) -> None:
    from my_rlhf.reward import Rules  # type: ignore[import-not-found]

    assert Rules(["please", "thanks"], ["no"], max_words=3).reward("say it", response) == score


def test_the_engine_samples_what_ours_does(folder: Path) -> None:
    """Greedy: the same ids and log-probs. Sampled: one seed, one answer."""
    from my_rlhf.engine import Transformers  # type: ignore[import-not-found]

    tokenizer = load_tokenizer("models/sft")
    rows = [EncodedPrompt([ord(c) for c in text], Prompt(text)) for text in ("abc", "a longer one", "?")]
    prompts = collate_prompts(rows, 0)
    model: Any = load_causal_lm(Backbone("models/sft"))
    settings = Sampling(max_new_tokens=6, temperature=0.7, greedy=True)
    theirs, ours = (e.generate(model, prompts, settings, tokenizer) for e in (Transformers(), CachedEngine()))
    assert torch.equal(theirs.response_ids, ours.response_ids)
    torch.testing.assert_close(theirs.log_probs, ours.log_probs, atol=1e-5, rtol=0)
    first, again, other = (
        Transformers().generate(model, prompts, Sampling(max_new_tokens=6), tokenizer, torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    )
    assert torch.equal(first.response_ids, again.response_ids)
    assert not torch.equal(first.response_ids, other.response_ids)


def test_the_engine_draws_from_the_whole_softmax(folder: Path) -> None:
    """Which no check of log-probs can see: the frequencies of 4,000 draws against the probabilities."""
    from my_rlhf.engine import Transformers  # type: ignore[import-not-found]

    tokenizer = load_tokenizer("models/sft")
    model: Any = load_causal_lm(Backbone("models/sft"))
    with torch.no_grad():
        model.lm_head.weight.mul_(10.0)  # far from uniform
    prompts = collate_prompts([EncodedPrompt([97, 98, 99], Prompt("abc"))] * 4000, 0)
    settings = Sampling(max_new_tokens=1, temperature=2.0)
    drawn = Transformers().generate(model, prompts, settings, tokenizer, torch.Generator().manual_seed(0))
    found = torch.bincount(drawn.response_ids[:, 0], minlength=128) / 4000
    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([[97, 98, 99]])).logits[0, -1] / 2.0, dim=-1)
    assert expected.max() > 2 / 128
    assert expected.topk(3).values.sum() < 0.5
    # Half the sum of absolute differences; for 4,000 draws its mean is at most sqrt(128 / (2 pi 4000)) = 0.07.
    assert float((found - expected).abs().sum() / 2) < 0.1


@pytest.mark.parametrize(("responses", "share"), [(["a b", "a"], 0.0), (["a a a", "b"], 0.5), ([], 0.0)])
def test_repetition(folder: Path, responses: list[str], share: float) -> None:
    from my_rlhf.callback import Repetition  # type: ignore[import-not-found]

    logged: dict[str, float] = {}
    module = SimpleNamespace(
        validation_rows=[{"response": r} for r in responses],
        log=lambda name, value, **_: logged.update({name: value}),
        print=print,
    )
    trainer = SimpleNamespace(sanity_checking=False, should_stop=False)
    Repetition(stop_above=0.4).on_validation_epoch_end(trainer, module)
    assert logged == {"ppo/val/repetition": share}
    assert trainer.should_stop == (share > 0.4)
