"""Short runs of every stage on one process or on several under FSDP2, and what they leave behind.

`python fsdp2_jobs.py FOLDER PROCESSES:JOB,JOB ...` runs the named jobs one after the other; each process writes
`FOLDER/JOB-PROCESSES-RANK.pt`. What is named together runs in the same processes; the first of each lot is a fork, as
the imports take longer than most jobs. On one process nothing is cut, unless the job is of the second kind:

`JOB@whole` trains six batches, `JOB@half` three, each with a checkpoint after every batch, and `JOB@from2` goes on for
three from what `JOB@half` left on two processes.
"""

import os
import sys
import zlib
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from forks import forked
from lightning.pytorch.callbacks import ModelCheckpoint
from stage_helpers import Recorder, sgd
from stage_runs import Shortness
from torch import Tensor
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.nn import functional as F

from instructlit.callbacks import ExportHuggingFace
from instructlit.data import ComparisonData, DemonstrationData, PromptData, TextData
from instructlit.errors import UserError
from instructlit.models.adapters import Lora
from instructlit.models.backbone import Backbone
from instructlit.models.sharding import gathered
from instructlit.models.shards import whole
from instructlit.modules import FSDP2Strategy, PPOModule, RewardModule, SFTModule, StageModule
from instructlit.rollout import CachedEngine, RewardModel, Sampling, Shaping
from instructlit.rollout.engine import as_generation
from instructlit.rollout.forward import response_log_probs
from instructlit.types import Generation, PromptBatch

Run = tuple[StageModule, pl.LightningDataModule, dict[str, Any]]


class PromptSeeded(CachedEngine):
    """Draws the same response to a prompt whatever rank meets it and whoever else is in the batch.

    Args:
        silent_rank: this rank's responses end with their first token.
        wordless: and that token does not count either.
    """

    def __init__(self, silent_rank: int | None = None, wordless: bool = False):
        super().__init__()
        self.silent_rank, self.wordless = silent_rank, wordless
        self.calls = 0
        self.gathers: list[int] = []  # all-gathers in each call
        self.lengths: list[int] = []  # tokens decoded in each call

    @torch.no_grad()
    def generate(self, model: Any, prompts: Any, sampling: Any, tokenizer: Any, generator: Any = None) -> Generation:
        self.calls += 1
        before = GATHERS.count
        found = []
        for row, prompt in enumerate(prompts.prompts):
            own = torch.Generator().manual_seed(zlib.crc32(f"{prompt.prompt}/{self.calls}".encode()))
            ids, mask = prompts.input_ids[row : row + 1], prompts.attention_mask[row : row + 1]
            got = super().generate(model, PromptBatch(ids, mask, [prompt]), sampling, tokenizer, own)
            found.append((got.response_ids, got.log_probs))
        self.gathers.append(GATHERS.count - before)
        width = max(ids.shape[1] for ids, _ in found)
        widths = [(0, width - ids.shape[1]) for ids, _ in found]
        ids = torch.cat(
            [F.pad(ids, w, value=tokenizer.pad_token_id) for w, (ids, _) in zip(widths, found, strict=True)]
        )
        log_probs = torch.cat([F.pad(x, w) for w, (_, x) in zip(widths, found, strict=True)])
        if silent := dist.is_initialized() and dist.get_rank() == self.silent_rank:
            ids, log_probs = ids[:, :1].fill_(tokenizer.eos_token_id), log_probs[:, :1]
        self.lengths.append(ids.shape[1])
        generation = as_generation(prompts, ids, log_probs, tokenizer)
        if silent:
            if self.wordless:
                generation.response_mask[:] = False
            generation.log_probs[:] = response_log_probs(model, generation, sampling.temperature)
        return generation


class Gathers:
    """Counts the all-gathers of weights."""

    def __init__(self) -> None:
        self.count = 0
        self.original = _fsdp_param_group.foreach_all_gather  # type: ignore[attr-defined]
        _fsdp_param_group.foreach_all_gather = self  # type: ignore[attr-defined]

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.count += 1
        return self.original(*args, **options)


GATHERS = Gathers()
TEXT = "say red: der"


