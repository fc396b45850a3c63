"""A model made ready to answer: what `generate`, `collect` and `chat` share."""

import sys
import zlib
from collections.abc import Iterable, Iterator

import torch

from instructlit.data.collate import EncodedPrompt
from instructlit.data.tokenization import Encoder
from instructlit.data.tokenizers import decoded
from instructlit.dtypes import AutoDtype
from instructlit.errors import UserError, counted
from instructlit.evaluation.language_model import LanguageModel, load_language_model
from instructlit.rollout.decoders import plain_decoder
from instructlit.rollout.drawing import chance, draw
from instructlit.rollout.engine import Sampling, further_ends
from instructlit.types import Prompt, PromptText


class Answerer(LanguageModel):
    """A language model that streams the answer to one prompt, or says which prompt does not fit."""

    def encode(self, prompt: PromptText, new_tokens: int, where: str) -> list[int]:
        """Ids of a prompt.

        Raises:
            UserError: the prompt has no token; prompt and response together need more positions than the model has.
        """
        ((_, row),) = with_room([(where, Prompt(prompt))], self.encoder, self.room, new_tokens)
        return row.ids

    @torch.no_grad()
    def stream(self, ids: list[int], sampling: Sampling, generator: torch.Generator) -> Iterator[str]:
        """The response to one prompt in pieces of text, as it is sampled."""
        ends, said, shown = {self.tokenizer.eos_token_id, *further_ends(self.model)}, [], ""
        decoder, drawn = plain_decoder(self.model), torch.tensor([ids], device=self.device)
        mask = torch.ones_like(drawn, dtype=torch.bool)
        for number in range(sampling.max_new_tokens):
            logits = decoder.step(drawn, mask[:, -1]) if number else decoder.read(drawn.new_zeros(1), drawn, mask)
            luck = None if sampling.greedy else chance(1, self.device, generator)
            drawn, _ = draw(logits, sampling.temperature, luck)
            token = int(drawn)
            if token in ends:
                break
            said.append(token)
            text = decoded(self.tokenizer, said)
            if not text.endswith("\ufffd"):  # half of a character: wait for the rest
                yield text[len(shown) :]
                shown = text
        yield decoded(self.tokenizer, said)[len(shown) :]

    def answers(self, prompts: list[EncodedPrompt], sampling: Sampling, stream: str) -> list[tuple[str, bool]]:
        """The responses to a batch, each with whether it ended by itself; `stream` names their random numbers."""
        generation = self.generate(prompts, sampling, self.generator(zlib.crc32(stream.encode())))
        return list(zip(generation.texts, generation.ended.tolist(), strict=True))

    def generator(self, seed: int) -> torch.Generator:
        """A new random generator on the device."""
        return torch.Generator(self.device).manual_seed(seed)


def load_answerer(model: str, *, template: str, dtype: AutoDtype, device: str) -> Answerer:
    """The policy in a folder or of a Hub name, ready to answer.

    Raises:
        UserError: what `load_causal_lm` and `load_tokenizer` refuse; a device that is not available.
    """
    loaded = load_language_model(model, dtype=dtype, device=device)
    return Answerer(loaded.model, loaded.tokenizer, loaded.device, template)


def with_room(
    rows: Iterable[tuple[str, Prompt]], encoder: Encoder, room: int | None, new_tokens: int
) -> list[tuple[str, EncodedPrompt]]:
    """The prompts that leave room for an answer, with where they come from; it prints how many do not.

    Args:
        rows: where each prompt comes from, and the prompt.
        encoder: renders and tokenises them.
        room: positions of the model; None where its architecture sets no limit.
        new_tokens: most tokens of an answer.

    Raises:
        UserError: a prompt has no token; none leaves room.
    """
    kept, without = [], []
    for where, prompt in rows:
        ids = encoder.prompt(prompt.prompt)
        if not ids:
            raise UserError(f"the prompt {prompt.prompt!r} has no tokens", where=where, expected="text")
        if room is None or len(ids) + new_tokens <= room:
            kept.append((where, EncodedPrompt(ids, prompt)))
        else:
            without.append((where, len(ids)))
    if not without:
        return kept
    where, tokens = without[0]
    if not kept:
        raise UserError(
            f"the prompt has {tokens} tokens and the answer may have {new_tokens}",
            where=where,
            expected=f"together at most the model's {room} positions",
            fix="lower --max_new_tokens, or shorten the prompt",
        )
    print(
        f"left out: {counted(len(without), 'prompt')} too long to leave room for {new_tokens} new tokens in the "
        f"model's {room} positions; the first is {where}, with {tokens} tokens",
        file=sys.stderr,
    )
    return kept
