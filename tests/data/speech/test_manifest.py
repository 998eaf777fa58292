"""Manifests: with and without a header, and lines that cannot be used."""

import pytest

from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech import synthesis
from keras_bnrnn.data.speech.corpus import load_corpus, read_utterances
from keras_bnrnn.data.speech.preparation import prepare_corpus
from keras_bnrnn.data.speech.sources import ManifestSource

soundfile = pytest.importorskip("soundfile", reason="the extra 'speech' is not installed")
pytest.importorskip("pocketsphinx", reason="the extra 'speech' is not installed")
pytest.importorskip("espeakng_loader", reason="the extra 'speech' is not installed")


@pytest.fixture
def recordings(tmp_path):
    sentences = ["the old dog found a letter", "seven birds followed the boat"]
    for name, sentence, suffix in zip("ab", sentences, ("wav", "ogg"), strict=True):
        samples = synthesis.synthesize(synthesis.Prompt(sentence, "en-us", 150, 50), 22050)
        soundfile.write(tmp_path / f"{name}.{suffix}", samples, 22050)
    return sentences


def write(folder, text):
    path = folder / "list.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return str(path)


def test_header_names_the_columns(tmp_path, recordings):
    manifest = write(
        tmp_path,
        "\ufeffid\ttranscript\tsplit\taudio_path\n"
        f"first\tThe old dog, found a “letter”!\ttrain\ta.wav\n"
        f"second\t{recordings[1].upper()}\tdev\tb.ogg\n",
    )
    corpus = prepare_corpus(ManifestSource(manifest=manifest), tmp_path / "corpus")
    assert [u["id"] for u in read_utterances(corpus, "train")] == ["first"]
    assert [u["id"] for u in read_utterances(corpus, "dev")] == ["second"]


def test_without_a_header_shares_make_the_splits(tmp_path, recordings):
    manifest = write(tmp_path, f"a.wav\t{recordings[0]}\r\nb.ogg\t{recordings[1]}\r\n\r\n")
    with pytest.raises(CorpusError, match="splits=layout"):
        ManifestSource(manifest=manifest).utterances()
    source = ManifestSource(manifest=manifest, splits="train=0.5,dev=0.5")
    corpus = prepare_corpus(source, tmp_path / "corpus")
    assert {name: s["utterances"] for name, s in corpus.splits.items()} == {"train": 1, "dev": 1}
    assert sorted(u.id for u in source.utterances()[0]) == ["a", "b"]


def test_bad_lines_are_listed_and_the_others_kept(tmp_path, recordings):
    manifest = write(
        tmp_path,
        b"audio_path\ttranscript\tsplit\n"
        + f"a.wav\t{recordings[0]}\ttrain\n".encode()
        + f"b.ogg\t{recordings[1]}\tdev\n".encode()
        + b"c.wav\tmissing\ttrain\n"
        + b"d.wav\ttoo few\n"
        + b"e.wav\tcaf\xe9\ttrain\n"
        + b"\tno path\ttrain\n"
        + b"f.wav\tvalidation is not a split\tvalid\n"
        + f"a.wav\t{recordings[0]}\ttrain\n".encode(),
    )
    prepare_corpus(ManifestSource(manifest=manifest), tmp_path / "corpus")
    assert load_corpus(tmp_path / "corpus").document["failures"] == 6
    failures = (tmp_path / "corpus" / "failures.tsv").read_text(encoding="utf-8")
    for reason in (
        "no such audio file",
        "2 columns instead of 3",
        "not UTF-8",
        "'valid'",
        "twice",
        "no audio_path",
    ):
        assert reason in failures


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "empty"),
        ("audio_path\tsentence\n", "header"),
        ("audio_path\ttranscript\tage\n", "header"),
        ("audio_path\ttranscript\n", "no train"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path, text, reason):
    with pytest.raises(CorpusError, match=reason):
        prepare_corpus(ManifestSource(manifest=write(tmp_path, text)), tmp_path / "corpus")


def test_missing_manifest(tmp_path):
    with pytest.raises(CorpusError, match="no such file"):
        ManifestSource(manifest=str(tmp_path / "none.tsv")).utterances()
