"""The one plot: round by round, what an open snapshot costs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from benchmarks.record import Figure

COLOURS = ("#2f6f9f", "#c9772b", "#7a8791")


def courses(figures: Iterable[Figure], file: Path) -> None:
    """Draw each figure's course as a line: a colour for each contestant, broken lines without the snapshot."""
    import matplotlib as mpl

    mpl.use("svg")
    # The same figures give the same file, and its text is text: a diff shows what changed and no noise.
    mpl.rcParams.update({"svg.hashsalt": "heartbeat", "svg.fonttype": "none", "font.size": 9})
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    colours: dict[str, str] = {}
    for figure in figures:
        if figure.course:
            colour = colours.setdefault(figure.name.split(",")[0], COLOURS[len(colours) % len(COLOURS)])
            style = "-" if "open" in figure.name else ":"
            axes.plot(range(1, len(figure.course) + 1), figure.course, style, color=colour, label=figure.name)
    axes.set_xlabel("round")
    axes.set_ylabel("items a second")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    file.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(file, metadata={"Date": None})
    plt.close(drawing)
    file.write_text(_folded(file.read_text()))


def _folded(svg: str) -> str:
    """One line for each of matplotlib's groups, which writes one for each point of a path."""
    flat = re.sub(r"\s*\n\s*", " ", svg)
    return re.sub(r" (?=<g id=\"(?!patch))", "\n", flat).rstrip() + "\n"
