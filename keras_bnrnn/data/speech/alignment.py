"""Which clustered triphone state is spoken in each frame: forced alignment with pocketsphinx.

The wheel `pocketsphinx` carries an English acoustic model and a dictionary. The alignment takes
two passes: words first, then phones and states within the words.
"""

import itertools
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_bnrnn.data.encodings import decoded
from keras_bnrnn.data.errors import CorpusError, UtteranceError, missing_extra

SAMPLE_RATE = 16000
LABEL_KINDS = ("senones", "phone_states", "phones")
FRAME_TOLERANCE = 2

# A narrow search first, a wide one for what it loses. The default beam (1e-48) loses 40 % of
# synthetic sentences, and a boundless one finds room for any transcript, also a wrong one.
BEAMS = (1e-80, 1e-120)

SILENT_PEAK = 16 / 32768
SOUND_SAMPLES, LEAST_SOUNDS = 160, 5  # A click, resampled, or an edge is heard in two at most.
WORST_SPAN = 150  # frames
# Of pocketsphinx's acoustic scores: logarithms to the base 1.0001, divided by 1024.
NATS = 1024 * math.log(1.0001)

_LEXICON_LINE = re.compile(r"^(\S+?)(?:\(\d+\))?\s+(?:\d[\d.e+-]*\s+)*([^\d\s].*)$")
_LEXICON_COMMENT = re.compile(r";;;|(?:^|\s)#(?:\s|$)")
_PUNCTUATION = re.compile(r"[.,;:!?\"“”„…]+|(?<!\w)[-–—'’]+|[-–—'’]+(?!\w)")
# [NOISE], <unk>, {laugh}, (coughs twice), ++um++: what transcribers say of the recording.
ANNOTATION = re.compile(r"\[[^][]*\]|<[^<>]*>|\{[^{}]*\}|\([^()]*\)|\+\+?\w+\+\+?")
_TOKEN = re.compile(rf"(?:{ANNOTATION.pattern})(?!\S)|\S+")


@dataclass(frozen=True, order=True)
class State:
    """What a label stands for: a senone, a phone's state, a phone, or a Kaldi pdf-id.

    Attributes:
        number: the senone's or the pdf's number in its acoustic model, -1 for phones and their
            states.
        phone: e.g. `"AH"`; empty where it is unknown (pdf-ids).
        position: of the state within the phone, from 0; -1 for whole phones and pdf-ids.
    """

    number: int = -1
    phone: str = ""
    position: int = -1

    @property
    def name(self):
        if not self.phone:
            return f"pdf-{self.number}"
        parts = [self.phone]
        if self.position >= 0:
            parts.append(str(self.position))
        if self.number >= 0:
            parts.append(str(self.number))
        return ".".join(parts)

    def entry(self):
        """The state's entry in `corpus.json`."""
        entry = {"name": self.name}
        if self.phone:
            entry["phone"] = self.phone
        if self.position >= 0:
            entry["position"] = self.position
        if self.number >= 0:
            entry["senone" if self.phone else "pdf"] = self.number
        return entry

    @classmethod
    def from_entry(cls, entry):
        """The state of an entry in `corpus.json`."""
        number = entry.get("senone", entry.get("pdf", -1))
        return cls(number, entry.get("phone", ""), entry.get("position", -1))

    def reduced(self, kind):
        """The same state seen as one of `LABEL_KINDS`."""
        if kind == "phones":
            return State(phone=self.phone)
        if kind == "phone_states":
            return State(phone=self.phone, position=self.position)
        return self


class Alignment(list):
    """The `State` of every frame, in order.

    Attributes:
        score: how well it fits, 0 at best (`alignment_score`).
    """

    def __init__(self, states: Iterable[State], score: float) -> None:
        super().__init__(states)
        self.score = score


