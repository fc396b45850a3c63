"""The kinds of task of the embedded world, under the paper's ten use cases."""

from instructlit.world.tasks import generation, questions, text
from instructlit.world.tasks.base import Task

TASKS: dict[str, Task] = {task.kind: task for task in (*generation.TASKS, *questions.TASKS, *text.TASKS)}

USE_CASES: dict[str, float] = {
    "generation": 0.456,
    "open_qa": 0.124,
    "brainstorming": 0.112,
    "chat": 0.084,
    "rewrite": 0.066,
    "summarization": 0.042,
    "classification": 0.035,
    "other": 0.035,
    "closed_qa": 0.026,
    "extraction": 0.019,
}
"""The paper's proportions (Table 1: use cases of API prompts); they sum to 0.999 there too."""

KINDS: dict[str, tuple[Task, ...]] = {
    use_case: tuple(task for task in TASKS.values() if task.use_case == use_case) for use_case in USE_CASES
}

__all__ = ["KINDS", "TASKS", "USE_CASES", "Task"]
