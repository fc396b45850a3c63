"""A number of one's own about the samples."""

import lightning.pytorch as pl


class Repetition(pl.Callback):
    """Logs the share of words in held-out samples that the same response has said before, and stops a run of parrots.

    Args:
        stop_above: end the run where the share passes this; 1 never does.
    """

    def __init__(self, stop_above: float = 1.0):
        self.stop_above = stop_above

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rows = getattr(pl_module, "validation_rows", [])
        words = [row["response"].split() for row in rows]
        total = sum(map(len, words))
        share = 1 - sum(len(set(response)) for response in words) / total if total else 0.0
        pl_module.log("ppo/val/repetition", share, sync_dist=True)
        if share > self.stop_above and not trainer.sanity_checking:
            pl_module.print(f"stopping: {share:.0%} of the words are repetitions")
            trainer.should_stop = True
