"""The frame of a page: one self-contained HTML file without scripts."""

from collections.abc import Sequence
from html import escape

from instructlit.tools.reporting.style import CSS


def document(title: str, sections: Sequence[str]) -> str:
    """The whole page; `sections` are HTML, the title is text. Empty sections are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def figures(plots: Sequence[str]) -> str:
    """Plots side by side."""
    return "<div class='plots'>" + "".join(f"<figure>{plot}</figure>" for plot in plots) + "</div>"
