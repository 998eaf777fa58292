"""How fast the speech pipeline delivers frames, how much it pads, and in how much memory.

    python benchmarks/input_pipeline.py --data_dir=corpus
    python benchmarks/input_pipeline.py --generate_gigabytes=4

The pipeline is read alone, then the paper's model (5 bidirectional layers of 250 units) is
trained on a few of its batches, and the ratio of frames per second is printed. Without --data_dir
a corpus of random utterances of LibriSpeech's lengths is generated in a temporary folder; what it
is for is to be larger than memory.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from keras_bnrnn.data.speech.alignment import State
from keras_bnrnn.data.speech.sources import LabelledFrames, Source, Utterance

DIMENSION = 123
STATES = 3000
BYTES_PER_FRAME = DIMENSION * 4 + 2
MEAN_FRAMES, DEVIATION_FRAMES, LONGEST = 1230, 420, 1700


@dataclass(frozen=True)
class RandomSource(Source):
    """Utterances of random features, as long as LibriSpeech's."""

    count: int

    name = "random"
    sample_rate = None

    def utterances(self):
        generator = np.random.default_rng(0)
        lengths = generator.normal(MEAN_FRAMES, DEVIATION_FRAMES, self.count)
        lengths = np.clip(lengths, 100, LONGEST).astype(int).tolist()
        return [
            Utterance(f"u{k:06d}", "", "dev" if k % 50 == 0 else "train", "", frames)
            for k, frames in enumerate(lengths)
        ], []

    def prepare(self, utterance):
        generator = np.random.default_rng(int(utterance.id[1:]))
        features = generator.standard_normal((utterance.location, DIMENSION), np.float32)
        # Labels change every few frames, as a speaker's do.
        labels = np.repeat(generator.integers(0, STATES, utterance.location // 5 + 1), 5)
        return LabelledFrames(features, [State(int(k)) for k in labels[: utterance.location]])

    def feature_settings(self):
        return {"kind": "random"}

    def all_states(self, occurring):
        return sorted(occurring)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", help="prepared corpus; default: a generated one")
    parser.add_argument("--generate_gigabytes", type=float, default=0.3)
    parser.add_argument("--batch_size", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=20.0, help="to read for, per repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--training_steps", type=int, default=4, help="0: do not train")
    parser.add_argument("--whole_epoch", action="store_true", help="read every batch once, too")
    parser.add_argument(
        "--train_epoch",
        action="store_true",
        help="train a small model (2 x 64, one direction) on every batch once, too",
    )
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        if arguments.data_dir:
            figures = measure(arguments.data_dir, arguments)
        else:
            figures = measure(generate(Path(folder) / "corpus", arguments), arguments)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def generate(folder, arguments):
    """Prepares a random corpus of about the wanted size."""
    from keras_bnrnn.data.speech.preparation import prepare_corpus

    count = int(arguments.generate_gigabytes * 1e9 / (MEAN_FRAMES * BYTES_PER_FRAME))
    start = time.perf_counter()
    prepare_corpus(RandomSource(max(count, 50)), folder)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
    print(
        f"generated {count} utterances, {size:.2f} GB in {time.perf_counter() - start:.0f} s; "
        f"peak memory {peak_megabytes():.0f} MB"
    )
    return folder


def measure(data_dir, arguments):
    """Prints and returns the figures of a corpus."""
    from keras_bnrnn.data.speech.corpus import load_corpus
    from keras_bnrnn.data.speech.pipelines import speech_dataset

    corpus = load_corpus(data_dir)
    figures = {"padding": {}, "utterances": corpus.split("train")["utterances"]}

    def dataset(**settings):
        return speech_dataset(corpus, "train", arguments.batch_size, **settings)

    rates = [read(dataset(), arguments.seconds)["rate"] for _ in range(arguments.repetitions)]
    figures["frames_per_second"] = statistics.median(rates)
    for bucket in (True, False):
        share = read(dataset(bucket=bucket), arguments.seconds)["padding"]
        figures["padding"]["bucketed" if bucket else "as they come"] = share
        print(f"padding {'with' if bucket else 'without'} bucketing: {share:.1%} of the frames")
    print(f"pipeline alone: {figures['frames_per_second']:,.0f} frames/s (median)")
    if arguments.whole_epoch:
        whole = read(dataset(), float("inf"))
        figures["epoch_seconds"] = whole["seconds"]
        print(f"a whole epoch: {whole['frames']:,} frames in {whole['seconds']:.0f} s")
    figures["peak_megabytes_reading"] = peak_megabytes()
    print(f"peak memory, reading: {figures['peak_megabytes_reading']:.0f} MB")
    if arguments.training_steps:
        figures["training_frames_per_second"] = train(corpus, dataset(), arguments.training_steps)
        ratio = figures["frames_per_second"] / figures["training_frames_per_second"]
        figures["ratio"] = ratio
        print(
            f"training 5 x 250 bidirectional: {figures['training_frames_per_second']:,.0f} "
            f"frames/s, so the pipeline is {ratio:.1f} times as fast"
        )
        figures["peak_megabytes"] = peak_megabytes()
        print(f"peak memory, with training: {figures['peak_megabytes']:.0f} MB")
    if arguments.train_epoch:
        start = time.perf_counter()
        network(corpus, layers=2, units=64, bidirectional=False).fit(dataset(), verbose=2)
        figures["train_epoch_seconds"] = time.perf_counter() - start
        figures["peak_megabytes_train_epoch"] = peak_megabytes()
        print(
            f"an epoch of a small model: {corpus.split('train')['frames']:,} frames in "
            f"{figures['train_epoch_seconds']:.0f} s; peak memory so far "
            f"{figures['peak_megabytes_train_epoch']:.0f} MB"
        )
    return figures


def read(dataset, seconds):
    """Frames per second of a dataset, and its share of padding, for some time."""
    frames = padded = 0
    start = None
    for _, _, mask in dataset:
        if start is None:
            start = time.perf_counter()  # after the shuffle's buffer was filled
            continue
        frames += int(mask.numpy().sum())
        padded += mask.numpy().size
        if time.perf_counter() - start > seconds:
            break
    elapsed = time.perf_counter() - start
    return {
        "rate": frames / elapsed,
        "padding": 1 - frames / max(padded, 1),
        "frames": frames,
        "seconds": elapsed,
    }


def network(corpus, layers, units, bidirectional):
    """A compiled acoustic model."""
    import keras

    from keras_bnrnn import BatchNormLSTM, Bidirectional
    from keras_bnrnn.data import sequence_mask

    features = keras.Input([None, corpus.dimension], name="features")
    lengths = keras.Input([], dtype="int32", name="lengths")
    mask = sequence_mask(features, lengths)
    values = features
    for _ in range(layers):
        layer = BatchNormLSTM(units, return_sequences=True)
        values = (Bidirectional(layer) if bidirectional else layer)(values, mask=mask)
    inputs = {"features": features, "lengths": lengths}
    model = keras.Model(inputs, keras.layers.Dense(corpus.num_states)(values))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    return model


def train(corpus, dataset, steps):
    """Frames per second of training steps of the paper's model, the first one left out."""
    model = network(corpus, layers=5, units=250, bidirectional=True)
    frames = 0
    start = None
    for inputs, labels, mask in dataset.take(steps + 1):
        model.train_on_batch(inputs, labels, sample_weight=mask)
        if start is None:
            start = time.perf_counter()
            continue
        frames += int(mask.numpy().sum())
    return frames / (time.perf_counter() - start)


def peak_megabytes():
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
