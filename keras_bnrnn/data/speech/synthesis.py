"""Speech that needs no download: sentences of a small grammar, spoken by eSpeak NG.

The library, its voices and its data come in the wheel `espeakng-loader`; its C call-back
interface hands over 22.05 kHz samples hundreds of times faster than real time.
"""

import _ctypes
import ctypes
import functools
import random
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from keras_bnrnn.data.errors import CorpusError, UtteranceError, missing_extra
from keras_bnrnn.data.speech.audio import resample, to_sixteen_bit

WORDS_PER_MINUTE = (140, 185)
PITCHES = (35, 65)


class Grammar(NamedTuple):
    """Sentences of a language, and who speaks them.

    Attributes:
        sentences: each a sequence of word classes and words.
        word_classes: `{name: its phrases, with | between them}`.
        training_voices, held_out_voices: of eSpeak, those whose samples depend on nothing but their
            arguments; f2, f3 and f5, for instance, differ from run to run.
    """

    sentences: tuple
    word_classes: dict
    training_voices: tuple
    held_out_voices: tuple

    def phrases(self, item):
        """What a word class may be; a word is itself."""
        return self.word_classes.get(item, item).split("|")


GRAMMARS = {
    "en": Grammar(
        sentences=(
            "DETERMINER ADJECTIVE ANIMAL VERB DETERMINER ADJECTIVE THING",
            "PERSON VERB NUMBER ADJECTIVE THINGS WHEN",
            "PERSON and PERSON VERB the THING PLACE",
            "please put the ADJECTIVE THING PLACE",
            "can you see the ADJECTIVE ANIMAL PLACE",
            "NUMBER ANIMALS VERB the THING WHEN",
            "where did the ADJECTIVE PERSON find NUMBER THINGS",
            "the THING PLACE was very ADJECTIVE WHEN",
            "WHEN the PERSON VERB DETERMINER THING PLACE",
        ),
        word_classes={
            "DETERMINER": "the|a|this|that|every|my|your|our",
            "ADJECTIVE": "small|big|old|young|red|green|blue|yellow|white|happy|quiet|heavy",
            "ANIMAL": "dog|cat|horse|bird|fish|sheep",
            "ANIMALS": "dogs|cats|horses|birds|sheep",
            "PERSON": "mother|father|sister|brother|teacher|farmer|doctor|girl|boy",
            "VERB": "found|carried|wanted|followed|watched|bought|moved|took",
            "NUMBER": "one|two|three|four|five|six|seven|eight|nine|ten",
            "THING": "book|letter|table|apple|boat|paper|window|house|garden|box",
            "THINGS": "books|letters|apples|boats|houses|windows|boxes",
            "PLACE": "on the table|near the river|under the bridge|in the kitchen|behind the house|"
            "at the school",
            "WHEN": "today|yesterday|in the morning|last night|after dinner|last summer",
        },
        training_voices=(
            "en-us",
            "en-us+f1",
            "en-us+f4",
            "en-us+m1",
            "en-us+m3",
            "en-us+edward",
            "en-us+steph2",
            "en-gb-x-rp",
            "en-gb-x-rp+m3",
            "en-us-nyc",
        ),
        held_out_voices=("en-us+m4", "en-us+paul"),
    ),
    "de": Grammar(
        sentences=(
            "der MALE VERB die ADJECTIVE FEMALE",
            "die ADJECTIVE FEMALE VERB das THING WHEN",
            "NUMBER THINGS stehen PLACE",
            "kannst du die ADJECTIVE FEMALE PLACE hören",
            "wo hast du die NUMBER THINGS gefunden",
            "WHEN VERB der MALE das THING PLACE",
            "das THING PLACE war WHEN sehr schön",
        ),
        word_classes={
            "ADJECTIVE": "kleine|große|alte|junge|rote|grüne|weiße|müde|schöne",
            "MALE": "Bäcker|Lehrer|Vater|Bruder|Hund|Vogel|König",
            "FEMALE": "Mutter|Schwester|Ärztin|Katze|Kuh|Köchin",
            "VERB": "sucht|findet|hört|trägt|kauft|begrüßt|zählt",
            "NUMBER": "zwei|drei|vier|fünf|sechs|sieben|acht|neun|zehn|zwölf",
            "THING": "Buch|Haus|Boot|Fenster|Brötchen|Gemüse|Schloss",
            "THINGS": "Bücher|Häuser|Boote|Stühle|Töpfe|Äpfel",
            "PLACE": "auf dem Tisch|am Fluss|unter der Brücke|in der Küche|hinter dem Haus|"
            "vor der Tür",
            "WHEN": "heute|gestern|am Morgen|nach dem Frühstück|im März|letztes Jahr",
        },
        training_voices=("de", "de+f1", "de+f4", "de+m1", "de+m3", "de+edward", "de+steph2"),
        held_out_voices=("de+m4", "de+paul"),
    ),
}
LANGUAGES = tuple(GRAMMARS)

