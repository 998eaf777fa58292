"""Writes an acoustic model's scores of a whole corpus as Kaldi archives, for decoders.

    python training/write_likelihoods.py --model=exported --data_dir=corpus --output_dir=likelihoods
    latgen-faster-mapped final.mdl HCLG.fst words.txt scp:likelihoods/test.scp ark:lattices.ark
    python training/decode.py --likelihoods=likelihoods/test.scp --graph=exp/tri4b/graph

For every utterance a matrix `[frames, states]` of log-posteriors less log-priors, which is the
log-likelihood up to a constant of the frame. Column k is the corpus's state k: for a corpus that
was prepared from a Kaldi directory, pdf-id k. Priors are the states' shares of the training
alignments; a state that they never have counts as seen in one frame.

The output folder gets SPLIT.ark and SPLIT.scp for each split, the scp sorted by utterance and
with absolute paths. A split that is written is not written again, so the same command continues
after being killed.
"""

import command_line  # isort: skip  First, for Ctrl-C while the others are imported.
import hashlib
import itertools
import json
from pathlib import Path

import absl.logging
import kaldiio
import numpy as np
import tensorflow as tf
import tqdm
from absl import flags

from command_line import CommandError
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.corpus import load_corpus, read_utterances
from keras_bnrnn.data.speech.features import normalize_features
from keras_bnrnn.files import NUMBER, written_aside
from recipes.phone_model import DESCRIPTION_FILE, log_priors

ORIGIN_FILE = "likelihoods.json"

FLAGS = flags.FlagValues()
command_line.define_path("model", None, "SavedModel that export.py wrote.", FLAGS)
command_line.define_path(
    "data_dir", None, "Corpus folder that prepare_speech.py wrote.", FLAGS, remote=True
)
command_line.define_path("output_dir", None, "Folder of the archives.", FLAGS)
flags.DEFINE_list("splits", None, "Which splits; not given: all.", flag_values=FLAGS)
flags.DEFINE_integer(
    "batch_size", 16, "Utterances scored at a time.", lower_bound=1, flag_values=FLAGS
)


def main(argv):
    model_dir = Path(command_line.require_flag(FLAGS, "model"))
    corpus = load_corpus(command_line.require_flag(FLAGS, "data_dir"))
    corpus.require_labels("frames")
    output_dir = Path(command_line.require_flag(FLAGS, "output_dir"))
    description = read_description(model_dir, corpus)
    splits = FLAGS.splits or list(corpus.splits)
    for split in splits:
        corpus.check_shards(split)
    claim(output_dir, model_dir, corpus)
    # TensorFlow warns that the model cannot be trained any further.
    absl.logging.set_verbosity(absl.logging.ERROR)
    serve = tf.saved_model.load(str(model_dir)).signatures["serve"]
    score = make_scorer(serve, description)
    for split in splits:
        if (output_dir / f"{split}.scp").exists():
            print(f"{output_dir / split}.scp is there already")
        else:
            write_split(corpus, split, score, output_dir)
    print(f"Written: {', '.join(f'{output_dir / split}.scp' for split in splits)}")
    print(
        f"Next: latgen-faster-mapped final.mdl HCLG.fst words.txt "
        f"scp:{output_dir / splits[-1]}.scp ark:lattices.ark, or without Kaldi: python "
        f"training/decode.py --likelihoods={output_dir / splits[-1]}.scp --graph=FOLDER"
    )


def read_description(model_dir, corpus):
    """The model's `speech_model.json`; a `CommandError` where it does not fit the corpus."""
    path = model_dir / DESCRIPTION_FILE
    if not path.is_file():
        raise CommandError(f"--model={model_dir} is no acoustic model that export.py wrote")
    form = {"states": [dict], "mean": [NUMBER], "variance": [NUMBER]}
    form["phone_counts"] = {"state_frames": [NUMBER]}
    description = command_line.read_json(path, form)
    if description["states"] != corpus.states:
        raise CommandError(
            f"--model={model_dir} knows {len(description['states'])} states and {corpus.path} "
            f"has {corpus.num_states}, or others: the model was trained on another corpus"
        )
    if len(description["mean"]) != corpus.dimension:
        raise CommandError(
            f"--model={model_dir} takes {len(description['mean'])} features, {corpus.path} has "
            f"{corpus.dimension}"
        )
    return description


