"""The style sheet of the report page, light and dark."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ground: #f4f5f7; --ink: #1f2430; --muted: #667085; --line: #e4e7ec; --track: #edf0f3;
  --series-0: #0072b2; --series-1: #d55e00; --series-2: #009e73;
  --series-3: #cc79a7; --series-4: #e69f00; --series-5: #56b4e9;
  --good: #067647; --bad: #b42318;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #1a1d23; --ground: #121418; --ink: #e6e8ec; --muted: #9aa3b2; --line: #30353e; --track: #272b33;
    --series-0: #4ba3e3; --series-1: #ff8a4c; --series-2: #2fc79a;
    --series-3: #e09cc4; --series-4: #f2b63c; --series-5: #8fd0f5;
    --good: #5fd39a; --bad: #ff8f84;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "PingFang SC",
    "Microsoft YaHei", "Noto Sans CJK SC", sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 56px; }
header p { margin: 0; color: var(--muted); }
h1 { margin: 2px 0 6px; font-size: 28px; line-height: 1.2; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { margin: 34px 0 12px; font-size: 17px; letter-spacing: -0.005em; }
.pill { display: inline-block; padding: 0 10px; border: 1px solid currentColor; border-radius: 99px; font-size: 13px;
  font-weight: 600; color: var(--muted); margin-right: 8px; }
.pill.done { color: var(--good); } .pill.failed { color: var(--bad); }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 22px; }
.tiles dt { color: var(--muted); font-size: 13px; }
.tiles dd { margin: 0; font-size: 25px; font-weight: 650; letter-spacing: -0.01em; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.tiles dd small { display: block; font-size: 13px; font-weight: 400; letter-spacing: 0; color: var(--muted); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 14px; }
.charts figure { margin: 0; padding: 8px 6px; }
.charts svg { display: block; width: 100%; height: auto; }
.charts svg * { stroke-linejoin: round; }
.charts svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important; }
.bars { display: grid; grid-template-columns: minmax(60px, max-content) 1fr max-content; gap: 8px 14px;
  align-items: center; }
.bars span { overflow-wrap: anywhere; }
.bars div { height: 12px; border-radius: 6px; background: var(--track); overflow: hidden; }
.bars i { display: block; height: 100%; border-radius: 6px; background: var(--muted); opacity: 0.75; }
.bars i.run { opacity: 1; }
.bars b { font-variant-numeric: tabular-nums; font-weight: 600; text-align: right; }
.scroll { overflow-x: auto; padding: 4px 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 18px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
tr:first-child > * { border-top: 0; }
thead th { font-weight: 600; }
tbody th { text-align: left; font-weight: 400; color: var(--muted); position: sticky; left: 0;
  background: var(--paper); }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px; }
pre { margin: 0; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.sample { margin-bottom: 12px; }
.sample mark { background: none; color: var(--series-0); font-weight: 700; }
details { margin-top: 12px; }
.tasks { margin-top: 14px; }
.charts .wide { grid-column: 1 / -1; overflow-x: auto; }
.charts .wide svg { min-width: 600px; }
.item { border-top: 1px solid var(--line); margin-top: 10px; padding-top: 4px; }
.item td { white-space: normal; overflow-wrap: anywhere; border: 0; padding: 2px 8px 2px 0; vertical-align: top; }
.item td:nth-child(2) { width: 100%; text-align: start; }
.item td:last-child { white-space: nowrap; color: var(--muted); }
.question { white-space: pre-wrap; overflow-wrap: anywhere; margin: 4px 0; max-width: 80ch; }
summary { cursor: pointer; font-weight: 600; }
details pre { margin-top: 12px; }
.note { color: var(--muted); font-size: 13px; margin: 8px 2px 0; }
@media (max-width: 560px) {
  main { padding: 18px 12px 40px; }
  th, td { padding: 7px 12px; }
  .charts figure { padding: 4px 0; }
}
@media print { body { background: none; } details > * { display: block; } .card { break-inside: avoid; } }
"""