class Aligner:
    """Forced alignment of one utterance at a time.

    Args:
        lexicon: optional file of extra pronunciations in CMUdict's format, one
            `WORD  PHONE PHONE …` a line. They stand beside the dictionary's own.

    Raises:
        CorpusError: pocketsphinx is missing, or the lexicon cannot be used.
    """

    def __init__(self, lexicon=None):
        self._extra_words = read_lexicon(lexicon) if lexicon else []
        self._decoders = {}
        self._decoder(BEAMS[0])

    def words(self, transcript: str) -> list[str]:
        """The words of a transcript, as the dictionary has them.

        A token is looked up as it stands first (`'em`, `a.m.`), then without punctuation, then by
        the parts between its hyphens. What stands in brackets is noise or speech that nobody
        understood, and no word. A token that is in no dictionary is returned as it is.
        """
        known, found = self._decoder(BEAMS[0]).lookup_word, []
        for token in _TOKEN.findall(transcript.lower().replace("’", "'")):
            if known(token) is not None:
                found.append(token)
                continue
            for word in normalize_transcript(ANNOTATION.sub(" ", token)).split():
                parts = word.split("-")
                as_parts = known(word) is None and all(known(part) is not None for part in parts)
                found += parts if as_parts else [word]
        return found

    def unknown_words(self, transcript: str) -> list[str]:
        """Words of a transcript that are in no dictionary, in order."""
        decoder = self._decoder(BEAMS[0])
        words = dict.fromkeys(self.words(transcript))
        return [word for word in words if decoder.lookup_word(word) is None]

    def pronunciations(self, word):
        """All pronunciations of one of a transcript's `words`, lists of phones.

        Raises:
            UtteranceError: the word is in no dictionary.
        """
        decoder, found = self._decoder(BEAMS[0]), []
        while phones := decoder.lookup_word(f"{word}({len(found) + 1})" if found else word):
            found.append(phones.split())
        if not found:
            raise UtteranceError(
                f"not in the dictionary: {word} (add pronunciations with a lexicon)"
            )
        return found

    def align(self, samples, transcript):
        """Finds the state of every frame.

        Args:
            samples: `[samples]`, float in -1…1 at 16 kHz.
            transcript: as spoken; case and punctuation do not matter.

        Returns:
            An `Alignment`: frame t is the 10 ms that begin at sample 160 t.

        Raises:
            UtteranceError: a word is in no dictionary, the audio is silent, or audio and transcript
                do not match.
        """
        words = self.words(transcript)
        if not words:
            raise UtteranceError("the transcript is empty of words")
        unknown = self.unknown_words(transcript)
        if unknown:
            raise UtteranceError(
                f"not in the dictionary: {', '.join(unknown)} (add pronunciations with a lexicon)"
            )
        require_sound(samples)
        pcm = np.rint(np.asarray(samples) * 32768.0).astype(np.int16).tobytes()
        for beam in BEAMS:
            alignment = self._two_passes(self._decoder(beam), pcm, words)
            if alignment is not None:
                states, frames, scores = zip(*alignment, strict=True)
                per_frame = np.repeat(NATS * np.divide(scores, frames), frames)
                states = itertools.chain.from_iterable(map(itertools.repeat, states, frames))
                return Alignment(states, alignment_score(per_frame))
        raise UtteranceError("audio and transcript do not align: no path through all words")

    def _two_passes(self, decoder, pcm, words):
        """`[(State, frames, score), …]`, or `None` where the search loses the transcript."""
        try:
            decoder.set_align_text(" ".join(words))
            _decode(decoder, pcm)
            # A first pass that did not reach the end still gives a result, of fewer words.
            found = [_without_number(segment.word) for segment in decoder.seg() or ()]
            if [word for word in found if word[0] not in "<["] != list(map(_without_number, words)):
                return None
            decoder.set_alignment()
            _decode(decoder, pcm)
            alignment = decoder.get_alignment()
        except RuntimeError:
            return None
        return [
            (State(int(state.name), phone.name, position), state.duration, state.score)
            for word in alignment
            for phone in word
            for position, state in enumerate(phone)
            if state.duration > 0
        ]

    def _decoder(self, beam):
        if beam not in self._decoders:
            try:
                from pocketsphinx import Decoder
            except ImportError as error:
                raise missing_extra("pocketsphinx", "aligning speech") from error
            decoder = Decoder(
                lm=None,
                loglevel="FATAL",
                beam=beam,
                pbeam=beam,
                wbeam=beam,
                # The best path through the word lattice gives words fewer frames than they have
                # states, which the second pass then cannot align.
                bestpath=False,
            )
            _add_words(decoder, self._extra_words)
            self._decoders[beam] = decoder
        return self._decoders[beam]


def normalize_transcript(text):
    """Lower-case words without punctuation, separated by single spaces.

    >>> normalize_transcript("“Don't,” he said -- twice.")
    "don't he said twice"
    """
    return " ".join(_PUNCTUATION.sub(" ", text.lower().replace("’", "'")).split())


