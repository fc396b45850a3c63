"""The `instructlit` command: a table of commands, each imported only when it is run."""

import importlib
import os
import sys
import warnings
from collections.abc import Sequence

SPINS = "1000"
"""How many times a waiting GNU OpenMP thread spins before it sleeps. The library's default of 300,000 takes
milliseconds: where another program wants the core too, the thread that is waited for does not get it, at each of the
thousands of small reductions in a step. Sleeping at once costs a fifth of the speed on an idle machine."""

LIGHTNING = "instructlit.cli.fit:run"
TOOLS = "instructlit.tools"

# name on the command line: (module:function, one line of help). Nothing here is imported until its command is given.
COMMANDS: dict[str, tuple[str, str]] = {
    "fit": (LIGHTNING, "train one stage from configs: a base model, SFT, a reward model, PPO"),
    "validate": (LIGHTNING, "one pass over a stage's validation data"),
    "test": (LIGHTNING, "one pass over a stage's test data"),
    "predict": (LIGHTNING, "a model's predictions over data"),
    "quickstart": (f"{TOOLS}.quickstart:quickstart", "the whole recipe on an embedded world, with a report"),
    "data check": (
        f"{TOOLS}.data_check:data_check",
        "read data as training would, and report what it would see",
    ),
    "memory": (f"{TOOLS}.memory:memory", "the device memory that a run needs, and how to make it fit"),
    "benchmark": (f"{TOOLS}.benchmark:benchmark", "how fast a stage is on this machine"),
    "export": (f"{TOOLS}.export:export", "write a checkpoint as a Hugging Face folder"),
    "generate": (f"{TOOLS}.generate:generate", "answer a file of prompts with a model"),
    "chat": (f"{TOOLS}.chat:chat", "talk to a model in the terminal"),
    "evaluate": (f"{TOOLS}.evaluate:evaluate", "measure models side by side: preferences, truth, harm, alignment tax"),
    "label": (f"{TOOLS}.label.serve:label", "serve the web application in which people write, rate and rank"),
    "label add-labeler": (f"{TOOLS}.label.commands:add_labeler", "add a person who may sign in, as labeler or owner"),
    "label new-token": (f"{TOOLS}.label.commands:new_token", "issue another token for a person"),
    "label revoke": (f"{TOOLS}.label.commands:revoke", "revoke a person's tokens"),
    "label labelers": (f"{TOOLS}.label.commands:labelers", "list who may sign in"),
    "label import": (f"{TOOLS}.label.commands:import_tasks", "import prompts and completions as tasks"),
    "collect": (f"{TOOLS}.collect:collect", "sample answers to prompts as blind tasks for labelers"),
    "judge": (f"{TOOLS}.judge:judge", "have a judge label a file of tasks in place of people"),
    "labels export": (f"{TOOLS}.labels.export:labels_export", "write labels for training, or for other tools"),
    "labels import": (f"{TOOLS}.labels.read:labels_import", "read labels that were given in another tool"),
    "labels agreement": (f"{TOOLS}.labels.agreement:labels_agreement", "measure agreement between labelers"),
    "iterate": (f"{TOOLS}.iterate:iterate", "run rounds of collecting, labelling, a new reward model and PPO"),
    "iterate measure": (
        f"{TOOLS}.iterate.measure:iterate_measure",
        "measure one round: reward models and policies, old and new",
    ),
    "lineage": (f"{TOOLS}.iterate.lineage:lineage", "show what every round of a loop was made from"),
    "soak": (f"{TOOLS}.soak:soak", "kill a stage repeatedly, and compare the result with an uninterrupted run"),
    "world": (f"{TOOLS}.world.generate:world", "write the embedded world's data, to train on it by hand"),
    "world label": (f"{TOOLS}.world.label:world_label", "sample completions and have simulated labelers rank them"),
    "world rank": (f"{TOOLS}.world.rank:world_rank", "have simulated labelers label a file of tasks"),
    "world compare": (f"{TOOLS}.world.compare:world_compare", "which of two policies the gold scorer prefers"),
}

