"""Demonstrations that are made up on the spot, for a model that shall add."""

import random
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from instructlit.data import Encoder, load_tokenizer
from instructlit.data.collate import collate_tokens
from instructlit.data.tokenization import Encoded


class Sums(pl.LightningDataModule):
    """Batches of "12+34=" with the completion "46", loss on the completion and its EOS only.

    Args:
        tokenizer: folder or Hub name.
        examples: sums to train on; a tenth as many, others, to validate on.
        largest: no summand is larger.
        batch_size: sums of one optimiser step.
        seed: makes the sums.
    """

    def __init__(self, tokenizer: str, examples: int = 1000, largest: int = 99, batch_size: int = 16, seed: int = 0):
        super().__init__()
        self.tokenizer_path, self.examples, self.largest = tokenizer, examples, largest
        self.batch_size, self.seed = batch_size, seed

    def setup(self, stage: str) -> None:
        self.tokenizer: Any = load_tokenizer(self.tokenizer_path)
        self.encoder = Encoder(self.tokenizer)
        made = random.Random(self.seed)
        pairs = [
            (made.randint(0, self.largest), made.randint(0, self.largest)) for _ in range(self.examples * 11 // 10)
        ]
        self.rows = [self.encoder.example(f"{a}+{b}=", str(a + b)) for a, b in pairs]

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.rows[: self.examples], shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.rows[self.examples :], shuffle=False)

    def _loader(self, rows: list[Encoded], shuffle: bool) -> DataLoader[Any]:
        return DataLoader(rows, self.batch_size, shuffle, collate_fn=self._collate, drop_last=shuffle)  # type: ignore[arg-type]

    def _collate(self, rows: list[Encoded]) -> Any:
        return collate_tokens(rows, self.tokenizer.pad_token_id)
