"""Tasks for labelers, their labels, and the files for training that are made from them."""

from instructlit.labels.records import Label, LabelKind, Task, read_labels, read_tasks, write_labels, write_tasks

__all__ = ["Label", "LabelKind", "Task", "read_labels", "read_tasks", "write_labels", "write_tasks"]
