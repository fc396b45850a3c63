"""What labelling and evaluation need of a model folder: sampled answers, and log-probs of given texts."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instructlit.data.collate import EncodedPrompt, collate_prompts
from instructlit.data.tokenization import Encoded, Encoder
from instructlit.data.tokenizers import load_tokenizer
from instructlit.errors import UserError
from instructlit.evaluation.language_model import score_rows
from instructlit.models.backbone import Backbone, load_causal_lm
from instructlit.rollout.engine import CachedEngine, Sampling
from instructlit.types import Generation, Prompt, PromptBatch


@dataclass
class Policy:
    """A loaded model with its tokenizer, dropout off."""

    model: Any
    tokenizer: Any
    encoder: Encoder
    device: torch.device

    @classmethod
    def load(cls, folder: str | Path, device: torch.device) -> "Policy":
        """The model of a Hugging Face folder.

        Raises:
            UserError: the folder is not there or holds no causal language model.
        """
        if not Path(folder).is_dir():
            raise UserError("no such model folder", where=str(folder), fix="train that stage first")
        tokenizer = load_tokenizer(str(folder))
        model: Any = load_causal_lm(Backbone(str(folder))).eval().requires_grad_(False)
        return cls(model.to(device), tokenizer, Encoder(tokenizer), device)

    def batch(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """The prompts as left-padded ids on the model's device."""
        encoded = [EncodedPrompt(self.encoder.prompt(prompt.prompt), prompt) for prompt in prompts]
        made = collate_prompts(encoded, self.tokenizer.pad_token_id)
        return PromptBatch(made.input_ids.to(self.device), made.attention_mask.to(self.device), made.prompts)


def best_device() -> torch.device:
    """The accelerator where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seed_of(*parts: object) -> int:
    """A seed that depends on the parts and on nothing else."""
    return zlib.crc32("|".join(map(str, parts)).encode())


def sample(
    policy: Policy, prompts: Sequence[Prompt], sampling: Sampling, seed: int, batch_size: int = 512
) -> Iterator[tuple[list[int], Generation]]:
    """One answer to every prompt, in batches of prompts of like length.

    Yields:
        positions in `prompts`, and the answers to these in this order.
    """
    generator = torch.Generator(device=policy.device).manual_seed(seed)
    order = sorted(range(len(prompts)), key=lambda i: (len(str(prompts[i].prompt)), i))
    for start in range(0, len(order), batch_size):
        positions = order[start : start + batch_size]
        batch = policy.batch([prompts[i] for i in positions])
        yield positions, CachedEngine().generate(policy.model, batch, sampling, policy.tokenizer, generator)


def log_prob_sums(policy: Policy, rows: Sequence[Encoded], batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Log-probs of the response tokens of encoded rows; a first token, which nothing predicts, does not count.

    Returns:
        (N,) float64 sums in nats, and (N,) float64 numbers of tokens counted.
    """
    pad = policy.tokenizer.pad_token_id
    sums, counts, _ = score_rows(policy.model, rows, pad, policy.device, size=batch_size)
    return sums, counts
