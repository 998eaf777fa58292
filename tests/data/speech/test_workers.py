"""Several workers read a corpus together: each utterance is read by one of them."""

import pytest
import tensorflow as tf

from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.corpus import load_corpus, read_utterances
from keras_bnrnn.data.speech.pipelines import speech_dataset


@pytest.mark.slow
@pytest.mark.parametrize(
    "count",
    [
        pytest.param(1, marks=pytest.mark.exhaustive),
        2,
        pytest.param(3, marks=pytest.mark.exhaustive),
        5,
    ],
)
@pytest.mark.parametrize("split", ["train", "dev"])
def test_workers_read_every_utterance_once_an_epoch(tiny_corpus, count, split):
    """By file where there are two shards for two workers, by utterance where there are more."""
    corpus = load_corpus(tiny_corpus)
    expected = sorted(one["id"] for one in read_utterances(corpus, split))
    for epoch in (0, 3):
        parts = []
        for index in range(count):
            dataset = speech_dataset(
                corpus, split, 4, first_epoch=epoch, worker=(index, count), with_ids=True
            )
            batches = [[name.decode() for name in names.numpy()] for *_, names in dataset]
            assert len(batches) == dataset.cardinality()
            parts.append([name for batch in batches for name in batch])
        assert sorted(name for part in parts for name in part) == expected
        assert all(parts)
        if count == 2:
            shards = [corpus.shard_paths(split)[index] for index in range(2)]
            for part, path in zip(parts, shards, strict=True):
                assert len(part) == sum(1 for _ in tf.data.TFRecordDataset(path))


@pytest.mark.slow
def test_two_workers_read_every_utterance_once_from_odd_shards(sharded_corpus):
    corpus = load_corpus(sharded_corpus)
    for split in ("train", "dev"):
        expected = sorted(one["id"] for one in read_utterances(corpus, split))
        for epoch in (0, 1):
            names = []
            for index in range(2):
                dataset = speech_dataset(
                    corpus, split, 4, first_epoch=epoch, worker=(index, 2), with_ids=True
                )
                batches = [batch[-1].numpy() for batch in dataset]
                assert len(batches) == dataset.cardinality() > 0
                names += [name.decode() for batch in batches for name in batch]
            assert sorted(names) == expected


def test_more_workers_than_utterances(tiny_corpus):
    with pytest.raises(CorpusError, match="too few utterances for 40 workers"):
        speech_dataset(tiny_corpus, "dev", 4, worker=(39, 40))
    with pytest.raises(ValueError, match="worker="):
        speech_dataset(tiny_corpus, "dev", 4, worker=(2, 2))
