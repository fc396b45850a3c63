"""How far a model's answers have moved from a reference model: the KL divergence, on the tokens that were sampled.

An answer y to prompt x, sampled at temperature 1, gives log pi(y | x) - log ref(y | x), whose mean is KL(pi || ref) in
nats a sequence (InstructGPT, equation 2; Stiennon et al. 2020, section 3.4). The end of an answer counts as a token; a
text that was tokenised again would have lost it, and might be split into other tokens.
"""

from collections.abc import Mapping, Sequence

from instructlit.evaluation.measures import Study
from instructlit.evaluation.requests import Answer, Request, Weigh, Weights
from instructlit.types import PromptText


def asked_of_reference(study: Study, reference: str, prompts: Sequence[PromptText]) -> Mapping[str, list[Request]]:
    """For `Task.further`: the answers of every other model to a task's first requests, to be scored by the reference.

    Args:
        study: its first replies are to `Ask`s with `log_probs`, one per prompt, at temperature 1.
        reference: the name of a model.
        prompts: what the reference reads before an answer, whatever the others were asked.
    """
    found: list[Request] = [
        Weigh(prompts[i], tuple(map(tuple, reply.tokens)), plain=False, says=tuple(reply.texts))
        for model in study.models
        if model != reference
        for i, reply in _drawn(study, model, len(prompts))
    ]
    return {reference: found} if reference in study.models else {}


def log_ratios(study: Study, reference: str, prompts: Sequence[PromptText]) -> dict[str, list[list[float] | None]]:
    """By model and prompt log pi(y | x) - log ref(y | x) of every sample, None where one of them is unknown.

    Args:
        study: with the replies to `asked_of_reference` in `further`.
        reference: as there; its own log-ratios are 0.
        prompts: as there.
    """
    replies = iter(study.further.get(reference, []))
    found: dict[str, list[list[float] | None]] = {}
    for model in study.models:
        found[model] = [None] * len(prompts)
        for i, reply in _drawn(study, model, len(prompts)):
            if model == reference:
                found[model][i] = [0.0] * len(reply.texts)
            elif isinstance(weights := next(replies, None), Weights):
                found[model][i] = [own - its for own, its in zip(reply.log_probs, weights.log_probs, strict=True)]
    return found


def _drawn(study: Study, model: str, count: int) -> list[tuple[int, Answer]]:
    """The replies to the first `count` requests whose tokens are known, with their places."""
    replies = enumerate(study.replies[model][:count])
    return [(i, reply) for i, reply in replies if isinstance(reply, Answer) and reply.log_probs]
