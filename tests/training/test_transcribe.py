"""transcribe.py: a process without Keras, error rates, pictures, and files that are no speech."""

import functools
import json
import os
import re
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import tensorflow as tf

import kaldi_models
import transcribe
from command_line import CommandError
from keras_bnrnn.data.speech.features import FRAME_SECONDS
from recipes.phone_model import DESCRIPTION_FILE

PHONES = {"SIL", "AH", "T", "OW"}

RUN_SCRIPT = """
import runpy

sys.path.insert(0, sys.argv.pop(2))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def exported(trained_speech):
    return trained_speech / "exported"


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """A SavedModel takes seconds to load."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.saved_model, "load", functools.cache(tf.saved_model.load))
        yield


@pytest.fixture
def audio(tmp_path):
    """Half a second of noise, at a rate that is not the model's."""
    path = tmp_path / "noise.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).normal(size=22050), 44100)
    return path


@pytest.mark.slow
def test_transcribes_without_keras(exported, audio, run_without):
    script = Path(transcribe.__file__)
    done = run_without(
        ["keras_bnrnn", "keras"], RUN_SCRIPT, script, script.parent, f"--model={exported}", audio
    )
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    path, _, phones = first.partition(": ")
    phones = phones.split()
    assert path == str(audio)
    assert phones and set(phones) <= PHONES
    segments = [line.split() for line in lines]
    assert [phone for *_, phone in segments] == phones
    times = np.array([[float(start), float(end)] for start, end, _ in segments])
    np.testing.assert_allclose(times[1:, 0], times[:-1, 1])
    assert times[0, 0] < 0.02 and abs(times[-1, 1] - 0.5) < 0.03
    assert (times[:, 1] - times[:, 0] > 0.029).all()


def test_error_rate_of_words(exported, audio, call_script, capsys):
    pytest.importorskip("pocketsphinx", reason="the extra 'speech' is not installed")
    call_script(transcribe, f"--model={exported}", "--transcript=Oh, tomato!", audio)
    rate, wrong, length = re.search(
        r"phone error rate ([\d.]+)% \((\d+) of (\d+)\)", capsys.readouterr().out
    ).groups()
    assert int(length) in (6, 7) and int(wrong) >= 2
    assert float(rate) == round(100 * int(wrong) / int(length), 1)


def test_transcripts_of_several_files(exported, audio, tmp_path, call_script, capsys):
    pytest.importorskip("pocketsphinx", reason="the extra 'speech' is not installed")
    other = tmp_path / "other.wav"
    soundfile.write(other, 0.1 * np.random.default_rng(1).normal(size=8000), 8000)
    words = tmp_path / "words.tsv"
    words.write_text(f"{audio}\toh\nother two two\n")
    call_script(
        transcribe,
        f"--model={exported}",
        f"--transcript={words}",
        f"--plot={tmp_path}",
        audio,
        other,
    )
    output = capsys.readouterr().out
    lengths = [int(one) for one in re.findall(r"of (\d+)\)", output)]
    assert lengths == [1, 4, 5]
    for name in ("noise", "other"):
        assert f"picture: {tmp_path / name}.png" in output
        assert (tmp_path / f"{name}.png").read_bytes()[1:4] == b"PNG"
    words.write_text("noise oh\n")
    with pytest.raises(CommandError, match=r"has no line for .*other\.wav"):
        call_script(transcribe, f"--model={exported}", f"--transcript={words}", audio, other)
    with pytest.raises(CommandError, match="not in the dictionary: qwrtz"):
        call_script(transcribe, f"--model={exported}", "--transcript=qwrtz", audio)
    with pytest.raises(CommandError, match="is no file"):
        call_script(transcribe, f"--model={exported}", "--transcript=oh", audio, other)


def test_what_transcribe_cannot_import_is_as_in_the_package():
    assert transcribe.FRAME_SECONDS == FRAME_SECONDS


def test_a_recording_that_was_cut_off(exported, audio, call_script):
    audio.write_bytes(audio.read_bytes()[:30000])
    with pytest.raises(CommandError, match=r"was cut off: \d+ bytes are missing"):
        call_script(transcribe, f"--model={exported}", audio)


