"""How the page looks: light and dark, on a wide screen, on a phone, on paper."""

from typing import Final

STYLE: Final = """\
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1e23; --soft: #5b636d; --line: #dce0e5;
  --panel: #f5f7f9; --chosen: #0b7a4b; --passed: #2563a8; --base: #3b4048; --rejected: #b4342d;
  --front: #0b7a4b }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e7eaee; --soft: #a3abb5;
  --line: #323840; --panel: #1c2024; --chosen: #4cc38a; --passed: #79b0f0; --base: #c9d0d8;
  --rejected: #ff8f80; --front: #4cc38a } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444;
  --line: #bbb; --panel: #fff; --chosen: #0b7a4b; --passed: #2563a8; --base: #3b4048;
  --rejected: #b4342d; --front: #0b7a4b } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; -webkit-text-size-adjust: 100% }
main { max-width: 70rem; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1 { font-size: 1.65rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere;
  text-wrap: balance }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem }
p { margin: .4rem 0; max-width: 48rem; overflow-wrap: anywhere }
.soft { color: var(--soft) } small, .small { font-size: .82rem }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem;
  margin: 1.25rem 0 }
.tiles div { background: var(--panel); border: 1px solid var(--line); border-radius: .6rem;
  padding: .6rem .8rem; min-width: 0 }
.tiles dt { color: var(--soft); font-size: .82rem }
.tiles dd { margin: 0; font-size: 1.3rem; font-weight: 650; line-height: 1.3;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.tiles dd small { display: block; color: var(--soft); font-weight: 400 }
figure { margin: 1rem 0 }
svg.plot { display: block; width: 100%; height: auto }
svg.narrow { display: none }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: var(--ink) }
svg .tick, svg .soft { fill: var(--soft) }
svg path { fill: none; stroke-width: 1.4 }
.grid { stroke: var(--line); stroke-width: 1 } .axis { stroke: var(--soft) }
.limit { stroke: var(--rejected); stroke-dasharray: 5 4; stroke-width: 1.2 }
.front { stroke: var(--front); stroke-width: 1.6; opacity: .55 }
.lead { stroke: var(--soft); stroke-width: .8 }
.size { fill-opacity: .16; stroke-opacity: .5 }
.chosen { --look: var(--chosen) } .passed { --look: var(--passed) }
.baseline, .reference { --look: var(--base) } .rejected { --look: var(--rejected) }
g .size { fill: var(--look); stroke: var(--look) } g .bar { stroke: var(--look) }
g .core { fill: var(--look); stroke: var(--look) }
g.rejected .size { fill: none; stroke-dasharray: 3 3; stroke-opacity: .8 }
g.rejected .core { fill: var(--paper); stroke: var(--look); stroke-width: 1.4 }
svg .name { fill: var(--look) } svg .name.chosen, svg .name.baseline { font-weight: 650 }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; list-style: none; margin: .5rem 0;
  padding: 0; font-size: .85rem; color: var(--soft) }
.legend svg { width: 1.5rem; height: 1rem; vertical-align: -.15rem; margin-right: .25rem }
table { border-collapse: collapse; width: 100%; font-size: .875rem;
  font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 600 }
thead th { color: var(--soft); font-weight: 500; border-bottom: 1px solid var(--soft);
  vertical-align: bottom }
th, td { padding: .45rem .75rem .45rem 0; vertical-align: top }
tbody th, tbody td { border-bottom: 1px solid var(--line) }
tbody th { overflow-wrap: anywhere; min-width: 9rem } td { min-width: 4rem }
tbody th small { display: block; color: var(--soft); font-weight: 400 }
.no { color: var(--soft); font-weight: 400; margin-right: .35rem }
.mark { color: var(--look); font-weight: 650 }
tr.chosen { background: var(--panel) } tr.chosen th { box-shadow: inset 3px 0 var(--chosen) }
tr.chosen th, tr.baseline th, .rows tbody th { padding-left: .6rem }
.figure { white-space: nowrap }
.reason { min-width: 14rem; overflow-wrap: anywhere }
svg.interval { display: block; width: 8.25rem; height: .875rem; margin-top: .15rem }
.interval circle { fill: var(--look, var(--passed)) }
.interval .reach { stroke: var(--look, var(--passed)); stroke-width: 3; opacity: .6 }
.interval .neutral { stroke: var(--soft); stroke-width: 1 }
details summary { cursor: pointer; color: var(--soft); font-weight: 400; font-size: .82rem }
details div { font-weight: 400; font-size: .82rem; overflow-wrap: anywhere }
.facts { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .25rem 1.25rem;
  font-size: .9rem }
.facts dt { color: var(--soft) } .facts dd { margin: 0; overflow-wrap: anywhere; min-width: 0 }
code { font: .9em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
:focus-visible { outline: 2px solid var(--passed); outline-offset: 2px }
@media (max-width: 44rem) {
  main { padding: 1.25rem 1rem 3rem } h1 { font-size: 1.35rem }
  svg.wide { display: none } svg.narrow { display: block }
  .tiles { grid-template-columns: 1fr 1fr }
  .facts { grid-template-columns: 1fr; gap: 0 } .facts dd { margin-bottom: .5rem }
  table, tbody { display: block } thead { position: absolute; width: 1px; height: 1px;
    overflow: hidden; clip-path: inset(50%) }
  tbody tr { display: grid; grid-template-columns: 1fr 1fr; gap: .45rem 1rem; padding: .7rem .6rem;
    border-bottom: 1px solid var(--line) }
  tbody th, tbody td { border: 0; padding: 0; min-width: 0 }
  tbody th, td.reason { grid-column: 1 / -1 } .rows tbody th { padding-left: 0 }
  tr.chosen { box-shadow: inset 3px 0 var(--chosen) } tr.chosen th { box-shadow: none }
  td::before { content: attr(data-label); display: block; color: var(--soft); font-size: .78rem }
  td:empty { display: none } svg.interval { width: 100%; max-width: 8.25rem }
}
@media print { main { max-width: none; padding: 0 } tr, figure, .tiles div { break-inside: avoid }
  h2 { break-after: avoid } details > * { display: block } }"""
