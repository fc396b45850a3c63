"""Writes answers as tasks: a file for labelers, its key, a record of the inputs, and the labelling database."""

import random
from pathlib import Path
from typing import Any

from instructlit.data.rows import file_hash
from instructlit.errors import counted
from instructlit.labels import LabelKind, Task, read_tasks, write_tasks
from instructlit.labels.records import for_database, key_file, task_id
from instructlit.models.lineage import weights_digest
from instructlit.tools.collect.answers import Drawing, Wanted
from instructlit.tools.made_from import write_made
from instructlit.tools.sources import prompts_digest
from instructlit.types import Prompt


def identity(how: Drawing, asked: list[Prompt], told: dict[str, Any]) -> dict[str, Any]:
    """Everything that determines the answers, including the weights of the models."""
    models = [*(source.folder for source in how.sources), *(told["ensemble"] or []), told["reward"]]
    return {
        "policies": [source.name for source in how.sources],
        "weights_sha256": {model: weights_digest(model) for model in models if model},
        "prompts": prompts_digest(asked),
        "completions": [how.least, how.most],
        "seed": how.seed,
        "max_new_tokens": how.max_new_tokens,
        "batch_size": how.batch_size,
        "attempts": how.attempts,
        "template": how.template,
        "dtype": how.dtype,
        **told,
    }


def write(
    target: Path,
    record: dict[str, Any],
    kind: LabelKind,
    round_: int | None,
    rows: list[tuple[Prompt, Wanted, list[float] | None]],
    seed: int,
) -> None:
    """Writes the tasks, each in random order, with their key and a record of their inputs."""
    tasks = []
    for prompt, wanted, scores in rows:
        order = list(range(len(wanted.answers)))
        random.Random(f"order {seed} {prompt.prompt}").shuffle(order)
        texts, ended = [wanted.answers[i].text for i in order], [wanted.answers[i].ended for i in order]
        tasks.append(
            Task(
                task_id(kind, prompt.prompt, texts, round_),
                kind,
                prompt.prompt,
                texts,
                [wanted.answers[i].policy for i in order],
                None if scores is None else [round(scores[i], 6) for i in order],
                round_,
                prompt.use_case,
                prompt.user,
                None if all(ended) else ended,
            )
        )
    write_tasks(target, tasks)
    told = {
        "from": record,
        "tasks": len(tasks),
        "sha256": {f.name: file_hash(str(f)) for f in (target, key_file(target))},
    }
    write_made(target, told)


def put_into(database: str | None, overlap: int, target: Path) -> None:
    """Adds the tasks of a file to a labelling database, if given; policies and scores are hidden from labelers."""
    if database is None:
        return
    from instructlit.labelling.audit import COMMAND_LINE
    from instructlit.labelling.database import Database
    from instructlit.labelling.tasks import add_tasks

    records = map(for_database, read_tasks(target))
    opened = Database(database)
    with opened.write() as session:
        added = add_tasks(session, COMMAND_LINE, records, overlap=overlap, source=target.name)
    print(f"{opened}: {counted(added.new, 'new task')}, {added.known} already there")
