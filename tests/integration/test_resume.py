"""A run stopped after its third batch and continued from the checkpoint is, bit for bit, one that was never stopped."""

import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from stage_helpers import CountVowels, Recorder, trainer
from torch.optim.lr_scheduler import OneCycleLR
from transformers import AutoConfig, AutoModelForCausalLM

from instructlit.data import ComparisonData, DemonstrationData, PromptData
from instructlit.errors import UserError
from instructlit.models.adapters import Lora
from instructlit.models.backbone import Backbone
from instructlit.models.schedules import CosineToFraction, LinearToZero, Schedule
from instructlit.modules import PPOModule, RewardModule, SFTModule
from instructlit.modules.settings import with_own_settings
from instructlit.ops.kl_control import AdaptiveKL
from instructlit.rollout import Sampling, Shaping, TextReward

Stage = Callable[[], tuple[pl.LightningModule, pl.LightningDataModule]]


class NoisyReward(TextReward):
    """Draws from Python's, NumPy's and torch's global random states, as a user's reward may."""

    def reward(self, prompt: Any, response: str) -> float:
        noise = random.random() + np.random.rand() + torch.rand(()).item()  # noqa: NPY002
        return CountVowels().reward(prompt, response) + noise


class Integral(AdaptiveKL):
    """A controller of a user's own, which remembers more than its coefficient."""

    total = 0.0

    def update(self, mean_sequence_kl: float, n_episodes: int) -> None:
        super().update(mean_sequence_kl, n_episodes)
        self.total += mean_sequence_kl
        self.coefficient += 0.01 * self.total

    def state_dict(self) -> dict[str, float]:
        return {**super().state_dict(), "total": self.total}

    def load_state_dict(self, state: dict[str, float]) -> None:
        super().load_state_dict(state)
        self.total = state.get("total", self.total)


@pytest.fixture
def stages(
    tiny_gpt2_dir: Path,
    tiny_llama_dir: Path,
    char_tokenizer_dir: Path,
    demonstrations_file: Path,
    comparisons_file: Path,
    prompts_file: Path,
    text_file: Path,
    tmp_path: Path,
) -> dict[str, Stage]:
    tokenizer = str(char_tokenizer_dir)

    def sft() -> tuple[pl.LightningModule, pl.LightningDataModule]:
        # dropout draws from the global random state in every step; two batches an epoch, so the third is mid-epoch
        module = SFTModule(Backbone(str(tiny_gpt2_dir), dropout=0.2), micro_batch_size=3)
        return module, DemonstrationData(
            tokenizer, str(demonstrations_file), batch_size=6, validation_fraction=0.2, max_length=128
        )

    def adapters(quantization: Literal["nf4"] | None = None) -> tuple[pl.LightningModule, pl.LightningDataModule]:
        # bitsandbytes wants rows of whole 64-value blocks
        config = AutoConfig.from_pretrained(tiny_llama_dir, hidden_size=64, intermediate_size=128, head_dim=16)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "wider")
        backbone = Backbone(str(tmp_path / "wider"), lora=Lora(rank=2, dropout=0.1), quantization=quantization)
        data = DemonstrationData(tokenizer, str(demonstrations_file), batch_size=6, validation_fraction=0.2)
        # a schedule of torch's, each rate made from the one before, that turns the betas too
        return SFTModule(backbone, lr_scheduler=lambda o: OneCycleLR(o, max_lr=1e-3, total_steps=200)), data

    def reward() -> tuple[pl.LightningModule, pl.LightningDataModule]:
        module = RewardModule(Backbone(str(tiny_llama_dir)), lr_scheduler=lambda o: CosineToFraction(o))
        rows, written = str(comparisons_file), str(demonstrations_file)
        return module, ComparisonData(tokenizer, rows, demonstrations=written, batch_size=4, validation_fraction=0.2)

    def ppo() -> tuple[pl.LightningModule, pl.LightningDataModule]:
        backbone = Backbone(str(tiny_llama_dir))
        module = PPOModule(
            policy=backbone,
            value=backbone,
            reward=NoisyReward(),
            episodes=24,
            minibatch_size=2,
            ppo_epochs=2,
            sampling=Sampling(max_new_tokens=5),
            shaping=Shaping(normalize_scores=True),
            kl=Integral(initial=0.1, target=0.01, horizon=50),
        )
        text = {"pretraining": str(text_file), "pretraining_per_episode": 2, "pretraining_block_size": 16}
        options: dict[str, Any] = {"batch_size": 4, "validation_fraction": 0.2, "max_dropped_fraction": 1.0}
        return module, PromptData(tokenizer, str(prompts_file), **options, **text)

    def quantised() -> tuple[pl.LightningModule, pl.LightningDataModule]:
        module, data = adapters("nf4")
        # On the CPU a forward in evaluation mode makes bitsandbytes pack a layer anew, for good, with other rounding.
        data.val_dataloader = lambda: []  # type: ignore[method-assign]  # noqa: PIE807 - Lightning reads its code
        return module, data

    return {"sft": sft, "adapters": adapters, "quantised": quantised, "reward": reward, "ppo": ppo}


