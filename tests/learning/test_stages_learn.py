"""Each stage must learn a rule it can be told in a sentence, from random weights, in seconds."""

import random
from pathlib import Path
from typing import Any

import torch
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
)
from transformers import PreTrainedTokenizerFast

from instructlit.modules import RewardModule
from instructlit.ops.kl_control import FixedKL
from instructlit.rollout import CachedEngine, Sampling, Shaping, TextReward

LETTERS = "abcdefgh"


def adam(lr: float) -> Any:
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)


def test_sft_learns_to_answer_a_letter_with_its_successor(
    tmp_path: Path, tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs = [(f"{letter} then ", chr(ord(letter) + 1)) for letter in LETTERS]
    module = sft_module(tiny_llama_dir, optimizer=adam(1e-2))
    data = FixedBatches(char_tokenizer, [token_batch(pairs)])
    trainer(tmp_path, max_epochs=150).fit(module, datamodule=data)
    prompts = prompt_batch([prompt for prompt, _ in pairs])
    greedy = Sampling(max_new_tokens=4, greedy=True)
    answers = CachedEngine().generate(module.trained_model, prompts, greedy, char_tokenizer)
    assert answers.texts == [completion for _, completion in pairs]
    assert bool(answers.ended.all())  # EOS is part of what was learnt


def held_out_accuracy(module: RewardModule, rows: list[Any]) -> float:
    batch = comparison_batch(rows)
    scores = module.trained_model.score(batch.input_ids, batch.attention_mask)
    pairs = [
        (a, b)
        for a in range(len(scores))
        for b in range(len(scores))
        if batch.prompt_index[a] == batch.prompt_index[b] and batch.ranks[a] < batch.ranks[b]
    ]
    return sum(float(scores[a] > scores[b]) for a, b in pairs) / len(pairs)


def test_reward_model_learns_that_the_letter_asked_for_wins(
    tmp_path: Path, tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast
) -> None:
    rng = random.Random(0)

    def row() -> Any:
        # more of the letter z is better, whatever else stands there
        counts = rng.sample(range(6), 4)
        texts = ["".join(rng.sample("z" * n + "".join(rng.choices(LETTERS, k=6 - n)), 6)) for n in counts]
        ranks = [1 + sum(other > n for other in counts) for n in counts]
        return ("say z: ", texts, ranks)

    module = reward_module(tiny_llama_dir, optimizer=adam(3e-3))
    batches = [comparison_batch([row() for _ in range(16)]) for _ in range(60)]
    trainer(tmp_path).fit(module, datamodule=FixedBatches(char_tokenizer, batches))
    assert held_out_accuracy(module, [row() for _ in range(40)]) > 0.95


class ShareOfA(TextReward):
    """One for a response of nothing but the letter a."""

    def reward(self, prompt: Any, response: str) -> float:
        return response.count("a") / max(len(response), 1)


def test_ppo_learns_to_say_a(tmp_path: Path, tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast) -> None:
    module = ppo_module(
        tiny_llama_dir,
        reward=ShareOfA(),
        episodes=32 * 40,
        minibatch_size=16,
        ppo_epochs=2,
        sampling=Sampling(max_new_tokens=5),
        shaping=Shaping(missing_eos="keep"),
        kl=FixedKL(0.0),
        optimizer=adam(3e-3),
        value_learning_rate=3e-3,
    )
    recorder = Recorder()
    batches = [{"prompts": prompt_batch(["go "] * 32)}]
    trainer(tmp_path, max_epochs=-1, callbacks=[recorder]).fit(module, FixedBatches(char_tokenizer, batches))
    scores = [row["ppo/objective/score"] for row in recorder.rows]
    assert scores[0] < 0.1  # one letter of 128
    assert scores[-1] > 0.8
    assert recorder.rows[-1]["ppo/objective/kl"] > 1  # it paid for it by leaving the reference
