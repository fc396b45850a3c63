"""Text to ids. Prompt and completion are tokenised together; the loss mask comes from character offsets.

A token that holds any character of the completion belongs to the response. Where the tokenizer merges the end of the
prompt with the start of the completion (a prompt that ends in a space, say), or splits that end otherwise when nothing
follows (GPT-2's does so with a blank line), the ids of the prompt alone are not a prefix of the example's;
`Encoder.prompt_is_prefix` detects this, the first rows of a run are looked at, and `instructlit data check` counts it.
A line break after other text or a template's marker between the two keeps them apart.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import tokenizers
import transformers
from tokenizers import Tokenizer

from instructlit.data.chat import Renderer, added
from instructlit.types import PromptText


@dataclass(frozen=True)
class Encoded:
    """One sequence: prompt, response and, if nothing was cut off, exactly one EOS.

    Example with `ord` as the tokenizer, prompt "ab", completion "c", EOS 0: `ids = [97, 98, 99, 0]`, `start = 2`.
    """

    ids: list[int]
    start: int  # index of the first response token; all of the rest are response
    truncated: bool = False

    @property
    def loss_mask(self) -> list[bool]:
        """True on the response tokens, EOS included."""
        return [i >= self.start for i in range(len(self.ids))]

    def cut(self, length: int | None) -> "Encoded":
        """Its first `length` tokens; None, or a length it does not exceed, changes nothing."""
        if length is None or len(self.ids) <= length:
            return self
        return Encoded(self.ids[:length], self.start, truncated=True)

    @property
    def all_masked(self) -> bool:
        """Nothing of the response is left to learn from."""
        return self.start >= len(self.ids)


class Encoder:
    """Encodes prompts, examples and documents with one tokenizer and one template.

    Args:
        tokenizer: a fast Hugging Face tokenizer that has an EOS.
        template: see `Renderer`.
        max_length: tokens of prompt and response together; longer ones are truncated at the end and get no EOS.
    """

    def __init__(self, tokenizer: Any, template: str = "auto", max_length: int | None = None):
        self.renderer = Renderer(tokenizer, template)
        self.max_length = max_length
        self.bos: int | None = tokenizer.bos_token_id
        self.eos: int = tokenizer.eos_token_id
        # A copy: truncation or padding that other code turns on must not affect these ids.
        self._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._adds_eos = added(self._tokenizer, -1) == self.eos

    @property
    def identity(self) -> dict[str, Any] | None:
        """Everything the ids depend on besides the text, as JSON values; None for a template that uses the date."""
        tokenizer, template = self.renderer.tokenizer, self.renderer.template
        if template is not None and "strftime_now" in template:
            return None
        return {
            "tokenizer": hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest(),
            "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            "template": template,
            "max_length": self.max_length,
            "versions": [tokenizers.__version__, transformers.__version__],
        }

    def prompt(self, prompt: PromptText) -> list[int]:
        """Ids of the prompt as the model sees it when it answers."""
        return self._ids(self.renderer.prompt(prompt))[0]

    def example(self, prompt: PromptText, completion: str, ended: bool = True) -> Encoded:
        """Ids of prompt, completion and EOS, tokenised as one text and truncated to `max_length`; without EOS if the
        completion was already cut off (not `ended`).
        """
        text, (start, _) = self.renderer.example(prompt, completion, ended)
        ids, ends = self._ids(text)
        first = next((i for i, end in enumerate(ends) if end > start), len(ids))
        while len(ids) > first and ids[-1] == self.eos:  # an EOS of the text or the template: one is enough
            ids.pop()
        if ended:
            ids.append(self.eos)
        return Encoded(ids, first).cut(self.max_length)

    def document(self, text: str) -> list[int]:
        """Ids of a document of the pretraining mix and the EOS that separates it from the next."""
        ids, _ = self._encode(text, special=True)
        while ids[-1:] == [self.eos]:  # of the text: one is enough
            ids.pop()
        return [*ids, self.eos]

    def prompt_is_prefix(self, prompt: PromptText, example: Encoded) -> bool:
        """Whether `example`, made from this prompt and not truncated, begins with the ids of the prompt alone."""
        ids = self.prompt(prompt)
        return example.ids[: len(ids)] == ids and example.start == len(ids)

    def _ids(self, text: str) -> tuple[list[int], list[int]]:
        return self._encode(text, special=self.renderer.adds_special_tokens)

    def _encode(self, text: str, special: bool) -> tuple[list[int], list[int]]:
        """Ids without an EOS added by the tokenizer and without a doubled BOS, and the end offset of each."""
        encoding = self._tokenizer.encode(text, add_special_tokens=special)
        ids, ends = list(encoding.ids), [end for _, end in encoding.offsets]
        if special and self._adds_eos:
            ids, ends = ids[:-1], ends[:-1]
        if ids[:2] == [self.bos, self.bos]:
            ids, ends = ids[1:], ends[1:]
        return ids, ends