def read_lexicon(path):
    """Reads pronunciations in CMUdict's format.

    Args:
        path: lines of `WORD  PHONE PHONE …`; `;;;` and ` # ` begin a comment, stress digits are
            ignored, `WORD(2)` is another pronunciation of `WORD`, and numbers before the phones
            are probabilities, as Kaldi and the Montreal Forced Aligner write them.

    Returns:
        A list of `(word, "PHONE PHONE …")`.

    Raises:
        CorpusError: the file is missing or a line is not of this form.
    """
    try:
        lines = decoded(Path(path).read_bytes()).splitlines()
    except FileNotFoundError as error:
        raise CorpusError(f"lexicon={path}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"lexicon={path}: not UTF-8 ({error})") from error
    words = []
    for number, line in enumerate(lines, start=1):
        line = _LEXICON_COMMENT.split(line, maxsplit=1)[0].strip()
        if not line:
            continue
        match = _LEXICON_LINE.match(line)
        if not match:
            raise CorpusError(f"lexicon={path}, line {number}: not 'WORD  PHONE PHONE …': {line!r}")
        phones = re.sub(r"\d", "", match[2]).upper()
        words.append((match[1].lower(), " ".join(phones.split())))
    return words


def alignment_score(frame_scores: np.ndarray) -> float:
    """How well an alignment fits, so that a part that does not fit tells.

    Wrong words fit badly all over, words that are missing from the transcript badly for a while;
    single frames fit badly in any recording.

    Args:
        frame_scores: `[frames]`, natural logarithms of the likelihood of each frame's state, less
            that of the likeliest state in the search.

    Returns:
        Mean of their median, of their lower quartile, and of the second and a half that fits worst.

    Example:

    >>> alignment_score(np.full(200, -2.0))
    -2.0
    """
    span = min(WORST_SPAN, len(frame_scores))
    sums = np.concatenate([[0.0], np.cumsum(frame_scores)])
    worst = (sums[span:] - sums[:-span]).min() / span
    return float((np.median(frame_scores) + np.percentile(frame_scores, 25) + worst) / 3)


def require_sound(samples: np.ndarray) -> None:
    """Raises an UtteranceError where audio `[samples]` in -1…1 is silent but for a click or two."""
    if not len(samples):
        raise UtteranceError("the audio is silent")
    level = np.abs(samples - np.median(samples))
    peaks = np.maximum.reduceat(level, np.arange(0, len(level), SOUND_SAMPLES))
    if np.count_nonzero(peaks >= SILENT_PEAK) < min(LEAST_SOUNDS, len(peaks)):
        raise UtteranceError(
            "the audio is silent, or in a scale of its own: apart from clicks nothing in it is "
            f"louder than {SILENT_PEAK * 32768:.0f} of 32768"
        )


def match_lengths(features, labels, tolerance=FRAME_TOLERANCE):
    """Cuts features and labels to the shorter of the two.

    Raises:
        UtteranceError: they differ by more frames than the tolerance.
    """
    if abs(len(features) - len(labels)) > tolerance:
        raise UtteranceError(
            f"{len(features)} frames of features but {len(labels)} of alignment: they may differ "
            f"by {tolerance}"
        )
    frames = min(len(features), len(labels))
    return features[:frames], labels[:frames]


def _without_number(word):
    """`the` of `the(2)`, its second pronunciation."""
    return word.partition("(")[0]


def _decode(decoder, pcm):
    # Without it a pass begins in the state that the utterance before has left, and its alignment
    # depends on which that was.
    decoder.reinit_feat()
    decoder.start_utt()
    try:
        decoder.process_raw(pcm, full_utt=True)
    finally:
        decoder.end_utt()


def _add_words(decoder, words):
    phones_known = model_phones()
    for word, phones in words:
        foreign = sorted(set(phones.split()) - phones_known)
        if foreign:
            raise CorpusError(
                f"lexicon: {word!r} has the phones {', '.join(foreign)}, which the acoustic model "
                f"does not know; it knows {' '.join(sorted(phones_known))}"
            )
        name, number = word, 1
        while (there := decoder.lookup_word(name)) not in (None, phones):
            number += 1
            name = f"{word}({number})"
        if there is None:
            decoder.add_word(name, phones, False)  # Without an update of the search: none is yet.


def model_phones():
    """Phones of the dictionary that comes with the model."""
    from pocketsphinx import get_model_path

    path = os.path.join(get_model_path(), "en-us", "cmudict-en-us.dict")
    phones = set()
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            phones.update(line.split()[1:])
    return phones
