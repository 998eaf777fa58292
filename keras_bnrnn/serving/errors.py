"""What keeps a model from being exported."""


class ServingError(ValueError):
    """Something the caller can put right; the message says what to do.

    Attributes:
        argument: of `export`, the one to change, or `None`.
    """

    def __init__(self, message: str, argument: str | None = None):
        super().__init__(message)
        self.argument = argument
