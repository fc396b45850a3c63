"""A small seeded language in which the recipe can be watched working and in which the truth is known."""

from instructlit.world.gold import Verdict
from instructlit.world.labelers import Labeler, Ranking
from instructlit.world.prompts import PREFIX, RESPECTFUL, PromptSpec, parse, prompted, respectful, sample_spec
from instructlit.world.world import World, pairwise_agreement, rank_completions
from instructlit.world.writer import Sizes, generate

__all__ = [
    "PREFIX",
    "RESPECTFUL",
    "Labeler",
    "PromptSpec",
    "Ranking",
    "Sizes",
    "Verdict",
    "World",
    "generate",
    "pairwise_agreement",
    "parse",
    "prompted",
    "rank_completions",
    "respectful",
    "sample_spec",
]
