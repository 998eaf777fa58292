"""Time and memory of a training step against timesteps, batch size and units, with a plot.

One axis is varied at a time around 24 x 500 x 123 x 250, for keras.layers.LSTM and for
BatchNormLSTM with sequence-wise normalisation. The two take turns, each in a process of its own.

    python benchmarks/scaling.py --plot=benchmarks/scaling.png --json=benchmarks/scaling.json
"""

import argparse
import json
import multiprocessing

from layers import measure

BASE = {"batch": 24, "timesteps": 500, "features": 123, "units": 250}
AXES = {
    "timesteps": (100, 250, 500, 1000, 2000, 4000),
    "batch": (4, 8, 16, 24, 48, 96),
    "units": (64, 128, 250, 512, 1024),
}
VARIANTS = {"keras": "keras.layers.LSTM", "sequence": 'BatchNormLSTM, "sequence"'}


def plot(points, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, len(AXES), figsize=(4 * len(AXES), 6), layout="constrained")
    for column, axis in enumerate(AXES):
        values = [point for point in points if point["axis"] == axis]
        for variant, label in VARIANTS.items():
            sizes = [point["shape"][axis] for point in values]
            frames = [point["shape"]["batch"] * point["shape"]["timesteps"] for point in values]
            results = [point["results"][variant] for point in values]
            rates = [1e6 * r["train"] / n for r, n in zip(results, frames, strict=True)]
            panels[0, column].plot(sizes, rates, marker="o", label=label)
            panels[1, column].plot(
                sizes, [r["peak_megabytes"] for r in results], marker="o", label=label
            )
        for row in range(2):
            panels[row, column].set_xscale("log")
            panels[row, column].set_ylim(bottom=0)
            panels[row, column].set_xticks(AXES[axis], [str(size) for size in AXES[axis]])
            panels[row, column].minorticks_off()
            panels[row, column].grid(alpha=0.3)
        panels[1, column].set_xlabel(axis)
    panels[0, 0].set_ylabel("training step, µs per frame and row")
    panels[1, 0].set_ylabel("peak memory of a step, MB")
    panels[0, 0].legend()
    others = ", ".join(f"{name} {size}" for name, size in BASE.items())
    figure.suptitle(f"One size varied at a time, the others {others}")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--axes", default=",".join(AXES), help="which axes, commas")
    parser.add_argument("--repeats", type=int, default=5, help="timed repetitions of each point")
    parser.add_argument("--plot", default="scaling.png", help="file of the plot")
    parser.add_argument("--json", help="file to write the figures into")
    arguments = parser.parse_args()

    multiprocessing.set_start_method("spawn")
    points = []
    for axis in arguments.axes.split(","):
        for size in AXES[axis]:
            shape = {**BASE, axis: size}
            results = measure("LSTM", tuple(shape.values()), VARIANTS, arguments.repeats, False)
            points.append({"axis": axis, "shape": shape, "results": results})
            frames = shape["batch"] * shape["timesteps"]
            print(
                f"{axis} {size}: "
                + "; ".join(
                    f"{variant} {1e6 * r['train'] / frames:.2f} µs per frame and row, "
                    f"{r['peak_megabytes']:.0f} MB"
                    for variant, r in results.items()
                ),
                flush=True,
            )
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(points, file, indent=1)
    plot(points, arguments.plot)
    print(f"Plot: {arguments.plot}")


if __name__ == "__main__":
    main()
