# SPDX-License-Identifier: Apache-2.0
"""The frame of a report: one file that needs no network and no script to be read."""

import base64
import hashlib
from typing import Final

from lutwise.export.markup import Markup, join, raw, tag

__all__ = ["figure", "page", "picture", "section"]

_CSS: Final = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1f2328;--muted:#59636e;--grid:#e3e7eb;
--halo:#c3cad2;--band:#eceff2;--integer:#0072b2;--minifloat:#d55e00;--mixed:#007a5e;
--line:#d1d9e0;--soft:#f6f8fa;--good:#1a7f37;--bad:#c4232d;--mark:#fff6d6}
@media (prefers-color-scheme:dark){:root{--paper:#12161c;--ink:#e6edf3;--muted:#9aa6b2;
--grid:#262d36;--halo:#46505b;--band:#1d242c;--integer:#58b4ec;--minifloat:#ff9a4d;
--mixed:#4cc9a0;--line:#333c46;--soft:#1a2028;--good:#57c46f;--bad:#ff7b72;--mark:#2e2a17}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.25rem 4rem;max-width:76rem;background:var(--paper);
color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.55rem;line-height:1.25;margin:0 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.4rem 0 .7rem;padding-bottom:.3rem;
border-bottom:1px solid var(--line)}
p{margin:.5rem 0;max-width:52rem}ul{margin:.5rem 0;padding-left:1.3rem;max-width:52rem}
li{margin:.3rem 0}
.sub{color:var(--muted);margin:0 0 1.2rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(13.5rem,1fr));gap:.8rem;
margin:1.2rem 0}
.card{border:1px solid var(--line);border-radius:8px;padding:.8rem 1rem;background:var(--soft)}
.card.integer{border-left:4px solid var(--integer)}
.card.minifloat{border-left:4px solid var(--minifloat)}
.card.mixed{border-left:4px solid var(--mixed)}
.card b{display:block;font-size:1.35rem;line-height:1.3;font-variant-numeric:tabular-nums;
overflow-wrap:anywhere}
.card span{color:var(--muted);font-size:.86rem;display:block}
.lead{font-size:1.08rem}
.warning{border:1px solid var(--line);border-left:4px solid var(--bad);border-radius:8px;
padding:.6rem 1rem;margin:1rem 0;background:var(--mark)}
.warning h3{font-size:1rem;margin:0 0 .4rem}
.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}
figure{margin:1rem 0}figcaption{color:var(--muted);font-size:.88rem;max-width:52rem}
.scroll{overflow-x:auto}.scroll:focus-visible{outline:2px solid var(--integer)}
svg{display:block;width:100%;height:auto}img{max-width:100%;height:auto}.wide svg{min-width:56rem}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums;width:100%}
caption{text-align:left;color:var(--muted);padding:0 0 .4rem}
th,td{padding:.32rem .6rem;border-bottom:1px solid var(--line);text-align:left;
white-space:nowrap;vertical-align:baseline}
thead th{border-bottom:2px solid var(--line);font-weight:600;vertical-align:bottom;
white-space:normal;min-width:4.2rem}
tbody th{font-weight:600}.n{text-align:right}tr.marked>*{background:var(--mark)}
th button{all:unset;cursor:pointer;display:block;width:100%}
th button:focus-visible{outline:2px solid var(--integer)}
th[aria-sort=ascending] button::after{content:" \\25B2";font-size:.75em}
th[aria-sort=descending] button::after{content:" \\25BC";font-size:.75em}
dl{display:grid;grid-template-columns:minmax(9rem,max-content) 1fr;gap:.3rem 1.2rem;margin:.5rem 0}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
details{border:1px solid var(--line);border-radius:8px;padding:.5rem .9rem;margin:.7rem 0}
summary{cursor:pointer;font-weight:600}
pre{overflow-x:auto;background:var(--soft);padding:.8rem;border-radius:6px;font-size:.84rem;
margin:.6rem 0}
code{font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:.92em;overflow-wrap:anywhere}
a{color:var(--integer)}
@media (max-width:40rem){dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}}
@media print{
:root{color-scheme:light;--paper:#fff;--ink:#000;--muted:#444;--grid:#e3e7eb;--halo:#c3cad2;
--band:#eceff2;--integer:#0072b2;--minifloat:#d55e00;--mixed:#007a5e;--line:#bbb;--soft:#fff;
--mark:#f3f3f3;--good:#060;--bad:#a00}
body{max-width:none;padding:0;font-size:9.5pt}h2{break-after:avoid}
figure,.card,.warning,tr,thead{break-inside:avoid}.scroll{overflow:visible}.wide svg{min-width:0}
table{font-size:6.6pt}th,td{padding:.12rem .25rem}thead th{min-width:0}pre{white-space:pre-wrap}}
@page{size:A4 landscape;margin:12mm}
"""

_SCRIPT: Final = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("n");
      const now = head.getAttribute("aria-sort");
      const down = /accuracy|float|agreement|SQNR/.test(head.textContent);
      const up = now ? now === "descending" : !(numeric && down);
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => {
        const cell = row.cells[column];
        return "order" in cell.dataset ? Number(cell.dataset.order) : cell.textContent;
      };
      const compare = (a, b) => {
        const x = key(a), y = key(b);
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
        const found = typeof x === "number" ? x - y : x.localeCompare(y, "en", {numeric: true});
        return up ? found : -found;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
"""


def page(title: str, *content: str) -> str:
    """Return a whole page. Nothing outside the file is loaded, by rule of the page itself.

    Args:
        title: Of the window.
        content: The body.
    """
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"img-src data:; script-src 'sha256-{digest}'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        # Only quotes within the attribute matter here; the policy is our own text.
        raw(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        raw(f"<style>{_CSS}</style>"),
    )
    body = tag("body", tag("main", *content), raw(f"<script>{_SCRIPT}</script>"))
    return f"<!doctype html>\n{tag('html', head, raw(chr(10)), body, lang='en')}\n"


def section(title: str, *content: str) -> Markup:
    """Return a part of a page under a heading."""
    return join(raw("\n"), tag("section", tag("h2", title), *content))


def figure(svg: str, label: str, caption: str, *, wide: bool = False) -> Markup:
    """Return a picture with a caption.

    Args:
        svg: An ``<svg>`` element of this package.
        label: What it shows, for those who cannot see it.
        caption: Below it.
        wide: Scroll it rather than let it become too small to read.
    """
    picture = tag("div", raw(svg), role="img", aria_label=label)
    box = tag("div", picture, class_="scroll wide" if wide else "scroll", tabindex="0")
    return tag("figure", box, tag("figcaption", caption))


def picture(png: bytes, label: str, caption: str) -> Markup:
    """Return a picture of pixels, held in the page itself, with a caption.

    Args:
        png: The file's content.
        label: What it shows, for those who cannot see it.
        caption: Below it.
    """
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return tag("figure", tag("img", src=source, alt=label), tag("figcaption", caption))
