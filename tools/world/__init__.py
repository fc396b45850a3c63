"""The commands of the embedded world: its data, its labelers, its evaluation and the report on a run."""
