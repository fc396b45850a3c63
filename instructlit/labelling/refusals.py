"""Errors of the labelling database. The server gives each an HTTP status, the command line prints the message."""

from instructlit.errors import UserError


class NotFound(UserError):
    """The object does not exist, or not for this person."""


class NotAllowed(UserError):
    """The role, or the state of the work, does not permit it."""


class Stale(UserError):
    """The work has changed since the caller saw it; nothing was overwritten."""


class Invalid(UserError):
    """The content itself is invalid or incomplete."""
