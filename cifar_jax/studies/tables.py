"""Tables of text, for a terminal, Markdown and LaTeX, and how numbers are written in them."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

MISSING = "–"
FRACTIONS = ("accuracy", "precision", "recall", "f1", "error")  # ends of names of metrics that are shown in percent


@dataclass(frozen=True)
class Table:
    """Cells as text. The first column is a name and aligned left, the others are aligned right."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def terminal(self, width: int = 100) -> str:
        """Names are broken after a comma where the table is wider than `width` columns."""
        others = [max(map(len, column)) for column in list(zip(self.header, *self.rows, strict=True))[1:]]
        room = width - sum(others) - 2 * len(others)
        broken = [_break(row[0], room) for row in self.rows]
        first = max(len(line) for line in [self.header[0], *(line for lines in broken for line in lines)])
        row_of = lambda name, cells: (
            f"{name:{first}}" + "".join(f"  {cell:>{size}}" for cell, size in zip(cells, others, strict=True))
        )
        lines = [row_of(self.header[0], self.header[1:])]
        lines.append("-" * len(lines[0]))
        for row, names in zip(self.rows, broken, strict=True):
            lines += [row_of(names[0], row[1:]), *names[1:]]
        return "\n".join([*textwrap.wrap(self.title, width), "", *lines])

    def markdown(self) -> str:
        line = lambda cells: f"| {' | '.join(cells)} |"
        escaped = [tuple(re.sub(r"([\\|*_<`~])", r"\\\1", cell) for cell in row) for row in (self.header, *self.rows)]
        rule = line([":--", *["--:"] * (len(self.header) - 1)])
        return "\n".join([self.title, "", line(escaped[0]), rule, *map(line, escaped[1:])])

    def latex(self) -> str:
        """A tabular environment; it needs the package booktabs."""
        line = lambda cells: f"{' & '.join(map(latex_text, cells))} \\\\"
        body = [r"\toprule", line(self.header), r"\midrule", *map(line, self.rows), r"\bottomrule"]
        columns = "l" + "r" * (len(self.header) - 1)
        return "\n".join([f"% {self.title}", rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}"])


@dataclass(frozen=True)
class Form:
    """How the values of a metric are written: times `factor`, with `decimals`; differences in `unit`."""

    factor: float
    decimals: int
    unit: str

    def value(self, value: float | None) -> str:
        return MISSING if value is None else f"{value * self.factor:.{self.decimals}f}"

    def signed(self, value: float | None) -> str:
        return MISSING if value is None else f"{value * self.factor:+.{self.decimals}f}"

    def interval(self, interval: tuple[float, float] | None, signed: bool = False) -> str:
        write = self.signed if signed else self.value
        return MISSING if interval is None else f"{write(interval[0])} to {write(interval[1])}"

    def amount(self, value: float) -> str:
        """With the unit: "0.50 points"."""
        return f"{self.value(value)}{self.unit and ' '}{self.unit}"


def form_of(metric: str) -> Form:
    """Accuracies and other fractions in percent, their differences in points, with two decimals; losses with four."""
    return Form(100, 2, "points") if metric.endswith(FRACTIONS) else Form(1, 4, "")


def p_value(p: float | None) -> str:
    if p is None:
        return MISSING
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def latex_text(text: str) -> str:
    """`text` with all characters that LaTeX gives a meaning escaped."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"±": r"$\pm$", "–": "--", "|": "$|$", '"': "''"}
    # A minus sign of a number, not a hyphen.
    text = "".join(special.get(character, character) for character in text)
    return re.sub(r"(?<![\w.}])-(?=\d)", "$-$", text)


def _break(name: str, room: int) -> Sequence[str]:
    """The name in lines of at most `room` characters where its commas allow it; later lines are indented."""
    lines = [""]
    for part in re.split(r"(?<=,) ", name):
        longer = f"{lines[-1]} {part}" if lines[-1].strip() else lines[-1] + part
        if len(longer) <= room or not lines[-1].strip():
            lines[-1] = longer
        else:
            lines.append("  " + part)
    return lines
