"""A reward model made ready to score text."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from instructlit.data.collate import collate_tokens
from instructlit.data.tokenization import Encoded, Encoder
from instructlit.data.tokenizers import load_tokenizer
from instructlit.dtypes import Dtype
from instructlit.models.architecture import check_scalar_model
from instructlit.models.backbone import Backbone, load_scalar_model
from instructlit.models.compatibility import check_vocabulary, positions
from instructlit.models.dropout import disable_dropout
from instructlit.models.folders import check_source, check_whole_weights
from instructlit.ops.micro_batches import computed_tokens, spans
from instructlit.types import PromptText, TokenBatch

_SHARING, _SHARED_TOKENS = 9, 4096
"""Most completions that share their prompt in one sequence, the largest K of the paper's comparisons, and most tokens
of all of them: on a GPU attention computes all pairs of a sequence's tokens, under a mask of as many bytes."""


def check_reward_model(model: str, where: str, template: str = "auto") -> tuple[Any, Encoder]:
    """The tokenizer and the encoder of a reward model; its folder is checked before long work that needs its scores.

    Raises:
        UserError: no such folder, no trained scalar head, incomplete weights, not the tokenizer it was trained with, or
            a template that its tokenizer does not have.
    """
    check_source(model, weights=True, where=where)
    config, _ = check_scalar_model(Backbone(model), require_head=True, where=where)
    check_whole_weights(model, where)
    tokenizer = load_tokenizer(model, pad_with_eos=True)
    check_vocabulary(Backbone(model), tokenizer, where)
    return tokenizer, Encoder(tokenizer, template, positions(config))


class RewardScores:
    """A frozen reward model that encodes text as in its training.

    Args:
        model: its folder; the shift is part of the score.
        device: where it computes.
        template: the template it was trained with.
        dtype: dtype to compute in.
        size: most sequences scored together.
        tokens: most tokens scored together, padding included.
        where: the option that a message names.
    """

    def __init__(
        self,
        model: str,
        device: torch.device,
        template: str = "auto",
        dtype: Dtype = "float32",
        *,
        size: int | None = None,
        tokens: int | None = None,
        where: str = "model",
    ):
        tokenizer, self.encoder = check_reward_model(model, where, template)
        network: Any = load_scalar_model(Backbone(model, dtype=dtype), require_head=True, where=where, frozen=True)
        disable_dropout(network)
        self.network, self.device, self.size, self.tokens = network.eval().to(device), device, size, tokens
        self.pad = int(tokenizer.pad_token_id)

    @torch.no_grad()
    def scores(self, rows: Sequence[tuple[PromptText, str, bool]]) -> list[float]:
        """The score of each (prompt, completion, whether it ended with EOS): similar lengths in one batch, and a prompt
        computed once for its completions.

        A repeated row is scored once: in another batch its score could differ in the last digit, and equal
        answers would not tie.
        """
        places: dict[str, int] = {}
        own = [places.setdefault(json.dumps(row), len(places)) for row in rows]
        unlike = [json.loads(row) for row in places]
        encoded = [self.encoder.example(*row) for row in unlike]
        found = [0.0] * len(encoded)
        for chosen, prompts in self._batches([json.dumps(row[0]) for row in unlike], [len(row.ids) for row in encoded]):
            # no token is a target here
            batch = collate_tokens([Encoded(encoded[i].ids, 0) for i in chosen], self.pad).to(self.device)
            for i, score in zip(chosen, self._scored(batch, prompts).tolist(), strict=True):
                found[i] = score
        return [found[place] for place in own]

    def _batches(self, prompts: Sequence[str], lengths: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
        """The rows of each batch, the short ones first, and beside each the number of the prompt that it shares."""
        alike: dict[str, list[int]] = defaultdict(list)
        for i, prompt in enumerate(prompts):
            alike[prompt].append(i)
        shares: list[list[int]] = []
        for rows in alike.values():
            theirs = computed_tokens([lengths[i] for i in rows], packed=True)
            shares += [rows[start:stop] for start, stop in spans(len(rows), _SHARING, _SHARED_TOKENS, theirs)]
        shares.sort(key=lambda rows: max(lengths[i] for i in rows))
        order = [(i, number) for number, rows in enumerate(shares) for i in rows]
        computed = computed_tokens([lengths[i] for i, _ in order], packed=False)
        for start, stop in spans(len(order), self.size, self.tokens, computed):
            rows, numbers = zip(*order[start:stop], strict=True)
            yield list(rows), [number - numbers[0] for number in numbers]

    def _scored(self, batch: TokenBatch, prompts: list[int]) -> Tensor:
        if prompts[-1] + 1 < len(prompts) and self.network.can_branch:
            group = torch.tensor(prompts, device=self.device)
            return self.network.score_branches(batch.input_ids, batch.attention_mask, group)
        return self.network.score(batch.input_ids, batch.attention_mask)
