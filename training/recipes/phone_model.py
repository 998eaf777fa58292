"""A phone recogniser's model of durations and of what follows what, and its search.

The states of an acoustic model are summed into units, a phone's positions (beginning, middle,
end); a phone is a chain of its units, each of which lasts at least a frame and at most as long as
its self-loop lets it; and a bigram says how likely one phone follows another. All probabilities
are relative frequencies in the training alignments.

Of the search nothing needs keras_bnrnn or Keras: `transcribe.py` runs where only the SavedModel is.
"""

import collections
import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

DESCRIPTION_FILE = Path("assets") / "speech_model.json"  # Of an exported acoustic model.
# What `phone_counts` returns.
PHONE_COUNTS = {"state_frames": [(int, float)], "visits": [(int, float)], "bigram": [list]}
BOUNDARY = "<utterance>"  # Stands before the first phone and after the last.
BIGRAM_PRIOR = 2.0  # Observations that the unigram stands for in the bigram.
LONGEST_STAY = 0.99
ERROR = 1 << 32  # Counts more than any length.
# What Kaldi, the Montreal Forced Aligner, TIMIT and HTK call silence, pauses and noise.
NOT_SPEECH = {"", "SIL", "SP", "SPN", "NSN", "LAU", "PAU", "EPI", "H#", "SSIL", "NOISE", "OOV"}
NOT_SPEECH_BRACKETS = ("+", "<", "[", "(", "{")
MARKS = re.compile(r"(?<=.)[012]?(_[BIES])?$")  # Of stress, and of the position in a word.


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


def plain_phone(phone: str) -> str:
    """A phone in capitals, without marks of stress (`AH0`) or position in the word (`AH_B`)."""
    return MARKS.sub("", phone, count=1).upper()


def is_speech(phone: str) -> bool:
    """Whether a phone is one of a word's, and neither silence nor noise."""
    return plain_phone(phone) not in NOT_SPEECH and not phone.startswith(NOT_SPEECH_BRACKETS)


def comparison(
    phones: Iterable[str], dictionary: Iterable[str]
) -> tuple[Callable[[str], str], str]:
    """How a model's phones are compared with a dictionary's.

    Args:
        phones: the model's.
        dictionary: all phones that its words can have.

    Returns:
        What to make of each of the model's phones, and that in words, empty where it is nothing.

    Raises:
        ValueError: the model's are none of the dictionary's.
    """
    spoken, dictionary = set(filter(is_speech, phones)), set(dictionary)
    if spoken <= dictionary:
        return str, ""
    if {plain_phone(phone) for phone in spoken} <= dictionary:
        example = min(spoken - dictionary)
        return plain_phone, (
            "the model's phones are compared without stress, position and case, which the "
            f"dictionary lacks: {example} as {plain_phone(example)}"
        )
    foreign = sorted(phone for phone in spoken if plain_phone(phone) not in dictionary)
    raise ValueError(
        f"the model's phones ({', '.join(foreign[:5])}, …) are not the dictionary's "
        f"({', '.join(sorted(dictionary)[:5])}, …), so that no error rate can be given"
    )


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
        search = Search(self)
        search.extend(log_posteriors)
        return search.finish()

    def _unit_scores(self, log_posteriors):
        scores = [
            np.logaddexp.reduce(log_posteriors[:, members], axis=1) for members in self._members
        ]
        return np.stack(scores, axis=1) + self._unit_bias


class Search:
    """The best path through a `PhoneModel`, for an utterance that comes in pieces.

    What all paths that are still possible have in common is kept as phones, so that memory does
    not grow with the frames.

    Args:
        model: the `PhoneModel`.
    """

    def __init__(self, model: PhoneModel) -> None:
        self._model = model
        self._here = np.arange(len(model._unit))
        self._best = None
        self._scores = []  # Until there are more frames than the longest chain has places.
        self._back = []  # Of the frames that are not settled: where each place was reached from.
        self._frames = 0
        self._starts, self._place = [], None

    def extend(self, log_posteriors: np.ndarray) -> None:
        """Goes on with the next frames, `[time, states]`."""
        if not len(log_posteriors):
            return
        model, here = self._model, self._here
        scores = model._unit_scores(np.asarray(log_posteriors, np.float64))[:, model._unit]
        if self._frames < len(here):
            self._scores.append(scores)
        for frame in scores:
            if self._best is None:
                best = np.full(len(here), -np.inf)
                best[model._first] = model._enter + frame[model._first]
                self._back.append(here)
            else:
                leaving = self._best + model._leave
                advanced = np.concatenate([[-np.inf], leaving[:-1]])
                entered = leaving[model._last, np.newaxis] + model._follow
                before = entered.argmax(axis=0)
                advanced[model._first] = entered[before, np.arange(len(before))]
                origin = here - 1
                origin[model._first] = model._last[before]
                stays = self._best + model._stay
                self._back.append(np.where(stays >= advanced, here, origin).astype(np.int32))
                best = np.maximum(stays, advanced) + frame
            self._best = best
        self._frames += len(scores)
        self._settle()

    def _settle(self):
        """Keeps what all paths have in common."""
        places = self._here[np.isfinite(self._best)]
        for number in range(len(self._back) - 1, 0, -1):
            places = np.unique(self._back[number][places])
            if len(places) == 1:
                self._keep(places[0], number)
                return

    def _keep(self, place, count):
        """Follows the path back from a place in the last of the next `count` frames."""
        path = [place]
        for back in self._back[count - 1 : 0 : -1]:
            path.append(back[path[-1]])
        first = set(self._model._first.tolist())
        for frame, place in enumerate(reversed(path), self._frames - len(self._back)):
            # A chain of one place begins anew only by leaving it for another.
            if self._place is None or (place in first and self._place != place):
                self._starts.append((frame, self._model.phones[self._model._phone[place]]))
            self._place = place
        del self._back[:count]

    def finish(self) -> list[Segment]:
        """The `Segment`s of the whole utterance, without a gap."""
        model, best = self._model, self._best
        if best is None:
            return []
        ends = best[model._last] + model._leave[model._last] + model._end
        if not np.isfinite(ends).any():
            scores = np.concatenate(self._scores)
            per_phone = [scores[:, model._phone == k].max(axis=1).sum() for k in range(len(ends))]
            return [Segment(model.phones[int(np.argmax(per_phone))], 0, self._frames)]
        self._keep(model._last[ends.argmax()], len(self._back))
        ends = [start for start, _ in self._starts[1:]] + [self._frames]
        return [
            Segment(phone, start, end)
            for (start, phone), end in zip(self._starts, ends, strict=True)
        ]


def phone_errors(pronunciations, phones):
    """Fewest phones inserted, deleted or substituted, over all pronunciations of the words.

    Args:
        pronunciations: for each word its pronunciations, lists of phones.
        phones: what was recognised.

    Returns:
        The errors, and the number of phones of the pronunciation that has them.
    """
    # row[j]: errors and length of the words so far against the first j phones, in one number.
    found = np.array(phones, dtype=str)
    row = ERROR * np.arange(len(found) + 1)
    for variants in pronunciations:
        row = np.min([_extended(row, pronunciation, found) for pronunciation in variants], axis=0)
    return divmod(int(row[-1]), ERROR)


def _extended(row, pronunciation, found):
    inserted = ERROR * np.arange(len(row))
    for expected in pronunciation:
        best = row + ERROR + 1  # Deleted.
        best[1:] = np.minimum(best[1:], row[:-1] + ERROR * (found != expected) + 1)
        row = np.minimum.accumulate(best - inserted) + inserted
    return row
