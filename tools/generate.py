"""`instructlit generate`: a model's answers to prompts, as JSON Lines."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from instructlit.errors import UserError, require

if TYPE_CHECKING:
    from instructlit.types import Prompt


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
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
) -> None:
    """Answer prompts with a model, sampling as PPO does: from the full softmax, at one temperature.

    Writes one JSON object a prompt: the prompt with its user and use case, the `completions`, whether each `ended` by
    itself, and the `policy`; with `ranks` added such a row is a comparison.

    Args:
        model: folder or Hub name of a causal language model.
        prompts: files of prompts, in any of the forms that training reads.
        prompt: one prompt given here, instead of files.
        output: file to write; printed when not given.
        samples: answers to each prompt.
        max_new_tokens: most tokens in an answer.
        temperature: the logits are divided by it; 1 is the model's own distribution.
        greedy: take the likeliest token each time instead of sampling.
        batch_size: answers sampled together.
        seed: seed of the sampling; the same seed, prompts and batch size give the same answers.
        limit: answer the first so many prompts only.
        template: "auto" (the tokenizer's chat template, else plain), "plain", "turns", a Jinja file, or Jinja text.
        dtype: dtype to compute in; "auto" is bfloat16 on a GPU and float32 elsewhere.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", ...
    """
    if bool(prompts) == (prompt is not None):
        raise UserError(
            "both files and --prompt are given" if prompts else "there is nothing to answer",
            where="instructlit generate",
            expected="instructlit generate MODEL FILE [FILE ...], or MODEL --prompt TEXT",
        )
    require("a whole number above 0", "--", samples=samples, batch_size=batch_size, limit=limit)
    require("a seed, from 0 to 4294967295", "--", seed=seed)
    from instructlit.data.progress import progress
    from instructlit.rollout.engine import Sampling

    from .answering import load_answerer, with_room
    from .outputs import check_output

    if output is not None:
        check_output(output, *(prompts or []))
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, greedy=greedy)
    answerer = load_answerer(model, template=template, dtype=dtype, device=device)
    source = answerer.generator(seed)
    rows = with_room(_read(prompts, prompt, limit), answerer.encoder, answerer.room, max_new_tokens)
    jobs = (job for job in enumerate(row for _, row in rows) for _ in range(samples))
    answers: dict[int, list[tuple[str, bool]]] = {}
    with _writing(output) as out, progress("answering", len(rows), "prompts") as show:
        written = 0
        while part := list(islice(jobs, batch_size)):
            generation = answerer.generate([row for _, row in part], sampling, source)
            for (index, _), text, ended in zip(part, generation.texts, generation.ended.tolist(), strict=True):
                answers.setdefault(index, []).append((text, ended))
            while len(answers.get(written, ())) == samples:  # rows are written as soon as they are complete
                row = _row(rows[written][1].prompt, answers.pop(written), model)
                print(json.dumps(row, ensure_ascii=False), file=out)
                written += 1
            out.flush()
            show(written)
    if output:
        print(f"Written: {output}", file=sys.stderr)


def _read(files: list[str] | None, text: str | None, limit: int | None) -> "Iterator[tuple[str, Prompt]]":
    """Each prompt with where it stands."""
    from instructlit.types import Prompt

    from .sources import read_prompts

    if text is not None:
        yield "--prompt", Prompt(text)
        return
    yield from islice(read_prompts(files or []), limit)


def _row(prompt: "Prompt", answers: list[tuple[str, bool]], model: str) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": prompt.prompt}
    row |= {name: value for name in ("user", "use_case") if (value := getattr(prompt, name)) is not None}
    return row | {"completions": [a for a, _ in answers], "ended": [e for _, e in answers], "policy": model}


@contextmanager
def _writing(output: str | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        file = open(output, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}", where="--output") from error
    with file:
        yield file
