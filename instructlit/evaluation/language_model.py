"""A language model that replies to requests: answers, in batches of similar length, and log-probs of given texts."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from instructlit.data.collate import EncodedPrompt, collate_prompts, collate_tokens
from instructlit.data.tokenization import Encoded, Encoder
from instructlit.data.tokenizers import decoded, load_tokenizer
from instructlit.dtypes import AutoDtype, Dtype
from instructlit.errors import UserError, first_line
from instructlit.evaluation.requests import Answer, Ask, Reply, Request, Weigh, Weights
from instructlit.models.backbone import Backbone, check_causal_lm, load_causal_lm
from instructlit.models.compatibility import check_vocabulary, positions
from instructlit.models.dropout import disable_dropout
from instructlit.models.folders import check_source, check_whole_weights
from instructlit.models.token_scores import target_scores
from instructlit.ops.log_probs import token_log_probs
from instructlit.ops.micro_batches import of_like_length
from instructlit.rollout.engine import CachedEngine, Sampling, further_ends
from instructlit.types import Generation, Prompt


@dataclass
class LanguageModel:
    """A causal language model with its tokenizer, in evaluation mode on its device.

    Args:
        model: the network.
        tokenizer: its tokenizer.
        device: where the network is.
        template: template of prompts that are not plain, as for training.
        batch_size: most answers decoded together.
        batch_tokens: most tokens, padding included, that one forward pass over given texts reads.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    template: str = "auto"
    batch_size: int = 32
    batch_tokens: int = 16_384

    def __post_init__(self) -> None:
        self._encoders = {False: Encoder(self.tokenizer, self.template), True: Encoder(self.tokenizer, "plain")}

    @property
    def room(self) -> int | None:
        """Positions for prompt and answer together, if the architecture sets a limit."""
        return positions(self.model.config)

    @property
    def encoder(self) -> Encoder:
        """Renders and tokenises prompts as in training."""
        return self._encoders[False]

    def generate(
        self,
        rows: Sequence[EncodedPrompt],
        sampling: Sampling,
        generator: torch.Generator,
        batch_size: int | None = None,
    ) -> Generation:
        """One response to each prompt; further end tokens named in the model's folder end it too.

        Args:
            rows: the prompts, one or more.
            sampling: length limit and temperature.
            generator: source of randomness, on the model's device.
            batch_size: most responses decoded at a time; None decodes all together.
        """
        batch = collate_prompts(rows, self.tokenizer.pad_token_id).to(self.device)
        further = further_ends(self.model)
        return CachedEngine(batch_size).generate(self.model, batch, sampling, self.tokenizer, generator, further)

    def replies(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | None]]:
        """The reply to every request with its index, in the order they are finished; None if a prompt is too
        long.

        Raises:
            UserError: a prompt has no tokens; raised before anything is generated.
        """
        asks = [i for i, request in enumerate(requests) if isinstance(request, Ask)]
        weighs = [i for i, request in enumerate(requests) if isinstance(request, Weigh) and self._reads(request)]
        for place, answer in self._answers([requests[i] for i in asks]):  # type: ignore[misc]
            yield asks[place], answer
        for place, weights in self._weights([requests[i] for i in weighs]):  # type: ignore[misc]
            yield weighs[place], weights
        for i, request in enumerate(requests):
            if isinstance(request, Weigh) and not self._reads(request):
                yield i, None

    def _answers(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Answer | None]]:
        """Requests with the same sampling are decoded together, shortest first, to keep padding small."""
        ids = [self._prompt(ask) for ask in asks]
        limits = [self._limit(ask, own) for ask, own in zip(asks, ids, strict=True)]
        alike: dict[tuple[Any, ...], list[int]] = {}
        for i, ask in enumerate(asks):
            if self.room is not None and len(ids[i]) + 1 > self.room:
                yield i, None
            else:
                alike.setdefault((ask.max_new_tokens, ask.temperature, ask.samples, ask.stream), []).append(i)
        for (*_, samples, stream), members in alike.items():
            members.sort(key=lambda i: (-limits[i], len(str(asks[i].prompt)), i))
            source = torch.Generator(self.device).manual_seed(zlib.crc32(stream.encode()))
            for batch in _batches(members, limits, max(1, self.batch_size // samples)):
                if not stream:
                    source.manual_seed(zlib.crc32("|".join(asks[i].key for i in batch).encode()))
                yield from self._decoded(batch, asks, ids, limits[batch[0]], source)

    def _prompt(self, ask: Ask) -> list[int]:
        ids = self._encoders[ask.plain].prompt(ask.prompt)
        if not ids:
            raise UserError(
                f"the prompt {ask.prompt!r} has no tokens",
                where="prompt",
                expected="text, or a model whose tokenizer adds a BOS",
            )
        return ids

    def _limit(self, ask: Ask, ids: Sequence[int]) -> int:
        """Most tokens of an answer: as requested, limited by the model's positions after this prompt."""
        return ask.max_new_tokens if self.room is None else min(ask.max_new_tokens, self.room - len(ids))

    def _decoded(
        self, members: Sequence[int], asks: Sequence[Ask], ids: Sequence[list[int]], limit: int, source: torch.Generator
    ) -> Iterator[tuple[int, Answer]]:
        first = asks[members[0]]
        sampling = Sampling(limit, temperature=first.temperature or 1.0, greedy=first.temperature == 0)
        rows = [EncodedPrompt(ids[i], Prompt(asks[i].prompt)) for i in members for _ in range(first.samples)]
        drawn = self.generate(rows, sampling, source)
        ended, sums = drawn.ended.tolist(), drawn.log_probs.double().sum(1).tolist()
        for place, i in enumerate(members):
            own = slice(place * first.samples, (place + 1) * first.samples)
            cut = [_until(text, asks[i].stop) for text in drawn.texts[own]]
            texts, stopped = [text for text, _ in cut], [e or met for e, (_, met) in zip(ended[own], cut, strict=True)]
            if not asks[i].log_probs:
                yield i, Answer(texts, stopped)
                continue
            ids_drawn = zip(drawn.response_ids[own], drawn.response_mask[own], strict=True)
            yield i, Answer(texts, stopped, [row[mask].tolist() for row, mask in ids_drawn], sums[own])

    def _weights(self, weighs: Sequence[Weigh]) -> Iterator[tuple[int, Weights]]:
        """Choices of neighbouring requests share batches, so that results arrive as the work proceeds."""
        block = 64
        for start in range(0, len(weighs), block):
            part = weighs[start : start + block]
            choices = [self._windows(weigh, choice) for weigh in part for choice in weigh.choices]
            flat = [window for windows in choices for window in windows]
            sums, counts, greedy = score_rows(
                self.model, flat, self.tokenizer.pad_token_id, self.device, self.batch_tokens
            )
            totals, at = [], 0
            for windows in choices:
                own = slice(at, at + len(windows))
                totals.append((float(sums[own].sum()), int(counts[own].sum()), bool(greedy[own].all())))
                at += len(windows)
            at = 0
            for place, weigh in enumerate(part):
                own = totals[at : at + len(weigh.choices)]
                at += len(weigh.choices)
                log_probs, tokens, likeliest = ([row[column] for row in own] for column in range(3))
                yield start + place, Weights(log_probs, tokens, likeliest)

    def _windows(self, weigh: Weigh, choice: str | tuple[int, ...]) -> list[Encoded]:
        """Context and choice as the model reads them: in full, else with the end of the context; a choice that does not
        fit either is split into windows that overlap by the one token that the next window predicts from."""
        ids, start = self._read(weigh, choice)
        if start == 0:  # a text's first token is predicted from the token that separates texts in pretraining
            encoder = self._encoders[True]
            ids, start = [encoder.eos if encoder.bos is None else encoder.bos, *ids], 1
        room = self.room
        if room is None or len(ids) <= room:
            return [Encoded(ids, start)]
        begin = min(start - 1, len(ids) - room)
        found = []
        while start < len(ids):
            window = ids[begin : begin + room]
            found.append(Encoded(window, start - begin))
            begin += room - 1
            start = begin + 1
        return found

    def _reads(self, weigh: Weigh) -> bool:
        """Whether choices given as tokens decode here to the text that they had where they were sampled."""
        return all(
            max(tokens, default=0) < len(self.tokenizer) and decoded(self.tokenizer, tokens).strip().startswith(said)
            for tokens, said in zip(weigh.choices, weigh.says, strict=False)
            if not isinstance(tokens, str)
        )

    def _read(self, weigh: Weigh, choice: str | tuple[int, ...]) -> tuple[list[int], int]:
        """Ids of context and choice, and where the choice begins."""
        encoder = self._encoders[weigh.plain]
        if not isinstance(choice, str):
            context = encoder.prompt(weigh.context)
            return [*context, *choice], len(context)
        if weigh.document:
            return encoder.document(choice), 1
        example = encoder.example(weigh.context, choice, ended=False)
        return example.ids, example.start


@torch.no_grad()
def score_rows(
    model: Any,
    rows: Sequence[Encoded],
    pad_id: int,
    device: torch.device,
    tokens: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of the response tokens of encoded rows; a first token, which nothing predicts, is not counted.

    Args:
        model: a causal language model on `device`.
        rows: N sequences.
        pad_id: id of the padding token.
        device: the model's device.
        tokens: most tokens of a batch, padding included.

    Returns:
        (N,) float64 sums in nats, (N,) float64 counts of tokens, (N,) bool: every such token is the likeliest.
    """
    sums, counts = torch.zeros(len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.float64)
    greedy = torch.zeros(len(rows), dtype=torch.bool)

    def read(logits: Tensor, ids: Tensor) -> Tensor:
        return torch.stack([token_log_probs(logits, ids).float(), (logits.argmax(-1) != ids).float()], dim=-1)

    for chosen in of_like_length([len(row.ids) for row in rows], None, tokens):
        batch = collate_tokens([rows[i] for i in chosen], pad_id)
        found = target_scores(model, batch.to(device), read).double().sum(1).cpu()
        sums[chosen], greedy[chosen] = found[:, 0], found[:, 1] == 0
        counts[chosen] = batch.loss_mask[:, 1:].double().sum(1)
    return sums, counts, greedy


def load_language_model(
    path: str,
    *,
    template: str = "auto",
    dtype: AutoDtype = "auto",
    device: str = "auto",
    where: str = "model",
    batch_size: int = 32,
) -> LanguageModel:
    """The model from a folder or a Hub name, ready to reply.

    Args:
        path: folder or Hub name of a causal language model.
        template: see `instructlit.data.chat.Renderer`.
        dtype: dtype to compute in; "auto" is bfloat16 on a GPU and float32 elsewhere.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", ...
        where: the option that a message names.
        batch_size: most answers decoded together.

    Raises:
        UserError: what `load_causal_lm` and `load_tokenizer` refuse; a device that is not available.
    """
    tokenizer = check_language_model(path, where, template)
    place = usable_device(device)
    network: Any = load_causal_lm(Backbone(path, dtype=dtype_on(place, dtype)), where=where)
    return ready(network, tokenizer, place, template, batch_size)


def check_language_model(path: str, where: str, template: str = "auto") -> Any:
    """The tokenizer of a language model; its folder is checked before long work, as far as that is possible without
    loading the weights.

    Raises:
        UserError: no such folder, another kind of model in it, incomplete weights, a tokenizer that is not the model's,
            or a template that it does not have.
    """
    check_source(path, weights=True, where=where)
    backbone = Backbone(path)
    check_causal_lm(backbone, where)
    check_whole_weights(path, where)
    tokenizer = load_tokenizer(path, pad_with_eos=True)
    check_vocabulary(backbone, tokenizer, where, added=False)
    Encoder(tokenizer, template)
    return tokenizer


def ready(
    network: Any, tokenizer: Any, device: torch.device, template: str = "auto", batch_size: int = 32
) -> LanguageModel:
    """A `LanguageModel` of a loaded network, frozen, without dropout and on its device."""
    network.requires_grad_(False).eval().to(device)
    disable_dropout(network)
    return LanguageModel(network, tokenizer, device, template, batch_size)


def dtype_on(device: torch.device, asked: AutoDtype) -> Dtype:
    """The dtype to compute in there; "auto" is bfloat16 on a GPU and float32 elsewhere."""
    if asked != "auto":
        return asked
    return "bfloat16" if device.type == "cuda" else "float32"


def usable_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(name)
        torch.empty(0, device=place)
        torch.Generator(place)  # meta has none
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"{name} cannot be used: {first_line(error)}", where="device", expected="auto, cpu, cuda or cuda:N"
        ) from error
    return place


def _batches(members: Sequence[int], limits: Sequence[int], size: int) -> Iterator[list[int]]:
    """Neighbours with one limit, at most `size` together: no answer is cut because another's prompt is long."""
    for _, own in groupby(members, lambda i: limits[i]):
        alike = list(own)
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def _until(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of `stops`, and whether one was met."""
    ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return (text[: min(ends)].strip(), True) if ends else (text, False)
