"""Sampled answers for the world's labelers."""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from instructlit.data.collate import EncodedPrompt
from instructlit.errors import UserError
from instructlit.evaluation.language_model import LanguageModel, load_language_model
from instructlit.rollout.engine import Sampling
from instructlit.types import Generation, Prompt

TURNS = 8
"""Batches of prompts that the engine gets at once, so that a prompt can take the place of one that is finished."""


def load_policy(folder: str | Path) -> LanguageModel:
    """The model of a Hugging Face folder in float32, on the accelerator where there is one.

    Raises:
        UserError: the folder does not exist or has no causal language model.
    """
    if not Path(folder).is_dir():
        raise UserError("no such model folder", where=str(folder), fix="train that stage first")
    return load_language_model(str(folder), dtype="float32", where=str(folder))


def seed_of(*parts: object) -> int:
    """A seed that depends on the parts and on nothing else."""
    return zlib.crc32("|".join(map(str, parts)).encode())


def sample(
    policy: LanguageModel, prompts: Sequence[Prompt], sampling: Sampling, seed: int, batch_size: int = 512
) -> Iterator[tuple[list[int], Generation]]:
    """One answer to every prompt; prompts of similar length are sampled together.

    Args:
        policy: the model that answers.
        prompts: the prompts.
        sampling: length limit and temperature.
        seed: seed of the sampling.
        batch_size: most answers decoded at a time.

    Yields:
        positions in `prompts`, and the answers to these prompts in this order.
    """
    generator = torch.Generator(device=policy.device).manual_seed(seed)
    order = sorted(range(len(prompts)), key=lambda i: (len(str(prompts[i].prompt)), i))
    for start in range(0, len(order), TURNS * batch_size):
        positions = order[start : start + TURNS * batch_size]
        rows = [EncodedPrompt(policy.encoder.prompt(prompts[i].prompt), prompts[i]) for i in positions]
        yield positions, policy.generate(rows, sampling, generator, batch_size)
