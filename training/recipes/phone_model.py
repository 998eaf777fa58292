"""A phone recogniser's model of durations and of what follows what, and its search.

The states of an acoustic model are summed into units, a phone's positions (beginning, middle,
end); a phone is a chain of its units, each of which lasts at least a frame and at most as long as
its self-loop lets it; and a bigram says how likely one phone follows another. All probabilities
are relative frequencies in the training alignments.

Of the search nothing needs keras_bnrnn or Keras: `transcribe.py` runs where only the SavedModel is.
"""

import collections
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

DESCRIPTION_FILE = Path("assets") / "speech_model.json"  # Of an exported acoustic model.
BOUNDARY = "<utterance>"  # Stands before the first phone and after the last.
BIGRAM_PRIOR = 2.0  # Observations that the unigram stands for in the bigram.
LONGEST_STAY = 0.99


class Segment(NamedTuple):
    """A phone and its frames: from `start` to before `end`."""

    phone: str
    start: int
    end: int


def unit_of(state):
    """`(phone, position)` of an entry of `corpus.json`'s states.

    A state without a phone (Kaldi's pdf-ids) stands for itself.
    """
    return state.get("phone", state["name"]), state.get("position", -1)


def phone_segments(states, labels):
    """Cuts a label sequence into phones.

    Args:
        states: what each label is, as in `corpus.json`.
        labels: `[time]`.

    Returns:
        A list of `Segment`. The same phone begins anew where its position falls back.
    """
    segments, start = [], 0
    units = [unit_of(states[label]) for label in labels]
    for frame in range(1, len(units) + 1):
        same = frame < len(units) and units[frame][0] == units[frame - 1][0]
        if not (same and units[frame][1] >= units[frame - 1][1]):
            segments.append(Segment(units[start][0], start, frame))
            start = frame
    return segments


def phone_counts(states, alignments):
    """Counts what `PhoneModel` needs.

    Args:
        states: what each label is, as in `corpus.json`.
        alignments: label sequences, `[time]` each.

    Returns:
        JSON values: `"state_frames"`, `[states]`; `"visits"`, how often each state's unit was
        entered, `[states]`; `"bigram"`, `[[phone, next phone, count], …]`, in which utterances
        begin and end with `BOUNDARY`.
    """
    units = [unit_of(state) for state in states]
    frames = np.zeros(len(states), int)
    visits, bigram = collections.Counter(), collections.Counter()
    for labels in alignments:
        frames += np.bincount(labels, minlength=len(states))
        segments = phone_segments(states, labels)
        for _, start, end in segments:
            in_order = (units[label] for label in labels[start:end])
            visits.update(unit for unit, _ in itertools.groupby(in_order))
        phones = [BOUNDARY, *(segment.phone for segment in segments), BOUNDARY]
        bigram.update(itertools.pairwise(phones))
    return {
        "state_frames": frames.tolist(),
        "visits": [visits[unit] for unit in units],
        "bigram": [[*pair, count] for pair, count in sorted(bigram.items())],
    }


def log_priors(state_frames):
    """Logarithms of the states' shares, `[states]`; one never seen counts as seen in one frame."""
    counts = np.maximum(np.asarray(state_frames, float), 1.0)
    return np.log(counts / counts.sum())


