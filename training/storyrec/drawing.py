"""What the pictures of all reports share: their colors, and a figure as SVG."""

import io

import markupsafe
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#4878a8", "#d08a2e", "#5b8c5a", "#8b6bab", "#a0636b", "#6b7785")
INK, SOFT = "#1d2733", "#66758a"


def bare(axes: Axes) -> None:
    """Take away the frame above and to the right."""
    axes.spines[["top", "right"]].set_visible(False)


def svg(figure: Figure) -> markupsafe.Markup:
    """A figure as an SVG element, the same for the same figure."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "storyrec"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return markupsafe.Markup(buffer.getvalue()[buffer.getvalue().index("<svg") :])