def fit(stage: Stage, root: Path, batches: int, resume: Path | None = None) -> tuple[dict[str, Any], list[dict]]:
    """Train up to `batches` batches in all; returns the last checkpoint and the metrics of each batch."""
    pl.seed_everything(11, verbose=False)
    recorder = Recorder()
    saver = ModelCheckpoint(root, filename="last", every_n_train_steps=1, save_top_k=1, enable_version_counter=False)

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            self.seen = getattr(self, "seen", 0) + 1
            trainer.should_stop = self.seen == batches or trainer.should_stop

    run = trainer(root, max_epochs=40, enable_checkpointing=True, callbacks=[recorder, saver, Stop()], logger=False)
    # Both runs promise the same length: the schedule must not learn that one of them will be cut short.
    module, data = stage()
    run.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return torch.load(root / "last.ckpt", weights_only=True), recorder.rows


def differences(a: Any, b: Any, at: str = "") -> list[str]:
    """Where two nests of dicts, lists, tensors and plain values are not identical."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{at}: keys {a.keys() ^ b.keys()}"] if a.keys() != b.keys() else []
        return found + [d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{at}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        found = [f"{at}: lengths"] if len(a) != len(b) else []
        return found + [d for i, (x, y) in enumerate(zip(a, b, strict=False)) for d in differences(x, y, f"{at}[{i}]")]
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [at]
    return [] if a == b else [f"{at}: {a!r} and {b!r}"]


def state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What makes the future of a run; not the callbacks' paths and Lightning's own counters."""
    return {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "instructlit")}


@pytest.mark.parametrize("name", ["sft", "adapters", "quantised", "reward", "ppo"])
def test_three_batches_and_three_more_equal_six(stages: dict[str, Stage], tmp_path: Path, name: str) -> None:
    whole, rows = fit(stages[name], tmp_path / "whole", 6)
    half, first = fit(stages[name], tmp_path / "half", 3)
    resumed, second = fit(stages[name], tmp_path / "resumed", 3, resume=tmp_path / "half" / "last.ckpt")
    assert len(rows) == 6
    assert [len(first), len(second)] == [3, 3]
    assert differences(state(whole), state(resumed)) == []
    numbers = [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]
    assert first == numbers[:3]
    trained = [{k: v for k, v in row.items() if "/val/" not in k} for row in (*numbers[3:], *second)]
    assert trained[3:] == trained[:3]
    assert differences(state(whole), state(half)) != []


class Validations(pl.Callback):
    """Ends a run after its fourth batch; the metrics of each validation, which may fail when it is all but over."""

    def __init__(self, fail: bool):
        self.fail, self.rows = fail, []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.fit_loop.epoch_loop.total_batch_idx == 3

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.fail:
            raise UserError("the disk is full")
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items() if "/val/" in name})


@pytest.mark.parametrize("interval", [2, 3], ids=["within an epoch", "at its end"])
def test_a_validation_that_failed_is_run_again(stages: dict[str, Stage], tmp_path: Path, interval: int) -> None:
    def validated(name: str, resume: Path | None = None, fail: bool = False) -> tuple[dict[str, Any], list[dict]]:
        pl.seed_everything(11, verbose=False)
        seen = Validations(fail)
        by_steps = ModelCheckpoint(tmp_path / name, "{step}", every_n_train_steps=7, save_top_k=-1)
        callbacks = [seen, ModelCheckpoint(tmp_path / name, save_top_k=0), by_steps]
        often: dict[str, Any] = {"val_check_interval": interval, "check_val_every_n_epoch": None, "max_epochs": 2}
        run = trainer(tmp_path, enable_checkpointing=True, callbacks=callbacks, **often)
        module, data = stages["ppo"]()
        with pytest.raises(UserError) if fail else nullcontext():
            run.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        run.save_checkpoint(tmp_path / name / "end.ckpt")
        return torch.load(tmp_path / name / "end.ckpt", weights_only=True), seen.rows

    whole, rows = validated("whole")
    validated("failed", fail=True)
    resumed, again = validated("resumed", resume=tmp_path / "failed" / "failed.ckpt")
    assert rows[-1]["ppo/val/score"]
    assert again == rows
    assert differences(state(whole), state(resumed)) == []
    saved = {name: {file.name for file in (tmp_path / name).glob("step=*")} for name in ("whole", "failed", "resumed")}
    assert saved["failed"] | saved["resumed"] == saved["whole"]


