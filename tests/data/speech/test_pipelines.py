"""The pipeline from a corpus to batches: padding, normalisation, order, damage."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bnrnn.data import sequence_mask
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech import parts
from keras_bnrnn.data.speech.alignment import State
from keras_bnrnn.data.speech.augmentation import SpecAugment, channels_of
from keras_bnrnn.data.speech.corpus import read_utterances
from keras_bnrnn.data.speech.pipelines import bucket_boundaries, speech_dataset
from keras_bnrnn.data.speech.preparation import prepare_corpus
from keras_bnrnn.data.speech.sources import LabelledFrames, Source, Utterance

DIMENSION = 5


class InventedSource(Source):
    """Utterances of known numbers and lengths; asks for no audio."""

    name = "invented"
    sample_rate = None
    __dataclass_fields__ = {}

    def utterances(self):
        generator = np.random.default_rng(0)
        lengths = generator.integers(5, 60, 100).tolist()
        lengths[7], lengths[90] = 1400, 1500
        listed = [
            Utterance(f"u{k:03d}", "s", "train" if k < 80 else "dev", "", length)
            for k, length in enumerate(lengths)
        ]
        return listed, []

    def prepare(self, utterance):
        generator = np.random.default_rng(int(utterance.id[1:]))
        features = generator.normal(3.0, 2.0, (utterance.location, DIMENSION))
        features[:, 0] = 10 * features[:, 0] + 1000
        states = [State(int(k)) for k in generator.integers(0, 7, utterance.location)]
        return LabelledFrames(features.astype(np.float32), states)

    def feature_settings(self):
        return {"kind": "invented"}

    def all_states(self, occurring):
        return sorted(occurring)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_UTTERANCES", 8)
        folder = tmp_path_factory.mktemp("invented")
        return prepare_corpus(InventedSource(), folder / "corpus", shard_bytes=30_000)


def batches(dataset):
    """`(features, labels, mask)` of each batch, whose lengths are those of the mask."""
    read = []
    for inputs, labels, mask in dataset.as_numpy_iterator():
        np.testing.assert_array_equal(inputs["lengths"], mask.sum(axis=1))
        assert inputs["lengths"].dtype == np.int32
        read.append((inputs["features"], labels, mask))
    return read


def frame_counts(dataset):
    return sorted(length for _, _, mask in batches(dataset) for length in mask.sum(axis=1))


def signature(dataset):
    return [tuple(mask.sum(axis=1)) for _, _, mask in batches(dataset)]


@pytest.mark.parametrize("bucket", [True, False])
def test_batches_are_normalised_and_padded_with_zeros(corpus, bucket):
    assert len(corpus.splits["train"]["shards"]) > 2
    features, frames = [], 0
    for x, y, mask in batches(speech_dataset(corpus, "train", 6, bucket=bucket)):
        assert x.dtype == np.float32 and y.dtype == np.int32 and mask.dtype == bool
        assert x.shape == (*y.shape, DIMENSION) and y.shape == mask.shape
        assert mask[:, 0].all() and mask.any(axis=0).all()
        assert not x[~mask].any() and not y[~mask].any()
        features.append(x[mask])
        frames += mask.sum()
    assert frames == corpus.splits["train"]["frames"] - 1400
    kept = np.concatenate(features)
    np.testing.assert_allclose(kept.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(kept.std(axis=0), 1, atol=0.1)


def test_an_utterance_keeps_its_frames_and_labels(corpus):
    utterances = {len(u["labels"]): u for u in read_utterances(corpus, "dev")}
    checked = 0
    for x, y, mask in batches(speech_dataset(corpus, "dev", 4)):
        for row, length in enumerate(mask.sum(axis=1)):
            utterance = utterances[length]
            if not np.array_equal(utterance["labels"], y[row, :length]):
                continue
            expected = (utterance["features"] - corpus.mean) / np.sqrt(corpus.variance)
            np.testing.assert_allclose(x[row, :length], expected, atol=1e-4)
            checked += 1
    assert checked == len(utterances)


def test_long_utterances_leave_training_only(corpus):
    assert max(frame_counts(speech_dataset(corpus, "train", 6))) <= 1300
    assert max(frame_counts(speech_dataset(corpus, "dev", 6))) == 1500
    assert max(frame_counts(speech_dataset(corpus, "train", 6, max_frames=None))) == 1400
    assert max(frame_counts(speech_dataset(corpus, "train", 6, max_frames=30))) <= 30
    with pytest.raises(CorpusError, match="max_frames=2"):
        speech_dataset(corpus, "train", 6, max_frames=2)


def test_order_changes_with_epoch_and_seed_only(corpus):
    dataset = speech_dataset(corpus, "train", 6, seed=3)
    epochs = [signature(dataset) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert sorted(sum(epochs[0], ())) == sorted(sum(epochs[1], ()))
    again = speech_dataset(corpus, "train", 6, seed=3)
    keras.utils.set_random_seed(9)
    assert [signature(again) for _ in range(3)] == epochs
    assert signature(speech_dataset(corpus, "train", 6, seed=4)) != epochs[0]
    assert signature(speech_dataset(corpus, "train", 6, seed=3, first_epoch=2)) == epochs[2]
    dev = speech_dataset(corpus, "dev", 6)
    assert signature(dev) == signature(dev)


def test_every_utterance_once_an_epoch(corpus):
    lengths = sorted(len(u["labels"]) for u in read_utterances(corpus, "train"))
    assert frame_counts(speech_dataset(corpus, "train", 6, max_frames=None)) == lengths
    whole = batches(speech_dataset(corpus, "train", 6, drop_remainder=True))
    assert {len(mask) for _, _, mask in whole} == {6}


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("bucket", [True, False])
@pytest.mark.parametrize("drop_remainder", [True, False])
def test_number_of_batches_is_known(corpus, split, bucket, drop_remainder):
    dataset = speech_dataset(corpus, split, 6, bucket=bucket, drop_remainder=drop_remainder)
    assert dataset.cardinality() == len(batches(dataset))


def test_buckets_pad_less(corpus):
    def waste(bucket):
        masks = [m for _, _, m in batches(speech_dataset(corpus, "train", 6, bucket=bucket))]
        return 1 - sum(m.sum() for m in masks) / sum(m.size for m in masks)

    assert waste(True) < 0.75 * waste(False)


def test_bucket_boundaries():
    entry = {"utterances": 1000, "lengths": {str(n): 50 for n in range(10, 210, 10)}}
    assert bucket_boundaries(entry, 250) == []
    assert bucket_boundaries(entry, 50) == [50, 90, 130, 170]
    assert max(bucket_boundaries(entry, 50, limit=100)) <= 100
    same = {"utterances": 1000, "lengths": {"7": 1000}}
    assert bucket_boundaries(same, 10) == []


def test_model_fit_takes_it_as_it_stands(corpus):
    keras.utils.set_random_seed(0)
    features = keras.Input([None, DIMENSION], name="features")
    lengths = keras.Input([], dtype="int32", name="lengths")
    layer = keras.layers.LSTM(4, return_sequences=True)
    hidden = layer(features, mask=sequence_mask(features, lengths))
    inputs = {"features": features, "lengths": lengths}
    model = keras.Model(inputs, keras.layers.Dense(corpus.num_states)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, weighted_metrics=["accuracy"])
    train = speech_dataset(corpus, "train", 16, max_frames=100)
    dev = speech_dataset(corpus, "dev", 16)
    history = model.fit(train, validation_data=dev, epochs=2, verbose=0)
    assert np.isfinite(history.history["val_loss"]).all()


def test_unknown_split_and_silly_batches(corpus):
    with pytest.raises(CorpusError, match="no split 'test'; it has train, dev"):
        speech_dataset(corpus, "test", 6)
    with pytest.raises(ValueError, match="batch_size=0"):
        speech_dataset(corpus, "train", 0)
    with pytest.raises(CorpusError, match="no such file"):
        speech_dataset("/nowhere/at/all", "train", 6)


def test_truncated_and_missing_shards_are_named_before_training(tmp_path):
    corpus = prepare_corpus(InventedSource(), tmp_path / "corpus")
    shard = tmp_path / "corpus" / "train-00000-of-00001.tfrecord"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CorpusError, match=r"train-00000-of-00001\.tfrecord.*truncated"):
        speech_dataset(corpus, "train", 6)
    shard.unlink()
    with pytest.raises(CorpusError, match=r"train-00000-of-00001\.tfrecord.*missing"):
        speech_dataset(tmp_path / "corpus", "train", 6)


def test_corpora_on_other_file_systems(corpus, tmp_path):
    for path in tf.io.gfile.listdir(corpus.path):
        tf.io.gfile.copy(f"{corpus.path}/{path}", f"ram:///corpus/{path}", overwrite=True)
    assert signature(speech_dataset("ram:///corpus", "dev", 6)) == signature(
        speech_dataset(corpus, "dev", 6)
    )


def test_corpus_json_is_json_of_plain_numbers(corpus):
    document = json.loads(json.dumps(corpus.document))
    lengths = document["splits"]["dev"]["lengths"]
    assert lengths["1500"] == 1 and sum(lengths.values()) == 20


def test_augmentation_hides_stripes(corpus):
    def epoch(**arguments):
        dataset = speech_dataset(corpus, "train", 6, seed=1, shuffle=False, **arguments)
        return [(x, y, mask) for x, y, mask in batches(dataset)]

    augment = SpecAugment(time_masks=2, time_width=10, frequency_masks=1, frequency_width=2)
    plain, hidden = epoch(), epoch(augment=augment)
    changed = total = 0
    for (x, y, mask), (x_hidden, y_hidden, mask_hidden) in zip(plain, hidden, strict=True):
        np.testing.assert_array_equal(y, y_hidden)
        np.testing.assert_array_equal(mask, mask_hidden)
        different = x != x_hidden
        np.testing.assert_array_equal(x_hidden[different], 0.0)
        changed += different.sum()
        total += mask.sum() * DIMENSION
    assert 0.05 < changed / total < 0.7
    again = epoch(augment=augment)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(hidden, again, strict=True))
    later = epoch(augment=augment, first_epoch=1)
    assert any(not np.array_equal(a[0], b[0]) for a, b in zip(hidden, later, strict=True))


def test_a_channel_is_hidden_with_its_differences():
    features = {"kind": "LogMelFilterBank", "num_mel_bins": 4, "use_energy": True}
    channels = channels_of(features, 15)
    assert channels == [-1, 0, 1, 2, 3] * 3
    assert channels_of({"kind": "kaldi"}, 123) == [-1, *range(40)] * 3
    assert channels_of({"kind": "kaldi"}, 60) == list(range(60))
    augment = SpecAugment(time_masks=0, frequency_masks=2, frequency_width=3)
    for seed in range(20):
        result = augment.hide(tf.ones([6, 15]), tf.zeros(15), tf.constant(channels), [seed, 0])
        blocks = result.numpy().reshape(6, 3, 5)
        assert (blocks == blocks[:1, :1]).all() and blocks[..., 0].all()
    with pytest.raises(ValueError, match="time_width=-1"):
        SpecAugment(time_width=-1)


def test_replicas_share_each_batch(corpus):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    dataset = speech_dataset(corpus, "train", 6, seed=3, drop_remainder=True)
    halves = []
    for _, _, mask in strategy.experimental_distribute_dataset(dataset):
        masks = strategy.experimental_local_results(mask)
        assert [len(part) for part in masks] == [3, 3]
        halves.append(tuple(np.concatenate([part.numpy().sum(axis=1) for part in masks])))
    again = speech_dataset(corpus, "train", 6, seed=3, drop_remainder=True)
    assert halves == signature(again)
