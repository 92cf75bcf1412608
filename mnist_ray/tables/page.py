"""The report as an HTML page: its style, its script, and the pieces that it is made of."""

import base64
import struct
import zlib
from collections.abc import Mapping
from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

STYLE = """
:root { color-scheme: light dark;
  --text: #1b1b1b; --paper: #ffffff; --soft: #6a6a6a; --line: #d8d8d8 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --paper: #14161a; --soft: #a0a0a0; --line: #3a3d44 } }
@media print { :root { --text: #000; --paper: #fff; --soft: #444; --line: #bbb } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--paper);
  max-width: 60rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.5rem; margin: .5rem 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .2rem }
body.printing { --text: #000; --paper: #fff; --soft: #444; --line: #bbb; width: 42rem }
p { margin: .3rem 0 } .caption, dt, small { color: var(--soft) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem }
dd { margin: 0; overflow-wrap: anywhere }
section { break-inside: avoid } .fields { display: grid; gap: 0 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)) }
.fields > div { min-width: 0 }
.mistakes { display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fill, minmax(5.2rem, 1fr)) }
.mistakes figure { margin: 0; text-align: center; font-size: .75rem; break-inside: avoid }
.mistakes img { width: 100%; max-width: 6rem; image-rendering: pixelated;
  border: 1px solid var(--line) }
ul { margin: .3rem 0; padding-left: 1.2rem }
.table { overflow-x: auto } .table td { white-space: nowrap }
table { border-collapse: collapse; font-size: .85rem }
.draw, .draw div div { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem }
.draw > :last-child { flex: 1 15rem } .draw div div { align-items: center; gap: .6rem }
.draw canvas { outline: 1px solid #888 } .draw button { font: inherit; padding: .2rem 1rem }
#draw-square { width: min(280px, 100%); cursor: crosshair; touch-action: none; user-select: none;
  -webkit-user-select: none } #draw-seen { width: 56px; image-rendering: pixelated }
@media screen and (prefers-color-scheme: dark) { .draw canvas { filter: invert(1) } }
@media print { #draw, #to-draw { display: none } }
#draw-said { font-size: 1.15rem } #draw-bars { list-style: none; margin: 0; padding: 0 }
#draw-bars li { display: grid; grid-template-columns: 1rem 1fr 4rem; column-gap: .4rem;
  align-items: center } #draw-bars b { font-weight: inherit; text-align: right }
#draw-bars span { height: .8rem; border-bottom: 1px solid var(--line) }
#draw-bars i { display: block; height: 100%; background: var(--soft) }
#draw-bars .guess { font-weight: bold } #draw-bars .guess i { background: var(--guess) }
td, th { padding: .15rem .6rem; border-bottom: 1px solid var(--line); text-align: right }
"""

SCRIPT = """
const css = name => getComputedStyle(document.body).getPropertyValue(name).trim();
const plots = () => document.querySelectorAll('.js-plotly-plot');
function paint() {
  for (const plot of plots()) {
    const change = {'font.color': css('--text')};
    for (const key of Object.keys(plot.layout)) if (/^[xy]axis/.test(key)) {
      change[key + '.gridcolor'] = css('--line'); change[key + '.linecolor'] = css('--line');
    }
    Plotly.relayout(plot, change);
    // Plotly drew the figure before the page had its layout.
    if (!document.body.classList.contains('printing')) Plotly.Plots.resize(plot);
  }
}
paint();
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', paint);
// Without this, the figures would keep the colours and the width that they have on the screen.
addEventListener('beforeprint', () => {
  document.body.classList.add('printing');
  for (const plot of plots()) Plotly.relayout(plot, {width: plot.parentNode.clientWidth});
  paint();
});
addEventListener('afterprint', () => {
  document.body.classList.remove('printing');
  for (const plot of plots()) Plotly.relayout(plot, {width: null, autosize: true});
  paint();
});
"""


def document(title: str, body: str, reload_every: int | None = None) -> str:
    """Return the page as HTML. Plotly's script is in it, so it needs nothing from outside. It loads
    itself again every `reload_every` seconds, if these are given."""
    reload = f'<meta http-equiv="refresh" content="{reload_every}">' if reload_every else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{reload}<title>{escape(title)}</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head>\n<body>\n{body}\n"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def heading(title: str, caption: str) -> str:
    """Return the heading of a section, and a paragraph that says what the section shows."""
    return f'<h2>{escape(title)}</h2><p class="caption">{escape(caption)}</p>'


def section(title: str, caption: str, *figures: go.Figure | None) -> str:
    """Return a section with those of `figures` that are not None; empty if all are."""
    shown = [_html(figure) for figure in figures if figure is not None]
    if not shown:
        return ""
    inside = f'<div class="fields">{"".join(shown)}</div>' if len(shown) > 1 else shown[0]
    return f"<section>{heading(title, caption)}{inside}</section>"


def definitions(texts: Mapping[str, str]) -> str:
    """Return a list of names, each with the text that belongs to it."""
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in texts.items()
    )
    return f"<dl>{rows}</dl>"


def _html(figure: go.Figure) -> str:
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 13},
        legend={"orientation": "h", "y": 1.08, "x": 0},
        height=figure.layout.height or 380,
        margin=figure.layout.margin
        if figure.layout.margin.l
        else {"l": 70, "r": 15, "t": 35, "b": 55},
    )
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False, title_standoff=12)
    html: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"responsive": True, "displayModeBar": False},
    )
    return f"<div>{html}</div>"


def png(pixels: bytes) -> str:
    """Return the 28 x 28 grey pixels of a digit as a PNG in base64 (RFC 2083), dark on white."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    inverted = bytes(255 - pixel for pixel in pixels)
    rows = b"".join(b"\0" + inverted[28 * i : 28 * (i + 1)] for i in range(28))
    header = struct.pack(">IIBBBBB", 28, 28, 8, 0, 0, 0, 0)
    file = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return base64.b64encode(file).decode()