def test_one_bad_file_of_several(exported, audio, tmp_path, call_script, capsys):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no audio")
    (tmp_path / "folder").mkdir()
    paths = [bad, tmp_path / "folder", audio, "https://example.com/a.wav"]
    with pytest.raises(CommandError, match="3 of 4 files could not be transcribed"):
        call_script(transcribe, f"--model={exported}", *paths)
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{audio}: ")
    for reason in (f"{bad}: not an audio file", "folder: a folder", "https://example.com/a.wav: a"):
        assert f"error: {reason}" in captured.err or reason in captured.err


def phones_and_times(text):
    return [line.split() for line in text.splitlines()[1:]]


def test_long_recordings_are_heard_in_parts(exported, tmp_path, call_script, capsys, monkeypatch):
    path = tmp_path / "long.wav"
    rng = np.random.default_rng(0)
    level = np.repeat(rng.uniform(0.001, 0.3, size=40), 800)
    soundfile.write(path, level * rng.normal(size=level.size), 8000)
    call_script(transcribe, f"--model={exported}", path)
    whole = capsys.readouterr().out
    monkeypatch.setattr(transcribe, "WHOLE_SECONDS", 1)
    monkeypatch.setattr(transcribe, "PART_FRAMES", 70)
    monkeypatch.setattr(transcribe, "OVERLAP_FRAMES", 40)
    monkeypatch.setattr(transcribe, "PARTS_AT_ONCE", 2)
    monkeypatch.setattr(transcribe.recordings, "BLOCK_FRAMES", 3000)
    call_script(transcribe, f"--model={exported}", f"--plot={tmp_path}", path)
    captured = capsys.readouterr()
    assert captured.out == whole
    assert "is not drawn: 4 s, more than 1 s" in captured.err


def test_parts_cover_every_frame_once():
    samples = np.arange(50_123, dtype=np.float32)
    for blocks in (np.array_split(samples, 17), [samples]):
        parts = list(transcribe.parts_of(blocks, {"sample_rate": 8000}))
        assert [(part.skip, part.frames, part.first, part.last) for part in parts] == [
            (0, None, True, True)
        ]
    samples = np.arange(8000 * 61 + 77, dtype=np.float32)
    parts = list(transcribe.parts_of(np.array_split(samples, 40), {"sample_rate": 8000}))
    assert [part.first for part in parts] == [True, False, False]
    assert sum(part.new_samples for part in parts) == len(samples)
    own = [part.waveform[80 * part.skip :][: part.frames and 80 * part.frames] for part in parts]
    np.testing.assert_array_equal(np.concatenate(own), samples)


def test_formats(exported, audio, tmp_path, call_script, capsys):
    from keras_bnrnn.data.speech.textgrid import read_textgrid

    call_script(transcribe, f"--model={exported}", audio)
    expected = phones_and_times(capsys.readouterr().out)
    call_script(transcribe, f"--model={exported}", "--format=ctm", audio)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [[line[2], line[4]] for line in lines] == [[one[0], one[2]] for one in expected]
    assert {(line[0], line[1]) for line in lines} == {("noise", "1")}
    other = tmp_path / "other" / audio.name
    other.parent.mkdir()
    other.write_bytes(audio.read_bytes())
    call_script(transcribe, f"--model={exported}", "--format=ctm", audio, other)
    names = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert names == {str(path.with_suffix("")) for path in (audio, other)}
    folder = tmp_path / "grids"
    call_script(
        transcribe, f"--model={exported}", "--format=textgrid", f"--output_dir={folder}", audio
    )
    intervals = read_textgrid(folder / "noise.TextGrid", "phones")
    assert [interval.label for interval in intervals] == [one[2] for one in expected]
    assert abs(intervals[-1].end - 0.5) < 1e-3
    with pytest.raises(CommandError, match="name --output_dir"):
        call_script(transcribe, f"--model={exported}", "--format=textgrid", audio, audio)


