"""What a model that writes text says in words: greedy or beam search, and when each was spoken."""

import itertools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from recipes.phone_model import Segment

BLANK = 0
SPACE = " "


class Answer(NamedTuple):
    """A text and the logarithm of its probability."""

    text: str
    score: float


class TextModel:
    """Finds the likeliest text of an utterance, and when each word was spoken.

    Args:
        states: what each of the acoustic model's outputs is, as in `corpus.json`.
        reduction: how many frames of 10 ms each of its frames stands for.
        beam: how many beginnings of texts are kept; 0 takes the best character of each frame.
        most_answers: how many texts of an utterance are found; more than one needs a beam.
    """

    def __init__(self, states, reduction=1, beam=0, most_answers=1):
        self.characters = [state["name"] for state in states]
        self.reduction, self.beam, self.most_answers = reduction, beam, most_answers
        # Recordings of up to a minute are decoded as a whole.
        self.most_frames = 6000 // reduction + 1
        self.space = self.characters.index(SPACE) if SPACE in self.characters else None

    def search(self):
        """A search, for an utterance that comes in pieces."""
        return TextSearch(self)

    def answers(self, log_posteriors):
        """`[(labels, score)]` of frames `[time, classes]`, the best first."""
        if not self.beam:
            best = log_posteriors.argmax(axis=1)
            labels = [label for label, _ in itertools.groupby(best.tolist()) if label != BLANK]
            return [(labels, float(log_posteriors.max(axis=1).sum()))]
        # TensorFlow's blank is the last class.
        logits = np.roll(log_posteriors, -1, axis=1)[:, np.newaxis].astype(np.float32)
        most = min(self.most_answers, self.beam)
        while True:
            try:
                found, scores = tf.nn.ctc_beam_search_decoder(
                    logits, [len(logits)], self.beam, most
                )
                break
            except tf.errors.InvalidArgumentError:  # So few frames have fewer texts.
                if most == 1:
                    raise
                most -= 1
        labels = [(one.values.numpy() + 1).tolist() for one in found]
        return list(zip(labels, scores[0].numpy().tolist(), strict=True))

    def text(self, labels):
        """The text of labels: words with one space between them."""
        return " ".join("".join(self.characters[label] for label in labels).split())

    def words(self, labels, log_posteriors, first_frame):
        """The `Segment`s of the words, in frames of 10 ms."""
        spans = label_spans(log_posteriors, labels)
        timed = list(zip(labels, spans, strict=True))
        for is_space, group in itertools.groupby(timed, key=lambda one: one[0] == self.space):
            if not is_space:
                some, times = zip(*group, strict=True)
                word = "".join(self.characters[label] for label in some)
                start, end = first_frame + times[0][0], first_frame + times[-1][1]
                yield Segment(word, start * self.reduction, end * self.reduction)


class TextSearch:
    """The search through one utterance; what is longer than a minute is decoded word by word.

    Args:
        model: the `TextModel`.

    Attributes:
        answers: after `finish` the `Answer`s of the whole, best first; `None` for what was decoded
            in several parts.
    """

    def __init__(self, model):
        self._model = model
        self._pending, self._frames, self._words = [], 0, []
        self.answers = None

    def extend(self, log_posteriors):
        """Goes on with the next frames, `[time, classes]`."""
        self._pending.append(np.asarray(log_posteriors, np.float32))
        if sum(map(len, self._pending)) > self._model.most_frames:
            frames = np.concatenate(self._pending)
            cut = self._between_words(frames)
            self._decode(frames[:cut])
            self._pending = [frames[cut:]]

    def _between_words(self, frames):
        """Where to cut: in the longest space of the second half, or in its longest pause."""
        half = len(frames) // 2
        best = frames[half:].argmax(axis=1)
        for wanted in (best == self._model.space, best == BLANK):
            edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
            if len(edges):
                start, end = max(edges.reshape(-1, 2), key=lambda run: run[1] - run[0])
                return half + (start + end + 1) // 2
        return len(frames)

    def _decode(self, frames):
        found = self._model.answers(frames) if len(frames) else [([], 0.0)]
        self._words += self._model.words(found[0][0], frames, self._frames)
        self.answers = [Answer(self._model.text(labels), score) for labels, score in found]
        self._frames += len(frames)

    def finish(self):
        """The `Segment`s of all words."""
        whole = not self._frames
        frames = self._pending or [np.zeros((0, len(self._model.characters)), np.float32)]
        self._decode(np.concatenate(frames))
        self.answers = self.answers if whole else None
        return self._words


def label_spans(log_posteriors, labels):
    """When each label is written on the best path that writes them all (Viterbi).

    Args:
        log_posteriors: `[time, classes]`; 0 is the blank.
        labels: which fit into the frames.

    Returns:
        `[(first frame, frame after the last)]`.
    """
    if not labels:
        return []
    places = np.zeros(2 * len(labels) + 1, int)
    places[1::2] = labels
    # A label may follow the one before without a blank, unless they are alike.
    skips = np.zeros(len(places), bool)
    skips[3::2] = places[3::2] != places[1:-2:2]
    scores = np.full(len(places), -np.inf)
    scores[:2] = log_posteriors[0, places[:2]]
    back = np.zeros((len(log_posteriors), len(places)), np.int8)
    for time in range(1, len(log_posteriors)):
        ways = np.full((3, len(places)), -np.inf)
        ways[0] = scores
        ways[1, 1:] = scores[:-1]
        ways[2, 2:] = np.where(skips[2:], scores[:-2], -np.inf)
        back[time] = ways.argmax(axis=0)
        scores = ways.max(axis=0) + log_posteriors[time, places]
    place = len(places) - 1 - int(scores[-2] > scores[-1])
    frames = [[] for _ in labels]
    for time in range(len(log_posteriors) - 1, -1, -1):
        if place % 2:
            frames[place // 2].append(time)
        place -= int(back[time, place])
    return [(times[-1], times[0] + 1) for times in frames]
