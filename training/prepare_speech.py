r"""Prepares speech for training: audio and transcripts to features and labels in shards.

    prepare_speech.py --source=synthetic --output_dir=corpus
    prepare_speech.py --source=librispeech --input_dir=LibriSpeech --output_dir=corpus
    prepare_speech.py --source=manifest --manifest=mine.tsv --output_dir=corpus
    prepare_speech.py --source=kaldi --input_dir=data --alignment_dir=exp --output_dir=corpus \
        --splits=train=train_si284,dev=test_dev93,test=test_eval92
    prepare_speech.py --source=manifest --manifest=mine.tsv --labels=characters --output_dir=corpus
    prepare_speech.py --source=manifest --manifest=new.tsv --like=corpus --output_dir=new
    prepare_speech.py --verify=corpus

The output folder holds corpus.json (set-up, states, counts, statistics), failures.tsv (utterances
left out, and why) and the shards. A killed preparation continues with the same command.
"""

import command_line  # isort: skip  First, for Ctrl-C while the others are imported.
import contextlib
import os
import sys

from absl import flags
from tqdm import tqdm

from keras_bnrnn.data.errors import CorpusError, PipeError
from keras_bnrnn.data.speech import sources
from keras_bnrnn.data.speech.alignment import LABEL_KINDS, SAMPLE_RATE
from keras_bnrnn.data.speech.corpus import FAILURES_FILE, load_corpus, verify_corpus
from keras_bnrnn.data.speech.features import FRAME_SECONDS
from keras_bnrnn.data.speech.kaldi import CMVN_KINDS, KaldiSource
from keras_bnrnn.data.speech.preparation import prepare_corpus
from keras_bnrnn.data.speech.recordings import parse_channel
from keras_bnrnn.data.speech.synthesis import LANGUAGES
from keras_bnrnn.data.speech.transcripts import CHARACTERS, TextRules

SOURCES = ("synthetic", "librispeech", "manifest", "textgrid", "kaldi")
SYNTHETIC_UTTERANCES = 360
ALIGNED = ("synthetic", "librispeech", "manifest")
OF_ALIGNING = ("lexicon", "min_alignment_score", "alignment_dir")
OF_CHARACTERS = ("keep_case", "keep_punctuation")
FLAGS_OF_SOURCES = {
    "input_dir": ("librispeech", "textgrid", "kaldi"),
    "manifest": ("manifest",),
    "alignment_dir": ("kaldi", "textgrid"),
    "cmvn": ("kaldi",),
    "pipes": ("kaldi",),
    "tier": ("textgrid",),
    "language": ("synthetic",),
    "lexicon": ALIGNED,
    "min_alignment_score": ("librispeech", "manifest"),
    "channel": ("librispeech", "manifest", "textgrid", "kaldi"),
    "sample_rate": (*ALIGNED, "textgrid", "kaldi"),
    "splits": ("librispeech", "manifest", "textgrid", "kaldi"),
}

