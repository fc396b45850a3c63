"""`instructlit collect`: answers of policies to prompts, as blind tasks for labelers."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from instructlit.dtypes import AutoDtype
from instructlit.errors import UserError, counted, require
from instructlit.rubric import MAX_OUTPUTS, MIN_OUTPUTS

if TYPE_CHECKING:
    from instructlit.tools.collect.answers import Source, Wanted
    from instructlit.types import Prompt

Select = Literal["random", "use_case", "disagreement"]


def collect(
    policies: list[str],
    prompts: list[str],
    *,
    output: str = "tasks.jsonl",
    kind: Literal["comparison", "evaluation"] = "comparison",
    completions: list[int] | None = None,
    select: Select = "random",
    limit: int | None = None,
    pool: int | None = None,
    use_cases: list[str] | None = None,
    ensemble: list[str] | None = None,
    reward: str | None = None,
    round: int | None = None,
    seed: int = 0,
    max_new_tokens: int = 256,
    batch_size: int = 64,
    attempts: int = 4,
    template: str = "auto",
    dtype: AutoDtype = "auto",
    device: str = "auto",
    database: str | None = None,
    overlap: int = 1,
) -> None:
    """Sample answers to prompts from one or several policies and write them as tasks for labelers.

    The answers to a prompt are distinct and in random order. The tasks do not contain policies or scores, which are
    written to a separate key file (tasks.key.jsonl). If interrupted, the same command resumes and gives the same
    answers; once finished, it does nothing.

    Args:
        policies: model folders, or Hub names, in equal shares, each with `@` and a temperature if that is not 1,
            as in `models/ppo@0.7`.
        prompts: files of prompts, in any format that training reads.
        output: file of tasks.
        kind: `comparison` trains a reward model; `evaluation` compares policies: every policy answers every prompt
            once, and equal answers are kept as ties.
        completions: answers to each prompt of a comparison, 2 to 9: one number, by default 4, or a minimum and a
            maximum, as in `4 9`.
        select: which prompts, if there is a limit: at `random`, evenly by `use_case`, or those on whose answers the
            reward models of `ensemble` disagree most.
        limit: number of prompts; all unless given.
        pool: with `disagreement` and a limit, answer only this many prompts, chosen at random, before selecting; all
            unless given.
        use_cases: only prompts of these use cases.
        ensemble: two or more reward models, for `disagreement`.
        reward: a reward model whose scores go into the key.
        round: the round of the loop, noted in every task.
        seed: seed of the choice, the sampling and the order.
        max_new_tokens: maximum length of an answer.
        batch_size: number of answers sampled together.
        attempts: maximum times that an answer is sampled while it is a duplicate; a prompt left with fewer than two
            answers is skipped.
        template: as for the datamodules.
        dtype: dtype to compute in.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        database: a labelling database (`instructlit label`) that the tasks are also added to; tasks that already
            exist there are skipped.
        overlap: how many people label a task there.
    """
    least, most = _range([4] if completions is None else completions)
    if kind == "evaluation":
        least = most = len(policies)
    _check(kind, policies, select, limit, ensemble, attempts, batch_size, pool, overlap)
    _check_used(kind, completions, limit, pool, database, overlap)
    from instructlit.evaluation.reward_scores import check_reward_model
    from instructlit.tools.collect.answers import Drawing, Source, draw_answers, score_answers
    from instructlit.tools.collect.selection import chosen, most_disputed
    from instructlit.tools.collect.tasks import identity, put_into, write
    from instructlit.tools.journal import Journal, partial_file
    from instructlit.tools.made_from import read_made
    from instructlit.tools.outputs import check_output
    from instructlit.tools.sources import parse_source

    check_output(output, *prompts)
    sources = [Source(*parse_source(text)) for text in policies]
    room = _room(sources)
    for model in [*(ensemble or []), *([reward] if reward else [])]:
        check_reward_model(model, model, template)
    how = Drawing(
        sources, least, most, max_new_tokens, batch_size, attempts if kind == "comparison" else 1,
        kind == "comparison", seed, template, dtype, device,
    )  # fmt: skip
    found, places = _distinct(prompts)
    wanted = chosen(found, select, limit, pool, use_cases, seed)
    asked = _with_room([(places[i], found[i]) for i in wanted], room, template, max_new_tokens)
    if database is not None:
        from instructlit.labelling.database import Database

        Database(database).close()  # created if missing: only sampling can fail after this

    target = Path(output)
    told = {"kind": kind, "select": select, "limit": limit, "ensemble": ensemble, "reward": reward, "round": round}
    record = identity(how, asked, told)
    if target.is_file() and read_made(target).get("from") == record:
        print(f"{target}: already complete")
        # left by a kill just before its removal, it would look like unfinished work
        partial_file(target).unlink(missing_ok=True)
        put_into(database, overlap, target)
        return
    journal = Journal(partial_file(target), record)
    drawn = draw_answers(asked, how, journal)
    kept = [row for row, its in enumerate(drawn) if len(its.answers) > 1]
    if select == "disagreement" and limit is not None:
        kept = most_disputed(kept, [score_answers(m, asked, drawn, how, journal) for m in ensemble or []], limit)
    scores = score_answers(reward, asked, drawn, how, journal) if reward else None
    if not kept:
        raise UserError(
            "no prompt has two different answers", where="--policies", fix="raise --attempts or temperatures"
        )
    write(target, record, kind, round, [(asked[i], drawn[i], scores[i] if scores else None) for i in kept], seed)
    _tell(target, drawn, kept)
    journal.close(remove=True)
    put_into(database, overlap, target)


def _tell(target: Path, drawn: list["Wanted"], kept: list[int]) -> None:
    answers, repeated = sum(len(drawn[i].answers) for i in kept), sum(its.repeated for its in drawn)
    print(f"{target}: {counted(len(kept), 'task')} with {counted(answers, 'answer')}")
    print(
        f"sampled again: {counted(repeated, 'repeated answer')}; left out: {counted(len(drawn) - len(kept), 'prompt')}"
    )


def _distinct(files: list[str]) -> tuple[list["Prompt"], list[str]]:
    """The prompts of the files, each text once, and the location of each."""
    from instructlit.data.splits import prompt_key
    from instructlit.tools.sources import read_prompts

    found: dict[str, tuple[Prompt, str]] = {}
    for where, prompt in read_prompts(files):
        found.setdefault(prompt_key(prompt.prompt), (prompt, where))
    return [prompt for prompt, _ in found.values()], [where for _, where in found.values()]


def _room(sources: list["Source"]) -> dict[str, int | None]:
    """Maximum positions of each policy, by its folder; errors in one are reported before anything is sampled."""
    from instructlit.models.architecture import check_causal_lm
    from instructlit.models.backbone import Backbone
    from instructlit.models.compatibility import positions
    from instructlit.models.folders import check_source

    room = {}
    for source in sources:
        check_source(source.folder, weights=True, where=source.folder)
        room[source.folder] = positions(check_causal_lm(Backbone(source.folder), source.folder))
    return room


def _with_room(
    rows: list[tuple[str, "Prompt"]], room: dict[str, int | None], template: str, max_new_tokens: int
) -> list["Prompt"]:
    """The prompts, each with its location, that leave room for an answer from every policy."""
    from instructlit.data.tokenization import Encoder
    from instructlit.data.tokenizers import load_tokenizer
    from instructlit.tools.answering import with_room

    for folder, its_room in room.items():
        encoder = Encoder(load_tokenizer(folder, pad_with_eos=True), template)
        rows = [(place, row.prompt) for place, row in with_room(rows, encoder, its_room, max_new_tokens)]
    return [prompt for _, prompt in rows]


def _range(completions: list[int]) -> tuple[int, int]:
    least, most = (completions * 2)[:2] if len(completions) == 1 else completions if len(completions) == 2 else (0, 0)
    if not MIN_OUTPUTS <= least <= most <= MAX_OUTPUTS:
        found = " ".join(map(str, completions)) or "nothing"
        raise UserError(
            f"found {found}",
            where="--completions",
            expected=f"one number from {MIN_OUTPUTS} to {MAX_OUTPUTS}, or two, as in 4 9",
        )
    return least, most


def _check(
    kind: str,
    policies: list[str],
    select: Select,
    limit: int | None,
    ensemble: list[str] | None,
    attempts: int,
    batch_size: int,
    pool: int | None,
    overlap: int,
) -> None:
    if not policies:
        raise UserError("no policy is given", where="--policies", expected="at least one model folder")
    if kind == "evaluation" and not MIN_OUTPUTS <= len(set(policies)) == len(policies) <= MAX_OUTPUTS:
        raise UserError(
            f"{len(policies)} policies are given",
            where="--policies",
            expected=f"{MIN_OUTPUTS} to {MAX_OUTPUTS} different policies to compare",
        )
    counts = {"limit": limit, "pool": pool, "attempts": attempts, "batch_size": batch_size, "overlap": overlap}
    require("a whole number above 0", "--", **counts)
    if pool is not None and select != "disagreement":
        raise UserError(
            f"--select {select} uses no pool", where="--pool", expected="a pool only with `--select disagreement`"
        )
    if (select == "disagreement") != bool(ensemble) or (ensemble and len(ensemble) < 2):
        raise UserError(
            f"{len(ensemble or [])} reward models for --select {select}",
            where="--ensemble",
            expected="two or more with `--select disagreement`, none otherwise",
        )


def _check_used(
    kind: str,
    completions: list[int] | None,
    limit: int | None,
    pool: int | None,
    database: str | None,
    overlap: int,
) -> None:
    """Refuse options that would have no effect together with the others."""
    if kind == "evaluation" and completions is not None:
        raise UserError(
            "in an evaluation every policy answers every prompt once",
            where="--completions",
            expected="no --completions",
        )
    if pool is not None and limit is None:
        raise UserError("without a limit the whole pool is kept", where="--pool", expected="--limit as well")
    if overlap != 1 and database is None:
        raise UserError(
            "a file of tasks does not say how many people label each", where="--overlap", expected="--database as well"
        )
