"""The text pipeline: vocabulary, streams and windows, and what it says about bad input."""

import sys

import numpy as np
import pytest

from keras_bnrnn.data import text
from keras_bnrnn.data.text import EOS, UNKNOWN, TextCorpus, load_text, token_windows

pytest.importorskip("tensorflow_text", reason="the `text` extra is not installed")


@pytest.fixture
def write_corpus(tmp_path):
    def write(**splits):
        texts = {"train": "a b\n", "valid": "a\n", "test": "b\n"}
        texts.update(splits)
        for name, content in texts.items():
            if content is not None:
                content = content if isinstance(content, bytes) else content.encode()
                (tmp_path / f"ptb.{name}.txt").write_bytes(content)
        return tmp_path

    return write


@pytest.fixture(scope="module")
def embedded():
    return load_text()


def expected_windows(tokens, batch_size, timesteps, start, keep_remainder):
    """The layout, position by position: stream `b` holds the tokens from `b * length`."""
    length = len(tokens) / batch_size
    length = int(np.ceil(length)) if keep_remainder else int(np.floor(length))
    count = int(np.ceil(length / timesteps)) if keep_remainder else length // timesteps
    shape = (count, batch_size, timesteps)
    inputs, targets, weights = np.full(shape, start), np.full(shape, start), np.zeros(shape)
    for window in range(count):
        for stream in range(batch_size):
            for step in range(timesteps):
                within = window * timesteps + step
                position = stream * length + within
                if within < length and position < len(tokens):
                    where = (window, stream, step)
                    inputs[where] = tokens[position - 1] if position else start
                    targets[where] = tokens[position]
                    weights[where] = 1
    return inputs, targets, weights


def as_arrays(windows):
    return [np.stack(part) for part in zip(*windows.as_numpy_iterator(), strict=True)]


@pytest.mark.parametrize("keep_remainder", [False, True])
@pytest.mark.parametrize(
    ("count", "batch_size", "timesteps"),
    [(60, 3, 5), (61, 3, 5), (74, 3, 5), (59, 4, 7), (12, 12, 1), (21, 20, 1), (100, 1, 9)],
)
def test_windows_are_those_of_an_independent_computation(
    count, batch_size, timesteps, keep_remainder
):
    tokens = np.random.default_rng(count).integers(1, 1000, count)
    windows = token_windows(tokens, batch_size, timesteps, start=0, keep_remainder=keep_remainder)
    expected = expected_windows(tokens, batch_size, timesteps, 0, keep_remainder)
    assert len(windows) == len(expected[0])
    for got, want in zip(as_arrays(windows), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_window_shapes_and_types_are_static():
    windows = token_windows(np.arange(100), 4, 5, start=0)
    for spec, dtype in zip(windows.element_spec, ["int32", "int32", "float32"], strict=True):
        assert spec.shape == (4, 5)
        assert spec.dtype == dtype


@pytest.mark.parametrize("count", [40, 41, 59, 60, 61, 79])
def test_evaluation_scores_every_token_once(count):
    tokens = np.arange(1, count + 1)
    _, targets, weights = as_arrays(token_windows(tokens, 4, 5, start=0, keep_remainder=True))
    assert sorted(targets[weights == 1]) == tokens.tolist()
    assert weights.sum() == count


@pytest.mark.parametrize("count", [40, 41, 59, 60, 61, 79])
def test_training_leaves_out_less_than_a_window_of_every_stream(count):
    tokens = np.arange(1, count + 1)
    _, targets, weights = as_arrays(token_windows(tokens, 4, 5, start=0))
    used = targets.ravel()
    assert weights.min() == 1
    assert len(set(used)) == len(used)
    assert count - len(used) < 4 * (5 + 1)


def test_rows_continue_from_window_to_window():
    inputs, targets, _ = as_arrays(token_windows(np.arange(1, 1001), 5, 8, start=0))
    np.testing.assert_array_equal(inputs[1:, :, 0], targets[:-1, :, -1])
    np.testing.assert_array_equal(inputs[:, :, 1:], targets[:, :, :-1])
    # The first input of each stream is the token before it, not a gap.
    np.testing.assert_array_equal(inputs[0, :, 0], np.arange(5) * 200)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"tokens": np.arange(19), "batch_size": 4, "timesteps": 5},
            "19 tokens cannot fill 4 streams",
        ),
        (
            {"tokens": np.arange(9), "batch_size": 0, "timesteps": 5},
            "`batch_size` must be at least 1",
        ),
        (
            {"tokens": np.arange(9), "batch_size": 2, "timesteps": 0},
            "`timesteps` must be at least 1",
        ),
        ({"tokens": np.zeros((3, 3)), "batch_size": 1, "timesteps": 1}, r"shape: \(3, 3\)"),
        (
            {"tokens": np.arange(3), "batch_size": 4, "timesteps": 5, "keep_remainder": True},
            "3 tokens cannot fill 4 streams",
        ),
    ],
)
def test_windows_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        token_windows(**arguments, start=0)


