"""Finds words by a Kaldi recipe's graph in likelihoods that write_likelihoods.py wrote.

    python training/decode.py --likelihoods=likelihoods/test.scp --graph=exp/tri4b/graph_tgpr \
        --transcript=data/test_eval92/text > words.txt

Of each utterance a line: its id and its words, as in Kaldi's `text`; or with --format=ctm a line of
each word, with its times. The error rates of words and characters go to standard error. No Kaldi is
needed: the wheel kaldi-decoder searches the best path through HCLG.fst (extra `decode`).
"""

import command_line  # isort: skip  First, for Ctrl-C while the others are imported.
import sys
from pathlib import Path

import kaldiio
import tqdm
from absl import flags

from command_line import CommandError
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
    try:
        matrices = kaldiio.load_scp(index)
    except ValueError as error:
        raise CommandError(f"--likelihoods={index} is no scp file ({error})") from None
    if not matrices:
        raise CommandError(f"--likelihoods={index} is empty")
    names = list(matrices)
    outputs = matrices[names[0]].shape[-1]
    states = [{"pdf": number} for number in range(outputs)]
    options = search_options(FLAGS, KALDI_SCALE)
    word_graph = kaldi_graph(graph, FLAGS.transition_model, states, **options)
    scorer = word_error_rates(FLAGS.transcript, names)
    for number, name in enumerate(tqdm.tqdm(names, unit="utterance")):
        scores = matrices[name]
        if scores.ndim != 2 or scores.shape[1] != outputs:
            raise CommandError(
                f"--likelihoods={index}: {name} is {scores.shape}, not {outputs} wide"
            )
        search = word_graph.search()
        search.extend(scores)
        segments = search.finish()
        if not search.complete:
            tqdm.tqdm.write(f"warning: {name} {INCOMPLETE}", file=sys.stderr)
        if scorer:
            scorer.add(number, segments)
        if FLAGS.format == "ctm":
            heard = Heard(segments, 0.0)
            print(ctm_of(name, heard, None), end="", flush=True)
        else:
            print(name, *(segment.phone for segment in segments), flush=True)
    if scorer:
        print(f"all: {scorer.total()}", file=sys.stderr)


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__)
