"""Words by a finite-state graph, as Kaldi's decoders find them: the best path (Viterbi) in a beam.

A graph's input labels are outputs of an acoustic model, its output labels words. The wheels
`kaldifst` and `kaldi-decoder` hold and search it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import flags

from command_line import CommandError, define_path
from recipes.phone_model import Segment

INCOMPLETE = "ends where the graph may not end; a wider --graph_beam may find a way to its end"
MAGIC = 2125659606  # Of OpenFst's binary files.
MAX_ACTIVE = 7000  # As in Kaldi's recipes.
BLOCK_FRAMES = 256  # A graph may have many more input labels than the model has outputs.


def define_graph_flags(flag_values):
    """Defines the flags that name a Kaldi recipe's graph."""
    define_path(
        "graph",
        None,
        "Words by a Kaldi recipe, of a model that was trained on its pdf-ids: HCLG.fst or the "
        "folder that holds it and words.txt.",
        flag_values,
    )
    define_path(
        "transition_model",
        None,
        "Of --graph: the recipe's final.mdl. Not given: beside the graph or in the folder above.",
        flag_values,
    )


def define_search_flags(flag_values):
    """Defines the flags of the search through any graph."""
    flags.DEFINE_float(
        "acoustic_scale",
        None,
        "Of words by a graph: factor of the model's log-likelihoods beside the graph's costs. Not "
        "given: 0.1 with --graph, as in Kaldi; else 1.",
        lower_bound=0.0,
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "graph_beam",
        16.0,
        "Of words by a graph: how much worse than the best a path may be on its way.",
        lower_bound=0.1,
        flag_values=flag_values,
    )


def search_options(options, acoustic_scale):
    """A `WordGraph`'s options by these flags, with the scale where none is given."""
    given = options.acoustic_scale
    return {
        "acoustic_scale": acoustic_scale if given is None else given,
        "beam": options.graph_beam,
    }


def wheels():
    """The modules `kaldifst` and `kaldi_decoder`."""
    try:
        import kaldi_decoder
        import kaldifst
    except ImportError as error:
        raise CommandError(
            f"words by a graph need kaldifst and kaldi-decoder ({error}): "
            'pip install "keras-bnrnn[decode]"'
        ) from None
    return kaldifst, kaldi_decoder


class WordGraph(NamedTuple):
    """A graph, and what its labels mean.

    Attributes:
        fst: kaldifst's; an arc with input label 0 takes no frame.
        words: `{output label: word}`.
        outputs: which of the model's outputs the input labels from 1 on stand for, `[labels]`.
        spans: from the input label of each frame `[time]`, and the frame after that of each word's
            output label `[words]`, to each word's `(start, end)`.
        log_priors: what to take off the log-posteriors, `[outputs]`.
        acoustic_scale: factor of what is left.
        beam: how much worse than the best a path may be.
        reduction: how many frames of 10 ms each of the model's stands for.
    """

    fst: object
    words: dict
    outputs: np.ndarray
    spans: Callable
    log_priors: np.ndarray | float = 0.0
    acoustic_scale: float = 1.0
    beam: float = 16.0
    reduction: int = 1

    def search(self):
        """A search, for an utterance that comes in pieces."""
        return GraphSearch(self)


class GraphSearch:
    """The search through one utterance. Of its past it keeps the paths that are still possible.

    Args:
        graph: the `WordGraph`.

    Attributes:
        complete: after `finish` whether the best path ends where the graph may end.
    """

    def __init__(self, graph):
        _, self._wheel = wheels()
        self._graph, self._frames, self.complete = graph, 0, True
        options = self._wheel.FasterDecoderOptions(beam=graph.beam, max_active=MAX_ACTIVE)
        self._decoder = self._wheel.FasterDecoder(graph.fst, options)
        self._decoder.init_decoding()

    def extend(self, log_posteriors):
        """Goes on with the next frames, `[time, outputs]`."""
        graph = self._graph
        scores = graph.acoustic_scale * (log_posteriors - graph.log_priors)
        for start in range(0, len(scores), BLOCK_FRAMES):
            block = scores[start : start + BLOCK_FRAMES, graph.outputs]
            block = np.ascontiguousarray(block, np.float32)
            self._decoder.advance_decoding(self._wheel.DecodableCtc(block, self._frames))
            self._frames += len(block)

    def finish(self):
        """The `Segment`s of all words."""
        found, path = self._decoder.get_best_path()
        self.complete = found and (not self._frames or self._decoder.reached_final())
        labels, words, ends = [], [], []
        for line in str(path).splitlines():
            arc = line.split()
            # The last state's line has no arc.
            if len(arc) > 2:
                label, word = int(arc[2]), int(arc[3])
                labels += [label] * bool(label)
                if word:
                    words.append(self._graph.words[word])
                    ends.append(len(labels))
        spans = self._graph.spans(np.array(labels, int), ends)
        times = self._graph.reduction * np.array(spans, int).reshape(-1, 2)
        return [Segment(word, *span) for word, span in zip(words, times.tolist(), strict=True)]
