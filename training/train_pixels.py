"""Trains a classifier of small images read pixel by pixel: 64 steps of one number each.

    python training/train_pixels.py --model=baseline --output_dir=runs/pixels_baseline
    python training/train_pixels.py --normalize_recurrent --normalize_cell_state --per_step \\
        --gamma=0.1 --output_dir=runs/pixels_cooijmans

The images are scikit-learn's 1797 handwritten digits of 8 x 8 pixels, in rows or, with --permuted,
in one fixed random order, which leaves no local structure to lean on. It is the small sister of
the task of Cooijmans et al. 2016 (arXiv 1603.09025): what an LSTM has read must last to the end.

The output folder gets history.csv (a row per epoch), results.json, best.keras (the epoch with the
lowest valid_loss) and final.keras. A run that was stopped goes on when you give the same command
again. Losses are in nats per image, errors the share of images given the wrong class.
"""

import command_line  # isort: skip  First, for Ctrl-C while the others are imported.
from absl import flags

from keras_bnrnn.fit.errors import FitError
from recipes.pixel_task import PixelTask
from recipes.training import run_task

FLAGS = flags.FlagValues()
command_line.define_run_flags(FLAGS)
command_line.define_normalization_flags(FLAGS)
flags.DEFINE_bool("permuted", False, "Read the pixels in a fixed random order.", flag_values=FLAGS)
flags.DEFINE_bool(
    "per_step",
    False,
    "Of batch_norm: population statistics of their own for each of the 64 steps.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "normalize_cell_state",
    False,
    "Of batch_norm: normalise the cell state on its way to the output too.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("units", 64, "Units of the LSTM.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 50, "Images of a batch.", lower_bound=2, flag_values=FLAGS)
flags.DEFINE_integer("epochs", 40, "Epochs to train in all.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_float(
    "learning_rate", 1e-2, "Learning rate of Adam.", lower_bound=0.0, flag_values=FLAGS
)


def main(argv):
    command_line.require_flag(FLAGS, "output_dir")
    run_task(PixelTask, FLAGS)


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, expected_errors=(FitError,))