FLAGS = flags.FlagValues()
flags.DEFINE_enum(
    "source",
    None,
    SOURCES,
    "synthetic: sentences spoken by eSpeak NG, no input needed; librispeech: speaker/chapter "
    "folders with .trans.txt and FLAC or WAV; manifest: a tab-separated list of audio and "
    "transcripts; textgrid: audio with Praat or Montreal Forced Aligner TextGrids; kaldi: a data "
    "and an alignment directory.",
    flag_values=FLAGS,
)
command_line.define_path("input_dir", None, "Folder of the source's data.", FLAGS)
command_line.define_path(
    "manifest",
    None,
    "manifest: file of audio_path<TAB>transcript; with a header also id, speaker, split, channel, "
    "start and end (in seconds). Common Voice's tsv as it is. Several are separated by commas; "
    "- is standard input.",
    FLAGS,
    several=True,
)
command_line.define_path(
    "alignment_dir",
    None,
    "kaldi: folder, or several separated by commas, with archives ali* of transition-ids beside "
    "their final.mdl, or pdf* of pdf-ids. textgrid: folder of the TextGrids, where they are not "
    "beside the audio.",
    FLAGS,
    several=True,
)
flags.DEFINE_enum(
    "cmvn", "none", CMVN_KINDS, "kaldi: what of cmvn.scp's statistics to apply.", flag_values=FLAGS
)
flags.DEFINE_bool(
    "pipes",
    False,
    "kaldi: run the commands in feats.scp, cmvn.scp and wav.scp (`gunzip -c feats.gz |`). Only for "
    "a directory that you trust.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "tier",
    None,
    "textgrid: the tier that holds the phones, or what follows the speaker in it: `s1 - phones`. "
    "Default: phones, or words for --labels=characters.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "language",
    "en",
    LANGUAGES,
    "synthetic: what is spoken; other languages than English need --labels=characters.",
    flag_values=FLAGS,
)
command_line.define_path("output_dir", None, "Folder of the prepared corpus.", FLAGS)
flags.DEFINE_integer(
    "utterances",
    None,
    "How many to synthesise (default "
    f"{SYNTHETIC_UTTERANCES}, a sixth of them for dev), or at most how many to take.",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_integer("seed", 0, "Seed of everything drawn by chance.", flag_values=FLAGS)
flags.DEFINE_enum(
    "labels",
    "senones",
    (*LABEL_KINDS, CHARACTERS),
    "What aligned frames are labelled with; or characters: the transcripts themselves, in any "
    "language, for train_ctc.py. Nothing is aligned then.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "keep_case",
    False,
    "Of --labels=characters: tell capital letters from small ones; else all are small.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "keep_punctuation",
    False,
    "Of --labels=characters: keep punctuation and symbols; else apostrophes within words alone.",
    flag_values=FLAGS,
)
command_line.define_path(
    "lexicon",
    None,
    "File of extra pronunciations for the aligner, in CMUdict's format: WORD  PHONE PHONE …",
    FLAGS,
)
flags.DEFINE_float(
    "min_alignment_score",
    sources.MIN_ALIGNMENT_SCORE,
    "An utterance whose alignment scores less (0 at best) is left out: its transcript is probably "
    "wrong. inspect_speech.py shows the scores.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "channel",
    "mix",
    "Which channel of recordings with several: 1 or A, 2 or B, …; mix: their average. A manifest's "
    "column comes before it.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "sample_rate",
    SAMPLE_RATE,
    "Of the features, in Hz: 8000 for telephone speech.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "splits",
    "layout",
    "layout: folder or column names say train, dev and test; or names of folders, such as "
    "train=train_si284,dev=test_dev93; or shares dealt out by speaker, such as train=0.9,dev=0.1.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "workers",
    os.cpu_count(),
    "Processes to work with. The corpus is the same, byte for byte, with any number.",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "scheduler",
    None,
    "Address of a Dask scheduler (tcp://HOST:8786): its workers prepare the corpus instead of "
    "--workers processes here. All see the same files; the corpus is the same.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "shard_megabytes", 100, "Size at which a shard is closed.", lower_bound=1, flag_values=FLAGS
)
command_line.define_path(
    "like",
    None,
    "The corpus that a model was trained on: make a test split alone, with its labels, alphabet "
    "and normalisation, for evaluate.py. --splits=test=FOLDER takes one folder.",
    FLAGS,
    remote=True,
)
command_line.define_path(
    "verify", None, "Check this corpus instead and name what is damaged.", FLAGS, remote=True
)


def main(argv):
    if FLAGS.verify:
        return verify(FLAGS.verify)
    output_dir = command_line.require_flag(FLAGS, "output_dir")
    like = load_corpus(FLAGS.like) if FLAGS.like else None
    if like is not None:
        as_in(like)
    source = make_source(command_line.require_flag(FLAGS, "source"))
    with flag_named(), tqdm(unit="utt", desc="preparing", disable=None) as bar:

        def progress(done, total, failed):
            bar.total = total
            bar.set_postfix(failed=failed, refresh=False)
            bar.update(done - bar.n)

        corpus = prepare_corpus(
            source,
            output_dir,
            utterances=None if FLAGS.source == "synthetic" else FLAGS.utterances,
            seed=FLAGS.seed,
            workers=FLAGS.workers,
            shard_bytes=FLAGS.shard_megabytes * 1_000_000,
            progress=progress,
            scheduler=FLAGS.scheduler,
            text_rules=TextRules(FLAGS.keep_case, FLAGS.keep_punctuation),
            like=like,
        )
    for name, split in corpus.splits.items():
        unlabelled = split.get("unlabelled")
        print(
            f"{name}: {split['utterances']} utterances, {split['frames']} frames "
            f"({split['frames'] * FRAME_SECONDS / 60:.1f} minutes), {len(split['shards'])} shards"
            f"{f', {unlabelled} utterances without labels' if unlabelled else ''}"
        )
        unknown = split.get("unknown_states")
        if unknown:
            print(f"frames of states that {FLAGS.like} lacks: {counted(unknown)}")
    if corpus.alphabet is None:
        print(f"{corpus.num_states} states, {corpus.dimension} features per frame")
    else:
        print_alphabet(corpus)
    mixed = corpus.document.get("recordings", {}).get("mixed")
    if mixed:
        print(
            f"{mixed} recordings have several channels, which were averaged; --channel or the "
            "manifest's column channel chooses one"
        )
    failed = corpus.document["failures"]
    if failed:
        print(f"{failed} utterances failed, listed in {os.path.join(output_dir, FAILURES_FILE)}")
    print(f"the corpus is in {output_dir}")
    return 0


def print_alphabet(corpus):
    """What the text is made of, and what became of the rest."""
    shown = "".join(corpus.alphabet).replace(" ", "␣")
    print(f"{len(corpus.alphabet)} characters: {shown}; {corpus.dimension} features per frame")
    removed = corpus.document["text"]["removed"]
    if removed:
        print(f"removed from the transcripts: {counted(removed)}")
    for name, split in corpus.splits.items():
        unknown = split.get("unknown_characters")
        if unknown:
            print(f"{name} has characters that training lacks: {counted(unknown)}")


def as_in(like):
    """Sets the flags that another corpus decides."""
    for name in (*OF_CHARACTERS, "labels"):
        if FLAGS[name].present:
            raise command_line.CommandError(f"--{name} is what the corpus of --like has")
    labels = like.document.get("settings", {}).get("labels")
    if labels in FLAGS["labels"].parser.enum_values:  # Others are of one source alone.
        FLAGS.labels = labels
    if not FLAGS["sample_rate"].present and like.sample_rate:
        FLAGS.sample_rate = like.sample_rate
    if not FLAGS["splits"].present:
        FLAGS.splits = "test"


def counted(characters):
    """What is counted, as `ä (3), ö (1)`."""
    return ", ".join(f"{one} ({times})" for one, times in characters.items())


@contextlib.contextmanager
def flag_named():
    """Names the flag where the library names its argument."""
    try:
        yield
    except PipeError as error:
        raise command_line.CommandError(str(error).replace("pipes=True", "--pipes")) from error


def make_source(name):
    """The source that the flags describe."""
    refuse_other_sources_flags(name)
    characters = labels_of(name) == CHARACTERS
    aligned = {
        "labels": FLAGS.labels,
        "lexicon": FLAGS.lexicon,
        "sample_rate": FLAGS.sample_rate,
    }
    try:
        recorded = {"channel": parse_channel(FLAGS.channel)}
    except ValueError as error:
        raise command_line.CommandError(f"--channel: {error}") from None
    matching = {"min_alignment_score": FLAGS.min_alignment_score}
    dealt = {"splits": FLAGS.splits, "seed": FLAGS.seed}
    if name == "synthetic":
        count = FLAGS.utterances or SYNTHETIC_UTTERANCES
        return sources.SyntheticSource(
            count=count, seed=FLAGS.seed, language=FLAGS.language, **aligned
        )
    if name == "manifest":
        manifest = command_line.require_flag(FLAGS, "manifest")
        return sources.ManifestSource(manifest=manifest, **aligned, **recorded, **matching, **dealt)
    input_dir = command_line.require_flag(FLAGS, "input_dir")
    if name == "librispeech":
        return sources.LibriSpeechSource(
            input_dir=input_dir, **aligned, **recorded, **matching, **dealt
        )
    if name == "textgrid":
        return sources.TextGridSource(
            input_dir=input_dir,
            alignment_dir=FLAGS.alignment_dir or "",
            tier=FLAGS.tier or ("words" if characters else "phones"),
            labels=labels_of(name),
            sample_rate=FLAGS.sample_rate,
            **recorded,
            **dealt,
        )
    return KaldiSource(
        input_dir=input_dir,
        alignment_dir="" if characters else command_line.require_flag(FLAGS, "alignment_dir"),
        labels=labels_of(name),
        cmvn=FLAGS.cmvn,
        pipes=FLAGS.pipes,
        audio_rate=FLAGS.sample_rate,
        **recorded,
        **dealt,
    )


def labels_of(name):
    """What the source's utterances are labelled with."""
    own = {"textgrid": "phones", "kaldi": "pdfs"}
    return FLAGS.labels if FLAGS.labels == CHARACTERS else own.get(name, FLAGS.labels)


def refuse_other_sources_flags(name):
    """A flag that the source does not read was given by mistake."""
    characters = FLAGS.labels == CHARACTERS
    if FLAGS["labels"].present and not characters and name not in ALIGNED:
        raise command_line.CommandError(
            f"--labels={FLAGS.labels} is of no use with --source={name}: it belongs to "
            f"{', '.join(ALIGNED)}"
        )
    for flag in OF_ALIGNING if characters else OF_CHARACTERS:
        if FLAGS[flag].present and not (flag == "alignment_dir" and name == "textgrid"):
            kind = "is of no use with" if characters else "belongs to"
            raise command_line.CommandError(f"--{flag} {kind} --labels={CHARACTERS}")
    for flag, readers in FLAGS_OF_SOURCES.items():
        if FLAGS[flag].present and name not in readers:
            raise command_line.CommandError(
                f"--{flag} is of no use with --source={name}: it belongs to {', '.join(readers)}"
            )


def verify(data_dir):
    """Prints what is damaged in a corpus; returns the exit code."""
    problems = verify_corpus(data_dir)
    for problem in problems:
        print(f"damaged: {problem}", file=sys.stderr)
    if not problems:
        print(f"{data_dir}: sound")
    return 1 if problems else 0


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, expected_errors=(CorpusError,))