def test_standard_input_and_pipes(exported, audio, tmp_path, call_script, capsys, monkeypatch):
    call_script(transcribe, f"--model={exported}", audio)
    expected = phones_and_times(capsys.readouterr().out)
    with audio.open("rb") as file:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=file))
        call_script(transcribe, f"--model={exported}", "-")
    assert phones_and_times(capsys.readouterr().out) == expected
    os.mkfifo(tmp_path / "pipe.wav")
    writer = threading.Thread(
        target=lambda: (tmp_path / "pipe.wav").write_bytes(audio.read_bytes())
    )
    writer.start()
    call_script(transcribe, f"--model={exported}", tmp_path / "pipe.wav")
    writer.join()
    assert phones_and_times(capsys.readouterr().out) == expected


def test_channels(exported, tmp_path, call_script, capsys):
    samples = 0.1 * np.random.default_rng(0).normal(size=(4000, 2))
    both, first, opposite = (tmp_path / f"{name}.wav" for name in ("both", "first", "opposite"))
    soundfile.write(both, samples, 8000)
    soundfile.write(first, samples[:, 0], 8000)
    soundfile.write(opposite, samples[:, :1] * [1, -1], 8000)
    call_script(transcribe, f"--model={exported}", first)
    expected = phones_and_times(capsys.readouterr().out)
    call_script(transcribe, f"--model={exported}", "--channel=A", both)
    captured = capsys.readouterr()
    assert phones_and_times(captured.out) == expected and "averaged" not in captured.err
    call_script(transcribe, f"--model={exported}", both, both)
    assert capsys.readouterr().err.count("2 recordings have several channels") == 1
    with pytest.raises(CommandError, match="channels cancel each other"):
        call_script(transcribe, f"--model={exported}", opposite)
    with pytest.raises(CommandError, match="channel 3 of 2"):
        call_script(transcribe, f"--model={exported}", "--channel=3", both)
    with pytest.raises(CommandError, match="neither 'mix' nor a number"):
        call_script(transcribe, f"--model={exported}", "--channel=left", both)


def test_another_bandwidth_than_in_training(capsys):
    description = {"sample_rate": 16000, "recordings": {"sample_rates": {"44100": 3}}}
    transcribe.warn_of_bandwidth("a.wav", 48000, description)
    transcribe.warn_of_bandwidth("a.wav", 8000, {"sample_rate": 16000})
    assert capsys.readouterr().err == ""
    transcribe.warn_of_bandwidth("a.wav", 8000, description)
    assert "up to 4000 Hz, the model was trained on speech up to 8000 Hz" in capsys.readouterr().err


def test_plot_without_a_path(exported, audio, tmp_path, call_script, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call_script(transcribe, f"--model={exported}", "--plot", audio)
    assert (tmp_path / "noise.png").is_file()
    call_script(transcribe, f"--model={exported}", f"--plot={tmp_path}/new/one.png", audio)
    assert (tmp_path / "new" / "one.png").is_file()
    with pytest.raises(CommandError, match="one file for 2 pictures"):
        call_script(transcribe, f"--model={exported}", "--plot=x.png", audio, audio)
    with pytest.raises(CommandError, match=r"would both be drawn into .*noise\.png"):
        call_script(transcribe, f"--model={exported}", "--plot=both", audio, audio)


def test_audio_shorter_than_a_frame(exported, tmp_path, call_script, capsys):
    path = tmp_path / "click.wav"
    soundfile.write(path, np.full(30, 0.1), 8000)
    call_script(transcribe, f"--model={exported}", f"--plot={tmp_path}", path)
    captured = capsys.readouterr()
    assert captured.out == f"{path}: \n"
    assert f"{path} is too short for a single frame" in captured.err


def test_silence_and_clipping_are_said(exported, tmp_path, call_script, capsys):
    silent, clipped = tmp_path / "silent.wav", tmp_path / "clipped.wav"
    soundfile.write(silent, np.zeros(8000), 8000)
    noise = np.random.default_rng(0).normal(size=8000)
    soundfile.write(clipped, np.clip(noise, -1, 1), 8000)
    call_script(transcribe, f"--model={exported}", silent, clipped)
    captured = capsys.readouterr()
    assert f"{silent} is silent" in captured.err
    assert re.search(rf"{clipped} is clipped: \d+\.\d% at full scale", captured.err)
    assert f"{silent}: " in captured.out and f"{clipped}: " in captured.out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.wav", None, "no such file"),
        ("text.wav", b"no audio at all", "cannot be read as audio"),
        ("silence.wav", "empty", "holds no samples"),
    ],
)
def test_the_bad_file_is_named(call_script, exported, tmp_path, name, content, message):
    path = tmp_path / name
    if content == "empty":
        soundfile.write(path, np.zeros(0), 16000)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(CommandError, match=message) as error:
        call_script(transcribe, f"--model={exported}", path)
    assert name in str(error.value)


