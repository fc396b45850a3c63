"""The text of prompts and examples: the one place that applies chat templates.

An example is always the prompt's own text, then the completion, then what ends the turn. Sampling starts from exactly
the prompt's text, so a model is trained on what it sees when it answers. `differs` detects templates that would render
a finished turn in another way (by trimming the completion, for example), and `instructlit data check` counts the cases.
"""

from pathlib import Path
from typing import Any

from instructlit.errors import UserError
from instructlit.types import Message, PromptText

_PROBE = "instructlit-completion"
_ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}

# The plain layout as a chat template: what `template="turns"` sets on a tokenizer, so that every export
# contains it.
# Line breaks are in string literals, because transformers drops the one after a block.
TURNS = (
    "{% for message in messages %}"
    "{{ {'system': 'System', 'user': 'User', 'assistant': 'Assistant'}[message['role']] + ':\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' and loop.last else '\n\n' }}"
    "{% endfor %}{{ 'Assistant:\n' if add_generation_prompt else '' }}"
)


def plain_text(prompt: PromptText) -> str:
    """The layout for tokenizers without a chat template: text unchanged, messages as `Role:`, content, blank line."""
    if isinstance(prompt, str):
        return prompt
    return "".join(f"{_ROLES[m['role']]}:\n{m['content']}\n\n" for m in prompt) + "Assistant:\n"


def adds_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer adds a BOS to plain text."""
    return tokenizer.bos_token_id is not None and added(tokenizer.backend_tokenizer, 0) == tokenizer.bos_token_id


def added(backend: Any, place: int) -> int | None:
    """The id that a tokenizer of the `tokenizers` library adds there, 0 being before a text and -1 after it; None if it
    adds none, though the text itself may have that id there: that of an unknown token."""
    probe = backend.encode("a")
    return probe.ids[place] if probe.ids and probe.special_tokens_mask[place] else None


class Renderer:
    """Turns prompts and completions into text.

    Args:
        tokenizer: a Hugging Face tokenizer; its chat template is replaced if `template` provides one.
        template: "auto" (the tokenizer's chat template if it has one, else plain), "plain", "turns" (the plain layout
            as a chat template), the path of a Jinja file, or Jinja text itself.
    """

    def __init__(self, tokenizer: Any, template: str = "auto"):
        self.tokenizer, own = tokenizer, tokenizer.chat_template
        if template not in ("auto", "plain"):
            tokenizer.chat_template = self._template_text(template)
        elif template == "auto" and isinstance(own, dict) and "default" not in own:
            raise UserError(
                f"the tokenizer has the chat templates {', '.join(own)} but none named default",
                where="template",
                expected="one chat template, or several of which one is named default",
                fix="save the one you want as a Jinja file and give its path",
            )
        self.uses_template = template != "plain" and tokenizer.chat_template is not None
        self._lead = self._tail = self._after_prompt = ""
        if self.uses_template:
            self._probe()

    @property
    def template(self) -> str | None:
        """The chat template in use; None for the plain layout."""
        return str(self.tokenizer.chat_template) if self.uses_template else None

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the tokenizer may add its own BOS: a chat template writes BOS itself, plain text does not."""
        return not self.uses_template

    @property
    def ends_with_eos(self) -> bool:
        """Whether the template's own end of a turn is the tokenizer's EOS (plain text has no end of its own)."""
        return not self.uses_template or self.tokenizer.eos_token in self._tail

    @property
    def put_behind_prompts(self) -> str:
        """What the template writes before an answer but not as a generation prompt, and is added to every prompt here:
        the assistant's header if the template has no generation prompt, or an empty reasoning block."""
        return self._after_prompt

    def prompt(self, prompt: PromptText) -> str:
        """The text a model answers, up to the place where its response starts.

        Raises:
            UserError: if the template rejects these messages.
        """
        if not self.uses_template:
            return plain_text(prompt)
        return self._render(_messages(prompt), generation=True) + self._after_prompt

    def example(self, prompt: PromptText, completion: str, ended: bool = True) -> tuple[str, tuple[int, int]]:
        """Prompt, completion and end of turn as one text, and the span of characters to learn (the last two of them).

        If the template has no EOS, the text has none either: encoding adds it, as an id. Nothing follows a completion
        that has not `ended`.
        """
        start = self.prompt(prompt)
        text = start + self._lead + completion + (self._tail if ended else "")
        return text, (len(start), len(text))

    def differs(self, prompt: PromptText, completion: str) -> bool:
        """Whether the template renders the finished conversation differently from `example`."""
        if not self.uses_template:
            return False
        own = self._render([*_messages(prompt), {"role": "assistant", "content": completion}], generation=False)
        ours, _ = self.example(prompt, completion)
        return not own.startswith(ours)

    def _template_text(self, template: str) -> str:
        if template == "turns":
            return ("{{ bos_token }}" if adds_bos(self.tokenizer) else "") + TURNS
        if "{{" in template or "{%" in template:
            return template
        path = Path(template).expanduser()
        if not path.is_file():
            raise UserError(
                f"no such file: {template}",
                where="template",
                expected='"auto", "plain", "turns", the path of a Jinja file, or Jinja text with {{ }} in it',
            )
        return path.read_text(encoding="utf-8")

    def _render(self, messages: list[Message], generation: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
        except Exception as error:  # a template can raise any kind of exception
            roles = ", ".join(m["role"] for m in messages)
            raise UserError(
                f"the chat template rejects the roles {roles}: {error}",
                expected="a conversation that this tokenizer's template accepts",
                fix="use `template: turns` or your own Jinja file, unless you need this template unchanged",
            ) from error

    def _probe(self) -> None:
        """Finds out from one made-up turn what the template writes around a completion."""
        user: list[Message] = [{"role": "user", "content": "x"}]
        opened = self._render(user, generation=True)
        whole = self._render([*user, {"role": "assistant", "content": _PROBE}], generation=False)
        before, found, after = whole.partition(_PROBE)
        if not found:
            raise UserError("the chat template omits the assistant's message", where="template")
        if before.startswith(opened):
            between = before[len(opened) :]
            # Whitespace belongs to the completion, as a model trained with this template learned it; a role header
            # belongs to the prompt.
            if between.strip():
                self._after_prompt = between
            else:
                self._lead = between
        eos = self.tokenizer.eos_token
        self._tail = after[: after.index(eos) + len(eos)] if eos in after else after.rstrip()


def _messages(prompt: PromptText) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
