"""WCAG 2.2 AA: the contrast of every pair of colours that the stylesheets put on each other, in light and in dark."""

import re

import pytest

from instructlit.tools.label.site import FOLDER

CSS = (FOLDER / "static" / "base.css").read_text("utf-8")
TEXT, PART = 4.5, 3.0  # 1.4.3 for text, 1.4.11 for the edges of controls

PAIRS = [
    *((front, back, TEXT) for front in ("text", "soft") for back in ("ground", "surface", "raised", "tint")),
    *(("accent", back, TEXT) for back in ("ground", "surface", "raised", "tint")),
    ("on-accent", "accent", TEXT),
    ("good", "good-tint", TEXT),
    ("good", "ground", TEXT),
    ("good", "surface", TEXT),
    ("bad", "bad-tint", TEXT),
    ("bad", "ground", TEXT),
    ("bad", "surface", TEXT),
    ("text", "good-tint", TEXT),
    *(("control", back, PART) for back in ("ground", "surface", "raised")),
    *(("accent", back, PART) for back in ("good-tint", "bad-tint")),  # the outline of what has the focus
]


def colours() -> dict[str, tuple[str, str]]:
    """Each variable's light and dark value."""
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", CSS)
    return {name: (light, dark) for name, light, dark in found}


def luminance(colour: str) -> float:
    """WCAG's relative luminance of an sRGB colour."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_the_ratio_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("front", "back", "wanted"), PAIRS)
def test_what_is_written_can_be_read(front: str, back: str, wanted: float, scheme: int) -> None:
    known = colours()
    assert contrast(known[front][scheme], known[back][scheme]) >= wanted


def test_no_colour_is_named_outside_of_the_pairs() -> None:
    for file in ("base.css", "work.css"):
        text = (FOLDER / "static" / file).read_text("utf-8")
        bare = re.sub(r"--[\w-]+: light-dark\([^)]*\);", "", text)
        assert re.findall(r"#[0-9a-f]{3,8}\b", bare) == []