def claim(output_dir, model_dir, corpus):
    """Makes the folder, or makes sure that it holds likelihoods of the same model and corpus."""
    graph = (model_dir / "saved_model.pb").read_bytes()
    variables = sorted((model_dir / "variables").iterdir())
    digest = hashlib.sha256(graph + b"".join(file.read_bytes() for file in variables))
    origin = {"model": digest.hexdigest(), "corpus": corpus.checksum}
    path = output_dir / ORIGIN_FILE
    if path.exists():
        if command_line.read_json(path, dict.fromkeys(origin, str)) != origin:
            raise CommandError(
                f"--output_dir={output_dir} holds likelihoods of another model or corpus; name "
                "another folder"
            )
        return
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise CommandError(f"--output_dir={output_dir} is not empty; name a new or empty folder")
    output_dir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(origin) + "\n")


def make_scorer(serve, description):
    """A function from a list of features `[time, D]` to the log-likelihoods `[time, states]`."""
    mean, variance = (np.array(description[name], np.float32) for name in ("mean", "variance"))
    priors = log_priors(description["phone_counts"]["state_frames"]).astype(np.float32)

    def score(utterances):
        lengths = [len(features) for features in utterances]
        padded = np.zeros((len(lengths), max(lengths), len(mean)), np.float32)
        for row, features in zip(padded, utterances, strict=True):
            row[: len(features)] = normalize_features(features, mean, variance)
        outputs = serve(features=tf.constant(padded), lengths=tf.constant(lengths, tf.int32))
        scores = outputs["log_posteriors"].numpy() - priors
        return [row[:length] for row, length in zip(scores, lengths, strict=True)]

    return score


def write_split(corpus, split, score, output_dir):
    """Writes SPLIT.ark and then SPLIT.scp, each when it is whole."""
    # Absolute, so that the index can be read from any folder.
    archive, index = (output_dir.resolve() / f"{split}.{kind}" for kind in ("ark", "scp"))
    with written_aside(index) as partial_index, written_aside(archive) as partial_archive:
        ids = write_archive(corpus, split, score, f"ark,scp:{partial_archive},{partial_index}")
        # Kaldi reads tables in the order of their keys' bytes.
        lines = sorted(partial_index.read_bytes().splitlines(keepends=True))
        paths = (str(path).encode() for path in (partial_archive, archive))
        partial_index.write_bytes(b"".join(lines).replace(*paths))
    renamed = [key for key, name in ids.items() if key != name]
    if renamed:
        print(f"{split}: {len(renamed)} ids held white space, written as _: {renamed[0]}, …")


def write_archive(corpus, split, score, specifier):
    """Writes scores to where kaldiio's specifier says; returns the ids by their Kaldi keys."""
    progress = tqdm.tqdm(total=corpus.split(split)["utterances"], desc=split, unit="utterance")
    utterances, ids = read_utterances(corpus, split), {}
    with progress, kaldiio.WriteHelper(specifier) as writer:
        while batch := list(itertools.islice(utterances, FLAGS.batch_size)):
            scores = score([utterance["features"] for utterance in batch])
            for utterance, matrix in zip(batch, scores, strict=True):
                # Kaldi's keys end at white space.
                key = "_".join(utterance["id"].split())
                if key in ids:
                    raise CommandError(
                        f"{split}: the utterances {ids[key]!r} and {utterance['id']!r} would both "
                        f"be {key} in Kaldi's archives; prepare the corpus with other ids"
                    )
                ids[key] = utterance["id"]
                writer(key, matrix)
            progress.update(len(batch))
    return ids


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, expected_errors=(CorpusError,))
