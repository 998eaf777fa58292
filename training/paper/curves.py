"""Pictures of training and validation curves."""

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

MODEL_COLORS = {"baseline": "tab:blue", "batch_norm": "tab:red"}
COLORS = (
    *MODEL_COLORS.values(),
    *("tab:green", "tab:orange", "tab:purple", "tab:brown", "tab:pink", "tab:olive"),
    *("tab:cyan", "black", "tab:gray"),
)


class Curve(NamedTuple):
    """What is drawn in one colour: the rows of history.csv of one run, or of several seeds."""

    label: str
    color: str
    histories: list


def draw_curves(curves, measures, path):
    """Writes a picture: a panel per measure, a colour per curve, dashed training curves.

    Of several histories the mean is drawn, in a band from the least to the greatest.
    """
    width = 5.2 * len(measures) + 0.6
    # Of the legend: inches of a letter and of what stands beside a label, and of a row.
    entry = 0.065 * max(len(curve.label) for curve in curves) + 0.6
    columns = max(min(2 * len(measures), int(width / entry)), 1)
    rows = -(-(len(curves) + 2) // columns)
    figure = Figure(figsize=(width, 4.2 + 0.2 * max(rows - 3, 0)), dpi=140, layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)
    for panel, measure in zip(panels[0], measures, strict=True):
        for curve in curves:
            draw_curve(panel, curve, measure.training, "--")
            draw_curve(panel, curve, measure.validation, "-")
        panel.set_title(measure.title)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if measure.percent:
            panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if measure.logarithmic:
            set_logarithmic(panel)
        panel.grid(alpha=0.25, which="both")
        panel.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], color=curve.color, linewidth=2, label=curve.label) for curve in curves
    ]
    handles += [
        Line2D([], [], color="0.3", linestyle="--", label="training"),
        Line2D([], [], color="0.3", linestyle="-", label="validation"),
    ]
    figure.legend(
        handles=handles, frameon=False, fontsize=9, loc="outside lower center", ncols=columns
    )
    figure.savefig(path)


def draw_curve(panel, curve, column, line):
    length = min(len(rows) for rows in curve.histories)
    values = np.array([[row[column] for row in rows[:length]] for rows in curve.histories])
    epochs = np.arange(1, length + 1)
    marker = "o" if length <= 25 else None
    style = {"color": curve.color, "marker": marker, "markersize": 3.5, "linewidth": 1.6}
    panel.plot(epochs, values.mean(axis=0), line, **style)
    if len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        panel.fill_between(epochs, low, high, color=curve.color, alpha=0.15, linewidth=0)


def set_logarithmic(panel):
    """A logarithmic axis with plain numbers, for what falls by factors."""
    panel.set_yscale("log")
    low, high = panel.get_ylim()
    steps = (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8) if high < 20 * low else (1, 2, 5)
    ticks = [step * 10.0**power for power in range(-4, 5) for step in steps]
    panel.set_yticks([tick for tick in ticks if low <= tick <= high])
    panel.yaxis.set_major_formatter(lambda tick, _: f"{tick:g}")
    panel.minorticks_off()
