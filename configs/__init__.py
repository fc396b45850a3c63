"""The recipes as package data, so that an installed instructlit can be given them by name: `--config configs/…`."""
