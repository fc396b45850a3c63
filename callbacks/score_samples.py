"""A reward's score of a model's responses at every validation: how the paper chose its SFT checkpoint (p. 41)."""

from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch

from instructlit.callbacks.common import progress_of, stage_name, tell_without_validation
from instructlit.data.collate import EncodedPrompt, collate_prompts
from instructlit.data.readers import open_source
from instructlit.data.records import prompts_of
from instructlit.data.sources import Source
from instructlit.data.tokenization import Encoder
from instructlit.errors import UserError, require
from instructlit.models.sharding import gathered
from instructlit.modules.rescue import together
from instructlit.rollout import CachedEngine, GenerationEngine, RewardFunction, Sampling, checked_scores
from instructlit.rollout.samples import sample_rows
from instructlit.types import PromptBatch


class ScoreSamples(pl.Callback):
    """Answers held-out prompts at every validation and logs their mean score as `<stage>/val/score`.

    With it a `ModelCheckpoint(monitor="sft/val/score", mode="max")` keeps the checkpoint that a reward model likes
    best. The samples are drawn with the same random numbers each time, which does not affect those of training.
    They are in the module's `validation_rows`, from which a `SampleTable` listed after this callback writes them.

    Args:
        reward: where scores come from.
        prompts: file of prompts.
        sampling: length limit and temperature.
        limit: most prompts to answer, from the start of the file.
        batch_size: prompts answered together.
        max_prompt_length: longer prompts are left out.
        engine: the generation engine.
        reward_timeout: seconds that a reward of yours may take for a batch of responses; None sets no limit.
    """

    def __init__(
        self,
        reward: RewardFunction,
        prompts: str,
        sampling: Sampling = Sampling(),  # noqa: B008 - a set of numbers, and what --help shows
        limit: int = 256,
        batch_size: int = 32,
        max_prompt_length: int = 1024,
        engine: GenerationEngine = CachedEngine(),  # noqa: B008
        reward_timeout: float | None = 1800.0,
    ):
        counts = {"limit": limit, "batch_size": batch_size, "max_prompt_length": max_prompt_length}
        require("a whole number above 0", "ScoreSamples.", **counts)
        require("a number above 0", "ScoreSamples.", reward_timeout=reward_timeout)
        self.reward, self.prompts, self.sampling, self.engine = reward, prompts, sampling, engine
        self.reward_timeout = reward_timeout
        self.limit, self.batch_size, self.max_prompt_length = limit, batch_size, max_prompt_length
        self._batches: list[PromptBatch] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        tell_without_validation(trainer, self)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._batches is None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            self._batches = self._read(data.encoder, int(data.tokenizer.pad_token_id))
            self.reward.prepare(pl_module.device, data.tokenizer)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        model: Any = pl_module.trained_model
        # On every rank, one that has no prompt to answer among them: an engine with weights of its own gathers them.
        together(trainer, lambda: self.engine.sync(model, trainer.datamodule.tokenizer))  # type: ignore[attr-defined]
        with gathered(model):
            rows = together(trainer, lambda: self._answered(trainer, pl_module))
        pl_module.validation_rows = rows  # type: ignore[assignment]
        sums = torch.tensor([sum(row["score"] for row in rows), float(len(rows))], device=pl_module.device)
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums, reduce_op="sum")
        pl_module.log(f"{stage_name(pl_module)}/val/score", sums[0] / sums[1])

    @torch.no_grad()
    def _answered(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[dict[str, Any]]:
        """This rank's share of the prompts, of which it may have more than another or none, with answers and scores."""
        assert self._batches is not None
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        rows: list[dict[str, Any]] = []
        done = progress_of(trainer, pl_module)[0]
        for number, batch in enumerate(self._batches):
            if number % trainer.world_size != trainer.global_rank:
                continue
            generator = torch.Generator(pl_module.device).manual_seed(1_000_003 + number)
            prompts = batch.to(pl_module.device)
            with trainer.precision_plugin.forward_context():  # as in a step: Lightning leaves this hook without
                responses = self.engine.generate(pl_module.trained_model, prompts, self.sampling, tokenizer, generator)  # type: ignore[arg-type]
                scores = checked_scores(self.reward, responses, self.reward_timeout)
            rows += sample_rows(responses, scores, None, done)
        return rows

    def _read(self, encoder: Encoder, pad_id: int) -> list[PromptBatch]:
        prompts = prompts_of(open_source(Source(self.prompts), "ScoreSamples.prompts"))
        encoded = (EncodedPrompt(encoder.prompt(prompt.prompt), prompt) for _, prompt in prompts)
        found = list(islice((e for e in encoded if len(e.ids) <= self.max_prompt_length), self.limit))
        if not found:
            raise UserError(
                f"no prompt has at most {self.max_prompt_length} tokens",
                where=f"ScoreSamples.prompts: {self.prompts}",
                expected="prompts to answer",
            )
        size = self.batch_size
        return [collate_prompts(found[i : i + size], pad_id) for i in range(0, len(found), size)]
