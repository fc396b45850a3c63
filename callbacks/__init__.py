"""Lightning callbacks and loggers that a config names by `class_path`. Each is imported when it is asked for."""

from typing import TYPE_CHECKING

from instructlit.lazy import lazy

if TYPE_CHECKING:
    from instructlit.callbacks.alerts import InvariantAlerts
    from instructlit.callbacks.csv_logger import CSVLogger
    from instructlit.callbacks.export import ExportHuggingFace
    from instructlit.callbacks.histograms import WandbHistograms
    from instructlit.callbacks.lineage import WandbLineage
    from instructlit.callbacks.progress import StageProgress
    from instructlit.callbacks.resume_checkpoint import ResumeCheckpoint
    from instructlit.callbacks.sample_table import SampleTable
    from instructlit.callbacks.score_samples import ScoreSamples
    from instructlit.callbacks.throughput import Throughput
    from instructlit.callbacks.wandb_logger import WandbLogger

__all__ = [
    "CSVLogger",
    "ExportHuggingFace",
    "InvariantAlerts",
    "ResumeCheckpoint",
    "SampleTable",
    "ScoreSamples",
    "StageProgress",
    "Throughput",
    "WandbHistograms",
    "WandbLineage",
    "WandbLogger",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "CSVLogger": "csv_logger",
        "ExportHuggingFace": "export",
        "InvariantAlerts": "alerts",
        "ResumeCheckpoint": "resume_checkpoint",
        "SampleTable": "sample_table",
        "ScoreSamples": "score_samples",
        "StageProgress": "progress",
        "Throughput": "throughput",
        "WandbHistograms": "histograms",
        "WandbLineage": "lineage",
        "WandbLogger": "wandb_logger",
    },
)
