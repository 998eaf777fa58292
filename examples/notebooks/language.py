# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A language model that writes
#
# A model learns to guess the next word of a text, and then writes some of its own. The text is
# the language reference that every Python carries, so nothing is downloaded.
# `load_text("FOLDER")` takes yours.
#
# It takes under three minutes on a CPU and needs `pip install '.[text,train]'`.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np

from keras_bnrnn import BatchNormLSTM
from keras_bnrnn.data import load_text, token_windows
from keras_bnrnn.metrics import Perplexity

EPOCHS = 8
WORDS = 2000
ROWS = 20
STEPS = 20
UNITS = 128

keras.utils.set_random_seed(0)
corpus = load_text(max_words=WORDS)
print(f"{len(corpus.train):,} words to train on, {len(corpus.valid):,} to validate")
print(" ".join(corpus.vocabulary[token] for token in corpus.train[1000:1040]))

# %% [markdown]
# ## The model
#
# `normalization="frame"`: the words of one time step, in 20 rows of text, are normalised
# together, so no word learns of later ones. `renorm=True`: training then computes what
# inference does. `stateful=True`: each window of 20 words goes on where the one before it
# ended.


# %%
def language_model(rows):
    layer = BatchNormLSTM(
        UNITS, normalization="frame", renorm=True, return_sequences=True, stateful=True
    )
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(rows, None), dtype="int32"),
            keras.layers.Embedding(len(corpus.vocabulary), UNITS),
            keras.layers.Dropout(0.2),
            layer,
            keras.layers.Dropout(0.2),
            keras.layers.Dense(len(corpus.vocabulary)),
        ]
    )
    return model, layer


def windows(tokens, **options):
    return token_windows(tokens, ROWS, STEPS, start=corpus.eos_id, **options)


class FromTheStart(keras.callbacks.Callback):
    """Each reading of a text begins with empty states."""

    def on_epoch_begin(self, epoch, logs=None):
        layer.reset_states()

    def on_test_begin(self, logs=None):
        layer.reset_states()


model, layer = language_model(ROWS)
model.compile(
    keras.optimizers.Adam(0.003, global_clipnorm=1.0),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    weighted_metrics=[Perplexity(from_logits=True)],
)
history = model.fit(
    windows(corpus.train),
    validation_data=windows(corpus.valid, keep_remainder=True),
    epochs=EPOCHS,
    callbacks=[FromTheStart()],
    shuffle=False,
    verbose=0,
).history

# %%
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
axis.plot(range(1, EPOCHS + 1), history["perplexity"], "o--", label="training")
axis.plot(range(1, EPOCHS + 1), history["val_perplexity"], "o-", label="validation")
axis.set(xlabel="epoch", title="perplexity", yscale="log")
axis.grid(alpha=0.3)
axis.legend()
plt.show()

# %% [markdown]
# ## Write
#
# A twin for a single row takes the weights and reads one word at a time. At inference the
# statistics are constants, so one row is enough. A temperature below 1 prefers likely words.


# %%
def write(beginning, words=40, temperature=0.7, seed=0):
    generator = np.random.default_rng(seed)
    writer, memory = language_model(rows=1)
    writer.set_weights(model.get_weights())
    memory.reset_states()
    numbers = {word: number for number, word in enumerate(corpus.vocabulary)}
    text = beginning.split()
    for position in range(len(text) + words):
        word = numbers.get(text[position], numbers["<unk>"])
        logits = np.asarray(writer(np.array([[word]])))[0, -1] / temperature
        if position + 1 == len(text):
            logits[numbers["<unk>"]] = -np.inf
            likely = np.exp(logits - logits.max())
            text.append(corpus.vocabulary[generator.choice(len(logits), p=likely / likely.sum())])
    return " ".join(text).replace("<eos>", "\n")


for beginning in ("the value of", "a class", "if the"):
    print(write(beginning), end="\n\n")

# %% [markdown]
# ## Next
#
# `training/train_ptb.py` trains larger models, continues after being killed, and compares with
# a plain LSTM. The guide *Language models* says how.
