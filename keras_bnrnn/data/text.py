"""Text for language models: a corpus becomes token numbers, tokens become streams of windows.

A recurrent language model reads its training text as `B` parallel streams. Each stream is one
contiguous part of the text and is cut into windows of `T` steps; row `b` of a batch continues
row `b` of the batch before it, so a stateful model carries its states from window to window:

    from keras_bnrnn.data.text import load_text, token_windows

    corpus = load_text("path/to/ptb")                        # or load_text(): embedded English
    train = token_windows(corpus.train, batch_size=20, timesteps=20, start=corpus.eos_id)
    test = token_windows(
        corpus.test, batch_size=20, timesteps=20, start=corpus.eos_id, keep_remainder=True
    )
    for inputs, targets, weights in train: ...               # each [20, 20]

`load_text` reads Penn Treebank in Mikolov's preparation, any other text that has a file for each
split, one sentence a line, or the English text that ships with every Python. Tokens are made by
tensorflow-text (the `text` extra). A text may be larger than memory holds as words.
"""

import collections
import dataclasses
import os
import re
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_bnrnn.files import local_path

EOS = "<eos>"
UNKNOWN = "<unk>"
SPLITS = ("train", "valid", "test")
MAX_WORDS = 10_000

_BLOCK = 2**20  # characters of a text that are read at once
# What names of files call a split.
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    "test": "test",
}
_SPLIT_FILE = re.compile(rf"((?:.*[._-])?)({'|'.join(_SPLIT_WORDS)})((?:[._-].*)?)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, eq=False)
class TextCorpus:
    """A text as numbers, split for training, validation and test.

    Attributes:
        source: where the text came from, for reports.
        vocabulary: the words; `vocabulary[k]` is the word of token `k`. Most frequent first,
            words of equal frequency in byte order; it contains `<eos>` and `<unk>`.
        train, valid, test: int32 arrays `[tokens]`, each sentence followed by `<eos>`.
        distinct_words: how many different words the training text has, those that became
            `<unk>` included.
        tokenization: how `tokenize` cuts a line of such text into words.
    """

    source: str
    vocabulary: tuple[str, ...]
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    distinct_words: int
    tokenization: str

    @property
    def eos_id(self) -> int:
        """The token that ends every sentence."""
        return self.vocabulary.index(EOS)

    @property
    def unknown_id(self) -> int:
        """The token of every word that is not in the vocabulary."""
        return self.vocabulary.index(UNKNOWN)

    def unknown_share(self, split: str) -> float:
        """The share of a split's tokens that are `<unk>`."""
        return float(np.mean(getattr(self, split) == self.unknown_id))

    def words(self, tokens: npt.ArrayLike) -> str:
        """The words of an array of token numbers, as one string."""
        return " ".join(self.vocabulary[token] for token in np.ravel(tokens))


def load_text(
    data_dir: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | None = None,
    *,
    max_words: int = MAX_WORDS,
) -> TextCorpus:
    """Reads a text for language modelling and numbers its words.

    The vocabulary is taken from the training text alone: its `max_words` most frequent words,
    `<eos>` and `<unk>` among them. Every other word, in any split, becomes `<unk>`.

    Penn Treebank in Mikolov's preparation has exactly 10,000 words, its rare ones already
    replaced, and 929,589, 73,760 and 82,430 tokens for training, validation and test, an `<eos>`
    at each line's end included. It is split at white space, as every published figure assumes.

    Without `data_dir` the text is Python's own language reference (`pydoc_data.topics`), lower
    case, with stretches of punctuation as tokens of their own, each paragraph a sentence. Of every
    20 distinct paragraphs 18 are for training, one for validation and one for test. It has fewer
    than 10,000 words and none of them is marked as unknown, so words that occur once in the
    training part become `<unk>`: otherwise a model would never see that token before it is judged
    on it. The text grows with Python's version; figures of two Python versions do not compare.

    Args:
        data_dir: a directory with a file for each split, UTF-8, one sentence a line:
            `ptb.train.txt`, `ptb.valid.txt` and `ptb.test.txt`, `wiki.train.tokens`, `train.txt`, …
            (for `valid` also `validation`, `val` and `dev`); or the files themselves,
            `{"train": path, "valid": path, "test": path}`; or None for the embedded text.
        max_words: the largest size of the vocabulary.

    Returns:
        A `TextCorpus`.

    Raises:
        ModuleNotFoundError: if tensorflow-text is not installed.
        NotADirectoryError, FileNotFoundError: if the directory or a file is missing.
        ValueError: if a file is not UTF-8 or has no words, several files could be a split, or
            `max_words` is too small.

    Example:

    >>> corpus = load_text()
    >>> corpus.words(corpus.train[:12])  # doctest: +ELLIPSIS
    'the " assert " statement ...'
    """
    if max_words < 3:
        raise ValueError(
            f"`max_words` must be at least 3: {EOS}, {UNKNOWN} and one word. Received: {max_words}"
        )
    _tensorflow_text()  # A missing extra is named before anything is read.
    if data_dir is None:
        source = "embedded English (pydoc_data.topics)"
        tokenization, least_count = "running_text", 2
        words = {
            split: _words([part], tokenization, ends=True)
            for split, part in _embedded_paragraphs().items()
        }
    else:
        files = _split_files(data_dir)
        named = isinstance(data_dir, Mapping)
        source = ", ".join(map(str, files.values())) if named else os.fspath(data_dir)
        tokenization, least_count = "whitespace", 1
        words = {
            split: _words(([block] for block in _blocks(path)), tokenization)
            for split, path in files.items()
        }
    numbers = collections.defaultdict()  # of the words, in the order of their first occurrence
    numbers.default_factory = numbers.__len__
    numbers.update({EOS.encode(): 0, UNKNOWN.encode(): 1})
    tokens = {}
    for split in SPLITS:
        tokens[split] = _numbered(words[split], numbers)
        if data_dir is not None and not tokens[split].any():
            raise ValueError(f"{files[split]} has no words. Expected one sentence a line.")
        if split == "train":
            found = np.bincount(tokens[split], minlength=len(numbers)).tolist()
            counts = dict(zip(numbers, found, strict=True))
    vocabulary = _vocabulary(counts, max_words, least_count)
    kept = np.full(len(numbers), vocabulary.index(UNKNOWN.encode()), np.int32)
    kept[[numbers[word] for word in vocabulary]] = np.arange(len(vocabulary))
    return TextCorpus(
        source=source,
        vocabulary=tuple(word.decode("utf-8") for word in vocabulary),
        distinct_words=sum(map(bool, counts.values())),
        tokenization=tokenization,
        **{split: kept[found] for split, found in tokens.items()},
    )


def tokenize(lines, tokenization):
    """Cuts lines of text into words, in the graph.

    Args:
        lines: string tensor `[lines]`.
        tokenization: `"whitespace"`, for text whose words stand apart already, such as Penn
            Treebank's; or `"running_text"`, lower case, where each stretch of
            punctuation is a word of its own (`.` as well as `.,`), and so is each of one script.

    Returns:
        A `tf.RaggedTensor` of strings, `[lines, (words)]`.

    Raises:
        ModuleNotFoundError: if tensorflow-text is not installed.
    """
    text = _tensorflow_text()
    if tokenization == "whitespace":
        # The tokenizer would cut the bytes of other white space in half.
        lines = tf.strings.regex_replace(lines, r"[\p{Z}\x{85}]", " ")
        return text.WhitespaceTokenizer().tokenize(lines)
    if tokenization == "running_text":
        return text.UnicodeScriptTokenizer().tokenize(text.case_fold_utf8(lines))
    raise ValueError(
        f"`tokenization` must be 'whitespace' or 'running_text'. Received: {tokenization!r}"
    )


def token_windows(
    tokens: npt.ArrayLike,
    batch_size: int,
    timesteps: int,
    *,
    start: int,
    keep_remainder: bool = False,
) -> tf.data.Dataset:
    """Cuts a text into windows for a stateful language model.

    The model predicts every token from those before it: `targets` are the tokens in order and
    `inputs` the same shifted by one, with the token `start` before the first. The text is laid
    out as `batch_size` contiguous streams of equal length and these are cut into windows of
    `timesteps` steps. Row `b` of window `k` therefore continues row `b` of window `k - 1`, and a
    model that starts a stream with zero states still sees the token before it.

    A text rarely fills `batch_size` times whole windows. There are two ways to deal with that:

    * `keep_remainder=False`, for training: the last partial window is left out, at the end of
      every stream and of the text. That is fewer than `batch_size * (timesteps + 1)` tokens, the
      same ones in each epoch, so that no padding enters gradients or normalisation statistics.
    * `keep_remainder=True`, for evaluation: streams and windows are filled up at the end, with
      `start` as token and 0 as weight. Every token of the text has weight 1 exactly once.

    Args:
        tokens: int array `[tokens]`.
        batch_size: the number of streams, B.
        timesteps: the steps of a window, T.
        start: the token that stands before the text; usually `<eos>`, the end of what came before.
        keep_remainder: whether to fill up the last windows (True) or leave out the rest (False).

    Returns:
        A `tf.data.Dataset` of `(inputs, targets, weights)`, each `[batch_size, timesteps]`, int32,
        int32 and float32. Keras takes the third as sample weights. Its `len` is the number of
        windows.

    Raises:
        ValueError: if the text is too short for one window of every stream.

    Example:

    >>> windows = token_windows(np.arange(1, 11), batch_size=2, timesteps=2, start=0)
    >>> for inputs, targets, _ in windows.as_numpy_iterator():
    ...     print(inputs.tolist(), targets.tolist())
    [[0, 1], [5, 6]] [[1, 2], [6, 7]]
    [[2, 3], [7, 8]] [[3, 4], [8, 9]]
    >>> len(token_windows(np.arange(1, 11), 2, 2, start=0, keep_remainder=True))
    3
    """
    for name, value in (("batch_size", batch_size), ("timesteps", timesteps)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
    tokens = np.asarray(tokens, dtype=np.int32)
    if tokens.ndim != 1:
        raise ValueError(f"`tokens` must have the shape [tokens]. Received shape: {tokens.shape}")
    steps_per_window = batch_size * timesteps
    if len(tokens) < (batch_size if keep_remainder else steps_per_window):
        raise ValueError(
            f"Too little text: {len(tokens)} tokens cannot fill {batch_size} streams of "
            f"{1 if keep_remainder else timesteps} step(s). Give more text, or use a smaller "
            "`batch_size` or `timesteps`."
        )
    length = -(-len(tokens) // batch_size) if keep_remainder else len(tokens) // batch_size
    windows = -(-length // timesteps) if keep_remainder else length // timesteps

    def streams(values, filler):
        """`[tokens]` to time-major streams `[windows * timesteps, batch_size]`."""
        values = values[: batch_size * length]
        values = np.pad(values, (0, batch_size * length - len(values)), constant_values=filler)
        values = values.reshape(batch_size, length)[:, : windows * timesteps]
        gap = windows * timesteps - values.shape[1]
        return np.pad(values, ((0, 0), (0, gap)), constant_values=filler).T

    inputs = streams(np.concatenate([[start], tokens[:-1]]).astype(np.int32), start)
    targets = streams(tokens, start)
    weights = streams(np.ones(len(tokens), np.float32), 0.0)

    def batch_major(*window):
        return tuple(tf.transpose(part) for part in window)

    return (
        tf.data.Dataset.from_tensor_slices((inputs, targets, weights))
        .batch(timesteps, drop_remainder=True)
        .map(batch_major, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def _split_files(data_dir):
    """The file of each split, known to exist."""
    if isinstance(data_dir, Mapping):
        if set(data_dir) != set(SPLITS):
            raise ValueError(
                f"A text needs a file for each of {', '.join(SPLITS)}. Received: "
                f"{', '.join(sorted(data_dir)) or 'none'}"
            )
        files = {split: local_path(data_dir[split]) for split in SPLITS}
        for path in files.values():
            if not path.is_file():
                raise FileNotFoundError(f"{path} is {'no file' if path.exists() else 'not there'}")
        return files
    directory = local_path(data_dir)
    if not directory.is_dir():
        raise NotADirectoryError(
            "`data_dir` must be a directory with ptb.train.txt, ptb.valid.txt and ptb.test.txt, or "
            f"files of other usual names. Received: {directory}, which is "
            f"{'a file' if directory.exists() else 'not there'}."
        )
    families = collections.defaultdict(lambda: collections.defaultdict(list))
    for path in sorted(directory.iterdir()):
        match = _SPLIT_FILE.fullmatch(path.name)
        if match and path.is_file() and not path.name.startswith("."):
            before, word, after = match.groups()
            families[before, after][_SPLIT_WORDS[word.lower()]].append(path)
    whole = {family for family, found in families.items() if len(found) == len(SPLITS)}
    if len(whole) > 1:  # As in Mikolov's archive, which has texts of characters too.
        whole = whole & {("ptb.", ".txt")} or whole
    of_split = {
        split: [
            path
            for family, found in families.items()
            if family in whole or not whole
            for path in found[split]
        ]
        for split in SPLITS
    }
    return {split: _only(split, found, directory) for split, found in of_split.items()}


def _only(split, found, directory):
    """The one file that was found for a split."""
    if not found:
        raise FileNotFoundError(
            f"{directory} has no ptb.{split}.txt. Expected a file for each split, one sentence a "
            f"line: ptb.train.txt, ptb.valid.txt and ptb.test.txt, as Penn Treebank in Mikolov's "
            "preparation has them, or wiki.train.tokens, train.txt and so on."
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(
            f"{directory} has several files that could be its {split} text ({names}). Name one "
            "file for each split."
        )
    return found[0]


def _blocks(path):
    """The text of a UTF-8 file in blocks of whole words, with `<eos>` for any system's line end."""
    rest, ended = "", False
    try:
        with path.open(encoding="utf-8-sig") as file:
            while block := file.read(_BLOCK):
                text = (rest + block).replace("\n", f" {EOS} ")
                ended = block.endswith("\n")
                whole, _, rest = text.rpartition(" ")
                yield whole
    except UnicodeDecodeError:
        place, reason = _undecodable(path)
        raise ValueError(
            f"{path} is not UTF-8 text: byte {place} cannot be decoded ({reason}). "
            "Convert the file to UTF-8."
        ) from None
    if not ended:
        yield f"{rest} {EOS}"


def _undecodable(path):
    """The place of the first byte that is not UTF-8, and what is wrong with it."""
    first = 0
    with path.open("rb") as file:
        for line in file:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return first + error.start, error.reason
            first += len(line)
    raise AssertionError(f"{path} has changed while it was read")


def _words(batches: Iterable[list[str]], tokenization, ends=False):
    """Arrays of words, one for each batch of lines; each line followed by `<eos>` if it `ends`."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def words_of(lines):
        words = tokenize(lines, tokenization)
        if ends:
            words = tf.concat([words, tf.fill([tf.shape(lines)[0], 1], EOS)], axis=1)
        return words.flat_values

    return (words_of(tf.constant(lines)).numpy() for lines in batches)


def _numbered(batches, numbers):
    """The numbers of words, int32; a new word gets the next one."""
    found = [
        np.fromiter(map(numbers.__getitem__, words), np.int32, len(words)) for words in batches
    ]
    return np.concatenate([np.array([], np.int32), *found])


def _embedded_paragraphs():
    """The paragraphs of Python's language reference, each once, by split."""
    from pydoc_data.topics import topics

    paragraphs = (part.strip() for topic in topics.values() for part in topic.split("\n\n"))
    # Topics quote each other. A paragraph that stood in two splits would be known by heart.
    paragraphs = [part for part in dict.fromkeys(paragraphs) if part]
    place_of = {9: "valid", 19: "test"}
    splits = {name: [] for name in SPLITS}
    for k, paragraph in enumerate(paragraphs):
        splits[place_of.get(k % 20, "train")].append(paragraph)
    return splits


def _vocabulary(counts, max_words, least_count):
    """The words to keep, as bytes: most frequent first, equal frequencies in byte order."""
    special = (EOS.encode(), UNKNOWN.encode())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept = [word for word, count in ordered if count >= least_count and word not in special]
    kept = set(kept[: max_words - len(special)]).union(special)
    return sorted(kept, key=lambda word: (-counts[word], word))


def _tensorflow_text():
    try:
        import tensorflow_text
    # A tensorflow-text of another TensorFlow fails at its compiled operations: NotFoundError.
    except (ImportError, tf.errors.NotFoundError) as error:
        raise ModuleNotFoundError(
            "Reading text needs tensorflow-text, in the version that belongs to the installed "
            f"TensorFlow ({tf.__version__}). Install it with the `text` extra: "
            'pip install "keras-bnrnn[text]"'
        ) from error
    return tensorflow_text