def adam(parameters: Any) -> torch.optim.Optimizer:
    """With moments to keep."""
    # A large eps: where a gradient is next to nothing, rounding must not decide which way a weight goes.
    return torch.optim.AdamW(parameters, lr=1e-3, eps=1e-3, fused=True)


def adam_8bit(parameters: Any) -> torch.optim.Optimizer:
    """Embedding and head of the tiny model have just enough weights for a state in 8 bits."""
    from bitsandbytes.optim.adamw import AdamW8bit

    return AdamW8bit(parameters, lr=1e-3, eps=1e-3)


def pretrain(folder: Path, **options: Any) -> Run:
    """Ten steps on blocks of text."""
    module = SFTModule(Backbone(str(folder / "model")), metric_prefix="pretrain", **options)
    data = TextData(str(folder / "model"), str(folder / "text.jsonl"), batch_size=4, block_size=32)
    return module, data, {"limit_train_batches": 10, "max_steps": 10}


def sft(folder: Path, policy: dict[str, Any] | None = None, **options: Any) -> Run:
    """Ten steps on demonstrations; the validation rows come in uneven shares."""
    module = SFTModule(Backbone(str(folder / "model"), **(policy or {})), **options)
    data = DemonstrationData(
        str(folder / "model"), str(folder / "demonstrations.jsonl"), str(folder / "held_out.jsonl"), batch_size=4
    )
    return module, data, {"limit_train_batches": 10, "max_steps": 10}


def reward(folder: Path, **options: Any) -> Run:
    """Ten steps on comparisons, with the shift from demonstrations."""
    module = RewardModule(Backbone(str(folder / "model")), **options)
    data = ComparisonData(
        str(folder / "model"),
        str(folder / "comparisons.jsonl"),
        batch_size=4,
        validation_fraction=0.25,
        demonstrations=str(folder / "held_out.jsonl"),
    )
    return module, data, {"limit_train_batches": 10, "max_steps": 10}


def ppo(folder: Path, text: bool = False, **options: Any) -> Run:
    """Five rollouts of four episodes, each learnt from twice: ten steps."""
    model = Backbone(str(folder / "model"))
    settings: dict[str, Any] = {
        "reward": Shortness(),
        "episodes": 20,
        "minibatch_size": 4,
        "ppo_epochs": 2,
        "sampling": Sampling(max_new_tokens=5),
        "shaping": Shaping(normalize_scores=True, missing_eos="keep"),
        "engine": PromptSeeded(),
        "value_learning_rate": 0.05,
        "ema_decay": 0.9,
    }
    module = PPOModule(policy=options.pop("policy", model), value=model, **(settings | options))
    pretraining: dict[str, Any] = {
        "pretraining": str(folder / "text.jsonl"),
        "pretraining_per_episode": 1,
        "pretraining_block_size": 16,
    }
    data = PromptData(
        str(folder / "model"),
        str(folder / "prompts.jsonl"),
        str(folder / "held_out_prompts.jsonl"),
        batch_size=4,
        max_prompt_length=16,
        duplicate_prefix=0,
        max_dropped_fraction=1.0,
        **(pretraining if text else {}),
    )
    return module, data, {"limit_train_batches": 5, "max_steps": 10}


def compiled(run: Run) -> Run:
    """With graphs made as for the compiler, and run as they are, which takes seconds less."""
    torch.compile = partial(torch.compile, backend="aot_eager")
    return run