def test_vocabulary_is_ordered_and_comes_from_the_training_text(write_corpus):
    corpus = load_text(write_corpus(train="b a b\nc a b\n", valid="a  new\tb\n", test="c\n\na\n"))
    assert corpus.vocabulary == ("b", EOS, "a", "c", UNKNOWN)
    assert corpus.words(corpus.train) == "b a b <eos> c a b <eos>"
    assert corpus.words(corpus.valid) == "a <unk> b <eos>"
    assert corpus.words(corpus.test) == "c <eos> <eos> a <eos>"
    assert corpus.vocabulary[corpus.eos_id] == EOS
    assert corpus.vocabulary[corpus.unknown_id] == UNKNOWN
    assert corpus.distinct_words == 4
    assert corpus.train.dtype == np.int32


def test_rare_words_are_unknown(write_corpus):
    corpus = load_text(write_corpus(train="a a a b b c\n", valid="b c\n"), max_words=4)
    assert corpus.vocabulary == ("a", "b", EOS, UNKNOWN)
    assert corpus.words(corpus.train) == "a a a b b <unk> <eos>"
    assert corpus.words(corpus.valid) == "b <unk> <eos>"


def test_words_of_any_script_and_a_last_line_without_an_end(write_corpus):
    corpus = load_text(write_corpus(train="schön 日本 schön", valid="日本\r\n"))
    assert corpus.words(corpus.train) == "schön 日本 schön <eos>"
    assert corpus.words(corpus.valid) == "日本 <eos>"


def test_any_white_space_and_line_end(write_corpus):
    corpus = load_text(
        write_corpus(
            train="\ufeffthe\u00a0cat sat\u3000here\r\nthe end\r\n",
            valid="the\rend\u2028here",
            test="the\u202fcat\x85sat\r",
        )
    )
    assert corpus.words(corpus.train) == "the cat sat here <eos> the end <eos>"
    assert corpus.words(corpus.valid) == "the <eos> end here <eos>"
    assert corpus.words(corpus.test) == "the cat sat <eos>"
    assert set(corpus.vocabulary) == {"the", "cat", "sat", "here", "end", "<eos>", "<unk>"}


@pytest.mark.parametrize(
    "names",
    [
        ["wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"],
        ["train.txt", "dev.txt", "test.txt"],
        ["Train", "Validation", "Test"],
        ["my_train.en.txt", "my_val.en.txt", "my_test.en.txt"],
        ["en-train.txt", "valid.raw", "test.tokens"],
        # Beside Mikolov's three lie the same of characters.
        [f"ptb.{more}{name}.txt" for more in ("", "char.") for name in ("train", "valid", "test")],
    ],
)
def test_usual_names_of_files(tmp_path, names):
    for name, words in zip(names, ["a b", "a", "b", "x", "x", "x"], strict=False):
        (tmp_path / name).write_text(f"{words}\n")
    for other in ("README.txt", ".train.txt", "contest.txt", "latest"):
        (tmp_path / other).write_text("not of the text\n")
    (tmp_path / "test").mkdir(exist_ok=True)
    corpus = load_text(tmp_path)
    words = [corpus.words(part) for part in (corpus.train, corpus.valid, corpus.test)]
    assert words == ["a b <eos>", "a <eos>", "b <eos>"]


def test_files_of_any_names(write_corpus, tmp_path):
    folder = write_corpus()
    files = {"train": folder / "ptb.train.txt", "valid": str(folder / "ptb.valid.txt")}
    corpus = load_text({**files, "test": tmp_path / "ptb.train.txt"})
    np.testing.assert_array_equal(corpus.test, corpus.train)
    assert corpus.source.count("ptb.train.txt") == 2
    with pytest.raises(FileNotFoundError, match="absent is not there"):
        load_text({**files, "test": tmp_path / "absent"})
    with pytest.raises(FileNotFoundError, match="is no file"):
        load_text({**files, "test": tmp_path})
    with pytest.raises(ValueError, match=r"each of train, valid, test\. Received: train, valid"):
        load_text(files)


