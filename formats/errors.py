"""The one error of this room."""


class FormatError(ValueError):
    """A source that is not a checkpoint we can read; the message says what was expected, what was given, what to do."""
