"""A step whose loss or gradient is not finite leaves no trace, is counted, and is named by its rows."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from stage_helpers import (
    FixedBatches,
    Recorder,
    comparison_batch,
    ppo_module,
    prompt_batch,
    reward_module,
    sft_module,
    token_batch,
    trainer,
    weights,
)

from instructlit.data import DemonstrationData, PromptData, TextData
from instructlit.errors import UserError
from instructlit.models.schedules import ConstantWithWarmup
from instructlit.modules import StageModule
from instructlit.modules.nonfinite import NonFinite, StepGuard
from instructlit.types import TokenBatch

PROMPTS = ["ab", "cde", "f", "gh"]
SFT = [token_batch([("Say a: ", "b"), ("Say c: ", text)]) for text in ("d", "ef", "ghi", "j")]
REWARD = [comparison_batch([("p", ["a", text], [1, 2]), ("q", ["x", "yy"], [2, 1])]) for text in ("b", "cc", "d", "e")]
SKIP = NonFinite("skip", max_in_a_row=2)


def poisoned(module: StageModule, steps: set[int], value: float = float("nan")) -> None:
    """One entry of the gradient becomes `value` in those optimiser steps, counted from 0, steps not taken included."""
    taken, number = module.step_optimizer, iter(range(1000))

    def step(models: Any, losses: Any) -> Any:
        models = list(models)
        if next(number) in steps:
            next(p for p in models[-1].parameters() if p.grad is not None).grad.view(-1)[0] = value
        return taken(models, losses)

    module.step_optimizer = step  # type: ignore[method-assign]


def options(**more: Any) -> dict[str, Any]:
    return {
        "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2),
        "lr_scheduler": lambda o: ConstantWithWarmup(o, warmup_steps=5, initial_fraction=0.1),
        "gradient_clip_norm": 1.0,
        "nonfinite": SKIP,
    } | more


def fit(root: Path, module: StageModule, tokenizer: Any, batches: list[Any], **more: Any) -> list[dict[str, float]]:
    recorder = Recorder()
    torch.manual_seed(3)  # draws a reward model's head
    run = trainer(root, callbacks=[recorder], **more)
    run.fit(module, datamodule=FixedBatches(tokenizer, batches))
    return recorder.rows


def state(module: StageModule) -> list[torch.Tensor]:
    """Everything a step may touch: weights, both moments and the step count of Adam, the learning rate, the average."""
    optimizer: Any = module.optimizers()
    found = [weights(module), torch.tensor([group["lr"] for group in optimizer.param_groups])]
    found += [torch.as_tensor(x) for entry in optimizer.state.values() for x in entry.values()]
    average = getattr(module, "ema", None)
    found += list(average.state_dict()["average"].values()) if average is not None else []
    return [x.detach().clone() for x in found]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("make", "batches"), [(sft_module, SFT), (reward_module, REWARD)], ids=["sft", "reward"])
def test_a_skipped_step_leaves_no_trace(tmp_path, tiny_llama_dir, char_tokenizer, make, batches, value):
    module = make(tiny_llama_dir, **options())
    poisoned(module, {1}, value)
    rows = fit(tmp_path, module, char_tokenizer, batches)
    without = make(tiny_llama_dir, **options())
    fit(tmp_path, without, char_tokenizer, [batches[0], *batches[2:]])
    for left, right in zip(state(module), state(without), strict=True):
        assert torch.equal(left, right)
    assert module.trainer.global_step == 3
    name = next(name for name in rows[0] if name.endswith("train/skipped_steps"))
    assert [row[name] for row in rows] == [0, 1, 1, 1]


def test_ppo_skips_one_update_of_a_rollout(tmp_path, tiny_llama_dir, char_tokenizer):
    """Policy, value network, average and metrics are as if the minibatch had never come."""
    ran = {}
    for name, updates in (("poisoned", {1}), ("whole", set())):
        module = ppo_module(tiny_llama_dir, episodes=4, minibatch_size=2, **options())
        poisoned(module, updates)
        if name == "whole":  # the second minibatch is left out by hand
            minibatches = module._minibatches
            module._minibatches = lambda *a, f=minibatches: list(f(*a))[:1]  # type: ignore[method-assign]
        seen = fit(tmp_path, module, char_tokenizer, [{"prompts": prompt_batch(PROMPTS)}])
        ran[name] = (state(module), seen[0])
    for left, right in zip(ran["poisoned"][0], ran["whole"][0], strict=True):
        assert torch.equal(left, right)
    (_, figures), (_, expected) = ran["poisoned"], ran["whole"]
    assert figures.pop("ppo/skipped_steps") == 1
    assert expected.pop("ppo/skipped_steps") == 0
    assert figures == expected


def test_a_rollout_of_which_nothing_can_be_learnt_steers_nothing(tmp_path, tiny_llama_dir, char_tokenizer):
    from instructlit.ops.kl_control import AdaptiveKL

    module = ppo_module(tiny_llama_dir, episodes=4, minibatch_size=4, kl=AdaptiveKL(), self_check=False, **options())
    module.reference_log_probs = lambda responses: torch.full_like(responses.response_mask.float(), torch.nan)  # type: ignore[method-assign]
    before = module.kl.coefficient
    (row,) = fit(tmp_path, module, char_tokenizer, [{"prompts": prompt_batch(PROMPTS)}])
    assert row["ppo/skipped_steps"] == 1
    assert module.kl.coefficient == before


def test_stop_is_the_rule_and_takes_no_step(tmp_path, tiny_llama_dir, char_tokenizer):
    module = sft_module(tiny_llama_dir, **options(nonfinite=NonFinite()))
    poisoned(module, {2})
    with pytest.raises(UserError, match="training batch 2: optimiser step 3 was not taken: gradient norm 1 is nan"):
        fit(tmp_path, module, char_tokenizer, SFT)
    assert bool(torch.isfinite(weights(module)).all())
    assert module.trainer.global_step == 2


def test_figures_are_on_one_device() -> None:
    """Shards that are kept on the host have the norm of their gradient there, and losses are on the GPU."""
    device, seen = torch.device("meta"), []  # as another than the gradients'
    model = torch.nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    module: Any = SimpleNamespace(
        device=device,
        trainer=SimpleNamespace(strategy=SimpleNamespace(model=None), global_step=0),
        optimizers=lambda: SimpleNamespace(zero_grad=lambda: None),
        gradient_clip_norm=1.0,
        guard=SimpleNamespace(passes=lambda figures, *_: seen.extend(figures.values())),
        _batch_in_use=None,
    )
    StageModule.step_optimizer(module, [model], {"the loss": torch.zeros((), device=device)})
    assert [figure.device for figure in seen] == [device, device]


def test_a_loss_alone_is_enough(tmp_path, tiny_llama_dir, char_tokenizer):
    """A loss can be infinite while its gradient is 0."""
    module = sft_module(tiny_llama_dir, **options(nonfinite=NonFinite()))
    module.accumulate = lambda *a, **k: torch.tensor(torch.inf)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="the loss is inf"):
        fit(tmp_path, module, char_tokenizer, SFT)


def test_so_many_in_a_row_are_the_end(tmp_path, tiny_llama_dir, char_tokenizer):
    module = sft_module(tiny_llama_dir, **options())
    poisoned(module, {0, 2, 3})  # one, and later two in a row
    ended = r"training batch 3: optimiser step 2 was not taken 2 times in a row \(nonfinite.max_in_a_row\):"
    with pytest.raises(UserError, match=ended):
        fit(tmp_path, module, char_tokenizer, SFT)
    assert module.guard.skipped == 2


def test_what_was_learnt_is_kept_and_the_count_goes_on(tmp_path, tiny_llama_dir, char_tokenizer):
    """The checkpoint that a stop leaves holds every step taken; going on from it misses nothing but the bad batch."""
    module = sft_module(tiny_llama_dir, **options())
    poisoned(module, {0, 2, 3})
    checkpoints = ModelCheckpoint(tmp_path / "ckpt", save_top_k=0)
    recorder = Recorder()
    with pytest.raises(UserError) as caught:
        trainer(tmp_path, callbacks=[recorder, checkpoints], enable_checkpointing=True).fit(
            module, datamodule=FixedBatches(char_tokenizer, SFT)
        )
    path = tmp_path / "ckpt" / "failed.ckpt"
    assert str(path) in "".join(caught.value.__notes__)
    kept = torch.load(path, weights_only=True)
    assert kept["global_step"] == 1
    own = module.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in kept["state_dict"].items())
    guard = StepGuard(SKIP)
    guard.load_state_dict(kept["instructlit"]["guard"])
    assert (guard.skipped, guard.in_a_row) == (2, 2)
    again = sft_module(tiny_llama_dir, **options())
    trainer(tmp_path, max_epochs=2).fit(again, FixedBatches(char_tokenizer, SFT), ckpt_path=path, weights_only=True)
    assert again.trainer.global_step > 1
    assert (again.guard.skipped, again.guard.in_a_row) == (2, 0)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows))  # the first line is blank
    return str(path)


def completions(batch: TokenBatch) -> list[str]:
    """What is to be learnt, without EOS."""
    return [bytes(ids[mask].tolist()[:-1]).decode() for ids, mask in zip(batch.input_ids, batch.loss_mask, strict=True)]


def stopped_at(root: Path, module: StageModule, data: Any, update: int) -> str:
    """Where the error says the batch came from."""
    poisoned(module, {update})
    with pytest.raises(UserError) as caught:
        trainer(root).fit(module, datamodule=data)
    assert caught.value.where is not None
    return caught.value.where


def test_the_rows_are_named_by_file_and_line(tmp_path, tiny_llama_dir):
    """Whatever the order: the texts at the lines that are named are those of the batch."""
    words = [f"word{n}" for n in range(12)]
    file = write(tmp_path / "d.jsonl", [{"prompt": "p: ", "completion": word} for word in words])
    data = DemonstrationData(str(tiny_llama_dir), file, batch_size=3, validation_fraction=0, seed=5)
    module = sft_module(tiny_llama_dir)
    seen: list[list[str]] = []
    loss = module.token_loss
    module.token_loss = lambda part: (seen.append(completions(part)), loss(part))[1]  # type: ignore[method-assign]
    where = stopped_at(tmp_path, module, data, update=2)
    path, _, lines = where.partition(": ")
    assert path == file
    text = Path(file).read_text().splitlines()
    named = [json.loads(text[int(line) - 1])["completion"] for line in lines.split(", ")]
    assert named == seen[-1]


def test_prompts_and_blocks_of_text_are_named_too(tmp_path, tiny_llama_dir):
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": f"{n} is a prompt"} for n in range(8)])
    texts = write(tmp_path / "text.jsonl", [{"text": f"document {n}"} for n in range(40)])
    data = PromptData(
        str(tiny_llama_dir), prompts, batch_size=4, validation_fraction=0, pretraining=texts,
        pretraining_per_episode=1, pretraining_block_size=11, duplicate_prefix=0,
    )  # fmt: skip
    module = ppo_module(tiny_llama_dir, self_check=False)
    first, second = stopped_at(tmp_path, module, data, update=0).split("; ")
    assert first.startswith(f"{prompts}: ")
    assert len(first.split(", ")) == 4
    assert second.startswith(f"{texts}: ")
    assert len(second.split(", ")) == 4
    packed = TextData(str(tiny_llama_dir), texts, batch_size=2, block_size=11, validation_fraction=0)
    packed.setup()
    rows = packed.splits["train"].dataset
    for index in range(len(rows)):
        begins = bytes(rows[index].ids).decode()
        line = Path(texts).read_text().splitlines()[int(rows.where(index).rpartition(":")[2]) - 1]
        assert json.loads(line)["text"].endswith(begins.partition("\x02")[0])


@pytest.mark.parametrize("wrong", [{"action": "ignore"}, {"max_in_a_row": 0}])
def test_rules_that_cannot_be(wrong):
    with pytest.raises(UserError, match="nonfinite"):
        NonFinite(**wrong)
    NonFinite("skip", max_in_a_row=1)
