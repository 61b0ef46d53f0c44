"""Figures for pages and files. Text and lines follow the page's colours, in light and in dark mode."""

import io
import re
import zlib
from typing import Any

from cifar_jax.errors import InputError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")  # Okabe and Ito 2008
INK, GRID = "#101112", "#dcdddf"  # become the page's own where a figure stands in one


def new_figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """A figure in inches and its axes, an array of them where there are several, without the global state of pyplot.

    Raises InputError where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        remedy = "install it with pip install -c constraints.txt -e '.[report]'"
        raise InputError(f"plots need matplotlib, which is not installed; {remedy}") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns)
    for each in [axes] if rows * columns == 1 else axes.flat:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color=GRID, linewidth=0.6)
        each.set_axisbelow(True)
    return figure, axes


def svg(figure: Any, title: str) -> str:
    """The figure as an element of a page: its text stays text, and its colours are those of the page.

    `title` says what it shows to those who cannot see it.
    """
    import matplotlib

    stream = io.StringIO()
    for axes in figure.axes:
        _ink(axes)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cifar_jax"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(GRID, "var(--line)")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    prefix = f"f{zlib.crc32(title.encode()):08x}-"  # ids are those of a page, and a page holds several figures
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}", text)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{label}">', text, count=1
    )


def _ink(axes: Any) -> None:
    """Everything that is black by default in the ink of the page."""
    axes.tick_params(colors=INK, which="both")
    for spine in axes.spines.values():
        spine.set_color(INK)
    texts = [axes.title, axes.xaxis.label, axes.yaxis.label]
    if legend := axes.get_legend():
        texts += legend.get_texts()
    for text in texts:
        text.set_color(INK)
