"""The first hundred steps of the small language model at SGD's rate 1.0, with a plot.

Statistics begin without knowledge of the data, and renormalisation uses them at once. Training
perplexity step by step, from the same initial weights, on the same windows:

    python benchmarks/first_steps.py --data_dir=DATA/ptb \\
        --csv=results/first-steps.csv --plot=results/first-steps.png
"""

import argparse
import csv
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

MODELS = {
    "LSTM": {"normalized": False},
    "frame-wise": {"normalized": True, "normalization": "frame"},
    "frame-wise, renorm": {"normalized": True, "normalization": "frame", "renorm": True},
    "sequence-wise, renorm": {"normalized": True, "normalization": "sequence", "renorm": True},
}


def perplexities(windows, recipe, words, options):
    """The training perplexity of each window, before the step that it makes."""
    import keras

    from recipes.language_model import build_language_model

    class EachStep(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.reset_metrics()

        def on_train_batch_end(self, batch, logs=None):
            found.append(logs["perplexity"])

    found = []
    keras.utils.set_random_seed(0)
    model = build_language_model(recipe, words, **options)
    model.fit(windows, shuffle=False, callbacks=[EachStep()], verbose=0)
    return found


def plot(found, path):
    from matplotlib.figure import Figure

    from paper.curves import COLORS, set_logarithmic

    figure = Figure(figsize=(7, 4.2), dpi=140, layout="constrained")
    panel = figure.subplots()
    for color, (name, values) in zip(COLORS, found.items(), strict=False):
        panel.plot(range(1, len(values) + 1), values, label=name, color=color, linewidth=1.4)
    set_logarithmic(panel)
    panel.set_xlabel("step")
    panel.set_ylabel("training perplexity of the step's window")
    panel.grid(alpha=0.25, which="both")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", help="folder of ptb.train.txt; else the built-in text")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--csv", help="write a row per step here")
    parser.add_argument("--plot", help="write the picture here")
    options = parser.parse_args()

    from keras_bnrnn.data.text import load_text, token_windows
    from recipes.language_model import RECIPES

    recipe, corpus = RECIPES["small"], load_text(options.data_dir)
    windows = token_windows(
        corpus.train, recipe.batch_size, recipe.timesteps, start=corpus.eos_id, keep_remainder=False
    ).take(options.steps)
    found = {}
    for name, arguments in MODELS.items():
        values = perplexities(windows, recipe, len(corpus.vocabulary), arguments)
        found[name] = values
        print(
            f"{name}: {values[0]:.0f} at the first step, at most {max(values):.0f}, mean of the "
            f"last ten {sum(values[-10:]) / len(values[-10:]):.0f}",
            flush=True,
        )
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", *found])
            writer.writerows(
                [step, *(f"{value:.2f}" for value in row)]
                for step, row in enumerate(zip(*found.values(), strict=True), start=1)
            )
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
