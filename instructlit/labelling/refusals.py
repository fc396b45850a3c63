"""Why the labelling database says no. The server gives each its HTTP status, the command line prints the message."""

from instructlit.errors import UserError


class NotFound(UserError):
    """There is no such thing, or not for the one who asks."""


class NotAllowed(UserError):
    """The role, or the state of the work, does not permit it."""


class Stale(UserError):
    """The work has changed since the caller saw it; nothing was overwritten."""


class Invalid(UserError):
    """The content itself is wrong or not complete."""
