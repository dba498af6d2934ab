"""Text of unknown origin in an error message: one line, no control characters."""

_LIMIT = 600


def one_line(text: object) -> str:
    """`text` with white space as single blanks, other control characters escaped, and cut."""
    words = " ".join(str(text).split())
    escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)
    return escaped if len(escaped) <= _LIMIT else escaped[: _LIMIT - 3] + "..."
