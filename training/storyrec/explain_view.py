"""An explanation as a page and as a picture. Paper: Fig. 6."""

import io
import warnings
from collections.abc import Sequence
from importlib.resources import files

import jinja2
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from storyrec.explain import Explanation, PastClick

COLOR = "#1f4e8c"
DARK = 0.6  # from this share of the heaviest weight on, letters are white
MAX_TITLE = 84
NUM_BOLD = 3
LINE, BOX, WIDTH = 0.24, 0.62, 14.0  # inches


def render_page(explanation: Explanation) -> str:
    """One self-contained HTML page."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("storyrec") / "templates" / "explain.html.j2").read_text("utf-8"))
    return template.render(
        explanation=explanation,
        domains=[
            ("Stories", "story", explanation.story_clicks, shares(explanation.story_clicks)),
            ("Products", "product", explanation.product_clicks, shares(explanation.product_clicks)),
        ],
        dark=DARK,
        ago=ago,
    )


def draw_picture(explanation: Explanation) -> bytes:
    """A PNG: two rows of numbered boxes, the darker the higher the weight, and whose numbers they are.

    Letters that no installed font has are drawn as empty boxes; the page has them.
    """
    domains = (("stories", explanation.story_clicks), ("products", explanation.product_clicks))
    heights = [LINE * 2 + BOX + LINE * -(-len(clicks) // 2) + LINE for _, clicks in domains]
    figure = Figure(figsize=(WIDTH, LINE * 4 + sum(heights)))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(0, figure.get_figheight())
    axes.axis("off")
    top = figure.get_figheight() - LINE * 1.5
    mounted = "; ".join(product.title for product in explanation.mounted) or "nothing"
    outcome = "clicked" if explanation.clicked else "not clicked"
    axes.text(0.3, top, f"Target story: {_short(explanation.title)}", fontsize=13, weight="bold", va="center")
    axes.text(
        0.3,
        top - LINE * 1.2,
        f"mounts {_short(mounted)}  ·  {outcome}  ·  predicted click probability {explanation.click_probability:.3f}",
        fontsize=10,
        va="center",
    )
    top -= LINE * 2.5
    for (name, clicks), height in zip(domains, heights, strict=True):
        _draw_domain(axes, name, clicks, top=top)
        top -= height
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def shares(clicks: Sequence[PastClick]) -> list[float]:
    """Each weight as a share of the heaviest, in [0, 1]."""
    heaviest = max((click.weight for click in clicks), default=1.0)
    return [click.weight / heaviest for click in clicks]


def ago(hours: float) -> str:
    """A span of time as a person says it."""
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"


def _draw_domain(axes: Axes, name: str, clicks: Sequence[PastClick], *, top: float) -> None:
    if not clicks:
        axes.text(0.3, top - LINE / 2, f"The user clicked no {name} before", fontsize=11, va="center")
        return
    axes.text(
        0.3,
        top - LINE / 2,
        f"Clicked {name}, oldest first; the darker, the more attention (mean of the heads)",
        fontsize=11,
        va="center",
    )
    width = min((WIDTH - 0.6) / len(clicks), 1.2)
    bottom = top - LINE * 1.4 - BOX
    for place, (click, share) in enumerate(zip(clicks, shares(clicks), strict=True)):
        left = 0.3 + place * width
        axes.add_patch(Rectangle((left, bottom), width, BOX, facecolor=COLOR, alpha=share, linewidth=0))
        axes.add_patch(Rectangle((left, bottom), width, BOX, fill=False, edgecolor="#8a97a6", linewidth=0.8))
        axes.text(
            left + width / 2,
            bottom + BOX / 2,
            f"#{click.number}\n{click.weight:.2f}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if share > DARK else "#1d2733",
        )
    heavy = sorted(clicks, key=lambda click: -click.weight)[:NUM_BOLD]
    rows = -(-len(clicks) // 2)
    for place, click in enumerate(clicks):
        axes.text(
            0.3 + place // rows * (WIDTH - 0.6) / 2,
            bottom - LINE * (place % rows + 0.9),
            f"#{click.number}  {_short(click.title or f'id {click.item_id}')}  ({ago(click.hours_ago)})",
            fontsize=8.5,
            va="center",
            weight="bold" if click in heavy else "normal",
        )


def _short(title: str) -> str:
    # "$" would start a formula
    return (title if len(title) <= MAX_TITLE else title[: MAX_TITLE - 1] + "…").replace("$", r"\$")
