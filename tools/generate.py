"""`instructlit generate`: a model's answers to prompts, as JSON Lines."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructlit.dtypes import AutoDtype
from instructlit.errors import UserError, require
from instructlit.files import write_rows

if TYPE_CHECKING:
    from instructlit.data.collate import EncodedPrompt
    from instructlit.types import Prompt

    from .journal import Journal

Answer = tuple[str, bool]
"""A text, and whether it ended with EOS rather than at the limit."""


def generate(
    model: str,
    prompts: list[str] | None = None,
    *,
    prompt: str | None = None,
    output: str | None = None,
    samples: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    greedy: bool = False,
    batch_size: int = 32,
    seed: int = 0,
    limit: int | None = None,
    template: str = "auto",
    dtype: AutoDtype = "auto",
    device: str = "auto",
) -> None:
    """Answer prompts with a model, sampling as PPO does: from the full softmax, at one temperature.

    Writes one JSON object a prompt: the prompt with its user and use case, the `completions`, whether each `ended` by
    itself, and the `policy`; with `ranks` added such a row is a comparison. If interrupted, the same command with
    --output resumes and gives the same answers.

    Args:
        model: folder or Hub name of a causal language model.
        prompts: files of prompts, in any format that training reads.
        prompt: a single prompt, instead of files.
        output: file to write once all prompts are answered; without it, rows are printed.
        samples: answers to each prompt.
        max_new_tokens: most tokens in an answer.
        temperature: the logits are divided by it; 1 is the model's own distribution.
        greedy: take the likeliest token each time instead of sampling.
        batch_size: answers sampled together.
        seed: seed of the sampling; the same seed, prompts and batch size give the same answers.
        limit: answer only this many prompts, the first ones.
        template: "auto" (the tokenizer's chat template, else plain), "plain", "turns", a Jinja file, or Jinja text.
        dtype: dtype to compute in; "auto" is bfloat16 on a GPU and float32 elsewhere.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", ...
    """
    if bool(prompts) == (prompt is not None):
        raise UserError(
            "both files and --prompt are given" if prompts else "no prompts are given",
            where="instructlit generate",
            expected="instructlit generate MODEL FILE [FILE ...], or MODEL --prompt TEXT",
        )
    require("a whole number above 0", "--", samples=samples, batch_size=batch_size, limit=limit)
    require("a seed, from 0 to 4294967295", "--", seed=seed)
    if greedy and samples > 1:
        raise UserError("greedy answers are all the same", where="--samples", expected="1, or no --greedy")
    from instructlit.data.progress import progress
    from instructlit.models.lineage import weights_digest
    from instructlit.rollout.engine import Sampling

    from .answering import load_answerer, with_room
    from .journal import Journal, partial_file
    from .outputs import check_output
    from .sources import prompts_digest

    if output is not None:
        check_output(output, *(prompts or []))
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, greedy=greedy)
    answerer = load_answerer(model, template=template, dtype=dtype, device=device)
    read = _read(prompts, prompt, limit)
    rows = [row for _, row in with_room(read, answerer.encoder, answerer.room, max_new_tokens)]
    journal = None
    if output is not None and (Path(output).is_file() or not Path(output).exists()):  # not a pipe or /dev/null
        made_from = {
            "model": model, "weights_sha256": weights_digest(model), "samples": samples,
            "prompts": prompts_digest(row.prompt for row in rows), "max_new_tokens": max_new_tokens, "greedy": greedy,
            "temperature": temperature, "batch_size": batch_size, "seed": seed, "template": template, "dtype": dtype,
        }  # fmt: skip
        journal = Journal(partial_file(output), made_from)

    def draw(number: int, part: "list[EncodedPrompt]") -> list[Answer]:
        """The answers of a batch, kept or drawn now. Its random numbers follow from the seed and its number alone, so
        that a resumed run draws what an uninterrupted one would."""
        key = str(number)
        if journal is not None and key in journal:
            return journal[key]
        drawn = answerer.answers(part, sampling, f"{seed} {key}")
        if journal is not None:
            journal.put(key, drawn)
        return drawn

    with progress("answering", len(rows), "prompts") as show:
        answered = (_row(p, answers, model) for p, answers in _answered(rows, samples, batch_size, draw, show))
        _write(answered, output, journal)
    if output:
        print(f"Written: {output}", file=sys.stderr)


def _answered(
    rows: "list[EncodedPrompt]",
    samples: int,
    batch_size: int,
    draw: "Callable[[int, list[EncodedPrompt]], list[Answer]]",
    show: Callable[[int], object],
) -> "Iterator[tuple[Prompt, list[Answer]]]":
    """The prompts with their answers, each as soon as it has all of them."""
    jobs = (index for index in range(len(rows)) for _ in range(samples))
    answers: dict[int, list[Answer]] = {}
    done = 0
    for number in count():
        part = list(islice(jobs, batch_size))
        if not part:
            return
        for index, answer in zip(part, draw(number, [rows[index] for index in part]), strict=True):
            answers.setdefault(index, []).append(answer)
        while len(answers.get(done, ())) == samples:
            yield rows[done].prompt, answers.pop(done)
            done += 1
        show(done)


def _write(rows: Iterator[dict[str, Any]], output: str | None, journal: "Journal | None") -> None:
    """All rows at once if a journal keeps the answers until then, else each as it comes."""
    if output is not None and journal is not None:
        write_rows(output, list(rows))
        journal.close(remove=True)
        return
    with open(output, "w", encoding="utf-8") if output else nullcontext(sys.stdout) as out:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False), file=out, flush=True)


def _read(files: list[str] | None, text: str | None, limit: int | None) -> "Iterator[tuple[str, Prompt]]":
    """Each prompt with where it comes from."""
    from instructlit.types import Prompt

    from .sources import read_prompts

    if text is not None:
        yield "--prompt", Prompt(text)
        return
    yield from islice(read_prompts(files or []), limit)


def _row(prompt: "Prompt", answers: list[Answer], model: str) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": prompt.prompt}
    row |= {name: value for name in ("user", "use_case") if (value := getattr(prompt, name)) is not None}
    return row | {"completions": [a for a, _ in answers], "ended": [e for _, e in answers], "policy": model}
