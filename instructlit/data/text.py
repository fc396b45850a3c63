"""Raw text for pretraining and for measuring perplexity."""

from instructlit.data.collate import collate_tokens
from instructlit.data.datamodule import DataModule, Options
from instructlit.data.sources import Sources
from instructlit.data.tokenization import Encoded
from instructlit.errors import require
from instructlit.types import TokenBatch


class TextData(DataModule):
    """Blocks of equal length, cut from concatenated documents (each with EOS), or (without packing) every document by
    itself; loss on all tokens but the first.
    """

    kind = "text"

    def __init__(
        self,
        tokenizer: str,
        train: Sources,
        validation: Sources | None = None,
        test: Sources | None = None,
        validation_fraction: float = 0.05,
        batch_size: int = 32,
        block_size: int = 1024,
        packing: bool = True,
        length_bucketing: bool = False,
        num_workers: int = 0,
        seed: int = 0,
        tokenizer_revision: str | None = None,
        trust_remote_code: bool = False,
        padding_token: str | None = None,
    ):
        """Keeps the options; files and tokenizer are read by `setup`.

        Args:
            tokenizer: folder or Hub name of the tokenizer, usually that of the model.
            train: rows with `text` to train on: a file, a glob, a `datasets` folder, a Hub name, or a list of them.
            validation: rows to validate on; if not given, a part of the training documents is held out.
            test: rows for `instructlit test`; if not given, those of validation.
            validation_fraction: share of the training documents to hold out if no validation files are named.
            batch_size: blocks per optimiser step, over all processes.
            block_size: tokens of a block; without packing, the maximum length of a piece of a document.
            packing: whether documents follow one another in a block, and attend to earlier ones; if not, every row is
                one document, which suits texts much shorter than a block.
            length_bucketing: whether rows of similar length share a batch, which saves padding without packing.
            num_workers: worker processes that read ahead; 0 does this in the training process.
            seed: determines the order of the blocks, together with the epoch.
            tokenizer_revision: branch, tag or commit of the tokenizer on the Hub.
            trust_remote_code: whether code that comes with the tokenizer may run.
            padding_token: token to pad with, if the tokenizer has no pad token.
        """
        options = Options(
            tokenizer, train, validation, test, validation_fraction, batch_size, "plain", num_workers, seed,
            1.0, tokenizer_revision, trust_remote_code, padding_token,
        )  # fmt: skip
        super().__init__(options, block_size)
        require("a whole number above 0", block_size=block_size)
        self.block_size, self.packing, self.length_bucketing = block_size, packing, length_bucketing

    def row_lengths(self) -> dict[str, int]:
        """The limit of a block."""
        return {"block_size": self.block_size}

    def collate(self, rows: list[Encoded]) -> TokenBatch:
        """A batch of blocks."""
        return collate_tokens(rows, self.tokenizer.pad_token_id)

    def read(self) -> None:
        """Tokenises every document once."""
        o = self.options
        fraction = 0.0 if o.validation else o.validation_fraction
        trained = self._text_splits("train", o.train, self.block_size, self.packing, fraction)
        self.splits.update(zip(("train", "validation"), trained, strict=False))
        for name, sources in (("validation", o.validation), ("test", o.test)):
            if sources:
                (self.splits[name],) = self._text_splits(name, sources, self.block_size, self.packing)
