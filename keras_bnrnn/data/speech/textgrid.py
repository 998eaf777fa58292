"""Praat's TextGrid files, long and short: the intervals of a tier, and a label for each frame."""

import re
from pathlib import Path
from typing import NamedTuple

from keras_bnrnn.data.encodings import decoded
from keras_bnrnn.data.errors import UtteranceError
from keras_bnrnn.data.speech.alignment import SAMPLE_RATE
from keras_bnrnn.data.speech.features import FRAME_MILLISECONDS, SHIFT_MILLISECONDS

# Praat reads free-standing numbers, strings and flags, and takes all else for comment; so read,
# the long and the short form are the same.
_TOKEN = re.compile(r'"(?:[^"]|"")*"|<\w+>|(?<!\S)[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?!\S)')

JOIN_TOLERANCE = 1e-3  # seconds


class Interval(NamedTuple):
    """A stretch of a tier: start and end in seconds, and its label."""

    start: float
    end: float
    label: str


def read_textgrid(path, tier):
    """Reads an interval tier.

    Args:
        path: a TextGrid file, UTF-8 or UTF-16.
        tier: its name, or what follows a speaker in it (`s1 - phones`); case does not matter.

    Returns:
        A list of `Interval` from 0 s on, without gaps.

    Raises:
        UtteranceError: the file or the tier is missing, or not of Praat's form.
    """
    try:
        contents = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UtteranceError(f"{path}: there is no such file") from error
    try:
        text = decoded(contents)
    except UnicodeDecodeError as error:
        raise UtteranceError(f"{path}: neither UTF-8 nor UTF-16 ({error})") from error
    tokens = iter(_TOKEN.findall(text))
    try:
        tiers = _read_tiers(tokens)
    except (StopIteration, ValueError, IndexError) as error:
        raise UtteranceError(f"{path}: not a whole TextGrid file") from error
    intervals = _only_tier(path, tiers, tier.lower())
    if not intervals:
        raise UtteranceError(f"{path}: the tier {tier!r} is empty")
    end = 0.0
    for interval in intervals:
        if abs(interval.start - end) > JOIN_TOLERANCE or interval.end < interval.start:
            raise UtteranceError(
                f"{path}: the intervals of {tier!r} do not join at {end:g} s, where one from "
                f"{interval.start:g} to {interval.end:g} s follows"
            )
        end = interval.end
    return intervals


def _only_tier(path, tiers, wanted):
    """The intervals of the one tier of a name, or else of the one that ends in it."""
    for matches in (str.__eq__, lambda name, tier: name.endswith(f" - {tier}")):
        found = [(name, intervals) for name, intervals in tiers if matches(name.lower(), wanted)]
        if len(found) > 1:
            names = ", ".join(name for name, _ in found)
            raise UtteranceError(f"{path}: several tiers could be {wanted!r}: {names}; name one")
        if found:
            return found[0][1]
    names = ", ".join(name for name, _ in tiers) or "none"
    raise UtteranceError(f"{path}: no interval tier {wanted!r}; it has {names}")


def frame_labels(
    intervals: list[Interval], num_samples: int, sample_rate: int = SAMPLE_RATE
) -> list[str]:
    """The label at the centre of each whole frame of 25 ms, every 10 ms.

    Args:
        intervals: from `read_textgrid`.
        num_samples: length of the audio.
        sample_rate: of the audio, in Hz.

    Returns:
        A list of labels, one per frame.
    """
    length = int(sample_rate * 0.001 * FRAME_MILLISECONDS)
    shift = int(sample_rate * 0.001 * SHIFT_MILLISECONDS)
    labels, position = [], 0
    for frame in range(max(0, (num_samples - length) // shift + 1)):
        centre = (frame * shift + length / 2) / sample_rate
        while position < len(intervals) - 1 and intervals[position].end <= centre:
            position += 1
        labels.append(intervals[position].label)
    return labels


def _read_tiers(tokens):
    """`[(name, intervals)]` of the interval tiers."""
    header = [next(tokens), next(tokens)]
    if header != ['"ooTextFile"', '"TextGrid"']:
        raise ValueError(header)
    next(tokens), next(tokens)  # start and end
    if next(tokens) != "<exists>":
        return []
    tiers = []
    for _ in range(int(next(tokens))):
        kind, name = _string(next(tokens)), _string(next(tokens))
        next(tokens), next(tokens)
        count = int(next(tokens))
        if kind == "IntervalTier":
            intervals = [
                Interval(float(next(tokens)), float(next(tokens)), _string(next(tokens)).strip())
                for _ in range(count)
            ]
            tiers.append((name, intervals))
        else:
            for _ in range(count):
                next(tokens), next(tokens)
    return tiers


def _string(token):
    if not token.startswith('"'):
        raise ValueError(token)
    return token[1:-1].replace('""', '"')
