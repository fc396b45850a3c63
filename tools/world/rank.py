"""`instructlit world rank`: the world's simulated labelers label a file of tasks in place of people."""

import random

from instructlit.errors import UserError, counted
from instructlit.labels import Label, Task, read_tasks, write_labels
from instructlit.tools.outputs import check_output
from instructlit.world import World, rank_completions


def world_rank(
    tasks: str,
    output: str = "labels.jsonl",
    world: int = 1,
    labelers: int = 1,
    seed: int = 1,
) -> None:
    """Have simulated labelers of the embedded world label a file of tasks, as people would.

    They see what people see: a prompt and completions, but no policy. Their labels carry ranks, ratings and flags.

    Args:
        tasks: file of tasks over prompts of the world.
        output: file of labels to write.
        world: seed of the world that the prompts come from.
        labelers: how many different labelers answer each task.
        seed: seed of the choice of labelers and of their errors.
    """
    check_output(output, tasks)
    team = World(world)
    if not 1 <= labelers <= len(team.labelers):
        raise UserError(f"found {labelers}", where="--labelers", expected=f"1 to {len(team.labelers)}")
    labels = [label for task in read_tasks(tasks) for label in answers(team, task, labelers, seed)]
    write_labels(output, labels)
    print(f"{output}: {counted(len(labels), 'label')} by simulated labelers")


def answers(world: World, task: Task, labelers: int, seed: int) -> list[Label]:
    """The labels of one task; they depend on the task and the seed, not on the other tasks."""
    if not isinstance(task.prompt, str):
        raise UserError("the prompt is a conversation", where=f"task {task.task}", expected="a prompt of the world")
    rng = random.Random(f"rank {seed} {task.task}")
    found = []
    for labeler in rng.sample(world.labelers, labelers):
        if task.kind == "demonstration":
            given = {"completions": [world.ideal(task.prompt, rng)]}
        else:
            ranking = rank_completions(world, task.prompt, task.completions, rng, labeler)
            given = {
                "completions": ranking.completions,
                "ranks": ranking.ranks,
                "ratings": ranking.ratings,
                "flags": ranking.flags,
                "policy": task.policy,
                "ended": task.ended,
            }
        about = {"round": task.round, "use_case": task.use_case, "user": task.user}
        found.append(Label(task.task, task.kind, task.prompt, labeler.name, **given, **about))
    return found
