"""The page's one style sheet: two palettes by `prefers-color-scheme`, and what prints.

The eight series colours are distinguishable with the usual colour deficiencies (they follow Okabe and Ito, 2008, with
yellow darkened in the light palette), and none of them alone carries a meaning: every line is named beside it.
"""

STYLE = """
:root{--bg:#fbfaf7;--card:#fff;--ink:#1d2430;--soft:#5d6675;--rule:#e4e2dc;--grid:#ebe9e3;--accent:#0b6e99;
--good:#2c7a4b;--bad:#b3261e;--track:#efede7;--allowed:#eeeadd;
--s1:#0072b2;--s2:#d55e00;--s3:#009e73;--s4:#a8478a;--s5:#b58900;--s6:#4aa3df;--s7:#555f6e;--s8:#7a4b1f}
@media(prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1a2029;--ink:#e8ebf0;--soft:#9aa5b5;--rule:#2b3340;
--grid:#262e3a;--accent:#58b4de;--good:#6fca92;--bad:#ff8a80;--track:#252d38;--allowed:#2b3543;
--s1:#58b4de;--s2:#ff9248;--s3:#34c9a0;--s4:#e08bc4;--s5:#e8c33f;--s6:#9fd2f2;--s7:#aab4c3;--s8:#c99a68}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:860px;margin:0 auto;padding:40px 24px 64px}
.over{margin:0;color:var(--accent);font-weight:600;letter-spacing:.04em}
h1{margin:2px 0 18px;font-size:30px;line-height:1.2;letter-spacing:-.01em}
h2{margin:0 0 4px;font-size:19px}
section{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:22px 26px;margin:18px 0}
section p{margin:2px 0 14px;color:var(--soft)}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(180px,1fr));gap:10px 22px;margin:0}
dt{font-size:12px;color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.tag{font-size:13px;vertical-align:middle;
border:1px solid var(--bad);color:var(--bad);border-radius:99px;padding:2px 10px}
.notes{margin:16px 0 0;padding:10px 14px 10px 30px;background:var(--track);border-radius:8px}
.bad{color:var(--bad)!important}.good{color:var(--good)!important}.quiet{color:var(--soft);font-size:13px}
.verdict{font-size:17px;font-weight:600}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(170px,1fr));gap:12px;margin:12px 0 20px}
.card{border:1px solid var(--rule);border-radius:10px;padding:12px 14px}
.card b{font-size:25px;letter-spacing:-.02em}.card span{color:var(--soft)}.card p{margin:2px 0 0;font-size:13px}
svg.plot{display:block;max-width:100%;height:auto;margin:6px 0;font:12px system-ui,-apple-system,"Segoe UI",sans-serif}
svg text{fill:var(--ink)}svg .tick{fill:var(--soft);font-size:11px}svg .label{font-size:12px}
svg .value{font-size:12px;font-variant-numeric:tabular-nums}
.grid{stroke:var(--grid)}.axis{stroke:var(--soft)}.limit{stroke:var(--bad);stroke-dasharray:5 4;stroke-width:1.5}
.line{fill:none;stroke:var(--c);stroke-width:2.2;stroke-linejoin:round}.band{fill:var(--c);opacity:.13}
.dot{fill:var(--card);stroke:var(--c);stroke-width:2}.part{fill:var(--c)}
.bar{fill:var(--accent)}rect.bar.bad{fill:var(--bad)}rect.bar.good{fill:var(--good)}.bar.quiet{fill:var(--s7)}
.track{fill:var(--track)}.allowed{fill:var(--allowed)}.whisker{stroke:var(--ink);stroke-width:1.4}
.heat{fill:var(--accent);fill-opacity:var(--heat)}svg .onheat{fill:var(--card);font-weight:600}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:0 0 10px;color:var(--soft);font-size:13px}
.key i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px}
.wide{overflow-x:auto;margin:8px 0}
table{border-collapse:collapse;font-size:12.5px;font-variant-numeric:tabular-nums;width:100%}
th{color:var(--soft);font-weight:500;text-align:left;white-space:nowrap}
th,td{padding:5px 12px 5px 0;border-bottom:1px solid var(--rule);vertical-align:top}
td{white-space:nowrap}
footer{margin-top:24px}
@media print{body{background:#fff}section{break-inside:avoid;border:none;padding:8px 0}}
"""