_RATE, _PITCH = 1, 3  # espeak_PARAMETER
_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the call-back only
_UTF8 = 1
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


@dataclass(frozen=True)
class Prompt:
    """A sentence and how it is to be spoken."""

    sentence: str
    voice: str
    words_per_minute: int
    pitch: int


def make_prompts(num_train, num_dev, seed=0, language="en"):
    """Sentences, voices and speeds for a corpus.

    No sentence occurs twice, so those of the two parts are disjoint, and no voice of the dev part
    is among the training voices.

    Args:
        num_train, num_dev: how many of each.
        seed: the same seed gives the same prompts.
        language: one of `LANGUAGES`.

    Returns:
        Two lists of `Prompt`.

    Raises:
        CorpusError: the grammar has not that many sentences.
    """
    generator, grammar = random.Random(seed), GRAMMARS[language]
    sentences = _distinct_sentences(grammar, num_train + num_dev, generator)

    def speak(sentence, number, voices):
        return Prompt(
            sentence=sentence,
            voice=voices[number % len(voices)],
            words_per_minute=generator.randint(*WORDS_PER_MINUTE),
            pitch=generator.randint(*PITCHES),
        )

    train = [speak(s, k, grammar.training_voices) for k, s in enumerate(sentences[:num_train])]
    dev = [speak(s, k, grammar.held_out_voices) for k, s in enumerate(sentences[num_train:])]
    return train, dev


def vocabulary():
    """Every word of the English grammar, sorted."""
    grammar, words = GRAMMARS["en"], set()
    for item in " ".join(grammar.sentences).split():
        words.update(" ".join(grammar.phrases(item)).split())
    return sorted(words)


def synthesize(prompt, sample_rate=16000):
    """Speaks a prompt.

    Args:
        prompt: a `Prompt`; `voice` is a language and, after a `+`, a variant, e.g. `en-us+f1`.
        sample_rate: in Hz.

    Returns:
        `[samples]`, float32 in -1…1. The same prompt gives the same samples in every process.
    """
    library = _fresh_library()
    chunks, stopped = [], []

    def keep(samples, count, _events):
        try:
            if samples and count > 0:
                chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        except BaseException as error:  # A signal, most likely: nothing passes through C.
            stopped.append(error)
        return len(stopped)

    callback = _CALLBACK(keep)
    own_rate = library.espeak_Initialize(_SYNCHRONOUS, 0, _loader().get_data_path().encode(), 0)
    if own_rate <= 0:
        raise CorpusError("eSpeak NG could not be initialised: reinstall espeakng-loader")
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(prompt.voice.encode()) != 0:
        raise UtteranceError(f"eSpeak NG has no voice {prompt.voice!r}")
    library.espeak_SetParameter(_RATE, prompt.words_per_minute, 0)
    library.espeak_SetParameter(_PITCH, prompt.pitch, 0)
    text = prompt.sentence.encode()
    library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    if stopped:
        raise stopped[0]
    if not chunks:
        raise UtteranceError(f"eSpeak NG gave no samples for {prompt.sentence!r}")
    samples = np.concatenate(chunks) / 32768.0
    return to_sixteen_bit(resample(samples, own_rate, sample_rate))


_loaded = None


def _fresh_library():
    """The library with its static variables as new.

    eSpeak carries the phase of its oscillators and more from one sentence to the next, even
    through espeak_Terminate, so that a sentence would sound different after another one.
    """
    global _loaded
    if _loaded is not None:
        _loaded.espeak_Terminate()
        _ctypes.dlclose(_loaded._handle)
    _loaded = ctypes.CDLL(_loader().get_library_path())
    return _loaded


@functools.cache
def _loader():
    try:
        import espeakng_loader
    except ImportError as error:
        raise missing_extra("espeakng-loader", "synthetic speech") from error
    return espeakng_loader


def _distinct_sentences(grammar, count, generator):
    sentences = {}
    attempts = 0
    while len(sentences) < count:
        attempts += 1
        if attempts > 100 * count + 1000:
            raise CorpusError(
                f"utterances={count}: the grammar gave only {len(sentences)} different "
                "sentences; ask for fewer"
            )
        sentences[_sentence(grammar, generator)] = None
    return list(sentences)


def _sentence(grammar, generator):
    line = generator.choice(grammar.sentences).split()
    return " ".join(generator.choice(grammar.phrases(item)) for item in line)
