"""Shows what is in a prepared speech corpus, and what a trained model makes of an utterance.

    inspect_speech.py --data_dir=corpus --picture=corpus.png
    inspect_speech.py --data_dir=corpus --utterance=dev-00003 --run_dir=runs/bn --picture=utt.png

Without --utterance: the sizes of the splits, the utterances whose transcripts fit worst, and a
picture of how long utterances are and how often each state occurs. With it: the utterance's phones,
and a picture of its features with the phones' boundaries, its labels and, given a run, the model's
posteriors.
"""

import command_line  # isort: skip  First, for Ctrl-C while the others are imported.
from pathlib import Path

import numpy as np
from absl import flags

from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.corpus import (
    UNLABELLED,
    find_utterance,
    load_corpus,
    read_alignment_scores,
)
from keras_bnrnn.data.speech.features import FRAME_SECONDS, normalize_features
from keras_bnrnn.data.speech.pipelines import kept_lengths
from keras_bnrnn.data.speech.transcripts import decoded
from keras_bnrnn.fit.errors import FitError
from keras_bnrnn.fit.tables import best_model
from recipes.phone_model import phone_segments
from recipes.speech_task import SpeechTask
from recipes.tasks import read_run

FREQUENT_STATES = 10
MOST_STATES_SHOWN = 40
WORST_SHOWN = 10

FLAGS = flags.FlagValues()
command_line.define_path("data_dir", None, "Folder of the prepared corpus.", FLAGS, remote=True)
flags.DEFINE_string(
    "utterance",
    None,
    "Show this utterance: its id, or SPLIT/ID where two splits have one of that name.",
    flag_values=FLAGS,
)
command_line.define_path(
    "run_dir",
    None,
    "Folder that train_speech.py wrote: show the posteriors of its best model too.",
    FLAGS,
)
command_line.define_path("picture", None, "PNG file to write.", FLAGS)


def main(argv):
    corpus = load_corpus(command_line.require_flag(FLAGS, "data_dir"))
    if FLAGS.run_dir and not FLAGS.utterance:
        raise command_line.CommandError("--run_dir needs --utterance: whose posteriors to show")
    if FLAGS.utterance:
        show_utterance(corpus)
    else:
        show_corpus(corpus)
    if FLAGS.picture:
        print(f"picture: {FLAGS.picture}")
    return 0


def show_corpus(corpus):
    """Prints the splits' sizes and the commonest states; draws the histograms."""
    print(
        f"{corpus.path}: {corpus.source}, {corpus.dimension} features, {corpus.num_states} states"
    )
    print(f"{'split':6} {'utterances':>10} {'frames':>12} {'hours':>7} {'shards':>6}  seconds")
    for name, split in corpus.splits.items():
        seconds = kept_lengths(split) * FRAME_SECONDS
        print(
            f"{name:6} {split['utterances']:10} {split['frames']:12} "
            f"{split['frames'] * FRAME_SECONDS / 3600:7.2f} {len(split['shards']):6}  "
            f"{seconds.min():.1f} to {seconds.max():.1f}, median {np.median(seconds):.1f}"
        )
    print(f"{corpus.document['failures']} utterances failed in preparation")
    # Of a corpus made like another there is a test split alone.
    name, train = next(iter(corpus.splits.items()))
    counts = np.array(train["state_frames"])
    names = [state["name"] for state in corpus.states]
    text = corpus.alphabet is not None
    if text:  # No transcript has the blank.
        counts, names = counts[1:], list(map(repr, names[1:]))
    what, total = ("character", counts.sum()) if text else ("state", train["frames"])
    print(f"commonest {what}s in {name} ({(counts == 0).sum()} never occur there):")
    for state in np.argsort(-counts, kind="stable")[:FREQUENT_STATES]:
        print(f"  {names[state]:14} {counts[state] / max(total, 1):6.2%}")
    scores = sorted(
        (score, f"{name}/{utterance}")
        for name in corpus.splits
        for score, utterance in read_alignment_scores(corpus, name)
    )
    if scores:
        median = np.median([score for score, _ in scores])
        print(f"alignment scores, worst first (0 at best, median {median:.2f}):")
        for score, utterance in scores[:WORST_SHOWN]:
            print(f"  {score:6.2f}  {utterance}")
    if not FLAGS.picture:
        return
    figure, (durations, labels) = new_figure(1, 2, (11, 4))
    for name, split in corpus.splits.items():
        durations.hist(kept_lengths(split) * FRAME_SECONDS, bins=40, alpha=0.6, label=name)
        if corpus.has_labels(name):
            total = sum(split["state_frames"]) if text else split["frames"]
            share = np.sort(split["state_frames"])[::-1] / max(total, 1)
            labels.plot(np.arange(1, len(share) + 1), share, label=name)
    durations.set(xlabel="duration [s]", ylabel="utterances")
    labels.set(xlabel=f"{what}, by frequency", yscale="log", xscale="log")
    labels.set(ylabel="share of all" if text else "share of frames")
    durations.legend()
    labels.legend()
    save(figure)


