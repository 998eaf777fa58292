"""SavedModels that need neither Keras nor keras_bnrnn, and models for other runtimes."""

from keras_bnrnn.serving.errors import ServingError
from keras_bnrnn.serving.saved_model import export

__all__ = ["ServingError", "export"]
