"""transcribe.py: a process without Keras, error rates, pictures, and files that are no speech."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

import transcribe
from command_line import CommandError
from keras_bnrnn.data.speech.audio import LENGTHS
from keras_bnrnn.data.speech.features import FRAME_SECONDS

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
    assert transcribe.LENGTHS.pattern == LENGTHS.pattern


def test_transcripts_of_any_length_and_name(tmp_path):
    assert transcribe.read_transcripts(100 * "the ", ["a.wav"]) == [100 * "the "]
    words = tmp_path / "words.tsv"
    words.write_text("my file.wav\tone two\nother three\n")
    paths = ["my file.wav", "folder/other.wav"]
    assert transcribe.read_transcripts(str(words), paths) == ["one two", "three"]
    words.write_bytes(b"\xef\xbb\xbfs1/a.wav\tone\ns2/a.wav\ttwo\nb\tthree\nfolder/b\tthree\n")
    paths = ["s2/a.wav", "s1/a.wav", "elsewhere/b.wav"]
    assert transcribe.read_transcripts(str(words), paths) == ["two", "one", "three"]
    with pytest.raises(CommandError, match=r"several lines for x/a\.wav: s1/a\.wav, s2/a\.wav"):
        transcribe.read_transcripts(str(words), ["x/a.wav"])
    words.write_bytes(b"a caf\xe9\n")
    with pytest.raises(CommandError, match="is not UTF-8"):
        transcribe.read_transcripts(str(words), ["a.wav"])


def test_a_recording_that_was_cut_off(audio):
    audio.write_bytes(audio.read_bytes()[:30000])
    with pytest.raises(CommandError, match=r"was cut off: \d+ bytes are missing"):
        transcribe.read_waveform(audio, 8000)


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