def show_utterance(corpus):
    """Prints an utterance's phones; draws features, labels and posteriors."""
    split, utterance = find_utterance(corpus, FLAGS.utterance)
    if corpus.alphabet is not None:
        return show_text(corpus, split, utterance)
    labels = utterance["labels"]
    gender = f" ({utterance['gender']})" if utterance["gender"] else ""
    print(f"{utterance['id']} ({split}), speaker {utterance['speaker'] or 'unknown'}{gender}")
    print(f"transcript: {utterance['transcript'] or 'unknown'}")
    labelled = not (labels == UNLABELLED).any()
    states = f"{len(np.unique(labels))} different states" if labelled else "without labels"
    print(f"{len(labels) * FRAME_SECONDS:.2f} s, {states}")
    if utterance["alignment_score"] is not None:
        print(f"alignment score: {utterance['alignment_score']:.2f}")
    if labelled:
        print(f"phones:     {' '.join(corpus.phones(labels))}")
    posteriors = None
    if FLAGS.run_dir:
        posteriors = run_model(corpus, utterance["features"])
        answers = posteriors.argmax(axis=-1)
        print(f"model:      {' '.join(corpus.phones(answers))}")
        if labelled:
            print(f"frame error rate: {np.mean(answers != labels):.1%}")
    if FLAGS.picture and not labelled:
        raise command_line.CommandError("--picture shows labels, and this utterance has none")
    if FLAGS.picture:
        draw_utterance(corpus, utterance, posteriors)


def show_text(corpus, split, utterance):
    """Prints what is stored of an utterance in a corpus of characters."""
    for flag in ("run_dir", "picture"):
        if FLAGS[flag].present:
            raise command_line.CommandError(
                f"--{flag} with --utterance shows labels of frames, and {corpus.path} has text"
            )
    frames = len(utterance["features"])
    print(f"{utterance['id']} ({split}), speaker {utterance['speaker'] or 'unknown'}")
    print(f"transcript: {utterance['transcript']}")
    print(f"text:       {decoded(utterance['labels'], corpus.alphabet)}")
    print(f"{frames * FRAME_SECONDS:.2f} s, {len(utterance['labels'])} characters")


def run_model(corpus, features):
    """A trained model's posteriors `[time, states]` of an utterance."""
    run_dir = Path(FLAGS.run_dir)
    task, results = read_run(run_dir)
    if task is not SpeechTask:
        raise command_line.CommandError(f"--run_dir={run_dir} is a run of {task.script}")
    if load_corpus(run_dir).states != corpus.states:
        raise command_line.CommandError(
            f"--run_dir={run_dir}: it was trained on another corpus, with other states"
        )
    features = normalize_features(features, corpus.mean, corpus.variance)
    inputs = {"features": features[np.newaxis], "lengths": np.array([len(features)])}
    logits = np.asarray(SpeechTask.load_model(best_model(run_dir, results))(inputs))[0]
    posteriors = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return posteriors / posteriors.sum(axis=-1, keepdims=True)


def draw_utterance(corpus, utterance, posteriors):
    """Features with phone boundaries, the states over time, and posteriors below."""
    rows = 2 if posteriors is None else 3
    figure, axes = new_figure(rows, 1, (12, 3 * rows), sharex=True)
    labels = utterance["labels"]
    seconds = len(labels) * FRAME_SECONDS
    static = utterance["features"][:, :41] if corpus.dimension == 123 else utterance["features"]
    axes[0].imshow(static.T, origin="lower", aspect="auto", extent=(0, seconds, 0, static.shape[1]))
    axes[0].set(ylabel="energy and channels")
    axes[0].set_title(f"{utterance['id']}: {utterance['transcript']}", pad=16)
    for phone, start, end in phone_segments(corpus.states, labels):
        axes[0].axvline(start * FRAME_SECONDS, color="white", linewidth=0.6)
        axes[0].text(
            (start + end) / 2 * FRAME_SECONDS,
            static.shape[1],
            phone,
            ha="center",
            va="bottom",
            fontsize=7,
        )
    shown = list(dict.fromkeys(labels.tolist()))
    axes[1].step(
        np.arange(len(labels)) * FRAME_SECONDS, [shown.index(k) for k in labels], where="post"
    )
    axes[1].set(ylabel="labels")
    if posteriors is not None:
        image = posteriors[:, shown].T
        axes[2].imshow(
            image, origin="lower", aspect="auto", extent=(0, seconds, -0.5, len(shown) - 0.5)
        )
        axes[2].set(ylabel="posteriors of these")
    if len(shown) <= MOST_STATES_SHOWN:
        for axis in axes[1:]:
            axis.set_yticks(
                range(len(shown)), [corpus.states[k]["name"] for k in shown], fontsize=6
            )
    axes[-1].set(xlabel="time [s]", xlim=(0, seconds))
    save(figure)


def new_figure(rows, columns, size, **arguments):
    """A figure that needs no display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=size, layout="constrained", **arguments)


def save(figure):
    """Writes the figure where --picture says."""
    from matplotlib import pyplot

    Path(FLAGS.picture).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FLAGS.picture, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, expected_errors=(CorpusError, FitError))
