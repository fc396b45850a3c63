"""Engines outside this process: weights are passed as a folder, prompts and samples as ids."""

import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from instructlit.errors import UserError
from instructlit.models.export import check_no_source, save_weights
from instructlit.models.ranks import on_every_rank
from instructlit.rollout.engine import GenerationEngine, Sampling, as_generation, eos_and_pad
from instructlit.types import Generation, PromptBatch

Sample = tuple[list[int], list[float]]
"""Ids of a response, EOS included, and the log-prob each was sampled at, in nats at the sampling temperature."""


class ExternalEngine(GenerationEngine):
    """Base of engines that load the policy from a folder. A subclass says how to `reload` and to `sample`.

    `sync` writes the policy to the folder as plain Hugging Face weights, adapters merged, and has them reloaded. Such
    an engine computes with other kernels, and often in another precision, than the trainer: `ppo/engine/gap` is how far
    its log-probs are from the trainer's, and `sampler_correction` of `PPOModule` corrects for it.

    Args:
        folder: where the weights go, seen by all processes and by the engine; it is replaced at every sync. None takes
            a temporary folder, removed with this process.
    """

    def __init__(self, folder: str | None = None):
        self.folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._synced = False

    @abstractmethod
    def reload(self, folder: Path) -> None:
        """Make the engine load the weights in `folder`; called on every rank, once the first has written them."""

    @abstractmethod
    def sample(self, prompts: Sequence[list[int]], sampling: Sampling, eos: int, seeds: Sequence[int]) -> list[Sample]:
        """A response to each prompt from softmax(logits / temperature) of the weights reloaded last.

        Args:
            prompts: their ids, without padding.
            sampling: length limit and temperature, or greedy.
            eos: the id that ends a response.
            seeds: of each response's own source of randomness.
        """

    def sync(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        """Hand over the current weights.

        Raises:
            UserError: policy or tokenizer were loaded from the folder, or it cannot be written.
        """
        folder = self._place()
        policy = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
        check_no_source(folder, [policy, str(tokenizer.name_or_path)], "engine.folder")
        save_weights(model, tokenizer, folder)
        self.reload(folder)
        self._synced = True

    @torch.no_grad()
    def generate(
        self,
        model: nn.Module,
        prompts: PromptBatch,
        sampling: Sampling,
        tokenizer: PreTrainedTokenizerBase,
        generator: torch.Generator | None = None,
    ) -> Generation:
        if not self._synced:
            self.sync(model, tokenizer)
        ids, device = prompts.input_ids, prompts.input_ids.device
        # one seed for all would draw the same numbers for every prompt
        seeds = torch.randint(2**31, (len(prompts),), generator=generator, device=device).tolist()
        eos, pad = eos_and_pad(tokenizer)
        rows = [row[mask].tolist() for row, mask in zip(ids, prompts.attention_mask, strict=True)]
        samples = self.sample(rows, sampling, eos, seeds)
        response_ids, log_probs = _padded(samples, sampling.max_new_tokens, eos, pad)
        return as_generation(prompts, response_ids.to(device), log_probs.to(device), tokenizer)

    def _place(self) -> Path:
        """The folder, the same on every rank."""
        if self.folder is None:
            self._temporary = self._temporary or tempfile.TemporaryDirectory(prefix="instructlit-policy-")
            self.folder = on_every_rank(str(Path(self._temporary.name) / "policy"))[0]
        return Path(self.folder).expanduser()


def _padded(samples: Sequence[Sample], longest: int, eos: int, pad: int) -> tuple[Tensor, Tensor]:
    """Ids (B, R) int64 and log-probs (B, R) float32 of samples of different length.

    Raises:
        UserError: a response that is empty, too long, or short and without EOS.
    """
    width = max(len(ids) for ids, _ in samples)
    response_ids = torch.full((len(samples), width), pad, dtype=torch.int64)
    log_probs = torch.zeros(len(samples), width, dtype=torch.float32)  # under bf16-true the default has 16 bits
    for row, (ids, values) in enumerate(samples):
        whole = ids[-1:] == [eos] or len(ids) == longest
        if not whole or len(ids) > longest or len(ids) != len(values):
            raise UserError(
                f"the engine gave a response of {len(ids)} tokens and {len(values)} log-probs"
                + ("" if whole else " that neither ends with EOS nor has the requested length"),
                where="engine",
                expected=f"tokens up to and including EOS (id {eos}), or {longest} of them, each with its log-prob",
                fix="give the engine room for prompt and response (vLLM: --max-model-len)",
            )
        response_ids[row, : len(ids)] = torch.tensor(ids)
        log_probs[row, : len(ids)] = torch.tensor(values, dtype=torch.float32)
    return response_ids, log_probs
