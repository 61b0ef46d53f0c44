"""Values of recipe fields as text. Imports nothing heavy: the command line reads its arguments first."""

import ast
from typing import Any

OPEN, CLOSE, QUOTES = "([{", ")]}", "'\""


def parse_value(text: str) -> Any:
    """A Python literal, true or false; anything else is a string."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # whatever a text can make it raise
        return text


def split_outside_brackets(text: str) -> list[str]:
    """ "a,(1,2)" -> ["a", "(1,2)"]: split at commas that stand in no bracket and no quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in QUOTES:
            quote = character
        else:
            depth += (character in OPEN) - (character in CLOSE)
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
