"""What was said, and how far what was heard is from it."""

import re
import sys
from pathlib import Path

from command_line import CommandError

TEXT_FILE = re.compile(r"\S+\.(?:txt|tsv|csv)")  # A name mistyped, and no word.
# What tells no words apart where no model says otherwise.
IGNORED = {"keep_case": False, "keep_punctuation": False}


class ErrorRates:
    """Error rates of what was heard, file by file and in all.

    Args:
        compare: from the file's number and its segments to `{unit: (errors, how many there are)}`.
    """

    def __init__(self, compare):
        self._compare, self._sums, self.count = compare, {}, 0

    def add(self, number, segments):
        """The rates of a file, in words."""
        found = self._compare(number, segments)
        self.count += 1
        for unit, (errors, length) in found.items():
            before = self._sums.get(unit, (0, 0))
            self._sums[unit] = before[0] + errors, before[1] + length
        return self._text(found)

    def total(self):
        """The rates of all files."""
        return self._text(self._sums)

    @staticmethod
    def _text(found):
        return ", ".join(
            f"{unit} error rate {f'{errors / length:.1%}' if length else '-'} "
            f"({errors} of {length})"
            for unit, (errors, length) in found.items()
        )


def read_transcripts(transcript, paths):
    """The words of each audio file, from `--transcript`."""
    try:
        is_file = Path(transcript).exists() and not Path(transcript).is_dir()
    except (OSError, ValueError):  # Words longer than a file's name can be.
        is_file = False
    if not is_file:
        if len(paths) > 1:
            raise CommandError(
                f"--transcript={transcript} is no file, and words alone can be given for one audio "
                f"file only, not for {len(paths)}"
            )
        if TEXT_FILE.fullmatch(transcript):
            raise CommandError(f"--transcript={transcript}: no such file")
        return [transcript]
    from keras_bnrnn.data.encodings import decoded

    try:
        lines = decoded(Path(transcript).read_bytes()).splitlines()
    except UnicodeDecodeError as error:
        raise CommandError(f"--transcript={transcript} is not UTF-8: {error}") from None
    words = {}
    for line in lines:
        name, _, text = line.partition("\t" if "\t" in line else " ")
        if name and words.get(name, {}).get(name, text) != text:
            raise CommandError(f"--transcript={transcript} has two different lines for {name}")
        for key in {name, Path(name).name, Path(name).stem}:
            words.setdefault(key, {})[name] = text
    return [words_of_file(path, words, transcript) for path in paths]


def words_of_file(path, words, transcript):
    """A file's words, from `{path, name or stem: {path of a line: its words}}`."""
    for key in (path, Path(path).name, Path(path).stem):
        lines = words.get(key, {})
        if key in lines:
            return lines[key]
        if len(set(lines.values())) > 1:
            raise CommandError(
                f"--transcript={transcript} has several lines for {path}: {', '.join(lines)}; give "
                "the file as one of them does"
            )
        if lines:
            return next(iter(lines.values()))
    raise CommandError(f"--transcript={transcript} has no line for {path}")


def text_rules(rules):
    """The `TextRules` of a model's description."""
    from keras_bnrnn.data.speech.transcripts import TextRules

    return TextRules(*(rules[name] for name in ("keep_case", "keep_punctuation")))


def word_error_rates(transcript, names, rules=IGNORED, characters=None):
    """The `ErrorRates` of words and characters, as jiwer defines them.

    Args:
        transcript: what `read_transcripts` takes; `None` gives `None`.
        names: of the recordings.
        rules: of a model's text, by which both sides are compared.
        characters: a set of what the model can write, to tell what it cannot.
    """
    if transcript is None:
        return None
    import jiwer

    rules = text_rules(rules)
    texts = [rules.normalized(text) for text in read_transcripts(transcript, names)]
    # One of noise alone has only what is inserted there, as in Kaldi's scoring.
    if not any(texts):
        raise CommandError("--transcript: a transcript has no words")
    unknown = sorted(set("".join(texts)) - characters) if characters else []
    if unknown:
        print(
            f"note: no training utterance has {', '.join(unknown)}; each of them in a transcript "
            "is an error",
            file=sys.stderr,
        )

    # What is written without spaces is compared so, whatever it was heard as.
    between = " " if characters is None or " " in characters else ""

    def compare(number, segments):
        heard, found = rules.normalized(between.join(one.phone for one in segments)), {}
        units = {"word": jiwer.process_words, "character": jiwer.process_characters}
        for unit, process in units.items():
            counts = process(texts[number], heard)
            wrong = counts.substitutions + counts.deletions
            found[unit] = wrong + counts.insertions, wrong + counts.hits
        return found

    return ErrorRates(compare)
