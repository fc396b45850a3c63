"""One module per schema revision, numbered from the oldest."""