JOBS: dict[str, Callable[[Path], Run]] = {
    "pretrain": lambda f: pretrain(f, optimizer=sgd(0.1)),
    "pretrain_accumulated": lambda f: pretrain(f, optimizer=sgd(0.1), micro_batch_size=1),
    "sft": lambda f: sft(f, optimizer=sgd(0.01), gradient_clip_norm=None),
    "sft_accumulated": lambda f: sft(f, optimizer=sgd(0.01), gradient_clip_norm=None, micro_batch_size=1),
    "sft_checkpointing": lambda f: sft(
        f, {"gradient_checkpointing": True}, optimizer=sgd(0.01), gradient_clip_norm=None
    ),
    "sft_compiled": lambda f: compiled(sft(f, {"compile": True}, optimizer=sgd(0.01), gradient_clip_norm=None)),
    "sft_offload": lambda f: sft(f, optimizer=sgd(0.01), gradient_clip_norm=None),
    "sft_lora": lambda f: sft(f, {"lora": Lora(rank=4)}, optimizer=sgd(0.01), gradient_clip_norm=None),
    "sft_bf16": lambda f: sft(f, optimizer=sgd(0.01), gradient_clip_norm=None),
    "reward": lambda f: reward(f, optimizer=sgd(0.001), gradient_clip_norm=None),
    "reward_accumulated": lambda f: reward(f, optimizer=sgd(0.001), gradient_clip_norm=None, micro_batch_size=1),
    "reward_shared": lambda f: reward(f, optimizer=sgd(0.001), gradient_clip_norm=None, shared_prefix=True),
    "ppo": lambda f: ppo(f, optimizer=sgd(0.05)),
    "ppo_accumulated": lambda f: ppo(f, optimizer=sgd(0.05), micro_batch_size=1),
    "ppo_ptx": lambda f: ppo(f, text=True, optimizer=sgd(0.005), value_learning_rate=0.005),
    "ppo_lora": lambda f: ppo(f, policy=Backbone(str(f / "model"), lora=Lora(rank=4)), optimizer=sgd(0.05)),
    "ppo_scored": lambda f: ppo(
        f, reward=RewardModel(Backbone(str(f / "reward"))), shaping=Shaping(missing_eos="keep"), optimizer=sgd(0.05)
    ),
    "ppo_silent": lambda f: ppo(f, optimizer=sgd(0.05), engine=PromptSeeded(1), micro_batch_size=1),
    "ppo_wordless": lambda f: ppo(f, optimizer=sgd(0.05), engine=PromptSeeded(1, True), self_check=False),
    "sft_best": lambda f: sft(f, optimizer=sgd(0.01), gradient_clip_norm=None),
    "sft_adam": lambda f: sft(f, optimizer=adam),
    "sft_8bit": lambda f: sft(f, optimizer=adam_8bit),
    "sft_lora_adam": lambda f: sft(f, {"lora": Lora(rank=4)}, optimizer=adam),
    "reward_adam": lambda f: reward(f, optimizer=adam),
    "ppo_adam": lambda f: ppo(f, text=True, optimizer=adam, minibatch_size=2, value_learning_rate=1e-3),
    "ppo_stopped": lambda f: ppo(f, optimizer=sgd(0.5), max_kl=1e-3),
}
STRATEGIES: dict[str, dict[str, Any]] = {"sft_offload": {"cpu_offload": True}}
TRAINERS: dict[str, dict[str, Any]] = {"sft_bf16": {"precision": "bf16-mixed"}}


class RolloutGathers(pl.Callback):
    """All-gathers in each rollout."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, PPOModule):
            collect = pl_module.collect

            def counted(prompts: Any) -> Any:
                before = GATHERS.count
                rollout = collect(prompts)
                self.counts.append(GATHERS.count - before)
                return rollout

            pl_module.collect = counted  # type: ignore[method-assign]


class Stop(pl.Callback):
    """Ends the run after some batches, and keeps what is each rank's own: its random stream, its count of samples."""

    def __init__(self, batches: int, folder: Path, resume: Path | None):
        self.batches, self.folder, self.resume, self.seen = batches, folder, resume, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.loaded = kept(pl_module)  # type: ignore[arg-type]
        file = self.resume and self.resume.parent / f"own-{trainer.global_rank}.pt"
        if isinstance(pl_module, PPOModule) and file and file.is_file():
            stream, pl_module.engine.calls = torch.load(file)  # type: ignore[attr-defined]
            pl_module.generator.set_state(stream)  # type: ignore[union-attr]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.seen += 1
        trainer.should_stop = trainer.should_stop or self.seen == self.batches
        if isinstance(pl_module, PPOModule):
            own = (pl_module.generator.get_state(), pl_module.engine.calls)  # type: ignore[union-attr,attr-defined]
            torch.save(own, self.folder / f"own-{trainer.global_rank}.pt")


