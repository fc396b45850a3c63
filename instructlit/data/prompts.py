"""Prompts for PPO rollouts, with the pretraining text of PPO-ptx."""

from typing import Any

import numpy as np

from instructlit.data.collate import EncodedPrompt, collate_prompts, collate_tokens, padded
from instructlit.data.datamodule import DataModule, Options
from instructlit.data.hygiene import over_cap, personal_data, repeats
from instructlit.data.records import Coder, Measure, Scan
from instructlit.data.sources import Sources, require_name
from instructlit.data.splits import prompt_key
from instructlit.data.tokenization import Encoded
from instructlit.errors import require
from instructlit.types import Prompt, PromptBatch

_DUPLICATE, _CAPPED = "near duplicates", "over the cap of their user"
_PERSONAL = "with personal data"


class PromptData(DataModule):
    """Batches of prompts, cleaned as in the paper: near duplicates removed, a cap per user, splits by user."""

    kind = "prompt"
    hygiene_reasons = frozenset({_DUPLICATE, _CAPPED, _PERSONAL})

    def __init__(
        self,
        tokenizer: str,
        train: Sources,
        validation: Sources | None = None,
        test: Sources | None = None,
        validation_fraction: float = 0.05,
        batch_size: int = 512,
        max_prompt_length: int = 1024,
        template: str = "auto",
        pretraining: Sources | None = None,
        pretraining_per_episode: int = 8,
        pretraining_block_size: int = 1024,
        pretraining_packing: bool = True,
        duplicate_prefix: int = 100,
        max_prompts_per_user: int = 200,
        split_by_user: bool = True,
        filter_personal_data: bool = False,
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
            train: prompts to sample from: a file, a glob, a `datasets` folder, a Hub name, or a list of them.
            validation: prompts to evaluate on; if not given, a part of the training prompts is held out.
            test: prompts for `instructlit test`; if not given, those of validation.
            validation_fraction: share of the users (or prompts) to hold out if no validation files are named.
            batch_size: episodes per rollout, over all processes.
            max_prompt_length: prompts with more tokens are dropped.
            template: "auto" (the tokenizer's chat template, else plain), "plain", "turns", a Jinja file, or Jinja text.
            pretraining: texts for PPO-ptx.
            pretraining_per_episode: blocks of this text per episode of a rollout.
            pretraining_block_size: tokens of a block.
            pretraining_packing: whether documents follow one another in a block; if not, every row is one document.
            duplicate_prefix: prompts that share this many first characters, and half of their text from the start,
                are near duplicates, of which only the first is kept; 0 keeps all.
            max_prompts_per_user: maximum number of prompts per user, further ones are dropped; 0 keeps all.
            split_by_user: whether all prompts of a user stay on one side of the validation split.
            filter_personal_data: whether training prompts that seem to contain personal data are dropped: a filter,
                not a guarantee.
            max_dropped_fraction: share of the prompts that may be too long before this is an error.
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
        super().__init__(options, None)
        text = {"pretraining_per_episode": pretraining_per_episode, "pretraining_block_size": pretraining_block_size}
        require("a whole number above 0", max_prompt_length=max_prompt_length, **text)
        kept = {"duplicate_prefix": duplicate_prefix, "max_prompts_per_user": max_prompts_per_user}
        require("a whole number, 0 or more", **kept)
        self.max_prompt_length = max_prompt_length
        require_name(pretraining=pretraining)
        self.pretraining, self.pretraining_per_episode = pretraining, pretraining_per_episode
        self.pretraining_block_size, self.pretraining_packing = pretraining_block_size, pretraining_packing
        self.duplicate_prefix, self.max_prompts_per_user = duplicate_prefix, max_prompts_per_user
        self.split_by_user, self.filter_personal_data = split_by_user, filter_personal_data

    def row_lengths(self) -> dict[str, int]:
        """The limits of a prompt, and of a block if there is text."""
        text = {} if self.pretraining is None else {"pretraining_block_size": self.pretraining_block_size}
        return {"max_prompt_length": self.max_prompt_length, **text}

    def coder(self) -> Coder:
        """The prompt as the policy sees it."""
        encoder, how = self.encoder, self.encoder.identity
        return Coder(
            "prompt",
            lambda record: [Encoded(encoder.prompt(record.prompt), 0)],
            self.measure,
            self.duplicate_prefix,
            how and {**how, "max_prompt_length": self.max_prompt_length, "personal": self.filter_personal_data},
        )

    def measure(self, record: Prompt, sequences: list[Encoded]) -> Measure:
        """A prompt's tokens; dropped if there are too many, or none (the tokenizer may strip all of the text)."""
        tokens = len(sequences[0].ids)
        if tokens > self.max_prompt_length:
            dropped = f"over {self.max_prompt_length} tokens"
        else:
            dropped = None if tokens else "without a token"
        personal = self.filter_personal_data and personal_data(prompt_key(record.prompt)) is not None
        return Measure(tokens, dropped=dropped, personal=personal)

    def encoded(self, record: Any, sequences: list[Encoded]) -> EncodedPrompt:
        """The prompt's ids with the record, which text-based rewards read."""
        return EncodedPrompt(sequences[0].ids, record)

    def collate(self, rows: list[EncodedPrompt]) -> PromptBatch:
        """A left-padded batch."""
        return collate_prompts(rows, self.tokenizer.pad_token_id)

    def clean(self, scanned: Scan, training: bool) -> None:
        """Near duplicates, then the cap, then (for training, as in the paper) personal data."""
        if self.duplicate_prefix:
            kept = np.flatnonzero(scanned.kept)
            again = np.zeros(len(scanned), dtype=bool)
            again[kept] = repeats(scanned.records["prefix"][kept])
            scanned.drop(again, _DUPLICATE)
        if self.max_prompts_per_user:
            scanned.drop(over_cap(scanned.user, scanned.kept, self.max_prompts_per_user), _CAPPED)
        if training and self.filter_personal_data:
            scanned.drop(scanned.records["personal"], _PERSONAL)

    def split_keys(self, scanned: Scan) -> np.ndarray:
        """The user if there is one and splits are by user, otherwise the prompt."""
        return np.where(scanned.user != 0, scanned.user, scanned.prompt) if self.split_by_user else scanned.prompt

    def read(self) -> None:
        """Prompts, and the blocks of text for PPO-ptx."""
        super().read()
        if self.pretraining is not None:
            (self.splits["pretraining"],) = self._text_splits(
                "pretraining", self.pretraining, self.pretraining_block_size, self.pretraining_packing
            )

    def train_dataloader(self) -> Any:
        """`{"prompts": …}`, and `"pretraining"` if there is such text. An epoch is one pass over the prompts; the
        next epoch continues the text where the last one stopped.
        """
        split, o = self.splits["train"], self.options
        plan = self.plan(split, o.batch_size)
        loaders = {"prompts": self.training_loader("prompts", split, plan, self.collate)}
        if self.pretraining is not None:
            text, size = self.splits["pretraining"], o.batch_size * self.pretraining_per_episode
            texts = self.pretraining_plan(size)
            collate = padded(collate_tokens, self.tokenizer.pad_token_id)
            loaders["pretraining"] = self.training_loader("pretraining", text, texts, collate, len(plan))
        return loaders

    def predict_dataloader(self) -> Any:
        """The prompts of `test`, or of validation: for writing responses."""
        return self.test_dataloader()
