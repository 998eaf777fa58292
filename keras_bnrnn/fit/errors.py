"""What can end a training run before its last epoch."""


class FitError(ValueError):
    """Something the caller can put right; the message says what to do.

    Args:
        message: what is wrong.
        argument: the name of the argument that it is about, or `None`.
    """

    def __init__(self, message, argument=None):
        super().__init__(message)
        self.argument = argument


class Stopped(Exception):
    """The run was told to stop, and has saved what it needs to go on."""