def test_no_model(call_script, tmp_path):
    with pytest.raises(CommandError, match="is no SavedModel"):
        call_script(transcribe, f"--model={tmp_path}", "x.wav")


@pytest.fixture(scope="module")
def spelling(trained_ctc):
    return trained_ctc / "exported"


def test_words_of_a_model_that_writes_text(spelling, audio, tmp_path, call_script, capsys):
    flags = [f"--model={spelling}", "--transcript=Aö, ea [NOISE] ß", "--beam=8", "--nbest=3"]
    call_script(transcribe, *flags, f"--plot={tmp_path}/x.png", audio)
    captured = capsys.readouterr()
    first, *lines = captured.out.splitlines()
    words = first.partition(": ")[2].split()
    assert [line.split()[-1] for line in lines[: len(words)]] == words
    answers = lines[len(words) : len(words) + 3]
    scores = [float(line.split()[0]) for line in answers]
    assert scores == sorted(scores, reverse=True) and answers[0].split()[1:] == words
    assert re.search(
        r"word error rate [\d.]+% \(\d+ of 3\), character error rate [\d.]+% \(\d+ of 7\)",
        captured.out,
    )
    assert "no training utterance has ß" in captured.err
    assert (tmp_path / "x.png").read_bytes()[1:4] == b"PNG"


def test_words_as_a_textgrid_and_as_ctm(spelling, audio, call_script, capsys):
    call_script(transcribe, f"--model={spelling}", "--format=textgrid", audio)
    grid = capsys.readouterr().out
    assert 'name = "words"' in grid
    edges = [float(one) for one in re.findall(r"xm(?:in|ax) = ([\d.]+)", grid)[4:]]
    assert edges[0] == 0.0 and edges[-1] == 0.5
    np.testing.assert_allclose(edges[1:-1:2], edges[2::2])


def test_a_long_text_is_heard_in_parts(spelling, tmp_path, call_script, capsys):
    path = tmp_path / "long.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).normal(size=8000 * 70), 8000)
    call_script(transcribe, f"--model={spelling}", "--beam=2", "--nbest=2", path)
    captured = capsys.readouterr()
    assert "has one text only" in captured.err
    times = [line.split()[:2] for line in captured.out.splitlines()[1:]]
    starts = [float(start) for start, _ in times]
    assert starts == sorted(starts) and (not starts or starts[-1] < 70)


def test_flags_of_the_other_kind_of_model_are_refused(spelling, exported, audio, call_script):
    for model, flag, message in (
        (exported, "--beam=4", "for a model that writes text"),
        (spelling, "--prior_scale=0.5", "for a model of phones"),
        (spelling, "--nbest=4", "needs a --beam"),
        (spelling, "--transcript=[NOISE]", "no words"),
    ):
        with pytest.raises(CommandError, match=message):
            call_script(transcribe, f"--model={model}", flag, audio)


def assert_times_follow(lines, words):
    rows = [line.split() for line in lines]
    assert [word for *_, word in rows] == words
    times = [float(time) for start, end, _ in rows for time in (start, end)]
    assert times == sorted(times)


