"""The signatures of a language model: sentences or tokens to probabilities."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_bnrnn.data.text import EOS, UNKNOWN, tokenize
from keras_bnrnn.serving.runtimes import stepping
from keras_bnrnn.serving.stack import (
    CarriedStack,
    Endpoint,
    checked,
    checked_states,
    with_named_inputs,
)


def language_endpoints(
    model: keras.Model, vocabulary: Sequence[str], tokenization: str
) -> dict[str, Endpoint]:
    """The endpoints of a language model.

    Args:
        model: without normalisation; from tokens `[batch, time]` to logits `[batch, time, words]`.
        vocabulary: the words; `vocabulary[k]` is the word of token k.
        tokenization: how the training text was cut into words; see `keras_bnrnn.data.text`.

    Returns:
        `{name: Endpoint}`.

    Raises:
        ServingError: the model does not read forwards.
    """
    model = with_named_inputs(model, ["tokens"])
    stack = CarriedStack(model)
    words = tf.constant(vocabulary)
    numbers = tf.range(len(vocabulary), dtype=tf.int32)
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(words, numbers), vocabulary.index(UNKNOWN)
    )
    end = vocabulary.index(EOS)

    def read(sentences):
        """Tokens of sentences, a ragged `[batch, (words)]`."""
        return tf.ragged.map_flat_values(table.lookup, tokenize(sentences, tokenization))

    def log_probabilities(tokens, states):
        known = tf.reduce_all((tokens >= 0) & (tokens < len(vocabulary)))

        def answers(logits, states):
            return tf.nn.log_softmax(logits[0]), states

        def checked_answers():
            message = f"tokens must lie between 0 and {len(vocabulary) - 1}. Received:"
            right = checked_states(states, tf.shape(tokens)[0])
            return answers(*stack([checked(tokens, (known, message, tokens))], right))

        return stack.quickly([tokens], states, answers, checked_answers, condition=known)

    def score(sentences):
        tokens = read(sentences)
        batch = tf.shape(sentences)[0]
        ends = tf.fill([batch, 1], end)
        targets = tf.concat([tokens, ends], axis=1)
        counts = tf.cast(targets.row_lengths(), tf.int32)
        inputs = tf.concat([ends, tokens], axis=1).to_tensor(end)
        scores, _ = log_probabilities(inputs, stack.zeros(batch))
        targets = targets.to_tensor(end)
        chosen = tf.gather(scores, targets, batch_dims=2)
        live = tf.sequence_mask(counts, tf.shape(targets)[1])
        total = tf.reduce_sum(tf.where(live, chosen, 0.0), axis=1)
        return {
            "tokens": counts,
            "log_probability": total,
            "perplexity": tf.exp(-total / tf.cast(counts, tf.float32)),
        }

    def next_token(prefix, k):
        tokens = read(prefix)
        batch = tf.shape(prefix)[0]
        inputs = tf.concat([tf.fill([batch, 1], end), tokens], axis=1)
        lengths = inputs.row_lengths()
        scores, _ = log_probabilities(inputs.to_tensor(end), stack.zeros(batch))
        last = tf.gather(scores, lengths - 1, batch_dims=1)
        k = checked(k, (tf.reduce_all(k >= 1), "k must be 1 or more. Received:", k))
        counts = tf.broadcast_to(tf.reshape(k, [-1]), [batch])
        most = tf.minimum(tf.reduce_max(tf.concat([[1], counts], 0)), len(vocabulary))
        best, chosen = tf.math.top_k(last, most)
        asked = tf.sequence_mask(counts, most)
        return {
            "words": tf.where(asked, tf.gather(words, chosen), ""),
            "probabilities": tf.where(asked, tf.exp(best), 0.0),
        }

    def step(tokens, *states):
        scores, states = log_probabilities(tokens, states)
        return {"log_probabilities": scores, **stack.named(states)}

    meanings = {
        "sentences": "string [batch]; words that are not in the vocabulary count as <unk>",
        "prefix": "string [batch]: the beginnings of sentences; empty for the first word",
        "k": "int32 [batch], or one for all: how many words to return, 1 or more (at most all)",
        "tokens": "int32 [batch, time] numbers of words; of `score`, [batch]: how many tokens were "
        "scored, the end of the sentence included",
        "log_probability": "float32 [batch]: sum over the tokens, natural logarithm",
        "perplexity": "float32 [batch]: exp(-log_probability / tokens)",
        "words": "string [batch, largest k], the likeliest first; empty after a row's own k",
        "probabilities": "float32 [batch, largest k], 0 after a row's own k",
        "log_probabilities": f"float32 [batch, time, {len(vocabulary)}] of each next word",
        **stack.meanings(),
    }
    strings = "Needs `import tensorflow_text` in the process that loads the model."
    return {
        "score": Endpoint(
            score,
            [tf.TensorSpec([None], tf.string, "sentences")],
            f"How likely whole sentences are. {strings}",
            meanings,
            resources=[table],
        ),
        "next_token": Endpoint(
            next_token,
            [tf.TensorSpec([None], tf.string, "prefix"), tf.TensorSpec(None, tf.int32, "k")],
            f"The likeliest next words. {strings}",
            meanings,
            resources=[table],
        ),
        "step": Endpoint(
            step,
            [tf.TensorSpec([None, None], tf.int32, "tokens"), *stack.state_specs],
            "The next words of texts that come in pieces of any size.",
            meanings,
            stepping(
                model,
                keras.ops.log_softmax,
                f"tokens [batch, time] between 0 and {len(vocabulary) - 1} (others are not refused "
                "here, and what comes out for them means nothing)",
                "log-probabilities",
            ),
        ),
    }
