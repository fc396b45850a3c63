"""What people are asked and what they answer: tasks, labels, and the files that training reads made from them."""

from instructlit.labels.records import Label, LabelKind, Task, read_labels, read_tasks, write_labels, write_tasks

__all__ = ["Label", "LabelKind", "Task", "read_labels", "read_tasks", "write_labels", "write_tasks"]