@pytest.mark.parametrize("schedule", [LinearToZero, None])
def test_what_goes_on_is_what_the_config_says_now(
    stages: dict[str, Stage], tmp_path: Path, schedule: type[Schedule] | None
) -> None:
    settings: dict[str, Any] = {"lr": 2e-3, "betas": (0.5, 0.6), "eps": 1e-4, "weight_decay": 0.3}

    def changed() -> tuple[pl.LightningModule, pl.LightningDataModule]:
        module, data = stages["sft"]()
        assert isinstance(module, SFTModule)
        module.make_optimizer = lambda parameters: torch.optim.AdamW(parameters, **settings)
        module.make_lr_scheduler = schedule
        return module, data

    fit(stages["sft"], tmp_path / "first", 3)
    checkpoint, rows = fit(changed, tmp_path / "then", 3, resume=tmp_path / "first" / "last.ckpt")
    updates = 2 * 40  # of as many epochs
    expected = [settings["lr"] * (1 - done / updates) if schedule else settings["lr"] for done in (3, 4, 5, 6)]
    (optimizer,) = checkpoint["optimizer_states"]
    (group,) = optimizer["param_groups"]
    assert [row["sft/lr"] for row in rows] == pytest.approx(expected[:3])
    assert {name: group[name] for name in settings} == settings | {"lr": pytest.approx(expected[3])}
    assert {int(state["step"]) for state in optimizer["state"].values()} == {6}


class Counting(torch.optim.SGD):
    """Keeps state in its groups, as schedule-free optimisers do."""

    def __init__(self, params: Any, **options: Any):
        super().__init__(params, **options)
        self.param_groups[0]["steps"] = 0

    def step(self, closure: Any = None) -> None:
        self.param_groups[0]["steps"] += 1


def test_what_an_optimiser_counts_in_its_groups_is_no_setting() -> None:
    first, then = (with_own_settings(Counting([torch.nn.Parameter(torch.zeros(1))], lr=lr)) for lr in (0.1, 0.2))
    first.step()
    then.load_state_dict(first.state_dict())
    assert (then.param_groups[0]["lr"], then.param_groups[0]["steps"]) == (0.2, 1)


def test_a_run_after_a_test_of_a_checkpoint_begins_its_schedule_at_the_beginning(
    stages: dict[str, Stage], tmp_path: Path
) -> None:
    fit(stages["sft"], tmp_path, 3)
    module, data = stages["sft"]()
    data.test_dataloader = lambda: data.val_dataloader()  # type: ignore[method-assign]
    recorder = Recorder()
    again = trainer(tmp_path, callbacks=[recorder], max_steps=1)
    again.test(module, datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True, verbose=False)
    again.fit(module, datamodule=data)
    assert recorder.rows[0]["sft/lr"] == pytest.approx(9.65e-6)


def test_weights_alone_are_refused(stages: dict[str, Stage], tmp_path: Path) -> None:
    module, data = stages["sft"]()
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, datamodule=data)
    run.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    with pytest.raises(UserError, match=r"ckpt_path: the checkpoint holds only the weights"):
        fit(stages["sft"], tmp_path / "again", 2, resume=tmp_path / "weights.ckpt")


def test_a_checkpoint_of_another_stage_is_refused(stages: dict[str, Stage], tmp_path: Path) -> None:
    fit(stages["sft"], tmp_path / "sft", 1)
    with pytest.raises(UserError, match=r"ckpt_path: the checkpoint is of stage sft, this run is reward"):
        fit(stages["reward"], tmp_path / "reward", 1, resume=tmp_path / "sft" / "last.ckpt")
