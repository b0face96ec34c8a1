"""How the page of a report looks: on a screen, on a narrow one, on paper."""

STYLE = """
:root { color-scheme: light; --ink: #1c2127; --soft: #5b6570; --line: #d9dee3; --back: #f6f8fa; --accent: #1f5fa8; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.25rem; color: var(--ink); background: white;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .8rem; padding-bottom: .25rem; border-bottom: 2px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
.verdict { font-size: 1.1rem; margin: 0; padding: .8rem 1rem; background: var(--back);
  border-left: 4px solid var(--accent); }
.note, figcaption, caption small, td small, .settings dt { color: var(--soft); font-size: .85rem; }
.verdict + .verdict { margin-top: .5rem; }
header ul { margin: .6rem 0; padding-left: 1.2rem; font-size: .95rem; }
.roles :is(th, td):nth-child(2), :is(.attention, .rows) :is(th, td):last-child { text-align: left; min-width: 11rem; }
.tables td { white-space: nowrap; }
.tables td small, .rows td:last-child { white-space: normal; }
.attention caption small { display: block; margin-left: 0; max-width: min(60rem, calc(100vw - 2rem)); }
.note { margin: .5rem 0; max-width: 46rem; }
/* A shadow at the right says that there is more of a table. */
.scroll { overflow-x: auto; max-width: 100%; margin: 0 0 1.2rem;
  background: linear-gradient(to left, white 40%, transparent) right / 2.5rem 100% no-repeat local,
    linear-gradient(to left, #0003, transparent) right / .8rem 100% no-repeat; }
.tables { display: flex; flex-wrap: wrap; gap: 0 3rem; align-items: flex-start; }
.tables .scroll { flex: 0 1 auto; }
.values td { overflow-wrap: anywhere; min-width: 6rem; max-width: 14rem; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .2rem 0 .3rem; }
caption small { font-weight: 400; margin-left: .4rem; }
th, td { padding: .35rem .75rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: white; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; }
td small { display: block; }
.figures { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.figures.wide { grid-template-columns: minmax(0, 42rem); margin-bottom: 1rem; }
figure { margin: 0; max-width: 34rem; break-inside: avoid; }
.wide figure { max-width: none; }
figure svg, figure img { display: block; width: 100%; height: auto; }
figcaption { margin-bottom: .2rem; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { paint-order: stroke; stroke: white; stroke-width: 2.5px; }
pre { margin: 0; padding: .6rem .8rem; background: var(--back); font-size: .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.settings { margin: 0; display: grid; gap: .1rem 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.settings div { display: flex; justify-content: space-between; gap: .8rem; border-bottom: 1px solid var(--line); }
.settings dd { margin: 0; text-align: right; font-size: .85rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  :root { font-size: 15px; }
  body { padding: .9rem; }
  th, td { padding: .3rem .5rem; }
}
@media print {
  @page { margin: 14mm; }
  :root { font-size: 9.5pt; }
  body { max-width: none; padding: 0; }
  .scroll { overflow: visible; background: none; }
  .figures { grid-template-columns: 1fr 1fr; }
  .figures.wide { grid-template-columns: 1fr; }
  h2, h3, caption { break-after: avoid; }
  tr, .attention table { break-inside: avoid; }
}
"""
