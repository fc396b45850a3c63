"""Samples for people to read: a row each, of plain values."""

from typing import Any

from torch import Tensor

from instructlit.types import Responses


def sample_rows(responses: Responses, scores: Tensor, kl: Tensor | None, episodes: int) -> list[dict[str, Any]]:
    """A row of each response: `episodes`, `prompt`, `response`, `score`, `kl`, `length` (tokens) and `ended`.

    Args:
        responses: B of them.
        scores: (B,) the reward's.
        kl: (B,) to the reference, in nats per response; None if not computed.
        episodes: how far the run was when they were sampled.
    """
    columns = zip(
        responses.prompts,
        responses.texts,
        scores.tolist(),
        [None] * len(responses) if kl is None else kl.tolist(),
        responses.response_mask.sum(dim=1).tolist(),
        responses.ended.tolist(),
        strict=True,
    )
    return [
        {
            "episodes": episodes,
            "prompt": prompt.prompt,
            "response": text,
            "score": score,
            "kl": nats,
            "length": length,
            "ended": ended,
        }
        for prompt, text, score, nats, length, ended in columns
    ]
