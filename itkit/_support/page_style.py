"""The look of every page that itkit writes: one style sheet, light and dark, screen and paper."""

from __future__ import annotations

from itkit._support.charts import SERIES_COLOURS

SECURITY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Content security policy of the pages: nothing is loaded, nothing is run."""

_SERIES = "".join(f"\n  --s{number}: {colour};" for number, colour in enumerate(SERIES_COLOURS, 1))

STYLE = (
    """:root {
  --page: #f4f5f7; --card: #ffffff; --ink: #191d26; --faint: #636b7b; --line: #dfe2e8; --soft: #eef0f4;
  --good: #0b7a4b; --good-soft: #e0f3ea; --bad: #b3261e; --bad-soft: #fce8e6; --warn: #8a5a00; --warn-soft: #fff2d6;
  --accent: #0b5fa5; --mark: #fff3c4;"""
    + _SERIES
    + """
  color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1217; --card: #181c23; --ink: #e7eaf0; --faint: #98a1b3; --line: #2b313c; --soft: #222833;
    --good: #5ed3a0; --good-soft: #12352a; --bad: #ff8a80; --bad-soft: #3d1b1a; --warn: #f2c063; --warn-soft: #38290d;
    --accent: #6db7f5; --mark: #4a3f12;
    --s1: #4aa8e8; --s2: #ff8a4d; --s3: #3ccfa0; --s4: #e59cc4; --s5: #f2b93d; --s6: #8fd0f7; --s7: #a990f0; --s8: #a7adb8;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 0 20px 60px; }
header.top { max-width: 1180px; margin: 0 auto; padding: 34px 20px 6px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 0 0 4px; letter-spacing: -.01em; }
h3 { font-size: 14px; margin: 18px 0 8px; }
p { margin: 0 0 10px; }
.lead { color: var(--faint); margin: 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 22px 24px;
  margin-top: 18px; }
.card > .about { color: var(--faint); margin-bottom: 14px; max-width: 92ch; font-size: 14px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 14px; font-size: 14px; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.hero { display: grid; grid-template-columns: minmax(0, 1.5fr) minmax(0, 1fr); gap: 18px; }
.hero .card { margin-top: 18px; }
.big { font-size: 52px; line-height: 1.05; font-weight: 700; letter-spacing: -.03em;
  font-variant-numeric: tabular-nums; }
.big small { font-size: 17px; font-weight: 500; color: var(--faint); letter-spacing: 0; margin-left: 6px;
  white-space: nowrap; }
.eyebrow { color: var(--faint); font-size: 13px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(96px, 1fr)); gap: 14px; margin: 0; }
.facts div { min-width: 0; } .facts dt { color: var(--faint); font-size: 12.5px; line-height: 1.3; }
.facts dd { margin: 0; font-size: 23px; font-weight: 650; font-variant-numeric: tabular-nums; }
.notice { border-radius: 12px; padding: 12px 16px; margin-top: 12px; overflow-wrap: anywhere; }
.notice.bad { background: var(--bad-soft); } .notice.warn { background: var(--warn-soft); }
.notice b.kind { margin-right: 6px; } .bad b.kind { color: var(--bad); } .warn b.kind { color: var(--warn); }
.notice .where { display: block; color: var(--faint); font-size: 13px; }
.scroll { overflow-x: auto; margin: 0 -24px; padding: 0 24px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th { text-align: left; font-weight: 600; color: var(--faint); font-size: 12.5px; vertical-align: bottom; }
th, td { padding: 9px 14px 9px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr:last-child > td, tr:last-child > th { border-bottom: 0; }
thead tr:last-child > th { border-bottom: 1px solid var(--line); }
th small, td small { display: block; font-weight: 400; color: var(--faint); font-size: 12px; }
td.num, th.num { text-align: right; }
tbody th { color: var(--ink); font-size: 14px; vertical-align: middle; }
.best { font-weight: 700; color: var(--good); }
.best::before { content: "★ "; font-size: .8em; }
.chip { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px; }
.state { display: inline-block; padding: 1px 9px; border-radius: 99px; font-size: 12.5px; background: var(--soft);
  color: var(--faint); }
.state.tested { background: var(--good-soft); color: var(--good); }
.state.failed { background: var(--bad-soft); color: var(--bad); }
.state.partial { background: var(--warn-soft); color: var(--warn); }
.fill { position: relative; }
.fill i { display: block; height: 4px; border-radius: 2px; background: var(--soft); margin-top: 4px;
  min-width: 90px; }
.fill i b { display: block; height: 4px; border-radius: 2px; background: var(--accent); opacity: .65; }
svg.bar { display: block; margin-top: 2px; }
svg.chart { display: block; max-width: 100%; height: auto; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 14px; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13.5px; margin: 4px 0 10px; }
.hards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)); gap: 22px 14px; }
.hard { min-width: 0; } .hard.wide { grid-column: 1 / -1; } .hard > h3 { margin-top: 0; }
.hard > h3 { font-size: 15px; overflow-wrap: anywhere; }
.hard > h3 span { color: var(--faint); font-weight: 400; margin-left: 8px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)); gap: 14px; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 13px; color: var(--faint); margin-bottom: 4px; overflow-wrap: anywhere; }
figure img { width: 100%; height: auto; display: block; border-radius: 10px; background: #101216; }
details { border-top: 1px solid var(--line); padding: 10px 0; } details:last-child { padding-bottom: 0; }
details:first-of-type { margin-top: 8px; }
summary { cursor: pointer; font-weight: 600; font-size: 14px; }
details > .scroll, details > pre, details > svg { margin-top: 10px; }
pre { background: var(--soft); border-radius: 10px; padding: 12px 14px; overflow: auto; max-height: 560px;
  font-size: 12.5px; line-height: 1.45; }
code, pre, .mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre span { display: block; } pre mark, td mark { background: var(--mark); color: inherit; border-radius: 3px; }
pre mark { display: block; }
.mono { font-size: 12.5px; white-space: pre-wrap; overflow-wrap: anywhere; min-width: 110px; max-width: 420px; }
tr.differs td { background: linear-gradient(var(--mark), var(--mark)) no-repeat 0 50% / 3px 60%; padding-left: 10px; }
.wrap td, .wrap th { white-space: normal; vertical-align: top; }
footer { color: var(--faint); font-size: 13px; margin-top: 26px; }
@media (max-width: 720px) {
  header.top { padding: 22px 16px 0; } main { padding: 0 12px 40px; } h1 { font-size: 24px; }
.hero { grid-template-columns: minmax(0, 1fr); gap: 0; }
  .card { padding: 18px 16px; border-radius: 12px; } .scroll { margin: 0 -16px; padding: 0 16px; }
.big { font-size: 42px; }
  .big small { display: block; margin: 6px 0 0; } .chartbox { overflow-x: auto; }
#cases svg.chart { min-width: 640px; } #curves svg.chart { min-width: 420px; }
}
@media print {
  :root { --page: #fff; --card: #fff; --ink: #000; --faint: #444; --line: #ccc; --soft: #f3f3f3; }
  body { font-size: 11pt; } nav { display: none; } .card { border: 0; padding: 6px 0; break-inside: auto; }
.hero .card, figure, tr, svg { break-inside: avoid; }
  .scroll { overflow: visible; } pre { max-height: none; white-space: pre-wrap; } h2, h3 { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
)
"""CSS for the inside of ``<style>``; the variables ``--s1`` ... colour the series of `itkit._support.charts`."""
