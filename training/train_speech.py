"""Trains an acoustic model on a prepared speech corpus, batch-normalised or plain.

    python training/prepare_speech.py --source=synthetic --output_dir=corpus
    python training/train_speech.py --data_dir=corpus --output_dir=runs/plain --model=baseline
    python training/train_speech.py --data_dir=corpus --output_dir=runs/bn --model=batch_norm
    python training/compare.py runs/plain runs/bn

The model is a stack of bidirectional LSTMs and a softmax over the corpus's states. `batch_norm`
normalises each layer's input-to-hidden term over all frames of the mini-batch. The output folder
gets history.csv (a row per epoch), results.json, best.keras (the epoch with the lowest dev_fce)
and final.keras. A run that was stopped goes on when you give the same command again.

fce is the frame-wise cross-entropy in nats, fer the share of frames given the wrong state. `train`
is the running figure of the epoch, while the weights still change; `dev` is of the epoch's end.
"""

import command_line  # isort: skip  First, for Ctrl-C while the others are imported.
from absl import flags

from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.fit.errors import FitError
from recipes.speech_task import SpeechTask, define_speech_flags
from recipes.training import run_task

FLAGS = flags.FlagValues()
command_line.define_run_flags(FLAGS)
define_speech_flags(FLAGS)


def main(argv):
    for name in ("data_dir", "output_dir"):
        command_line.require_flag(FLAGS, name)
    run_task(SpeechTask, FLAGS)


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, expected_errors=(CorpusError, FitError))
