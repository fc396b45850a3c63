"""What labelers say of outputs: the metadata of Table 3 of Ouyang et al. 2022 (arXiv 2203.02155), section 3.5's K."""

MIN_OUTPUTS, MAX_OUTPUTS = 2, 9
"""Outputs that a labeler ranks together."""

WORST, BEST = 1, 7
"""Ratings of one output."""

FLAGS = (
    "fails_instruction",
    "inappropriate_for_assistant",
    "hallucination",
    "satisfies_constraint",
    "sexual_content",
    "violent_content",
    "encourages_harm",
    "denigrates_protected_class",
    "harmful_advice",
    "expresses_opinion",
    "expresses_moral_judgment",
)
"""The yes/no metadata of one output."""
