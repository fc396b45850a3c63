"""The report's plots as inline SVG that follows the page's light or dark colours."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from instructlit.tools.reporting.svg import INK, STYLE, plt, svg
from instructlit.tools.world.result_table import TITLES

COLOURS = {"base": "#8a8f98", "prompted": "#b08f5c", "sft": "#3f8fd2", "ppo": "#e07b39", "ppo_ptx": "#2fa36b"}
"""One colour a model, readable on white and on near-black."""

Points = Sequence[tuple[float, float]]
"""x and y of a curve."""


def preference_plot(models: Sequence[Mapping[str, Any]]) -> str:
    """Preference over SFT by model with intervals, as in Figure 1 of the paper."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.6, 3.0), layout="constrained")
        for row, model in enumerate(models):
            value, low, high = (model[key] for key in ("preference", "preference_low", "preference_high"))
            colour = COLOURS.get(model["name"], "#8a8f98")
            axes.barh(row, value, color=colour, height=0.62, alpha=0.85)
            if high > low:
                axes.errorbar(value, row, xerr=[[value - low], [high - value]], color=INK, capsize=3, linewidth=1.2)
            axes.text(max(value, high) + 0.015, row, f"{value:.0%}", va="center")
        axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(models)), [TITLES.get(str(model["name"])) or str(model["name"]) for model in models])
        axes.invert_yaxis()
        axes.set_xlim(0, max(0.75, max(model["preference_high"] for model in models) + 0.12))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("preferred to SFT on the same prompt")
        return svg(figure, "preference")


def optimisation_plots(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """Reward-model score and gold score against sqrt(KL), the view of Gao et al. 2022, one figure each.

    Args:
        curves: for `ppo` and `ppo_ptx` the rows `kl`, `score`, `gold` over the course of training.
    """
    labels = (("score", "reward model's score"), ("gold", "gold score"))
    figures = []
    for key, label in labels:
        with plt.rc_context(STYLE):
            figure, axes = plt.subplots(figsize=(4.6, 3.1), layout="constrained")
            for name, rows in curves.items():
                points = [(max(row["kl"], 0.0) ** 0.5, row[key]) for row in rows]
                _line(axes, points, name, marker="o", markersize=3.2)
            axes.set_title(f"{label} on held-out prompts")
            axes.set_xlabel("√KL from SFT (nats a sequence)")
            _legend(axes)
            figures.append(svg(figure, f"optimisation-{key}"))
    return figures


def curve_plot(title: str, series: Mapping[str, Points], x_label: str, names: Mapping[str, str] | None = None) -> str:
    """One panel of training curves.

    Args:
        title: what is drawn.
        series: a curve for each name; names of models take the model's colour.
        x_label: of the x-axis.
        names: how a name is written in the legend.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.0, 2.5), layout="constrained")
        for name, points in series.items():
            _line(axes, points, name, label=(names or {}).get(name))
        axes.set_title(title)
        axes.set_xlabel(x_label)
        _legend(axes)
        return svg(figure, "curve-" + re.sub(r"\W+", "-", title))


def _line(axes: Axes, points: Points, name: str, label: str | None = None, **style: Any) -> None:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    axes.plot(xs, ys, label=label or TITLES.get(name, name), color=COLOURS.get(name), **style)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
