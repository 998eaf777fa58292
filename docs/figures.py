"""Draws the figures of docs/ that no experiment makes: `python docs/figures.py`."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

FOLDER = Path(__file__).resolve().parent / "figures"
BATCH, TIME, FEATURES = 4, 6, 3
LENGTHS = (6, 5, 3, 6)
TOGETHER, ALONE, PADDING = "#d62728", "#dfe5ec", "#ffffff"


def cube(axes, corner, color, edge="#607080"):
    """One unit cube, a number of the array."""
    x, y, z = corner
    p = [(x + i, y + j, z + k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    faces = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]
    axes.add_collection3d(
        Poly3DCollection(
            [[p[i] for i in face] for face in faces], facecolor=color, edgecolor=edge, linewidth=0.6
        )
    )


def draw_modes(path):
    """Which numbers of `[batch, time, features]` share a mean and a variance."""
    modes = {
        '"sequence": all live frames': lambda row, time: True,
        '"frame": one time step': lambda row, time: time == 2,
        "inference: none; constants": lambda row, time: False,
    }
    figure = plt.figure(figsize=(12, 4.2))
    for position, (title, together) in enumerate(modes.items(), start=1):
        axes = figure.add_subplot(1, 3, position, projection="3d", proj_type="ortho")
        for time in range(TIME):
            for row in range(BATCH):
                for feature in range(FEATURES):
                    live = time < LENGTHS[row]
                    color = ALONE if live else PADDING
                    if live and feature == 0 and together(row, time):
                        color = TOGETHER
                    edge = "#607080" if live else "#d0d0d0"
                    cube(axes, (time, feature, BATCH - 1 - row), color, edge)
        axes.set(xlim=(0, TIME), ylim=(0, FEATURES), zlim=(0, BATCH), title=title)
        axes.set_box_aspect((TIME, FEATURES, BATCH))
        axes.view_init(elev=22, azim=-62)
        axes.set_axis_off()
        axes.text(TIME / 2, -0.6, -0.9, "time", ha="center")
        axes.text(TIME + 0.4, FEATURES / 2, -0.8, "units", ha="left")
        axes.text(-0.3, 0, BATCH / 2, "batch", ha="right")
    figure.text(
        0.5,
        0.02,
        "Red: numbers of one unit that share one mean and one variance. "
        "White: padding, which never counts.",
        ha="center",
    )
    figure.subplots_adjust(left=0.03, right=1, bottom=0.06, top=0.9, wspace=0)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_gap(path, draws=400):
    """How far the statistics of n rows are from the population's, of a normal distribution."""
    generator = np.random.default_rng(0)
    rows = np.array([2, 4, 8, 16, 32, 64, 128, 256, 512])
    samples = [generator.normal(size=(draws, n)) for n in rows]
    mean = [np.abs(s.mean(axis=1)).mean() for s in samples]
    deviation = [np.abs(np.log(s.std(axis=1))).mean() for s in samples]
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    axes.loglog(rows, deviation, "o-", base=2, color="#d62728", label="gap_variance: |log σ_B/σ|")
    axes.loglog(rows, mean, "o-", base=2, color="#1f77b4", label="gap_mean: |μ_B − μ|/σ")
    axes.axvspan(2, 8, color="#d62728", alpha=0.08)
    axes.text(2.1, 0.035, 'too few for "frame"\nwithout renorm', va="bottom")
    axes.set_xticks(rows, rows)
    ticks = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    axes.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="rows behind a statistic", ylabel="mean distance")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(folder=FOLDER):
    Path(folder).mkdir(exist_ok=True)
    draw_modes(Path(folder) / "modes.png")
    draw_gap(Path(folder) / "gap.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