class PhoneModel:
    """Finds the likeliest phones of an utterance, and when each was spoken.

    Args:
        states: what each of the acoustic model's outputs is, as in `corpus.json`.
        counts: what `phone_counts` returned for the training alignments.
        min_frames: shortest duration of a phone.
        prior_scale: how much of the states' log-priors is taken off the log-posteriors.
        bigram_weight: factor of the bigram's logarithms.
    """

    def __init__(self, states, counts, min_frames=3, prior_scale=1.0, bigram_weight=1.0):
        unit_of_state = [unit_of(state) for state in states]
        units = sorted(set(unit_of_state))
        self.phones = sorted({phone for phone, _ in units})
        self._members = np.array([[one == unit for one in unit_of_state] for unit in units])
        frames = self._members @ np.maximum(np.asarray(counts["state_frames"], float), 1e-3)
        self._unit_bias = -prior_scale * np.log(frames / frames.sum())
        visits = dict(zip(unit_of_state, counts["visits"], strict=True))
        # The chains of all phones, one after the other.
        unit_at, phone_at, stay, first = [], [], [], []
        for number, phone in enumerate(self.phones):
            members = [k for k, (name, _) in enumerate(units) if name == phone]
            first.append(len(unit_at))
            copies = self._copies(len(members), min_frames)
            for k, count in zip(members, copies, strict=True):
                duration = frames[k] / max(visits[units[k]], 1)
                leave = 1.0 / max(duration - count + 1, 1.0)
                unit_at += [k] * count
                phone_at += [number] * count
                stay += [0.0] * (count - 1) + [min(1.0 - leave, LONGEST_STAY)]
        with np.errstate(divide="ignore"):
            self._stay, self._leave = np.log(stay), np.log1p(-np.array(stay))
        self._unit, self._phone = np.array(unit_at), np.array(phone_at)
        self._first = np.array(first)
        self._last = np.append(self._first[1:], len(self._unit)) - 1
        enter, follow, end = self._bigram(counts["bigram"])
        self._enter, self._follow, self._end = (bigram_weight * x for x in (enter, follow, end))

    @staticmethod
    def _copies(units, min_frames):
        """How many frames each unit of a chain lasts at least; `min_frames` together."""
        each, more = divmod(max(min_frames, units), units)
        return [each + (k < more) for k in range(units)]

    def _bigram(self, entries):
        """Log-probabilities of the first phone `[P]`, of the next `[P, P]` and of the end `[P]`."""
        names = [*self.phones, BOUNDARY]
        number = {name: k for k, name in enumerate(names)}
        counts = np.zeros((len(names), len(names)))
        for before, after, count in entries:
            counts[number[before], number[after]] = count
        unigram = counts.sum(axis=0) + 1.0
        counts += BIGRAM_PRIOR * unigram / unigram.sum()
        logs = np.log(counts / counts.sum(axis=1, keepdims=True))
        return logs[-1, :-1], logs[:-1, :-1], logs[:-1, -1]

    def decode(self, log_posteriors):
        """The best path (Viterbi).

        Args:
            log_posteriors: `[time, states]`.

        Returns:
            A list of `Segment`, without a gap. An utterance shorter than any phone is one phone.
        """
        time = len(log_posteriors)
        if not time:
            return []
        scores = self._unit_scores(np.asarray(log_posteriors, np.float64))[:, self._unit]
        here = np.arange(len(self._unit))
        best = np.full(len(here), -np.inf)
        best[self._first] = self._enter + scores[0, self._first]
        back = np.zeros((time, len(here)), np.int32)
        for frame in range(1, time):
            leaving = best + self._leave
            advanced = np.concatenate([[-np.inf], leaving[:-1]])
            entered = leaving[self._last, np.newaxis] + self._follow
            before = entered.argmax(axis=0)
            advanced[self._first] = entered[before, np.arange(len(before))]
            origin = here - 1
            origin[self._first] = self._last[before]
            stays = best + self._stay
            back[frame] = np.where(stays >= advanced, here, origin)
            best = np.maximum(stays, advanced) + scores[frame]
        ends = best[self._last] + self._leave[self._last] + self._end
        if not np.isfinite(ends).any():
            per_phone = [scores[:, self._phone == k].max(axis=1).sum() for k in range(len(ends))]
            return [Segment(self.phones[int(np.argmax(per_phone))], 0, time)]
        path = [self._last[ends.argmax()]]
        for frame in range(time - 1, 0, -1):
            path.append(back[frame, path[-1]])
        return self._segments(path[::-1])

    def _unit_scores(self, log_posteriors):
        scores = [
            np.logaddexp.reduce(log_posteriors[:, members], axis=1) for members in self._members
        ]
        return np.stack(scores, axis=1) + self._unit_bias

    def _segments(self, path):
        """A path through the chains, as phones: one begins where the path enters a chain."""
        first = set(self._first.tolist())
        starts = [
            frame
            for frame, place in enumerate(path)
            if frame == 0 or (place in first and path[frame - 1] != place)
        ]
        # A chain of one place begins anew only by leaving it for another.
        return [
            Segment(self.phones[self._phone[path[start]]], start, end)
            for start, end in itertools.pairwise([*starts, len(path)])
        ]


def phone_errors(pronunciations, phones):
    """Fewest phones inserted, deleted or substituted, over all pronunciations of the words.

    Args:
        pronunciations: for each word its pronunciations, lists of phones.
        phones: what was recognised.

    Returns:
        The errors, and the number of phones of the pronunciation that has them.
    """
    # row[j]: errors and length of the words so far against the first j phones.
    row = [(j, 0) for j in range(len(phones) + 1)]
    for variants in pronunciations:
        extended = [_extended(row, pronunciation, phones) for pronunciation in variants]
        row = [min(ways) for ways in zip(*extended, strict=True)]
    return row[-1]


def _extended(row, pronunciation, phones):
    for expected in pronunciation:
        new = [(row[0][0] + 1, row[0][1] + 1)]
        for j, found in enumerate(phones, 1):
            new.append(
                min(
                    (row[j - 1][0] + (expected != found), row[j - 1][1] + 1),
                    (row[j][0] + 1, row[j][1] + 1),
                    (new[j - 1][0] + 1, new[j - 1][1]),
                )
            )
        row = new
    return row
