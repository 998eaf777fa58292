"""The preparation script: what it prints, and that bad input ends in one line."""

import pytest

import command_line
import inspect_speech
import prepare_speech
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.corpus import load_corpus

for package in ("pocketsphinx", "espeakng_loader", "soundfile", "soxr"):
    pytest.importorskip(package, reason="the extra 'speech' is not installed")


@pytest.fixture(scope="module")
def run(call_script_in_module):
    return lambda *arguments: call_script_in_module(prepare_speech, *arguments)


@pytest.fixture(scope="module")
def corpus_dir(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("script") / "corpus"
    run("--source=synthetic", "--utterances=6", f"--output_dir={folder}", "--workers=1")
    return folder


def test_synthetic_needs_no_input(corpus_dir, run, capsys):
    assert load_corpus(corpus_dir).splits["dev"]["utterances"] == 1
    arguments = ["--source=synthetic", "--utterances=6", f"--output_dir={corpus_dir}"]
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert "train: 5 utterances" in printed and "states, 123 features" in printed
    with pytest.raises(CorpusError, match="another listing"):
        run(*arguments, "--seed=1")


def test_alignment_scores_are_shown_worst_first(corpus_dir, call_script, capsys):
    call_script(inspect_speech, f"--data_dir={corpus_dir}")
    lines = capsys.readouterr().out.partition("alignment scores, worst first")[2].splitlines()[1:]
    scores = [float(line.split()[0]) for line in lines]
    assert len(scores) == 6 and scores == sorted(scores)
    call_script(inspect_speech, f"--data_dir={corpus_dir}", f"--utterance={lines[0].split()[1]}")
    assert f"alignment score: {scores[0]:.2f}" in capsys.readouterr().out


def test_verify(corpus_dir, run, capsys):
    assert run(f"--verify={corpus_dir}") == 0
    assert "sound" in capsys.readouterr().out
    shard = corpus_dir / "dev-00000-of-00001.tfrecord"
    whole = shard.read_bytes()
    try:
        shard.write_bytes(whole[:-1])
        assert run(f"--verify={corpus_dir}") == 1
        assert shard.name in capsys.readouterr().err
    finally:
        shard.write_bytes(whole)


def test_commands_of_a_kaldi_directory_need_a_flag(call_script, tmp_path):
    pytest.importorskip("kaldiio", reason="the extra 'speech' is not installed")
    for split in ("train", "dev"):
        (tmp_path / "data" / split).mkdir(parents=True)
        scp = f"{split} touch {tmp_path}/ran; false |\n"
        (tmp_path / "data" / split / "feats.scp").write_text(scp)
    (tmp_path / "ali").mkdir()
    (tmp_path / "ali" / "pdf.1.txt").write_text("train 0 1\ndev 0 1\n")
    arguments = [
        "--source=kaldi",
        f"--input_dir={tmp_path}/data",
        f"--output_dir={tmp_path}/corpus",
    ]
    arguments += [f"--alignment_dir={tmp_path}/ali", "--workers=1"]
    with pytest.raises(command_line.CommandError, match=r"touch .*\|' is a command.*--pipes$"):
        call_script(prepare_speech, *arguments)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(CorpusError, match="non-zero exit status 1"):
        call_script(prepare_speech, *arguments, "--pipes")
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ([], "--output_dir is missing"),
        (["--output_dir=x"], "--source is missing"),
        (["--output_dir=x", "--source=librispeech"], "--input_dir is missing"),
        (["--output_dir=x", "--source=synthetic", "--input_dir=y"], "--input_dir is of no use"),
    ],
)
def test_flags_that_are_missing_or_of_no_use(run, arguments, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(command_line.CommandError, match=reason):
        run(*arguments)
    assert not list(tmp_path.iterdir())


def test_bad_input_ends_in_one_line(run_command, tmp_path):
    (tmp_path / "empty").mkdir()
    flags = [f"--input_dir={tmp_path / 'empty'}", f"--output_dir={tmp_path / 'corpus'}"]
    code, _, errors = run_command("prepare_speech.py", "--source=librispeech", *flags)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(lines) == 1 and ".trans.txt" in lines[0]
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source=synthetic", "--keep_case"], "belongs to --labels=characters"),
        (["--source=synthetic", "--labels=characters", "--lexicon=x"], "of no use with --labels"),
        (["--source=synthetic", "--language=de"], "English alone"),
        (["--source=textgrid", "--labels=senones"], "of no use with --source=textgrid"),
        (["--source=manifest", "--language=de"], "of no use with --source=manifest"),
    ],
)
def test_flags_that_do_not_go_together(call_script, tmp_path, flags, message):
    with pytest.raises((command_line.CommandError, CorpusError), match=message):
        call_script(prepare_speech, *flags, f"--output_dir={tmp_path}/corpus")


def test_a_test_set_like_a_corpus_of_characters(call_script, tmp_path, capsys):
    flags = ["--source=synthetic", "--workers=1", "--utterances=4"]
    characters = ["--labels=characters", "--sample_rate=8000", f"--output_dir={tmp_path}/corpus"]
    call_script(prepare_speech, *flags, *characters)
    assert "characters: ␣" in capsys.readouterr().out
    like = [f"--like={tmp_path}/corpus", f"--output_dir={tmp_path}/other"]
    call_script(prepare_speech, *flags, *like, "--language=de", "--seed=1")
    output = capsys.readouterr().out
    assert "test: 4 utterances" in output and "test has characters that training lacks" in output
    corpus, other = load_corpus(tmp_path / "corpus"), load_corpus(tmp_path / "other")
    assert other.states == corpus.states and list(other.splits) == ["test"]
    with pytest.raises(command_line.CommandError, match="--keep_case is what the corpus of --like"):
        call_script(prepare_speech, *flags, *like, "--keep_case")
