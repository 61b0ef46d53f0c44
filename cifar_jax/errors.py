"""What is said to a caller who made a mistake: one sentence that quotes the value, says what is allowed, what to do."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A mistake of the caller's, told in one sentence: what was wrong, what is allowed, what to do."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: "; did you mean 'resnet18'? Known: a, b, c"."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return (f"; did you mean '{close[0]}'?" if close else ".") + f" Known: {', '.join(names)}"
