"""Finds words by a Kaldi recipe's graph in likelihoods that write_likelihoods.py wrote.

    python training/decode.py --likelihoods=likelihoods/test.scp --graph=exp/tri4b/graph_tgpr \
        --transcript=data/test_eval92/text > heard.txt

Of each utterance a line: its id and its words, as in Kaldi's `text`; or with --format=ctm a line of
each word, with its times. The error rates of words and characters go to standard error. No Kaldi is
needed: the wheel kaldi-decoder searches the best path through HCLG.fst (extra `decode`).
"""

import command_line  # isort: skip  First, for Ctrl-C while the others are imported.
import sys
from pathlib import Path

from absl import flags

from command_line import CommandError
from keras_bnrnn.data.errors import CorpusError, UtteranceError
from keras_bnrnn.data.speech.kaldi.archives import load_matrix, read_table
from recipes.heard import Heard, ctm_of
from recipes.kaldi_graph import KALDI_SCALE, kaldi_graph
from recipes.scoring import word_error_rates
from recipes.word_graph import INCOMPLETE, define_graph_flags, define_search_flags, search_options

FLAGS = flags.FlagValues()
command_line.define_path(
    "likelihoods", None, "SPLIT.scp: matrices of log-likelihoods, a column for each pdf-id.", FLAGS
)
define_graph_flags(FLAGS)
define_search_flags(FLAGS)
command_line.define_path(
    "transcript", None, "What was said, to give the error rates: Kaldi's `text`.", FLAGS
)
flags.DEFINE_enum(
    "format", "text", ["text", "ctm"], "What to write of each utterance.", flag_values=FLAGS
)


def main(argv):
    index, graph = (command_line.require_flag(FLAGS, name) for name in ("likelihoods", "graph"))
    if not Path(index).is_file():
        raise CommandError(f"--likelihoods={index}: no such file")
    places = read_table(Path(index))
    if not places:
        raise CommandError(f"--likelihoods={index} is empty")
    outputs = load_matrix(next(iter(places.values()))).shape[-1]
    states = [{"pdf": number} for number in range(outputs)]
    options = search_options(FLAGS, KALDI_SCALE)
    word_graph = kaldi_graph(graph, FLAGS.transition_model, states, **options)
    scorer = word_error_rates(FLAGS.transcript, list(places))
    for number, (name, place) in enumerate(places.items()):
        scores = load_matrix(place)
        if scores.ndim != 2 or scores.shape[1] != outputs:
            raise CommandError(
                f"--likelihoods={index}: {name} is {scores.shape}, not {outputs} wide"
            )
        search = word_graph.search()
        search.extend(scores)
        segments = search.finish()
        if not search.complete:
            print(f"warning: {name} {INCOMPLETE}", file=sys.stderr)
        if scorer:
            scorer.add(number, segments)
        if FLAGS.format == "ctm":
            print(ctm_of(name, Heard(segments, 0.0), None), end="", flush=True)
        else:
            print(name, *(segment.phone for segment in segments), flush=True)
    if scorer:
        print(f"all: {scorer.total()}", file=sys.stderr)


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, expected_errors=(CorpusError, UtteranceError))
