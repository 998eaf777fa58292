"""Praat's TextGrid files, long and short: the intervals of a tier, and a label for each frame."""

import itertools
import re
from pathlib import Path
from typing import NamedTuple

from keras_bnrnn.data.errors import UtteranceError
from keras_bnrnn.data.speech.alignment import SAMPLE_RATE

# Praat reads free-standing numbers, strings and flags, and takes all else for comment; so read,
# the long and the short form are the same.
_TOKEN = re.compile(r'"(?:[^"]|"")*"|<\w+>|(?<!\S)[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?!\S)')

FRAME_SHIFT = 160
FRAME_CENTRE = 200


class Interval(NamedTuple):
    """A stretch of a tier: start and end in seconds, and its label."""

    start: float
    end: float
    label: str


def read_textgrid(path, tier):
    """Reads an interval tier.

    Args:
        path: a TextGrid file, UTF-8 or UTF-16.
        tier: its name; case does not matter.

    Returns:
        A list of `Interval`, without gaps.

    Raises:
        UtteranceError: the file or the tier is missing, or not of Praat's form.
    """
    try:
        contents = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UtteranceError(f"{path}: there is no such file") from error
    encoding = "utf-16" if contents[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = contents.decode(encoding)
    except UnicodeDecodeError as error:
        raise UtteranceError(f"{path}: neither UTF-8 nor UTF-16 ({error})") from error
    tokens = iter(_TOKEN.findall(text))
    try:
        tiers = _read_tiers(tokens)
    except (StopIteration, ValueError, IndexError) as error:
        raise UtteranceError(f"{path}: not a whole TextGrid file") from error
    found = [intervals for name, intervals in tiers if name.lower() == tier.lower()]
    if not found:
        names = ", ".join(name for name, _ in tiers) or "none"
        raise UtteranceError(f"{path}: no interval tier {tier!r}; it has {names}")
    intervals = found[0]
    if not intervals:
        raise UtteranceError(f"{path}: the tier {tier!r} is empty")
    for left, right in itertools.pairwise(intervals):
        if abs(left.end - right.start) > 1e-3 or right.end < right.start:
            raise UtteranceError(f"{path}: the intervals of {tier!r} do not join at {left.end} s")
    return intervals


def frame_labels(intervals, num_samples):
    """The label at the centre of each whole 25 ms frame of audio at 16 kHz.

    Args:
        intervals: from `read_textgrid`.
        num_samples: length of the audio.

    Returns:
        A list of labels, one per frame.
    """
    labels, position = [], 0
    for frame in range(max(0, (num_samples - 2 * FRAME_CENTRE) // FRAME_SHIFT + 1)):
        centre = (frame * FRAME_SHIFT + FRAME_CENTRE) / SAMPLE_RATE
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