def run(asked: str, folder: Path, processes: int) -> tuple[pl.Trainer, StageModule, Recorder]:
    """Train a job."""
    pl.seed_everything(1, verbose=False)
    job, _, how = asked.partition("@")
    module, data, limits = JOBS[job](folder)
    recorder = Recorder()
    cut = processes > 1 or bool(how)
    resume = folder / f"{job}@half-{processes if how == 'resumed' else how[4:]}" / "last.ckpt"
    resume = None if how in ("", "whole", "half") else resume
    own = folder / f"{asked}-{processes}"
    own.mkdir(exist_ok=True)
    which: Literal["last", "best"] = "best" if job.endswith("_best") else "last"
    callbacks: list[pl.Callback] = [recorder, RolloutGathers(), ExportHuggingFace(str(own / "model"), which)]
    if which == "best":
        callbacks.append(ModelCheckpoint(own, monitor="sft/val/loss"))
        limits |= {"enable_checkpointing": True}
    if how:
        limits |= {"max_steps": 40, "limit_val_batches": 0, "enable_checkpointing": True}
        callbacks.append(Stop(6 if how == "whole" else 3, own, resume))
        callbacks.append(
            ModelCheckpoint(own, "last", every_n_train_steps=1, save_top_k=1, enable_version_counter=False)
        )
    settings: dict[str, Any] = {
        "strategy": FSDP2Strategy(timeout=timedelta(seconds=90), **STRATEGIES.get(job, {})) if cut else "auto",
        "callbacks": callbacks,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": -1,
        "max_epochs": -1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
    }
    trainer = pl.Trainer(accelerator="cpu", devices=processes, **(settings | limits | TRAINERS.get(job, {})))
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return trainer, module, recorder


@torch.no_grad()
def answers(module: StageModule) -> Tensor:
    """What the trained model says to a text: logits, or a score without its shift."""
    model = module.trained_model.eval()
    ids = torch.tensor([[ord(c) for c in TEXT]])
    with gathered(model):
        if isinstance(module, RewardModule):
            return module.trained_model.score(ids, torch.ones_like(ids)) - module.trained_model.shift
        return model(input_ids=ids).logits


def kept(module: StageModule) -> dict[str, dict[str, Tensor]]:
    """Weights, optimiser states and moving average, gathered."""
    state = module.trainer.optimizers[0].state_dict()["state"]
    found = {
        "weights": dict(module.state_dict()),
        "optimizer": {f"{number}.{name}": value for number, part in state.items() for name, value in part.items()},
    }
    if isinstance(module, PPOModule) and module.ema is not None:
        found["average"] = module.ema.state_dict()["average"]
    return {
        kind: {name: whole(value).clone() for name, value in part.items() if isinstance(value, Tensor)}
        for kind, part in found.items()
    }


def callback(module: StageModule, kind: type) -> Any:
    """The trainer's callback of a class; None where it has none."""
    return next((c for c in module.trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]


def left(module: StageModule, recorder: Recorder) -> dict[str, Any]:
    """The metrics of every batch, what is kept, before the first batch too, and what the model says."""
    found: dict[str, Any] = {"rows": recorder.rows, "answers": answers(module)} | kept(module)
    if stop := callback(module, Stop):
        found["loaded"] = stop.loaded
    if isinstance(module, PPOModule):
        assert module.ema is not None
        with module.ema.swapped():
            found["answers_average"] = answers(module)
        found |= {name: getattr(module.engine, name, None) for name in ("gathers", "lengths")}
        found["rollout_gathers"] = callback(module, RolloutGathers).counts
        found |= {"episodes": module.episodes_seen, "samples": module.validation_rows}
        found["export_fault"] = export_fault(module)
    return found


def export_fault(module: PPOModule) -> str:
    """What an export of two models says where the first cannot be written, a file being in its place."""
    place = Path(module.trainer.default_root_dir) / "in_the_way"
    place.touch()
    try:
        module.export(place, {})
    except UserError as error:
        return error.what
    return ""


if __name__ == "__main__":
    for word in sys.argv[2:]:
        if "LOCAL_RANK" not in os.environ and (status := forked([sys.argv[1], word], seconds=600)) is not None:
            if status:
                sys.exit(f"{word}: status {status}")
            continue
        root, (processes, _, jobs) = Path(sys.argv[1]), word.partition(":")
        for name in jobs.split(","):
            finished, trained, records = run(name, root, int(processes))
            torch.save(left(trained, records), root / f"{name}-{processes}-{finished.global_rank}.pt")
        break
