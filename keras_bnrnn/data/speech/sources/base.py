"""Where speech comes from: each source lists utterances and turns one into labelled frames.

A source is small and picklable. `utterances()` runs once, in the main process, and
`prepare_all(utterances)` in any worker; what is costly to make (an aligner, a filter bank) is made
on first use there.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_bnrnn.data.errors import CorpusError, UtteranceError, attempt
from keras_bnrnn.data.speech import synthesis
from keras_bnrnn.data.speech.alignment import (
    LABEL_KINDS,
    SAMPLE_RATE,
    Aligner,
    match_lengths,
    read_lexicon,
    require_sound,
)
from keras_bnrnn.data.speech.audio import (
    Take,
    audio_header,
    read_audio,
    read_audio_files,
    resample,
    to_sixteen_bit,
)
from keras_bnrnn.data.speech.features import LogMelFilterBank
from keras_bnrnn.data.speech.recordings import LOWEST_RATE
from keras_bnrnn.data.speech.splits import (
    assign_splits,
)
from keras_bnrnn.data.speech.transcripts import CHARACTERS

# The 460 spoken digits in telephone quality score -1.14 to -3.46. Less than -3.5, or no alignment,
# have 75 % of their transcripts without the second half of the words, 84 % of other recordings'
# transcripts and 84 % of reversed ones. Synthetic voices score down to -5.5.
MIN_ALIGNMENT_SCORE = -3.5


@dataclass(frozen=True)
class Utterance:
    """What is known of an utterance before it is read.

    Attributes:
        id: unique in its split.
        speaker: who speaks; empty if unknown.
        split: `"train"`, `"dev"` or `"test"`.
        transcript: what is said; empty where labels come from elsewhere.
        location: what the source needs to read it: a path, a prompt, an archive's entry.
        gender: `"f"` or `"m"`; empty if unknown.
    """

    id: str
    speaker: str
    split: str
    transcript: str
    location: object
    gender: str = ""


@dataclass(frozen=True)
class Failure:
    """An utterance that is left out, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class LabelledFrames:
    """What is prepared of an utterance.

    Attributes:
        features: `[T, D]`, float32.
        states: a `State` for each frame, or `None` if nothing says which.
        alignment_score: of an `Alignment`; `None` where the labels come from elsewhere.
        file_rate: of the recording, in Hz; `None` where there is none.
        mixed: whether several channels were averaged.
    """

    features: np.ndarray
    states: list | None
    alignment_score: float | None = None
    file_rate: int | None = None
    mixed: bool = False


class Source:
    """Base of all sources."""

    def prepare(self, utterance):
        """`LabelledFrames` of an utterance; raises UtteranceError."""
        raise NotImplementedError

    def prepare_all(self, utterances):
        """Yields the `LabelledFrames` of each utterance, or its UtteranceError."""
        for utterance in utterances:
            yield attempt(self.prepare, utterance)

    def file(self, utterance):
        """The file that an utterance is in; empty if there is none."""
        return ""

    def files(self, utterance):
        """Paths of all files that an utterance's frames and labels are read from."""
        return [self.file(utterance)]

    def phone_names(self):
        """Names of the labels where neither settings nor utterances tell them; else `None`."""
        return None

    def described(self, state):
        """What `corpus.json` says of a `State` that `prepare` gave: more than that where known."""
        return state


def require_rate(sample_rate):
    """CorpusError where a sampling rate is too low for speech."""
    if sample_rate < LOWEST_RATE:
        raise CorpusError(f"sample_rate={sample_rate}: speech needs {LOWEST_RATE} Hz or more")


@functools.lru_cache(maxsize=2)
def _aligner(lexicon):
    return Aligner(lexicon)


@functools.lru_cache(maxsize=2)
def filter_bank(sample_rate):
    """Function from `[samples]` to `[time, 123]` in NumPy, through the layer of the graph."""
    layer = LogMelFilterBank(sample_rate=sample_rate)
    compiled = tf.function(layer, input_signature=[tf.TensorSpec([1, None], tf.float32)])
    return lambda samples: compiled(samples[np.newaxis])[0].numpy()


def filter_bank_settings(sample_rate):
    """What `corpus.json` says of the features that `filter_bank` computes."""
    layer = LogMelFilterBank(sample_rate=sample_rate)
    settings = layer.get_config()
    for key in ("name", "trainable", "dtype"):
        settings.pop(key, None)
    return {"kind": "LogMelFilterBank", "dimension": layer.feature_dimension, **settings}