def test_files_that_could_be_either(write_corpus):
    folder = write_corpus(valid=None)
    for name in ("ptb.valid.txt", "ptb.dev.txt"):
        (folder / name).write_text("a\n")
    with pytest.raises(ValueError, match=r"valid text \(ptb\.dev\.txt, ptb\.valid\.txt\)"):
        load_text(folder)


@pytest.mark.parametrize("block", [1, 2, 7])
def test_a_text_is_read_block_by_block(write_corpus, monkeypatch, block):
    texts = {"train": "a  b\r\n\r\nlonger b\ra", "valid": "b\u3000a \n", "test": "\ufeffb c"}
    whole = load_text(write_corpus(**texts))
    monkeypatch.setattr(text, "_BLOCK", block)
    parts = load_text(write_corpus(**texts))
    assert whole.vocabulary == parts.vocabulary
    assert whole.words(whole.train) == "a b <eos> <eos> longer b <eos> a <eos>"
    for split in ("train", "valid", "test"):
        np.testing.assert_array_equal(getattr(whole, split), getattr(parts, split))


def test_penn_treebank(shared_data):
    corpus = load_text(shared_data / "ptb")
    assert len(corpus.train) == 929_589
    assert len(corpus.valid) == 73_760
    assert len(corpus.test) == 82_430
    assert len(corpus.vocabulary) == 10_000
    for split in ("train", "valid", "test"):
        content = (shared_data / "ptb" / f"ptb.{split}.txt").read_text(encoding="utf-8")
        words = " <eos> ".join(content.split("\n")).split()
        assert corpus.words(getattr(corpus, split)).split() == words
    windows = token_windows(corpus.train, 20, 20, start=corpus.eos_id)
    assert len(windows) == 2323
    scored = token_windows(corpus.test, 20, 20, start=corpus.eos_id, keep_remainder=True)
    assert sum(weights.sum() for _, _, weights in scored.as_numpy_iterator()) == 82_430


def test_embedded_text(embedded):
    assert isinstance(embedded, TextCorpus)
    total = len(embedded.train) + len(embedded.valid) + len(embedded.test)
    assert total > 50_000
    assert 0.85 < len(embedded.train) / total < 0.95
    assert len(embedded.vocabulary) <= 10_000
    assert embedded.words(embedded.train).startswith("the")
    # What stands for unknown words is itself known: it occurs where the model learns.
    unknown = np.mean(embedded.train == embedded.unknown_id)
    assert 0.001 < unknown < 0.1


def test_embedded_splits_share_no_paragraph(embedded):
    def paragraphs(split):
        ends = np.flatnonzero(split == embedded.eos_id)
        parts = np.split(split, ends + 1)
        return {tuple(part) for part in parts if len(part) > 20}

    assert not paragraphs(embedded.train) & paragraphs(embedded.valid)
    assert not paragraphs(embedded.train) & paragraphs(embedded.test)


def test_missing_directory(tmp_path):
    with pytest.raises(NotADirectoryError, match=r"`data_dir` must be a directory.*not there"):
        load_text(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="which is a file"):
        load_text(tmp_path / "file")
    with pytest.raises(ValueError, match="gs://bucket/text is a URL"):
        load_text("gs://bucket/text")


def test_missing_file_is_named(write_corpus):
    with pytest.raises(FileNotFoundError, match=r"has no ptb\.valid\.txt\. Expected"):
        load_text(write_corpus(valid=None))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fine\n\xff\xfe broken\n", r"ptb\.test\.txt is not UTF-8 text: byte 5"),
        (b"", r"ptb\.test\.txt has no words"),
        (b"\n \n\n", r"ptb\.test\.txt has no words"),
    ],
)
def test_bad_file_is_named(write_corpus, content, message):
    with pytest.raises(ValueError, match=message):
        load_text(write_corpus(test=content))


def test_too_small_a_vocabulary():
    with pytest.raises(ValueError, match="`max_words` must be at least 3"):
        load_text(max_words=2)


def test_the_extra_to_install_is_named(monkeypatch, write_corpus):
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)
    with pytest.raises(ModuleNotFoundError, match=r"keras-bnrnn\[text\]"):
        load_text(write_corpus())
