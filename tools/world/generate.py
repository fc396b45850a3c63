"""`instructlit world`: the embedded world's data folder."""

from dataclasses import fields

from instructlit.tools.outputs import check_folder
from instructlit.world import Sizes, World, generate


def world(output: str = "data", seed: int = 1, sizes: Sizes = Sizes(), trial: bool = False) -> None:  # noqa: B008 (frozen)
    """Write the embedded world's data: corpus, prompts, demonstrations, probes, and the folder of an untrained model.

    Args:
        output: folder for the files, created if it does not exist.
        seed: seed of the world's facts, misconceptions and labelers, and of every file.
        sizes: rows of each file.
        trial: a few rows of everything, to see that it works.
    """
    check_folder(output)
    if trial:
        sizes = Sizes(**{f.name: min(getattr(sizes, f.name), TRIAL.get(f.name, 40)) for f in fields(sizes)})
    folder = generate(World(seed), output, sizes)
    print(
        f"wrote the world of seed {seed} to {folder}: "
        + ", ".join(f"{f.name} {getattr(sizes, f.name)}" for f in fields(sizes))
    )


TRIAL = {"corpus": 2000, "demonstrations": 200, "reward": 64, "ppo": 600}
"""Rows of a trial; the other files have 40."""
