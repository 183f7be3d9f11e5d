"""How a page looks: in light and dark, on a screen and on paper."""

from __future__ import annotations

from analyses.pages.gallery import GALLERY

LIGHT = """
:root { color-scheme: light; --paper: #fff; --ink: #1c2430; --soft: #5b6675; --line: #dfe3e8; --wash: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1144px; margin: 0 auto; padding: 40px 32px 64px; }
h1 { font-size: 28px; line-height: 1.25; margin: 4px 0 24px; max-width: 30em; text-wrap: balance; }
h2 { font-size: 19px; margin: 44px 0 12px; }
h3 { font-size: 16px; margin: 28px 0 8px; }
p, ul { margin: 0 0 12px; max-width: 48em; }
ul { padding-left: 1.2em; }
li { margin-bottom: 4px; }
.kind, footer, caption, summary { color: var(--soft); font-size: 14px; }
.found { background: var(--wash); border-left: 4px solid #1f77b4; border-radius: 4px; }
.found { padding: 14px 20px; margin: 0 0 24px; }
.found.small { border-left-color: #b00020; }
.found ul { margin: 0; max-width: none; }
.scroll { overflow-x: auto; }
.drawn { overflow-y: hidden; }
table { border-collapse: collapse; font-size: 14.5px; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; padding-top: 8px; }
th, td { text-align: left; vertical-align: top; padding: 6px 20px 6px 0; border-bottom: 1px solid var(--line); }
tbody th, td:first-child { white-space: nowrap; max-width: none; } /* what is longer would lie over the next column */
thead th { vertical-align: bottom; }
th { font-weight: 600; }
td { max-width: 34em; overflow-wrap: anywhere; }
td:not(.number, :first-child) { min-width: 7em; }
thead th { border-bottom: 2px solid var(--ink); }
tbody th { font-weight: 500; }
.number { text-align: right; white-space: nowrap; }
thead th.number { white-space: normal; } /* a long name takes two lines: more columns have room */
.scroll td { overflow-wrap: break-word; } /* which has room beside it: no name is cut to save it */
code, pre { font: 13.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; }
pre { background: var(--wash); padding: 10px 14px; border-radius: 4px; overflow-x: auto; margin: 6px 0 0; }
summary { cursor: pointer; }
.columns { color: var(--soft); font-size: 14px; margin-top: 10px; max-width: 62em; }
.columns i { color: var(--ink); font-style: normal; font-weight: 500; }
footer { margin-top: 48px; border-top: 1px solid var(--line); padding-top: 14px; }
"""

# figures are drawn on white, whose colours are told apart there: they keep it
DARK = """
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --paper: #14181e; --ink: #e4e8ee; --soft: #9aa5b4; --line: #333b46; --wash: #1e242c; }
  .found { border-left-color: #6cb2eb; }
  .found.small { border-left-color: #ff6b81; }
  .drawn { background: #fff; border-radius: 6px; }
}
"""

STYLE = LIGHT + GALLERY + DARK
