"""The error of a reader that meets bytes which no writer has written."""


class Malformed(ValueError):
    """Bytes that are not what they should be; the message says in what."""