def test_words_of_a_lexicon_only(spelling, audio, tmp_path, call_script, capsys, monkeypatch):
    pytest.importorskip("kaldi_decoder", reason="the extra 'decode' is not installed")
    lexicon, grammar = tmp_path / "lexicon.txt", tmp_path / "grammar.txt"
    lexicon.write_text("Ae!\nLong\teaeaea\n")
    flags = [f"--model={spelling}", f"--lexicon={lexicon}", "--transcript=long ae"]
    call_script(transcribe, *flags, f"--plot={tmp_path}/x.png", audio)
    output = capsys.readouterr().out
    first, *lines = output.splitlines()
    words = first.partition(": ")[2].split()
    assert set(words) <= {"ae", "long"}
    assert re.search(r"word error rate [\d.]+% \(\d+ of 2\), character error rate", output)
    assert_times_follow(lines[: len(words)], words)
    # Nothing else is allowed, in pieces of a recording as in the whole.
    grammar.write_text("0 1 long\n1 2 ae\n2\n")
    flags.append(f"--grammar={grammar}")
    call_script(transcribe, *flags, audio)
    whole = capsys.readouterr().out
    assert whole.startswith(f"{audio}: long ae\n") and "word error rate 0.0% (0 of 2)" in whole
    for name, value in (("WHOLE_SECONDS", 0.2), ("PART_FRAMES", 12), ("OVERLAP_FRAMES", 400)):
        monkeypatch.setattr(transcribe, name, value)
    monkeypatch.setattr(transcribe.recordings, "BLOCK_FRAMES", 1000)
    call_script(transcribe, *flags, audio)
    assert capsys.readouterr().out == whole
    grammar.write_text("".join(f"{k} {k + 1} long\n" for k in range(30)) + "30\n")
    call_script(transcribe, *flags, audio)
    assert "ends where the graph may not" in capsys.readouterr().err


@pytest.fixture(scope="module")
def of_pdfs(exported, tmp_path_factory):
    """The exported model of phones as one of Kaldi's pdf-ids, with a recipe's graph for it."""
    pytest.importorskip("kaldifst", reason="the extra 'decode' is not installed")
    folder = tmp_path_factory.mktemp("pdfs")
    shutil.copytree(exported, folder / "model")
    path = folder / "model" / DESCRIPTION_FILE
    description = json.loads(path.read_text())
    count = len(description["states"])
    description["states"] = [{"name": f"pdf-{k}", "pdf": k} for k in range(count)]
    path.write_text(json.dumps(description))
    return folder / "model", kaldi_models.write_recipe(folder, count), count


def test_words_by_a_recipes_graph(of_pdfs, audio, tmp_path, call_script, capsys):
    model, graph, count = of_pdfs
    flags = [f"--model={model}", f"--graph={graph}", "--transcript=w0 W1", "--acoustic_scale=1"]
    call_script(transcribe, *flags, f"--plot={tmp_path}/x.png", audio)
    first, *lines = capsys.readouterr().out.splitlines()
    words = first.partition(": ")[2].split()
    assert words and set(words) <= {f"W{k}" for k in range(count)}
    assert_times_follow(lines[: len(words)], words)
    assert re.match(r"  word error rate [\d.]+% \(\d+ of 2\)", lines[len(words)])
    call_script(transcribe, *flags[:2], "--prior_scale=1000", "--format=ctm", audio)
    counts = json.loads((model / DESCRIPTION_FILE).read_text())["phone_counts"]["state_frames"]
    rarest = f"W{np.argmin(counts)}"
    assert {line.split()[4] for line in capsys.readouterr().out.splitlines()} == {rarest}


def test_flags_of_graphs_are_refused_where_there_is_none(of_pdfs, spelling, audio, call_script):
    model, graph, _ = of_pdfs
    for flags, message in (
        ([f"--model={model}", "--graph_beam=9"], "for words by a graph"),
        ([f"--model={model}", f"--graph={graph}", "--min_frames=2"], "without --graph"),
        ([f"--model={model}", f"--graph={graph}", "--grammar=x"], "for a model that writes text"),
        ([f"--model={spelling}", "--acoustic_scale=1"], "for words by a graph"),
        ([f"--model={spelling}", "--lexicon=x", "--nbest=2"], "for texts of any words"),
        ([f"--model={spelling}", f"--graph={graph}"], "for a model of phones"),
    ):
        with pytest.raises(CommandError, match=message):
            call_script(transcribe, *flags, audio)
