"""The errors of this room."""


class FormatError(ValueError):
    """A source that is not a checkpoint we can read; the message says what was expected, what was given, what to do."""


class SeveralModelsError(FormatError):
    """A file holds several models, or weights beside those of one, and does not say which are meant."""
