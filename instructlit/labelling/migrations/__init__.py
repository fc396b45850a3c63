"""Alembic's migrations of the labelling database; `database.Database` runs them."""
