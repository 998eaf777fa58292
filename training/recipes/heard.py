"""What was heard in a recording, as text, as files of other programs and as a picture."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

FRAME_SECONDS = 0.01  # As in keras_bnrnn.data.speech, which is not at hand where Keras is not.


class Heard(NamedTuple):
    """What was heard in a recording.

    Attributes:
        segments: its phones or words, `Segment`s.
        start: when frame 0 begins, in seconds.
        seconds: how long it is.
        mixed: whether its channels were averaged.
        waveform: `[samples]`, of a short one; else `None`, as the others.
        features: `[time, dimension]`.
        scores: log-posteriors, `[time, states]`.
        answers: the likeliest texts, of a short one too.
        words: whether the segments are words, with pauses between them.
    """

    segments: list
    start: float
    seconds: float = 0.0
    mixed: bool = False
    waveform: np.ndarray | None = None
    features: np.ndarray | None = None
    scores: np.ndarray | None = None
    answers: list | None = None
    words: bool = False

    def times(self):
        """`(start, end, phone)` of each phone, in seconds."""
        for phone, first, last in self.segments:
            yield self.start + FRAME_SECONDS * first, self.start + FRAME_SECONDS * last, phone


def text_of(path, heard, channel):
    """A line of phones or words, and a line for each with its times."""
    lines = [f"{path}: {' '.join(segment.phone for segment in heard.segments)}"]
    lines += [f"  {start:8.2f} {end:8.2f}  {phone}" for start, end, phone in heard.times()]
    return "\n".join(lines) + "\n"


def ctm_of(name, heard, channel):
    """NIST's lines: recording, channel, start, duration, phone or word."""
    name = "_".join(name.split())
    return "".join(
        f"{name} {channel or 1} {start:.2f} {end - start:.2f} {phone}\n"
        for start, end, phone in heard.times()
    )


def textgrid_of(name, heard, channel):
    """Praat's file with a tier `phones` or `words`, from 0 to the end without a gap."""
    labels, ends, before = [], [], 0.0
    for start, end, label in heard.times():
        # Phones follow each other at once; what the beginning and the end lack is theirs.
        if heard.words and start > before:
            labels, ends = [*labels, ""], [*ends, start]
        labels, ends, before = [*labels, label.replace('"', '""')], [*ends, end], end
    if (heard.words and before < heard.seconds) or not labels:
        labels, ends = [*labels, ""], [*ends, heard.seconds]
    ends[-1] = heard.seconds
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0"]
    lines += [f"xmax = {heard.seconds:.4f}", "tiers? <exists>", "size = 1", "item []:"]
    lines += ["    item [1]:", '        class = "IntervalTier"']
    lines += [f'        name = "{"words" if heard.words else "phones"}"']
    lines += ["        xmin = 0", f"        xmax = {heard.seconds:.4f}"]
    lines += [f"        intervals: size = {len(labels)}"]
    start = 0.0
    for number, (label, end) in enumerate(zip(labels, ends, strict=True), 1):
        lines += [f"        intervals [{number}]:", f"            xmin = {start:.4f}"]
        lines += [f"            xmax = {end:.4f}", f'            text = "{label}"']
        start = end
    return "\n".join(lines) + "\n"


class Format(NamedTuple):
    """What a file of a format is called, and what is in it: of a name, a `Heard` and a channel."""

    suffix: str
    write: Callable


FORMATS = {
    "text": Format(".txt", text_of),
    "ctm": Format(".ctm", ctm_of),
    "textgrid": Format(".TextGrid", textgrid_of),
}


def draw(picture, title, description, heard):
    """Waveform, the segments under it, features, and posteriors of phones or characters."""
    from matplotlib.figure import Figure

    segments, start, features, scores = heard.segments, heard.start, heard.features, heard.scores
    end = start + FRAME_SECONDS * len(features)
    channels = description["features"]["num_mel_bins"] + description["features"]["use_energy"]
    phones = [state.get("phone", state["name"]) for state in description["states"]]
    shown = [segment.phone for segment in segments]
    if heard.words:
        # Of words the characters, or what a graph read them from.
        letters = list(itertools.chain(*shown))
        known = set(letters) <= set(phones)
        shown = letters if known else [phones[best] for best in scores.argmax(axis=1)]
    shown = list(dict.fromkeys(shown))
    per_phone = np.stack(
        [np.exp(scores[:, [phone == one for phone in phones]]).sum(axis=1) for one in shown]
    )
    figure = Figure(figsize=(12, 7), layout="constrained")
    wave, log_mel, posteriors = figure.subplots(3, 1, sharex=True, height_ratios=(1, 2, 2.5))
    seconds = np.arange(len(heard.waveform)) / description["sample_rate"]
    wave.plot(seconds, heard.waveform, linewidth=0.4)
    wave.set_ylabel("waveform")
    wave.set_title(title)
    wave.tick_params(bottom=False)
    image = {"origin": "lower", "aspect": "auto"}
    log_mel.imshow(features[:, :channels].T, extent=(start, end, 0, channels), **image)
    log_mel.set_ylabel("energy and\nlog-mel channels")
    picture_of_phones = posteriors.imshow(
        per_phone, extent=(start, end, -0.5, len(shown) - 0.5), vmin=0, vmax=1, **image
    )
    posteriors.set_yticks(range(len(shown)), shown, fontsize=7)
    posteriors.set(xlabel="time [s]", ylabel="posteriors", xlim=(start, end))
    figure.colorbar(picture_of_phones, ax=posteriors, pad=0.01)
    bottom, size = wave.get_ylim()[0], 11 if heard.words else 7
    for phone, first, last in segments:
        for axis in (wave, log_mel, posteriors):
            colour = "black" if axis is wave else "white"
            axis.axvline(start + FRAME_SECONDS * first, color=colour, linewidth=0.5)
        middle = start + FRAME_SECONDS * (first + last) / 2
        wave.text(middle, bottom, phone, ha="center", va="top", fontsize=size)
    figure.savefig(picture, dpi=120)