@dataclass(frozen=True)
class AlignedSource(Source):
    """Base of the sources whose labels come from forced alignment.

    Args:
        labels: one of `LABEL_KINDS`; or `"characters"`, the transcript itself: nothing is aligned.
        lexicon: path of extra pronunciations, or `None`.
        sample_rate: of the features, in Hz. The aligner has its own.
        min_alignment_score: an utterance whose alignment scores less is left out; `None` takes
            all. `MIN_ALIGNMENT_SCORE` is one for recordings of people.
    """

    labels: str = "senones"
    lexicon: str | None = None
    sample_rate: int = SAMPLE_RATE
    min_alignment_score: float | None = None

    def __post_init__(self):
        require_rate(self.sample_rate)
        kinds = (*LABEL_KINDS, CHARACTERS)
        if self.labels not in kinds:
            raise CorpusError(f"labels={self.labels!r} is not one of {', '.join(kinds)}")
        if self.lexicon:
            read_lexicon(self.lexicon)

    def waveform(self, utterance):
        """The utterance's samples at `sample_rate`, float32 in -1…1; raises UtteranceError."""
        raise NotImplementedError

    def prepare(self, utterance):
        return self.label(utterance, self.waveform(utterance))

    def label(self, utterance, samples):
        """`LabelledFrames` of an utterance's samples; raises UtteranceError."""
        aligned = self.labels != CHARACTERS
        if not aligned:
            require_sound(samples)
        states, score = self.frame_states(utterance, samples) if aligned else (None, None)
        features = filter_bank(self.sample_rate)(samples)
        if not len(features):
            raise UtteranceError(f"{len(samples)} samples are less than one frame")
        if aligned:
            features, states = match_lengths(features, states)
        return LabelledFrames(features, states, score)

    def frame_states(self, utterance, samples):
        """One `State` per frame, and the alignment's score."""
        if self.sample_rate != SAMPLE_RATE:
            samples = to_sixteen_bit(resample(samples, self.sample_rate, SAMPLE_RATE))
        states = _aligner(self.lexicon).align(samples, utterance.transcript)
        if self.min_alignment_score is not None and states.score < self.min_alignment_score:
            raise UtteranceError(
                f"audio and transcript hardly match: the alignment's score is {states.score:.2f}, "
                f"less than min_alignment_score={self.min_alignment_score:g}"
            )
        return [state.reduced(self.labels) for state in states], states.score

    def feature_settings(self):
        """What `corpus.json` says of the features."""
        return filter_bank_settings(self.sample_rate)

    def all_states(self, occurring):
        """The corpus's states in label order, from the set of those that occur."""
        return sorted(occurring)


@dataclass(frozen=True)
class RecordedSource(AlignedSource):
    """Base of the sources whose audio is in files.

    Args:
        channel: which channel of each recording, from 1; by default several are averaged.
    """

    channel: int | None = None

    def file(self, utterance):
        location = utterance.location
        return location.path if isinstance(location, Take) else location

    def take(self, utterance):
        """The `Take` of an utterance's recording."""
        location = utterance.location
        take = location if isinstance(location, Take) else Take(self.file(utterance))
        return take._replace(channel=take.channel or self.channel)

    def waveform(self, utterance):
        path, *part = self.take(utterance)
        return read_audio(path, self.sample_rate, "auto", *part)

    def prepare_all(self, utterances):
        waveforms = read_audio_files(map(self.take, utterances), self.sample_rate)
        for utterance, samples in zip(utterances, waveforms, strict=True):
            error = isinstance(samples, UtteranceError)
            yield samples if error else attempt(self.label, utterance, samples)

    def label(self, utterance, samples):
        """`LabelledFrames` of an utterance's samples, with what its file says of itself."""
        take = self.take(utterance)
        header = audio_header(take.path)
        mixed = header.channels > 1 and take.channel is None
        try:
            frames = super().label(utterance, samples)
        except UtteranceError as error:
            if mixed:
                raise UtteranceError(f"{error}; {header.channels} channels averaged") from error
            raise
        return replace(frames, file_rate=header.samplerate, mixed=mixed)


@dataclass(frozen=True)
class SyntheticSource(AlignedSource):
    """Sentences of a small grammar spoken by eSpeak NG; five sixths to train on.

    Args:
        count: how many utterances, dev included.
        seed: of the sentences, voices and speeds.
        language: one of `synthesis.LANGUAGES`; the aligner knows English alone.
    """

    count: int = 360
    seed: int = 0
    language: str = "en"

    name = "synthetic"

    def __post_init__(self):
        super().__post_init__()
        if self.language not in synthesis.LANGUAGES:
            known = ", ".join(synthesis.LANGUAGES)
            raise CorpusError(f"language={self.language!r} is not one of {known}")
        if self.language != "en" and self.labels != CHARACTERS:
            raise CorpusError(
                f"language={self.language!r}: the aligner knows English alone; use "
                f"labels={CHARACTERS}"
            )

    def utterances(self):
        if self.count < 2:
            raise CorpusError(f"utterances={self.count}: at least 2 (one to train, one for dev)")
        num_dev = max(1, self.count // 6)
        train, dev = synthesis.make_prompts(self.count - num_dev, num_dev, self.seed, self.language)
        listed = [
            Utterance(f"{split}-{number:05d}", prompt.voice, split, prompt.sentence, prompt)
            for split, prompts in (("train", train), ("dev", dev))
            for number, prompt in enumerate(prompts)
        ]
        return listed, []

    def waveform(self, utterance):
        return synthesis.synthesize(utterance.location, self.sample_rate)


def failures_to_read(unread):
    """A `Failure` for each folder or link that `find_files` could not read."""
    return [Failure(path.name, reason) for path, reason in unread.items()]


def require_folder(path, argument="input_dir"):
    """The folder as a `Path`; CorpusError if it is not given or not there."""
    if not path:
        raise CorpusError(f"{argument} is required for this source")
    folder = Path(path)
    if not folder.is_dir():
        raise CorpusError(f"{argument}={path}: there is no such folder")
    return folder


def dealt_out(utterances, failures, source):
    """Gives each utterance its split, and keeps the first of each id in one.

    Numbering may start anew in each split, as where one speaker was recorded for both.

    Args:
        utterances, failures: lists of what was found.
        source: whose `splits` and `seed` decide.

    Returns:
        The utterances, and the failures with those of an id that was there.
    """
    kept, failures, seen = [], list(failures), {}
    for utterance in assign_splits(utterances, source.splits, source.seed):
        key = (utterance.split, utterance.id)
        if key in seen:
            failures.append(
                Failure(
                    utterance.id,
                    f"the id occurs twice in {utterance.split}: {source.file(utterance)}, after "
                    f"{seen[key]}",
                )
            )
        else:
            seen[key] = source.file(utterance)
            kept.append(utterance)
    return kept, failures
