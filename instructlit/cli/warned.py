"""How warnings are shown: our own as the sentence alone, a library's with the place it came from."""

import sys
import warnings

_with_place = warnings.formatwarning


def plainly(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """For `warnings.formatwarning`."""
    ours = (module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "instructlit")
    if any(getattr(module, "__file__", None) == filename for module in ours):
        return f"instructlit: {message}\n"
    return _with_place(message, category, filename, lineno, line)
