"""Data for recurrent networks: text for language models, speech for frame classification.

Importing this package needs none of the extras; a function that needs one says so when called.
"""

from keras_bnrnn.data.text import TextCorpus, load_text, token_windows

__all__ = [
    "TextCorpus",
    "load_text",
    "token_windows",
]
