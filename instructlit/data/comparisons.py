"""Ranked completions for reward models."""

from typing import Any

import numpy as np

from instructlit.data.collate import EncodedComparison, collate_comparisons, collate_tokens, padded
from instructlit.data.datamodule import DataModule, Options, Split
from instructlit.data.demonstrations import demonstration_coder, measure_demonstration, only_sequence
from instructlit.data.records import Coder, Measure, RecordDataset, scan
from instructlit.data.sampling import PlannedLoader
from instructlit.data.sources import Sources, require_name
from instructlit.data.tokenization import Encoded, Encoder
from instructlit.errors import require
from instructlit.types import Comparison, ComparisonBatch


def encoded_completions(encoder: Encoder, record: Comparison) -> list[Encoded]:
    """Each completion after the prompt, with EOS if it ended, as a policy's response is scored."""
    completions = zip(record.completions, record.ends, strict=True)
    return [encoder.example(record.prompt, completion, ended) for completion, ended in completions]


class ComparisonData(DataModule):
    """Batches of prompts, each with all its completions. The validation split is by prompt, never by pair.

    Tied and equal completions are kept if others differ: a tie is not a pair for the loss, but its completions may be
    part of one.
    """

    kind = "comparison"

    def __init__(
        self,
        tokenizer: str,
        train: Sources,
        validation: Sources | None = None,
        test: Sources | None = None,
        validation_fraction: float = 0.05,
        batch_size: int = 64,
        max_length: int = 2048,
        max_prompt_length: int | None = None,
        template: str = "auto",
        demonstrations: Sources | None = None,
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
            train: comparisons to train on: a file, a glob, a `datasets` folder, a Hub name, or a list of them.
            validation: comparisons to validate on; if not given, a part of the training prompts is held out.
            test: comparisons for `instructlit test`; if not given, those of validation.
            validation_fraction: share of the training prompts to hold out if no validation files are named.
            batch_size: prompts per optimiser step, over all processes; each with all its completions.
            max_length: tokens of prompt and completion; longer ones are truncated and get no EOS.
            max_prompt_length: comparisons with a longer prompt are dropped; half of max_length when not given.
            template: "auto" (the tokenizer's chat template, else plain), "plain", "turns", a Jinja file, or Jinja text.
            demonstrations: demonstrations whose mean score becomes 0; if not given, the scores are not shifted.
            length_bucketing: whether prompts with completions of similar length share a batch, which saves padding.
            max_dropped_fraction: share of the comparisons that may be dropped before this is an error.
            num_workers: worker processes that read and tokenise ahead; 0 does this in the training process.
            seed: determines the order of the prompts, together with the epoch.
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
        require_name(demonstrations=demonstrations)
        self.demonstrations, self.length_bucketing = demonstrations, length_bucketing

    def coder(self) -> Coder:
        """Prompt, completion and, if it ended, EOS, for each completion."""
        encoder, how = self.encoder, self.encoder.identity
        return Coder(
            "comparison",
            lambda record: encoded_completions(encoder, record),
            self.measure,
            how=how and {**how, "max_prompt_length": self.max_prompt_length},
        )

    def measure(self, record: Comparison, rows: list[Encoded]) -> Measure:
        """All completions of a prompt together; dropped if the prompt is too long, or if no two completions differ in
        rank, or in what is left of them after truncation."""
        if max(row.start for row in rows) > self.max_prompt_length:
            reason = f"with a prompt over {self.max_prompt_length} tokens"
        elif any(row.all_masked for row in rows):
            reason = "with no token left to learn"
        elif len(set(record.ranks)) == 1:
            reason = "with all completions tied"
        elif all(row.ids == rows[0].ids for row in rows):
            cut = any(row.truncated for row in rows)
            reason = f"with identical completions{f' up to {self.max_length} tokens' if cut else ''}"
        else:
            reason = None
        return Measure(sum(len(row.ids) for row in rows), any(row.truncated for row in rows), reason)

    def encoded(self, record: Any, sequences: list[Encoded]) -> EncodedComparison:
        """The sequences with their ranks."""
        return EncodedComparison(sequences, record.ranks, record.labeler)

    def collate(self, rows: list[EncodedComparison]) -> ComparisonBatch:
        """A right-padded batch, the completions of a prompt next to each other."""
        return collate_comparisons(rows, self.tokenizer.pad_token_id)

    def read(self) -> None:
        """Comparisons, and the demonstrations for the shift."""
        super().read()
        self.warn_of_other_prompts()
        if not self.demonstrations:
            return
        files = [file for group in self.open("demonstrations", self.demonstrations) for file in group]
        scanned = scan(files, demonstration_coder(self.encoder, self.max_prompt_length), "demonstrations")
        report = scanned.report("demonstrations")
        report.require(self.options.max_dropped_fraction, frozenset())
        self.report.splits.append(report)
        groups, weights = scanned.groups(np.ones(len(scanned), dtype=bool))
        dataset = RecordDataset(scanned, only_sequence)
        self.splits["demonstrations"] = Split(dataset, groups, weights)

    def demonstration_dataloader(self) -> PlannedLoader | None:
        """Every demonstration once, as a `TokenBatch`, for the shift; None if none are named."""
        if "demonstrations" not in self.splits:
            return None
        loader = self.evaluation_loader(
            self.splits["demonstrations"], collate=padded(collate_tokens, self.tokenizer.pad_token_id)
        )
        assert isinstance(loader, PlannedLoader)
        return loader

    def measure_demonstration(self, record: Any, sequences: list[Encoded]) -> Measure:
        """See `instructlit.data.demonstrations.measure_demonstration`: used for the demonstrations of the shift."""
        return measure_demonstration(record, sequences[0], self.max_prompt_length)
