"""What can end a training run before its last epoch."""


class FitError(ValueError):
    """Something the caller can put right; the message says what to do.

    Args:
        message: whole without the argument's name.
        argument: the one at fault, such as `"output_dir"`; `None` where there is no single one.
    """

    def __init__(self, message: str, argument: str | None = None):
        super().__init__(message)
        self.argument = argument


class Stopped(Exception):
    """The run was told to stop, and has saved what it needs to go on.

    Attributes:
        signal: the number of the signal that told it.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal
