"""The report's style sheet: light or dark with the reader's system, one column on a phone."""

CSS = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #5c6570; --paper: #ffffff; --card: #f5f7f9; --line: #dde2e8;
  --accent: #1f7a52; --good: #1f7a52; --bad: #b4442e; --mark: #e3f3ea; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4af; --paper: #14171b; --card: #1c2026;
  --line: #2d333b; --accent: #55c294; --good: #55c294; --bad: #ef8a72; --mark: #1d3329; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; }
.soft, figcaption, caption { color: var(--soft); }
nav { font-size: .9rem; margin: 1rem 0 0; } nav a { margin-right: 1rem; white-space: nowrap; }
a { color: var(--accent); }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .85rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem;
  overflow-x: auto; margin: .5rem 0; }
.facts { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.4rem 0 0; padding: 0; list-style: none; }
.facts li { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .6rem .9rem;
  flex: 1 1 11rem; }
.facts b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.facts span { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .45rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
tr:last-child > * { border-bottom: 0; }
thead th { font-weight: 600; color: var(--soft); font-size: .82rem; white-space: normal; min-width: 4.3rem;
  vertical-align: bottom; }
thead th:first-child { min-width: 7rem; }
tbody th, thead th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
td small { display: block; color: var(--soft); font-size: .75rem; }
td.best { font-weight: 650; }
tr.focus td, tr.focus th { background: var(--mark); }
dl.columns { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; font-size: .92rem;
  margin: .8rem 0; }
dl.columns dt { font-weight: 600; } dl.columns dd { margin: 0; color: var(--soft); max-width: 42rem; }
.verdict { list-style: none; padding: 0; margin: .6rem 0; display: grid; gap: .5rem; }
.verdict li { border: 1px solid var(--line); border-left: 4px solid var(--good); border-radius: 8px;
  padding: .55rem .9rem; }
.verdict li.no { border-left-color: var(--bad); }
.verdict b { color: var(--good); margin-right: .4rem; } .verdict li.no b { color: var(--bad); }
.verdict span { display: block; color: var(--soft); font-size: .9rem; font-variant-numeric: tabular-nums; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(21rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 10px; padding: .8rem; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; margin-top: .4rem; }
.wide { max-width: 42rem; margin-bottom: 1rem; }
.sample { border: 1px solid var(--line); border-radius: 10px; margin: 1rem 0; overflow: hidden; }
.sample > header { background: var(--card); padding: .7rem .9rem; border-bottom: 1px solid var(--line); }
.sample > header small { color: var(--soft); display: block; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr)); }
.answer { padding: .7rem .9rem; border-right: 1px solid var(--line); border-bottom: 1px solid var(--line);
  margin: 0 -1px -1px 0; overflow-wrap: anywhere; }
.answer h4 { margin: 0 0 .25rem; font-size: .82rem; color: var(--soft); display: flex;
  justify-content: space-between; gap: .5rem; }
.answer p { margin: 0 0 .4rem; }
.chip { display: inline-block; font-size: .75rem; border-radius: 999px; padding: 0 .5rem;
  border: 1px solid currentColor; margin: 0 .25rem .2rem 0; }
.chip.yes { color: var(--good); } .chip.no { color: var(--bad); }
details { border: 1px solid var(--line); border-radius: 8px; padding: .4rem .8rem; margin: .5rem 0; }
summary { cursor: pointer; } summary code { overflow-wrap: anywhere; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
@media (max-width: 34rem) { main { padding: 1.2rem .9rem 3rem; } h1 { font-size: 1.5rem; }
  dl.columns { grid-template-columns: 1fr; gap: 0; } dl.columns dd { margin-bottom: .5rem; }
  th, td { padding: .45rem .55rem; } tbody th, thead th:first-child { min-width: 5.6rem; white-space: normal; } }
"""
