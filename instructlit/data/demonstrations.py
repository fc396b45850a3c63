"""Demonstrations for supervised fine-tuning, alone or with a share of pretraining text."""

from dataclasses import replace
from typing import Any

from torch.utils.data import ConcatDataset

from instructlit.data.collate import collate_tokens
from instructlit.data.datamodule import DataModule, Options
from instructlit.data.records import Coder, Measure
from instructlit.data.sampling import MixedPlan
from instructlit.data.sources import Sources, require_name
from instructlit.data.tokenization import Encoded, Encoder
from instructlit.errors import UserError, require
from instructlit.types import Demonstration, TokenBatch


def demonstration_coder(encoder: Encoder, max_prompt_length: int) -> Coder:
    """How demonstrations become ids: prompt, completion and EOS."""
    how = encoder.identity
    return Coder(
        "demonstration",
        lambda record: [encoder.example(record.prompt, record.completion)],
        lambda record, sequences: measure_demonstration(record, sequences[0], max_prompt_length),
        how=how and {**how, "max_prompt_length": max_prompt_length},
    )


def only_sequence(record: Demonstration, sequences: list[Encoded]) -> Encoded:
    """The sequence that a demonstration is collated from."""
    return sequences[0]


def measure_demonstration(record: Demonstration, encoded: Encoded, max_prompt_length: int) -> Measure:
    """A demonstration's tokens; dropped if the completion is empty, the prompt too long, or no token left to learn."""
    if not record.completion.strip():
        reason = "with an empty completion"
    elif encoded.start > max_prompt_length:
        reason = f"with a prompt over {max_prompt_length} tokens"
    else:
        reason = "with no token left to learn" if encoded.all_masked else None
    return Measure(len(encoded.ids), encoded.truncated, reason)


class DemonstrationData(DataModule):
    """Batches of demonstrations, loss on the completion and its EOS only."""

    kind = "demonstration"

    def __init__(
        self,
        tokenizer: str,
        train: Sources,
        validation: Sources | None = None,
        test: Sources | None = None,
        validation_fraction: float = 0.05,
        batch_size: int = 32,
        max_length: int = 2048,
        max_prompt_length: int | None = None,
        template: str = "auto",
        pretraining: Sources | None = None,
        pretraining_fraction: float = 0.0,
        length_bucketing: bool = False,
        max_dropped_fraction: float = 0.2,
        num_workers: int = 0,
        seed: int = 0,
        tokenizer_revision: str | None = None,
        trust_remote_code: bool = False,
        padding_token: str | None = None,
    ):
        """Keeps the options; files and tokenizer are read by `setup`.

        Args:
            tokenizer: folder or Hub name of the tokenizer, usually that of the model.
            train: demonstrations to train on: a file, a glob, a `datasets` folder, a Hub name, or a list of them.
            validation: demonstrations to validate on; if not given, a part of the training prompts is held out.
            test: demonstrations for `instructlit test`; if not given, those of validation.
            validation_fraction: share of the training prompts to hold out if no validation files are named.
            batch_size: demonstrations per optimiser step, over all processes.
            max_length: tokens of prompt and completion; longer ones are truncated and get no EOS.
            max_prompt_length: demonstrations with a longer prompt are dropped; half of max_length when not given.
            template: "auto" (the tokenizer's chat template, else plain), "plain", "turns", a Jinja file, or Jinja text.
            pretraining: texts to mix into every batch.
            pretraining_fraction: share of a batch's sequences that are blocks of this text, with loss on all their
                tokens.
            length_bucketing: whether demonstrations of similar length share a batch, which saves padding.
            max_dropped_fraction: share of the demonstrations that may be dropped before this is an error.
            num_workers: worker processes that read and tokenise ahead; 0 does this in the training process.
            seed: determines the order of the rows, together with the epoch.
            tokenizer_revision: branch, tag or commit of the tokenizer on the Hub.
            trust_remote_code: whether code that comes with the tokenizer may run.
            padding_token: token to pad with, if the tokenizer has no pad token.
        """
        options = Options(
            tokenizer, train, validation, test, validation_fraction, batch_size, template, num_workers, seed,
            max_dropped_fraction, tokenizer_revision, trust_remote_code, padding_token,
        )  # fmt: skip
        super().__init__(options, max_length)
        require("a whole number above 0", max_length=max_length, max_prompt_length=max_prompt_length)
        self.max_prompt_length = max_prompt_length or max_length // 2
        require_name(pretraining=pretraining)
        self.pretraining, self.pretraining_fraction = pretraining, pretraining_fraction
        self.length_bucketing = length_bucketing
        if (pretraining is None) != (pretraining_fraction == 0):
            raise UserError(
                f"pretraining is {pretraining!r} and pretraining_fraction {pretraining_fraction}",
                where="pretraining_fraction",
                expected="both of them, or neither",
            )
        self._mixed = round(batch_size * pretraining_fraction)
        if pretraining is not None and not 0 < self._mixed < batch_size:
            raise UserError(
                f"{pretraining_fraction} of {batch_size} sequences is {self._mixed}",
                where="pretraining_fraction",
                expected="at least one sequence of each kind in a batch",
            )

    def coder(self) -> Coder:
        """See `demonstration_coder`."""
        return replace(demonstration_coder(self.encoder, self.max_prompt_length), measure=self.measure)

    def measure(self, record: Any, sequences: list[Encoded]) -> Measure:
        """See `measure_demonstration`."""
        return measure_demonstration(record, sequences[0], self.max_prompt_length)

    def encoded(self, record: Any, sequences: list[Encoded]) -> Encoded:
        """Prompt, completion and EOS."""
        return only_sequence(record, sequences)

    def collate(self, rows: list[Encoded]) -> TokenBatch:
        """A right-padded batch."""
        return collate_tokens(rows, self.tokenizer.pad_token_id)

    def read(self) -> None:
        """Demonstrations, and the blocks of text that are mixed in."""
        super().read()
        self.warn_of_other_prompts()
        if self.pretraining is not None:
            assert self.max_length is not None
            (self.splits["pretraining"],) = self._text_splits(
                "pretraining", self.pretraining, self.max_length, packing=True
            )

    def train_dataloader(self) -> Any:
        """Batches of one optimiser step."""
        if not self._mixed:
            return super().train_dataloader()
        split = self.splits["train"]
        plan = self.plan(split, self.options.batch_size - self._mixed, self.length_bucketing)
        mixed = MixedPlan(plan, self.pretraining_plan(self._mixed), len(split.dataset))
        rows = ConcatDataset([split.dataset, self.splits["pretraining"].dataset])
        return self.training_loader("train", split, mixed, self.collate, rows=rows)
