"""A model made ready to answer: what `generate`, `collect` and `chat` share."""

from collections.abc import Iterator

import torch

from instructlit.data.collate import EncodedPrompt
from instructlit.errors import UserError
from instructlit.evaluation.language_model import Dtype, LanguageModel, load_language_model
from instructlit.rollout.drawing import chance, draw
from instructlit.rollout.engine import Sampling, further_ends
from instructlit.types import Prompt, PromptText


class Answerer(LanguageModel):
    """A language model that answers one prompt, as it is sampled, or says which has no room."""

    def encode(self, prompt: PromptText, new_tokens: int, where: str) -> list[int]:
        """Ids of a prompt.

        Raises:
            UserError: the prompt has no token; prompt and response together have more than the model has positions.
        """
        ids = self.encoder.prompt(prompt)
        if not ids:
            raise UserError(f"the prompt {prompt!r} has no token", where=where, expected="a text")
        if self.room is not None and len(ids) + new_tokens > self.room:
            raise UserError(
                f"the prompt has {len(ids)} tokens and the answer may have {new_tokens}",
                where=where,
                expected=f"together at most the model's {self.room} positions",
                fix="lower --max_new_tokens, or shorten the prompt",
            )
        return ids

    @torch.no_grad()
    def stream(self, ids: list[int], sampling: Sampling, generator: torch.Generator) -> Iterator[str]:
        """The response to one prompt in pieces of text, as it is sampled."""
        ends, said, shown = {self.tokenizer.eos_token_id, *further_ends(self.model)}, [], ""
        given, cache = torch.tensor([ids], device=self.device), None
        for _ in range(sampling.max_new_tokens):
            out = self.model(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits, cache = out.logits[:, -1], out.past_key_values
            luck = None if sampling.greedy else chance(1, self.device, generator)
            given = draw(logits, sampling.temperature, luck)[0][:, None]
            token = int(given)
            if token in ends:
                break
            said.append(token)
            text = self.tokenizer.decode(said, skip_special_tokens=True)
            if not text.endswith("\ufffd"):  # half of a character: wait for the rest
                yield text[len(shown) :]
                shown = text
        yield self.tokenizer.decode(said, skip_special_tokens=True)[len(shown) :]

    def generator(self, seed: int) -> torch.Generator:
        """A source of randomness of its own, on the device."""
        return torch.Generator(self.device).manual_seed(seed)


def load_answerer(model: str, *, template: str, dtype: Dtype, device: str) -> Answerer:
    """The policy in a folder or of a Hub name, ready to answer.

    Raises:
        UserError: what `load_causal_lm` and `load_tokenizer` refuse; a device that is not there.
    """
    loaded = load_language_model(model, dtype=dtype, device=device)
    return Answerer(loaded.model, loaded.tokenizer, loaded.device, template)


def encoded(answerer: Answerer, prompt: Prompt, new_tokens: int, where: str) -> EncodedPrompt:
    """A prompt with its ids."""
    return EncodedPrompt(answerer.encode(prompt.prompt, new_tokens, where), prompt)
