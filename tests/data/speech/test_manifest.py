"""Manifests: with and without a header, and lines that cannot be used."""

import io
from types import SimpleNamespace

import numpy as np
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


LISTED = "audio_path\ttranscript\tsplit\n"


def test_utf_16_and_standard_input(tmp_path, monkeypatch):
    text = LISTED + "a.wav\tone\ttrain\n"
    for encoding in ("utf-16", "utf-16-le"):
        manifest = write(tmp_path, text.encode(encoding))
        [utterance], failures = ManifestSource(manifest=manifest).utterances()
        assert (utterance.id, utterance.transcript, failures) == ("a", "one", [])
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    [utterance], _ = ManifestSource(manifest="-").utterances()
    assert utterance.location == "a.wav"


def test_paths_that_are_no_audio_are_failures(tmp_path, recordings):
    manifest = write(
        tmp_path,
        LISTED + f"a.wav\t{recordings[0]}\ttrain\nb.ogg\t{recordings[1]}\tdev\n"
        ".\tone\ttrain\n/\ttwo\ttrain\nx\0y.wav\tthree\ttrain\n"
        "https://example.com/c.wav\tfour\ttrain\n",
    )
    prepare_corpus(ManifestSource(manifest=manifest), tmp_path / "corpus")
    lines = (tmp_path / "corpus" / "failures.tsv").read_text().splitlines()
    assert len(lines) == 5
    assert sum("a folder" in line for line in lines) == 2
    assert any("https://example.com/c.wav: a URL" in line for line in lines)


def test_parts_and_channels_of_a_call(tmp_path, recordings, capsys):
    """Two speakers of a telephone call, each on a channel."""
    calls = [soundfile.read(tmp_path / name)[0] for name in ("a.wav", "b.ogg")]
    samples = np.zeros((max(map(len, calls)) + 22050, 2))
    for channel, call in enumerate(calls):
        samples[22050 : 22050 + len(call), channel] = call
    soundfile.write(tmp_path / "call.wav", samples, 22050)
    end = len(samples) / 22050
    header = "audio_path\ttranscript\tsplit\tchannel\tstart\tend\n"
    rows = [
        f"call.wav\t{recordings[0]}\ttrain\tA\t1.0\t{end:.2f}\n",
        f"call.wav\t{recordings[1]}\tdev\t2\t1.0\t\n",
        f"call.wav\t{recordings[1]}\tdev\t3\t1.0\t{end:.2f}\n",
        "call.wav\tone\tdev\t1\t2.0\t1.0\n",
        "call.wav\tone\tdev\t1\tnow\t1.0\n",
        "call.wav\tone\tdev\tleft\t1.0\t2.0\n",
    ]
    manifest = write(tmp_path, header + "".join(rows))
    corpus = prepare_corpus(ManifestSource(manifest=manifest), tmp_path / "corpus")
    [train], [dev] = (list(read_utterances(corpus, split)) for split in ("train", "dev"))
    assert (train["id"], dev["id"]) == (
        f"call-1-0000100-{100 * end:07.0f}",
        "call-2-0000100",
    )
    assert abs(len(train["labels"]) - 100 * (end - 1)) < 6
    assert train["alignment_score"] < 0
    assert corpus.document["recordings"] == {"sample_rates": {"22050": 2}, "mixed": 0}
    failures = (tmp_path / "corpus" / "failures.tsv").read_text()
    for reason in ("channel 3 of 2", "no part from 2.0 to 1.0", "'now' is no time", "'left'"):
        assert reason in failures


def test_ids_tell_channels_and_folders_apart(tmp_path):
    for folder, rows in {"one": ["A\ttrain", "B\ttrain"], "two": ["\tdev", "\tdev"]}.items():
        (tmp_path / folder).mkdir()
        lines = [f"call.wav\tone\t{row}\n" for row in rows]
        write(tmp_path / folder, "audio_path\ttranscript\tchannel\tsplit\n" + "".join(lines))
    manifests = f"{tmp_path}/one/list.tsv,{tmp_path}/two/list.tsv"
    listed, failures = ManifestSource(manifest=manifests).utterances()
    assert [u.id for u in listed] == ["one/call-1", "one/call-2", "two/call"]
    [failure] = failures
    place = tmp_path / "two" / "call.wav"
    assert failure.reason == f"the id occurs twice in dev: {place}, after {place}"
    manifest = write(tmp_path, LISTED + "a.wav\tone\ttrain\na.ogg\tone\ttrain\nb.wav\tone\tdev\n")
    listed, failures = ManifestSource(manifest=manifest).utterances()
    assert [u.id for u in listed] == ["a.wav", "a.ogg", "b"] and failures == []


def test_common_voice_as_it_is(tmp_path):
    (tmp_path / "clips").mkdir()
    for name in ("a", "b"):
        soundfile.write(tmp_path / "clips" / f"{name}.mp3", np.zeros(800), 16000)
    header = "client_id\tpath\tsentence_id\tsentence\tup_votes\tage\tgender\tlocale\n"
    for split, name, gender in (("train", "a", "female_feminine"), ("dev", "b", "")):
        line = f"c{name}\t{name}.mp3\t9\tOne, two.\t2\tteens\t{gender}\ten\n"
        (tmp_path / f"{split}.tsv").write_text(header + line)
    manifests = f"{tmp_path}/train.tsv,{tmp_path}/dev.tsv"
    listed, failures = ManifestSource(manifest=manifests).utterances()
    assert failures == []
    assert [(u.id, u.speaker, u.split, u.gender, u.transcript) for u in listed] == [
        ("a", "ca", "train", "f", "One, two."),
        ("b", "cb", "dev", "", "One, two."),
    ]
    assert listed[0].location == str(tmp_path / "clips" / "a.mp3")


def test_what_hardly_matches_is_a_failure(tmp_path, recordings):
    samples, rate = soundfile.read(tmp_path / "a.wav")
    soundfile.write(tmp_path / "a.wav", np.stack([samples, samples], axis=1), rate)
    lines = [f"a.wav\t{recordings[0]}\ttrain\n", f"b.ogg\t{recordings[1]}\tdev\n"]
    manifest = write(tmp_path, LISTED + "".join(lines))
    source = ManifestSource(manifest=manifest, min_alignment_score=-0.1)
    with pytest.raises(
        CorpusError, match=r"score is -\d\.\d\d, less than min_alignment_score=-0\.1; 2 channels"
    ):
        prepare_corpus(source, tmp_path / "corpus")
