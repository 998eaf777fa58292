"""Trains a model that writes what it hears, on recordings and their transcripts alone.

    python training/prepare_speech.py --source=librispeech --input_dir=LibriSpeech \\
        --labels=characters --output_dir=corpus
    python training/train_ctc.py --data_dir=corpus --output_dir=runs/plain --model=baseline
    python training/train_ctc.py --data_dir=corpus --output_dir=runs/bn --model=batch_norm
    python training/compare.py runs/plain runs/bn

No aligner, no dictionary and no English is needed: connectionist temporal classification sums over
all alignments of the characters. A convolution joins --reduction frames to one; stacked recurrent
layers and a score per character follow. The output folder gets history.csv (a row per epoch),
results.json, best.keras (the epoch with the lowest dev_cer) and final.keras. A run that was
stopped goes on when you give the same command again.

cer and wer are the error rates of characters and words as jiwer defines them, of the best character
of each frame; ctc_loss is in nats per utterance. `train` is the running figure of the epoch, while
the weights still change; `dev` is of the epoch's end.
"""

import command_line  # isort: skip  First, for Ctrl-C while the others are imported.
from absl import flags

from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.fit.errors import FitError
from recipes.ctc_model import MOST_REDUCED
from recipes.ctc_task import CtcTask
from recipes.speech_model import CELLS
from recipes.speech_task import define_speech_flags
from recipes.training import run_task

FLAGS = flags.FlagValues()
command_line.define_run_flags(FLAGS)
define_speech_flags(FLAGS)
flags.DEFINE_enum("cell", "lstm", list(CELLS), "Kind of the recurrent layers.", flag_values=FLAGS)
flags.DEFINE_enum(
    "normalization",
    "sequence",
    ["sequence", "frame"],
    "Of batch_norm. sequence: over all frames of the mini-batch at once; frame: each time step "
    "over the rows of the batch.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "reduction",
    4,
    "How many frames of 10 ms the front end joins to one: 2 halves the frame rate, 4 quarters it.",
    lower_bound=1,
    upper_bound=MOST_REDUCED,
    flag_values=FLAGS,
)


def main(argv):
    for name in ("data_dir", "output_dir"):
        command_line.require_flag(FLAGS, name)
    if FLAGS.jit_compile:
        raise command_line.CommandError(
            "--jit_compile: XLA compiles neither the CTC loss nor error rates; leave it away"
        )
    run_task(CtcTask, FLAGS)


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, expected_errors=(CorpusError, FitError))
