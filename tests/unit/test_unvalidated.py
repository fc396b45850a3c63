"""A run that ends before its first validation says so when it begins, and Lightning gives no hint at code."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from stage_helpers import FixedBatches, ppo_module, prompt_batch, sft_module, token_batch, trainer
from transformers import PreTrainedTokenizerFast

TOKENS, PROMPTS = token_batch([("say red: ", "der")]), prompt_batch(["a: ", "b: ", "c: ", "d: "])


@pytest.mark.parametrize(
    ("stage", "options", "told"),
    [
        ("sft", {"max_steps": 2, "val_check_interval": 4}, "the run ends after 2 batches"),
        ("sft", {"max_steps": 1, "check_val_every_n_epoch": 1}, "the run ends after 1 batch but"),
        ("sft", {"max_steps": 3, "val_check_interval": 3}, None),
        ("ppo", {"max_steps": 2, "val_check_interval": 2}, "the run ends after 1 batch but"),  # of two updates
        ("ppo", {"max_epochs": -1, "val_check_interval": 3}, None),  # validated when its episodes are done
    ],
)
def test_a_run_without_a_validation_is_told_when_it_begins(
    tmp_path: Path,
    tiny_llama_dir: Path,
    char_tokenizer: PreTrainedTokenizerFast,
    stage: str,
    options: dict[str, Any],
    told: str | None,
) -> None:
    if stage == "sft":
        module, data, metric = sft_module(tiny_llama_dir), ([TOKENS] * 3, [TOKENS]), "sft/val/loss"
    else:
        module = ppo_module(tiny_llama_dir, minibatch_size=2)
        data, metric = ([{"prompts": PROMPTS}] * 3, [PROMPTS]), "ppo/val/score"
    how = {"check_val_every_n_epoch": None, "callbacks": [ModelCheckpoint(tmp_path, monitor=metric)]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = trainer(tmp_path, enable_checkpointing=True, **(how | options))
        fit.fit(module, datamodule=FixedBatches(char_tokenizer, *data))
    said = [str(warning.message) for warning in caught]
    assert not [text for text in said if "HINT" in text]
    found = [text for text in said if "first validation" in text]
    assert [text.startswith(str(told)) for text in found] == ([True] if told else [])
    assert bool(list(tmp_path.glob("*.ckpt"))) == (told is None)
