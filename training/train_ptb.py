"""Trains a word-level language model on Penn Treebank or any text, batch-normalised or plain.

The models and schedules are those of Zaremba et al. 2014 (arXiv 1409.2329): two LSTM layers,
plain SGD, 20 parallel streams of text, states carried from window to window. The batch-normalised
model normalises each time step over the streams.

    python training/train_ptb.py --data_dir=DIR --model=baseline   --output_dir=runs/ptb_baseline
    python training/train_ptb.py --data_dir=DIR --model=batch_norm --output_dir=runs/ptb_batch_norm
    python training/compare.py runs/ptb_baseline runs/ptb_batch_norm

DIR holds ptb.train.txt, ptb.valid.txt and ptb.test.txt (one sentence a line), or another text under
names such as wiki.train.tokens or train.txt; --train_file, --valid_file and --test_file name any
others. Without all of these the text is the language reference that every Python carries. It is
small, but enough to see the command work.

The output folder gets history.csv (a row per epoch), results.json and the trained model. A run
that was stopped goes on when you give the same command again.

Perplexities are per word. `train` is the running figure of the epoch; `valid` and `test` score
every token of their text exactly once, `test` with the weights of the epoch of the best `valid`.
"""

import command_line  # isort: skip  First, for Ctrl-C while the others are imported.
from absl import flags

from keras_bnrnn.data.text import MAX_WORDS
from keras_bnrnn.fit.errors import FitError
from recipes.language_model import RECIPES
from recipes.language_task import LanguageTask, define_text_files
from recipes.training import run_task

FLAGS = flags.FlagValues()
command_line.define_run_flags(FLAGS)
command_line.define_normalization_flags(FLAGS)
command_line.define_path(
    "data_dir",
    None,
    "Folder with a text for each split, one sentence a line: ptb.train.txt, ptb.valid.txt and "
    "ptb.test.txt, wiki.train.tokens, train.txt and so on. Neither this nor the three files given: "
    "embedded English text.",
    FLAGS,
)
define_text_files(FLAGS)
flags.DEFINE_integer(
    "max_words",
    MAX_WORDS,
    "Largest vocabulary: all but the most frequent words become <unk>. Perplexities of different "
    "vocabularies do not compare.",
    lower_bound=3,
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "size",
    "small",
    list(RECIPES),
    "small: 2 x 200 units, 20 steps, no dropout, 13 epochs; medium: 2 x 650, 35 steps, dropout "
    "0.5, 39 epochs; large: 2 x 1500, 35 steps, dropout 0.65, 55 epochs.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "epochs",
    None,
    "Epochs to train in all; not given: as many as the size's recipe has. A finished run goes on "
    "when the number is raised.",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "steps_per_epoch",
    None,
    "End each epoch after this many windows, always the same first ones; to try things out. Not "
    "given: the whole training text.",
    lower_bound=1,
    flag_values=FLAGS,
)
for name, define, help_text in (
    ("streams", flags.DEFINE_integer, "Parallel streams of text, the rows of a batch"),
    ("timesteps", flags.DEFINE_integer, "Length of a window, through which gradients flow"),
    ("dropout", flags.DEFINE_float, "Dropout rate on the non-recurrent connections"),
    ("learning_rate", flags.DEFINE_float, "Learning rate of the first epochs"),
    ("constant_epochs", flags.DEFINE_integer, "Epochs before the learning rate falls"),
    ("decay", flags.DEFINE_float, "What the learning rate is then divided by before each epoch"),
):
    least = 1 if name in ("streams", "timesteps") else 0
    help_text = f"{help_text}; not given: the recipe's."
    define(name, None, help_text, lower_bound=least, flag_values=FLAGS)


def main(argv):
    command_line.require_flag(FLAGS, "output_dir")
    run_task(LanguageTask, FLAGS)


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, expected_errors=(FitError,))
