"""The `tf.data` pipeline from a prepared corpus to batches for `model.fit`."""

import itertools
import os

import numpy as np
import tensorflow as tf

from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.augmentation import SpecAugment, channels_of
from keras_bnrnn.data.speech.corpus import Corpus, load_corpus
from keras_bnrnn.data.speech.features import normalize_features

MAX_FRAMES = 1300
MAX_BUCKETS = 10
BATCHES_PER_BUCKET = 4
INTERLEAVED_SHARDS = 4
SHUFFLE_BUFFER = 512


def speech_dataset(
    data_dir: str | os.PathLike[str] | Corpus,
    split: str,
    batch_size: int,
    max_frames: int | None = MAX_FRAMES,
    shuffle: bool | None = None,
    seed: int = 0,
    first_epoch: int = 0,
    bucket: bool = True,
    drop_remainder: bool = False,
    augment: SpecAugment | None = None,
    shuffle_buffer: int = SHUFFLE_BUFFER,
    worker: tuple[int, int] = (0, 1),
    with_ids: bool = False,
) -> tf.data.Dataset:
    """Batches of a corpus's split, normalised and padded.

    `model.fit(speech_dataset(...))` works as it stands, for a model with inputs of these names that
    gives `keras_bnrnn.data.sequence_mask` to its recurrent layers: Keras takes the mask as sample
    weights. Padding is 0, but what says that it is padding are the lengths.

    Args:
        data_dir: a corpus folder, local or any path `tf.io.gfile` knows, or a `Corpus`.
        split: `"train"`, `"dev"` or `"test"`.
        batch_size: utterances per batch.
        max_frames: longer utterances are left out of `"train"`; the other splits are whole.
            `None` keeps all.
        shuffle: by default the training split only. The order differs from epoch to epoch and is
            the same for the same seed.
        seed: of the order and of `augment`.
        first_epoch: number of the first epoch to come, to continue an interrupted training: the
            order of epoch k depends on `seed` and k alone.
        bucket: batch utterances of similar length, to pad less. `False` takes them as they come.
        drop_remainder: leave out batches with fewer than `batch_size` utterances.
        augment: `None`, or a `keras_bnrnn.data.SpecAugment` to hide stripes of the features, for
            training.
        shuffle_buffer: utterances held in memory to shuffle.
        worker: `(index, count)`: read only the part of one of several workers. Together they read
            every utterance once an epoch. Shards are dealt out whole; where there are fewer shards
            than workers, their utterances are.
        with_ids: give the utterances' ids too.

    Returns:
        A `tf.data.Dataset` of `({"features", "lengths"}, labels, mask)`: float32
        `[batch, time, dimension]`, int32 `[batch]`, int32 `[batch, time]`, bool `[batch, time]`;
        under `with_ids` a string `[batch]` as well. Labels are -1 where the corpus has none
        (`Corpus.has_labels`): predict such a split, do not evaluate it. In a corpus of characters
        labels are those of the text, `[batch, characters]`, padded with 0, and in the place of the
        mask each utterance has a weight: `True`, `[batch]`.

    Raises:
        CorpusError: there is no such corpus or split, or a shard is missing or truncated.

    Example:

    >>> from keras_bnrnn.data import speech_dataset
    >>> train = speech_dataset("corpus", "train", batch_size=24)  # doctest: +SKIP
    >>> dev = speech_dataset("corpus", "dev", batch_size=24)  # doctest: +SKIP
    >>> model.fit(train, validation_data=dev)  # doctest: +SKIP
    """
    corpus = data_dir if hasattr(data_dir, "shard_paths") else load_corpus(data_dir)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is less than 1")
    corpus.check_shards(split)
    training = split == "train"
    shuffle = training if shuffle is None else shuffle
    limit = max_frames if training else None
    shards = _Shards(corpus.shard_paths(split), corpus.dimension, *worker)
    lengths = kept_lengths(corpus.split(split), limit)
    if not len(lengths):
        shortest = kept_lengths(corpus.split(split)).min()
        raise CorpusError(
            f"max_frames={limit} leaves nothing of {corpus.path}: its shortest training utterance "
            f"has {shortest} frames"
        )

    dataset = _epoch(first_epoch).flat_map(
        lambda epoch: _records(shards, shuffle, seed, epoch, shuffle_buffer)
    )
    parse = _parser(corpus.dimension)
    if augment is not None:
        parse = _augmented(parse, augment, corpus, seed)
    dataset = dataset.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    if limit is not None:
        dataset = dataset.filter(lambda features, labels, name: tf.shape(features)[0] <= limit)
    boundaries = bucket_boundaries(corpus.split(split), batch_size, limit) if bucket else []
    dataset = _batches(dataset, corpus.dimension, batch_size, boundaries, drop_remainder)

    def normalize(features, labels, lengths, names):
        mask = tf.sequence_mask(lengths, tf.shape(features)[1])
        features = normalize_features(features, corpus.mean, corpus.variance)
        features = tf.where(mask[:, :, tf.newaxis], features, 0.0)
        counts = mask if corpus.alphabet is None else tf.ones_like(lengths, tf.bool)
        batch = {"features": features, "lengths": lengths}, labels, counts
        return (*batch, names) if with_ids else batch

    dataset = dataset.map(normalize, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.prefetch(tf.data.AUTOTUNE)
    # With the number of batches Keras shows progress in the first epoch, and does not warn that
    # the data ran out at its end.
    if worker[1] > 1:
        lengths = shards.lengths(limit)
        if not len(lengths):
            raise CorpusError(
                f"{corpus.path}: {split} has too few utterances for {worker[1]} workers"
            )
    in_bucket = np.bincount(np.searchsorted(boundaries, lengths, side="right"))
    rounded = in_bucket if drop_remainder else in_bucket + batch_size - 1
    return dataset.apply(
        tf.data.experimental.assert_cardinality(int((rounded // batch_size).sum()))
    )


def alignments(corpus, split):
    """Yields the label sequences of a split, `[time]` each, as NumPy arrays.

    Raises:
        CorpusError: a shard is missing or truncated.
    """
    corpus.check_shards(split)
    return _labels(tf.data.TFRecordDataset(corpus.shard_paths(split))).as_numpy_iterator()


def _labels(records):
    labels = {"labels": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)}
    return records.map(
        lambda record: tf.io.parse_single_example(record, labels)["labels"],
        num_parallel_calls=tf.data.AUTOTUNE,
    )


class _Shards:
    """The part of a split's shards that one of several workers reads.

    Attributes:
        paths: of the shards it reads.
    """

    def __init__(self, paths, dimension, index, count):
        if not 0 <= index < count:
            raise ValueError(f"worker={(index, count)} must be (index, count) with index < count")
        by_file = len(paths) >= count
        self.paths = paths[index::count] if by_file else paths
        self._parse = _parser(dimension)
        self._part = (1, 0) if by_file else (count, index)

    def records(self, path):
        """A shard's records. Which of them these are does not depend on the order of reading."""
        return tf.data.TFRecordDataset(path).shard(*self._part)

    def lengths(self, limit):
        """Lengths in frames of the utterances that are read, sorted, up to a limit."""
        records = _interleave(tf.constant(self.paths), self.records)
        frames = records.map(
            lambda record: tf.shape(self._parse(record, 0)[0])[0],
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        lengths = np.sort(list(frames.as_numpy_iterator()))
        return lengths if limit is None else lengths[lengths <= limit]


def _epoch(first_epoch):
    """The number of the epoch, as a dataset of one element.

    An iterator is an epoch, and draws its number when it is first asked for a batch. The seeds of
    tf.data's own reshuffling cannot be set to those of a later epoch.
    """
    epochs = itertools.count(first_epoch)
    return tf.data.Dataset.from_generator(
        lambda: [next(epochs)], output_signature=tf.TensorSpec([], tf.int64)
    )


def _records(shards, shuffle, seed, epoch, shuffle_buffer):
    """An epoch's `(record, epoch)`."""
    paths = tf.constant(shards.paths)
    if shuffle:
        paths = tf.random.experimental.stateless_shuffle(paths, [seed, epoch])
    records = _interleave(paths, shards.records)
    if shuffle:
        records = _shuffle(records, shuffle_buffer, seed, epoch)
    return records.map(lambda record: (record, epoch))


def _shuffle(records, buffer_size, seed, epoch):
    """`Dataset.shuffle` of strings, except that the global seed has no say."""
    variant = tf.raw_ops.ShuffleDataset(
        input_dataset=tf.data.experimental.to_variant(records),
        buffer_size=buffer_size,
        # Two zeros would ask for a seed drawn by chance.
        seed=tf.constant(seed, tf.int64) + 1,
        seed2=epoch,
        output_types=[tf.string],
        output_shapes=[[]],
        reshuffle_each_iteration=False,
    )
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))


def _interleave(paths, records):
    return tf.data.Dataset.from_tensor_slices(paths).interleave(
        records,
        cycle_length=INTERLEAVED_SHARDS,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _parser(dimension):
    def parse(record, epoch):
        fields = tf.io.parse_single_example(
            record,
            {
                "features": tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
                "labels": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
                "id": tf.io.FixedLenFeature([], tf.string),
            },
        )
        features = tf.reshape(fields["features"], [-1, dimension])
        return features, tf.cast(fields["labels"], tf.int32), fields["id"]

    return parse


def _augmented(parse, augment, corpus, seed):
    channels = tf.constant(channels_of(corpus.features, corpus.dimension))

    def parse_and_hide(record, epoch):
        features, labels, name = parse(record, epoch)
        number = tf.strings.to_hash_bucket_fast(name, 2**31 - 1)
        draw = tf.random.experimental.stateless_fold_in(
            [tf.constant(seed, tf.int64), epoch], number
        )
        return augment.hide(features, corpus.mean, channels, draw), labels, name

    return parse_and_hide


def _batches(dataset, dimension, batch_size, boundaries, drop_remainder):
    """Padded batches `(features, labels, lengths, ids)`."""
    dataset = dataset.map(
        lambda features, labels, name: (features, labels, tf.shape(features)[0], name)
    )
    shapes = ([None, dimension], [None], [], [])
    if not boundaries:
        return dataset.padded_batch(batch_size, shapes, drop_remainder=drop_remainder)
    return dataset.bucket_by_sequence_length(
        lambda features, labels, length, name: length,
        bucket_boundaries=boundaries,
        bucket_batch_sizes=[batch_size] * (len(boundaries) + 1),
        padded_shapes=shapes,
        drop_remainder=drop_remainder,
    )


def bucket_boundaries(split_entry, batch_size, limit=None):
    """Lengths that divide a split into buckets of about equally many utterances.

    Each bucket leaves one batch unfilled at the end of an epoch, so a small split gets few.

    Args:
        split_entry: the split's entry in `corpus.json`.
        batch_size: utterances per batch.
        limit: longest utterance that is kept, or `None`.

    Returns:
        A list of lengths in frames, increasing: bucket k holds the lengths from boundary k - 1 to
        below boundary k.
    """
    lengths = kept_lengths(split_entry, limit)
    buckets = max(1, min(MAX_BUCKETS, len(lengths) // (batch_size * BATCHES_PER_BUCKET)))
    first_of_bucket = [lengths[len(lengths) * k // buckets] for k in range(1, buckets)]
    return sorted({int(length) for length in first_of_bucket if length > lengths[0]})


def kept_lengths(split_entry, limit=None):
    """Lengths of a split's utterances `[utterances]` in frames, sorted, up to a limit."""
    lengths = np.repeat(
        [int(length) for length in split_entry["lengths"]], list(split_entry["lengths"].values())
    )
    lengths.sort()
    return lengths if limit is None else lengths[lengths <= limit]
