"""Our own questions, as data files."""
