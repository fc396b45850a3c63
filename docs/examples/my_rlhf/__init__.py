"""Modules of one's own for instructlit: docs/plugging-in.md walks through them."""
