"""`instructlit chat`: talk to a model in the terminal, or through a pipe."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from instructlit.dtypes import AutoDtype
from instructlit.errors import UserError, require
from instructlit.terminal import harmless

if TYPE_CHECKING:
    from rich.console import Console

    from instructlit.types import Message, PromptText

    from .answering import Answerer

_HELP = """/reset        forget the conversation
/save [FILE]  append the conversation to a file, as a demonstration that training can read
/help         this list
/quit         quit (or press Ctrl-D); Ctrl-C stops an answer"""


def chat(
    model: str,
    *,
    system: str | None = None,
    style: Literal["auto", "turns", "text"] = "auto",
    max_new_tokens: int = 512,
    temperature: float = 1.0,
    greedy: bool = False,
    seed: int | None = None,
    template: str = "auto",
    save_to: str = "chat.jsonl",
    dtype: AutoDtype = "auto",
    device: str = "auto",
) -> None:
    """Talk to a model. Lines that begin with / are commands: /reset, /save, /help, /quit.

    If the input is a pipe or a file, each line is one message and only the answers are printed.

    Args:
        model: folder or Hub name of a causal language model.
        system: a system message that opens the conversation.
        style: "turns" keeps a conversation; "text" takes each line as a whole prompt, verbatim, with \\n for a line
            break; "auto" is "turns" for a tokenizer with a chat template and "text" without.
        max_new_tokens: most tokens in an answer.
        temperature: the logits are divided by it; 1 is the model's own distribution.
        greedy: take the likeliest token each time instead of sampling.
        seed: seed of the sampling; by default a different one each time.
        template: "auto" (the tokenizer's chat template, else plain), "plain", "turns", a Jinja file, or Jinja text.
        save_to: file that /save appends to by default.
        dtype: dtype to compute in; "auto" is bfloat16 on a GPU and float32 elsewhere.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", ...
    """
    require("a seed, from 0 to 4294967295", "--", seed=seed)
    import secrets

    from rich.console import Console

    from instructlit.rollout.engine import Sampling

    from .answering import load_answerer

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, greedy=greedy)
    answerer = load_answerer(model, template=template, dtype=dtype, device=device)
    generator = answerer.generator(secrets.randbits(31) if seed is None else seed)
    keeps_turns = answerer.encoder.renderer.uses_template if style == "auto" else style == "turns"
    talk = Conversation(answerer, system, keeps_turns, save_to)
    console, at_terminal = Console(highlight=False), sys.stdin.isatty()
    if at_terminal:
        kind = "a conversation" if keeps_turns else "each line is a separate prompt"
        console.print(f"[bold]{model}[/bold] ({kind}; /help lists the commands)")
    for line in _lines(console, at_terminal):
        if line.startswith("/"):
            if line.split()[0] == "/quit":
                break
            told = talk.command(line)
            console.print(told, style="dim", markup=False) if at_terminal else print(told, file=sys.stderr)
            continue
        try:
            ids = talk.ask(line, max_new_tokens)
        except UserError as error:
            if not at_terminal:
                raise
            console.print(str(error), style="red", markup=False)
            continue
        pieces = answerer.stream(ids, sampling, generator)
        talk.answered(_shown(pieces, console if at_terminal else None).strip())


class Conversation:
    """What has been said, and the commands that act on it.

    Args:
        answerer: the model and its tokenizer.
        system: the system message, if any.
        keeps_turns: remember earlier turns; otherwise every line is a separate prompt.
        save_to: where /save writes by default.

    Raises:
        UserError: there is a system message but turns are not kept.
    """

    def __init__(self, answerer: "Answerer", system: str | None, keeps_turns: bool, save_to: str):
        if system and not keeps_turns:
            raise UserError(
                "a system message needs a conversation, but here each line is a separate prompt",
                where="--system",
                fix="set --style turns",
            )
        self.answerer, self.keeps_turns, self.save_to = answerer, keeps_turns, save_to
        self.opening: list[Message] = [{"role": "system", "content": system}] if system else []
        self.turns: list[Message] = list(self.opening)

    def ask(self, line: str, new_tokens: int) -> list[int]:
        """The ids of the prompt that `line` makes; the oldest turns are dropped if the model has too few positions."""
        prompt: PromptText = line.replace("\\n", "\n")
        if not self.keeps_turns:
            self.turns = [{"role": "user", "content": prompt}]
            return self.answerer.encode(prompt, new_tokens, "prompt")
        turns = [*self.turns, {"role": "user", "content": line}]
        start = len(self.opening)
        while True:
            try:
                ids = self.answerer.encode(turns, new_tokens, "conversation")
                break
            except UserError:
                if len(turns) <= start + 1:
                    raise
                del turns[start : start + 2]
        self.turns = turns
        return ids

    def answered(self, text: str) -> None:
        """Add the model's turn."""
        self.turns.append({"role": "assistant", "content": text})

    def command(self, line: str) -> str:
        """Run a line that begins with /; returns the message for the user."""
        name, _, argument = line.partition(" ")
        if name == "/reset":
            self.turns = list(self.opening)
            return "The conversation is forgotten."
        if name == "/save":
            return self._save(Path(argument.strip() or self.save_to).expanduser())
        if name == "/help":
            return _HELP
        return f"There is no command {name}.\n{_HELP}"

    def _save(self, file: Path) -> str:
        if not self.turns or self.turns[-1]["role"] != "assistant":
            return "There is nothing to save yet."
        row: dict[str, object] = {"messages": self.turns}
        if not self.keeps_turns:
            row = {"prompt": self.turns[0]["content"], "completion": self.turns[1]["content"]}
        try:
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            return f"{file} cannot be written: {error.strerror}."
        return f"Added to {file}."


def _shown(pieces: Iterator[str], console: "Console | None") -> str:
    """An answer, printed while it comes, through the console if it is interactive; Ctrl-C ends it.

    Control sequences are removed for a terminal; a pipe or a file gets the answer as it is.
    """
    said, seen = "", console is not None or sys.stdout.isatty()
    try:
        for piece in pieces:
            shown = harmless(piece) if seen else piece
            if console is not None:
                console.print(shown, end="", markup=False, soft_wrap=True)
            else:
                print(shown, end="", flush=True)
            said += piece
    except KeyboardInterrupt:
        pass
    print(flush=True)
    return said


def _lines(console: "Console", at_terminal: bool) -> Iterator[str]:
    """What the user types, without empty lines, up to the end of the input."""
    while True:
        try:
            line = console.input("[bold cyan]> [/bold cyan]") if at_terminal else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            return
        if not at_terminal and not line:
            return
        if line.strip():
            yield line.strip() if line.startswith("/") else line.rstrip("\n")