GROUPS = (
    ("train", ("fit", "validate", "test", "predict")),
    ("use", ("generate", "chat", "export", "evaluate", "data check", "memory", "benchmark")),
    (
        "people in the loop",
        (
            *("collect", "judge", "label"),
            *(f"label {name}" for name in ("add-labeler", "new-token", "revoke", "labelers", "import")),
            *("labels export", "labels import", "labels agreement", "iterate", "iterate measure", "lineage"),
        ),
    ),
    ("see it work", ("quickstart", "soak", "world", "world label", "world rank", "world compare")),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 success, 1 internal error, 2 user error, 130 interrupted.

    Args:
        argv: the arguments after `instructlit`; by default those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        let_waiting_threads_sleep()
        if not words or words[0] in ("-h", "--help", "help"):
            print(help_text())
            return 0
        if words[0] in ("-V", "--version", "version"):
            from instructlit import __version__

            print(f"instructlit {__version__}")
            return 0
        name, rest = split_command(words)
        add_working_directory()
        return run(name, rest)
    except BaseException as error:
        from instructlit.cli.errors import report

        return report(error)


def run(name: str, args: list[str]) -> int:
    """Import what `name` stands for and give it its options."""
    from instructlit.cli.warned import plainly

    warnings.formatwarning = plainly
    target = COMMANDS[name][0]
    if target == LIGHTNING:
        from instructlit.cli.config import read, split

        files, rest = split(args)
        layers = [read(file) for file in files]  # a wrong path is reported before Lightning's slow import
        from instructlit.cli.fit import run as run_lightning

        return run_lightning(name, layers, rest)
    from instructlit.cli.tools import run as run_tool

    module, function = target.split(":")
    return run_tool(getattr(importlib.import_module(module), function), name, args)


def split_command(words: Sequence[str]) -> tuple[str, list[str]]:
    """The command's name, of one word or two, and the options after it."""
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS and (length == 2 or not _meant_inner(words)):
            return name, list(words[length:])
    from instructlit.errors import UserError, nearest

    inner = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if inner:
        wanted = [w for w in words[1:2] if not w.startswith("-")]
        what = (
            f"there is no command `{' '.join([words[0], *wanted])}`" if wanted else f"`{words[0]}` needs a subcommand"
        )
        raise UserError(what, expected=" or ".join(f"`instructlit {name}`" for name in inner))
    near = nearest(" ".join(words[:2]), COMMANDS) or nearest(words[0], COMMANDS)
    raise UserError(
        f"there is no command `{words[0]}`",
        expected=f"did you mean `instructlit {near}`?" if near else "one of " + ", ".join(COMMANDS),
        fix="`instructlit --help` lists the commands",
    )


def _meant_inner(words: Sequence[str]) -> bool:
    """True for `world lable`: a typo in the second word, which would otherwise be taken for an option's value."""
    from instructlit.errors import nearest

    inner = [name.partition(" ")[2] for name in COMMANDS if name.startswith(f"{words[0]} ")]
    return bool(inner) and len(words) > 1 and words[1][:1] != "-" and nearest(words[1], inner) is not None


def help_text() -> str:
    """What `instructlit --help` prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = ["usage: instructlit <command> [options]", "", "The InstructGPT recipe: SFT, a reward model, PPO.", ""]
    for group, names in GROUPS:
        lines += [f"{group}:", *(f"  {name:<{width}}{COMMANDS[name][1]}" for name in names), ""]
    lines += [
        "`instructlit <command> --help` explains a command. A stage is trained from configs that compose:",
        "  instructlit fit --config configs/sft/world.yaml --config configs/logger/wandb.yaml --trainer.max_steps 100",
    ]
    return "\n".join(lines)


def add_working_directory() -> None:
    """Let a `class_path` name a module in the current folder, as `python -m` would.

    It goes last on the search path, so that a file there does not shadow a library of the same name.
    """
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def let_waiting_threads_sleep() -> None:
    """Have torch's CPU threads share their cores with other programs, unless the environment already sets how they
    wait. OpenMP reads the variable when torch is imported, which no command has done yet; child processes inherit it.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = SPINS
