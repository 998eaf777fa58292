"""Writes results/README.md and its figures from the runs that `reproduce.py` has made.

python training/report.py --results_dir=results
"""

import command_line  # isort: skip  First, for Ctrl-C while the others are imported.
from pathlib import Path

from absl import flags

from keras_bnrnn.fit.errors import FitError
from paper import report

FLAGS = flags.FlagValues()
command_line.define_path(
    "results_dir",
    str(Path(__file__).resolve().parent.parent / "results"),
    "Folder of the finished runs.",
    FLAGS,
)


def main(argv):
    report.write(Path(FLAGS.results_dir))
    print(f"Written: {FLAGS.results_dir}/{report.REPORT_FILE}")


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, expected_errors=(FitError,))
