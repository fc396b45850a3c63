"""What the datamodules share: tokenizer, sources, splits, loaders and their state in a checkpoint."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from instructlit.data.formats import Kind
from instructlit.data.packing import Blocks, Documents, block_report, tokenise
from instructlit.data.places import listed, place
from instructlit.data.readers import open_source
from instructlit.data.records import Coder, Measure, RecordDataset, Scan, scan
from instructlit.data.report import DataReport
from instructlit.data.rows import Rows, value_hash
from instructlit.data.sampling import EvenPlan, Plan, PlannedLoader, ResumableDataLoader, ShuffledPlan, repeated
from instructlit.data.sources import Sources, as_sources, require_name
from instructlit.data.splits import held_out
from instructlit.data.tokenization import Encoded, Encoder
from instructlit.data.tokenizers import load_tokenizer
from instructlit.errors import UserError, require

_LOOKED_AT = 100  # rows whose prompts are tokenised alone too


@dataclass(frozen=True)
class Options:
    """The arguments that every datamodule has."""

    tokenizer: str
    train: Sources
    validation: Sources | None
    test: Sources | None
    validation_fraction: float
    batch_size: int
    template: str
    num_workers: int
    seed: int
    max_dropped_fraction: float
    tokenizer_revision: str | None
    trust_remote_code: bool
    padding_token: str | None

    def __post_init__(self) -> None:
        shares = {"validation_fraction": self.validation_fraction, "max_dropped_fraction": self.max_dropped_fraction}
        require("a whole number above 0", batch_size=self.batch_size)
        require("a whole number, 0 or more", num_workers=self.num_workers, seed=self.seed)
        require("a number from 0 to 1", **shares)
        require_name(train=self.train, validation=self.validation, test=self.test)


@dataclass
class Split:
    """One of training, validation and test: a dataset and the rows of it that belong to the split, by source."""

    dataset: Any
    groups: list[np.ndarray]
    weights: list[float]
    lengths: np.ndarray | None = None

    @property
    def rows(self) -> np.ndarray:
        """All rows of the split, in order."""
        return np.concatenate(self.groups) if self.groups else np.zeros(0, dtype=np.int64)

    @property
    def fingerprint(self) -> dict[str, int | str]:
        """Identifies the rows and their data, to detect changes."""
        digest = hashlib.sha256(self.rows.tobytes())
        digest.update(self.dataset.identity)
        return {"rows": len(self.rows), "data": digest.hexdigest()[:16]}


class DataModule(pl.LightningDataModule):
    """Base class of the datamodules. A subclass defines how a record is measured, encoded and collated.

    `train_dataloader` gives batches of one optimiser step each (this rank's share); `.report` and `.tokenizer` are
    available after `setup`.
    """

    kind: Kind
    hygiene_reasons: frozenset[str] = frozenset()
    length_bucketing = False
    """Whether rows of similar length share a training batch."""

    def __init__(self, options: Options, max_length: int | None):
        super().__init__()
        self.options, self.max_length = options, max_length
        self.report = DataReport()
        self.tokenizer: Any = None
        self.encoder: Encoder
        self.splits: dict[str, Split] = {}
        self._files: dict[str, list[list[Rows]]] = {}
        self._loaders: dict[str, ResumableDataLoader] = {}
        self._positions: dict[str, Any] = {}
        self.accepts_changes = False  # whether a run may resume with different data

    # What a subclass defines.

    def coder(self) -> Coder:
        """How records become ids, and which of them can be used."""
        raise NotImplementedError

    def measure(self, record: Any, sequences: list[Encoded]) -> Measure:
        """Length of a record in tokens, and whether it can be used."""
        raise NotImplementedError

    def encoded(self, record: Any, sequences: list[Encoded]) -> Any:
        """A record and its ids in the form that `collate` takes."""
        raise NotImplementedError

    def collate(self, rows: list[Any]) -> Any:
        """Encoded records as a batch."""
        raise NotImplementedError

    def clean(self, scanned: Scan, training: bool) -> None:
        """Drops rows for hygiene; none by default."""

    @property
    def batch_size(self) -> int:
        """Rows of one training batch, over all processes; the episodes of a rollout if the rows are prompts."""
        return self.options.batch_size

    def row_lengths(self) -> dict[str, int]:
        """Maximum tokens of a row, by the option that sets the limit."""
        return {} if self.max_length is None else {"max_length": self.max_length}

    # Setup.

    def setup(self, stage: str | None = None) -> None:
        """Reads, checks and counts all rows once, and reports what it found.

        Raises:
            UserError: if a row is invalid, the tokenizer cannot be used, or nothing is left to train on.
        """
        self._loaders = {}
        if self.splits:
            return
        self.load_tokenizer()
        self.read()
        for line in self.report.lines():
            rank_zero_info(line)

    def load_tokenizer(self) -> None:
        """Loads tokenizer and encoder: the part of `setup` that needs no data."""
        o = self.options
        self.tokenizer = load_tokenizer(o.tokenizer, o.tokenizer_revision, o.trust_remote_code, o.padding_token)
        self.encoder = Encoder(self.tokenizer, o.template, self.max_length)

    def read(self) -> None:
        """Fills `splits` and `report` with training, validation and test."""
        o = self.options
        scanned = self._scan("train", o.train)
        own = self._scan("validation", o.validation) if o.validation else None
        self.clean(scanned, training=True)
        held = np.zeros(len(scanned), dtype=bool) if own else held_out(self.split_keys(scanned), o.validation_fraction)
        self._add("train", scanned, ~held)
        if own is not None:
            self.clean(own, training=False)
            self._add("validation", own, np.ones(len(own), dtype=bool))
        elif held.any():
            self._add("validation", scanned, held)
        if o.test:
            test = self._scan("test", o.test)
            self.clean(test, training=False)
            self._add("test", test, np.ones(len(test), dtype=bool))
        mine = scanned.prompt[scanned.kept & ~held]
        theirs = own.prompt[own.kept] if own is not None else scanned.prompt[scanned.kept & held]
        self.report.shared_prompts = len(np.intersect1d(mine, theirs))

    def warn_of_other_prompts(self) -> None:
        """Looks at the first rows of training for prompts whose ids alone are not those that their example begins with:
        a policy would answer what it has not been trained on.
        """
        split = self.splits["train"]
        rows = split.rows[:_LOOKED_AT].tolist()
        found = [
            row
            for row in rows
            if not self.encoder.prompt_is_prefix(
                split.dataset.record(row).prompt, split.dataset.scanned.sequences(row)[0]
            )
        ]
        if found:
            rank_zero_warn(
                f"{split.dataset.where(found[0])}: {len(found)} of the first {len(rows)} prompts have other ids alone, "
                "from which sampling starts, than in their examples; end prompts in a single line break or use a chat "
                "template (docs/data.md, tokens across the boundary)"
            )

    def split_keys(self, scanned: Scan) -> np.ndarray:
        """(records,) uint64: the validation split never separates records with the same key."""
        return scanned.prompt

    def _scan(self, option: str, sources: Sources) -> Scan:
        files = [file for group in self.open(option, sources) for file in group]
        coder = self.coder()
        ours = all(getattr(type(self), name).__module__.startswith("instructlit.") for name in ("coder", "measure"))
        return scan(files, coder if ours else replace(coder, how=None), option)  # a subclass's code is unknown

    def open(self, option: str, sources: Sources) -> list[list[Rows]]:
        """The files of an option, by source; recorded for `data_files`."""
        self._files[option] = [open_source(source, option) for source in as_sources(sources)]
        return self._files[option]

    def _add(self, name: str, scanned: Scan, chosen: np.ndarray) -> None:
        part = replace(scanned, kept=scanned.kept & chosen)
        report = part.report(name)
        if name == "train" or chosen.all():
            report.require(self.options.max_dropped_fraction, self.hygiene_reasons)
        elif not report.kept:
            reasons = ", ".join(scanned.reasons[i] for i in np.unique(scanned.reason[chosen]))
            raise UserError(
                f"the {int(chosen.sum()):,} held-out {self.kind}s would all be dropped: {reasons}",
                where="validation_fraction",
                expected="at least one that can be used for validation",
                fix="raise validation_fraction, name files as `validation`, or set validation_fraction to 0",
            )
        else:
            report.dropped.clear()  # reported with the training split, which was read from the same rows
        self.report.splits.append(report)
        groups, weights = scanned.groups(chosen)
        self.splits[name] = Split(RecordDataset(scanned, self.encoded), groups, weights, scanned.tokens)

    def _text_splits(
        self, option: str, sources: Sources, block_size: int, packing: bool, fraction: float = 0.0
    ) -> list[Split]:
        """Blocks of text (or documents, without packing) for training and, from a held-out fraction, for validation."""
        opened = self.open(option, sources)
        stores = tokenise(opened, self.encoder, fraction, option)
        splits = []
        for name, files in zip((option, "validation"), stores, strict=True):
            if not files:
                continue
            evaluates = name != option or option in ("validation", "test")
            blocks = Blocks(files, block_size, evaluates) if packing else Documents(files, block_size)
            if not len(blocks):
                raise UserError(
                    f"{blocks.tokens} tokens: too few for a block", where=name, expected="at least two tokens"
                )
            weights = [source.weight for source in as_sources(sources)] if name == option else [1.0]
            rows = sum(file.documents for file in files)
            self.report.splits.append(block_report(name, blocks, rows))
            splits.append(Split(blocks, blocks.groups, weights, blocks.lengths))
        return splits

    # Loaders.

    @property
    def world_size(self) -> int:
        """Number of ranks that share each batch."""
        return self.trainer.world_size if self.trainer else 1

    @property
    def rank(self) -> int:
        """The rank of this process."""
        return self.trainer.global_rank if self.trainer else 0

    @property
    def on_gpu(self) -> bool:
        """Whether batches go to an NVIDIA GPU."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def plan(self, split: Split, batch_size: int, bucketing: bool = False) -> ShuffledPlan:
        """Every row of a split once per epoch; with `bucketing`, rows of similar length share a batch."""
        lengths = split.lengths if bucketing else None
        return ShuffledPlan(split.groups, batch_size, self.options.seed, split.weights, not self.overfits(), lengths)

    def pretraining_plan(self, batch_size: int) -> ShuffledPlan:
        """Batches of the text that is mixed in, in their own order."""
        text = self.splits["pretraining"]
        weights = repeated(text.groups, text.weights, batch_size)
        return ShuffledPlan(text.groups, batch_size, self.options.seed + 1, weights, not self.overfits())

    def training_loader(
        self,
        name: str,
        split: Split,
        plan: Plan,
        collate: Callable[[list[Any]], Any],
        length: int | None = None,
        rows: Any = None,
    ) -> ResumableDataLoader:
        """The loader of that name, made once per run; it starts where a restored checkpoint left it.

        `rows` is the dataset that the plan indexes, if it is not the split's own.
        """
        if name in self._loaders:
            return self._loaders[name]
        size = len(plan.batch(0))
        if size % self.world_size:
            raise UserError(
                f"{size} rows cannot be split evenly over {self.world_size} processes",
                where="batch_size",
                expected=f"a multiple of {self.world_size}: the batch of one optimiser step, over all processes",
            )
        loader = ResumableDataLoader(
            split.dataset if rows is None else rows,
            plan,
            collate,
            rank=self.rank,
            world_size=self.world_size,
            num_workers=self.options.num_workers,
            pin_memory=self.on_gpu,
            length=length,
            limit=self.trainer.limit_train_batches if self.trainer else 1.0,
            fingerprint={
                "batch_size": size,
                "seed": self.options.seed,
                **split.fingerprint,
                "tokenizer and template": value_hash(self.encoder.identity),
                **self.files_digests(),
            },
            again=self.overfits(),
        )
        if name in self._positions:
            self._move(loader, name)
        self._loaders[name] = loader
        return loader

    def train_dataloader(self) -> Any:
        """Batches of one optimiser step."""
        split = self.splits["train"]
        plan = self.plan(split, self.options.batch_size, self.length_bucketing)
        return self.training_loader("train", split, plan, self.collate)

    def evaluation_loader(
        self, split: Split | None, collate: Callable[[list[Any]], Any] | None = None
    ) -> PlannedLoader | list:
        """Every row of a split once; if there is no such split, an empty list, which Lightning takes for "none"."""
        if split is None:
            return []
        plan = EvenPlan(split.rows, self.options.batch_size, self.world_size)
        return PlannedLoader(
            split.dataset,
            plan,
            collate or self.collate,
            rank=self.rank,
            world_size=self.world_size,
            num_workers=self.options.num_workers,
            pin_memory=self.on_gpu,
        )

    def val_dataloader(self) -> Any:
        """Every validation row once, in order."""
        return self.evaluation_loader(self.splits.get("validation"))

    def test_dataloader(self) -> Any:
        """Every test row once; the validation rows if no test files are named."""
        return self.evaluation_loader(self.splits.get("test", self.splits.get("validation")))

    def batch_in_use(self) -> str:
        """Files and lines of the last training batch, over all ranks, for a message."""
        loaders = self._loaders.values()
        return "; ".join(listed(place(loader.rows, int(i)) for i in loader.in_use()) for loader in loaders)

    def overfits(self) -> bool:
        """Whether Lightning was asked to train on the same few batches: then they are the first ones, unshuffled."""
        return bool(getattr(self.trainer, "overfit_batches", 0))

    # Checkpoints and lineage.

    def state_dict(self) -> dict[str, Any]:
        """Positions of the training loaders. Lightning saves them too, but restores them only in the middle of an
        epoch.
        """
        return {name: loader.state_dict() for name, loader in self._loaders.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Moves the existing loaders, and keeps the positions for those that are made later.

        With a strategy that restores checkpoints late, as sharding ones do, a loader already exists: its batches were
        counted.
        """
        self._positions = dict(state_dict)
        for name, loader in self._loaders.items():
            if name in self._positions:
                self._move(loader, name)

    def data_files(self) -> list[dict[str, Any]]:
        """Every file that was read, with its hash and number of rows: the data part of a model's lineage."""
        seen: dict[str, Rows] = {}
        for groups in self._files.values():
            for rows in (rows for group in groups for rows in group):
                seen.setdefault(rows.path, rows)
        return [{"path": path, "sha256": rows.sha256(), "rows": len(rows)} for path, rows in seen.items()]

    def _move(self, loader: ResumableDataLoader, name: str) -> None:
        loader.accepts_changes = self.accepts_changes
        loader.load_state_dict(self._positions.pop(name))

    def files_digests(self) -> dict[str, int | str]:
        """A hash of the files' content for each option that a training run reads."""
        return {
            f"{option} files": value_hash([rows.sha256() for group in files for rows in group])
            for option, files in self._files.items()
            if option != "test"
        }
