"""Looks of the report: one style sheet, light and dark, wide and narrow."""

CSS = """
:root{color-scheme:light dark;--back:#fff;--card:#f6f7f9;--text:#1c2026;--dim:#5d6673;--line:#dde1e7;
--accent:#0b6fc0;--good:#1b7f45;--bad:#bd3232}
@media(prefers-color-scheme:dark){:root{--back:#14171c;--card:#1c2027;--text:#e6e9ee;--dim:#9aa3b0;
--line:#313842;--accent:#5ab0f5;--good:#5fce90;--bad:#f08080}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--back);color:var(--text);font:16px/1.55 system-ui,-apple-system,"Segoe UI",
Roboto,"Helvetica Neue",Arial,sans-serif}
header,nav,main{max-width:1180px;margin:0 auto;padding:0 1.25rem}
header{padding-top:2.2rem}
h1{font-size:clamp(1.5rem,4.5vw,2.2rem);line-height:1.2;margin:0 0 .4rem;overflow-wrap:anywhere}
h2{font-size:1.4rem;margin:2.8rem 0 .6rem;padding-top:.9rem;border-top:2px solid var(--line);
overflow-wrap:anywhere}
h3{font-size:1.12rem;margin:2rem 0 .4rem;overflow-wrap:anywhere}
h4{font-size:1rem;margin:1.3rem 0 .3rem}
p,li{max-width:76ch;overflow-wrap:anywhere}
.dim,figcaption,.note{color:var(--dim)}
.note,figcaption,.counts{font-size:.87rem}
a{color:var(--accent)}
nav{margin-top:1rem}
nav ul{list-style:none;padding:0;margin:.2rem 0;display:flex;flex-wrap:wrap;gap:.3rem .5rem}
nav li{max-width:none}
nav a{display:inline-block;padding:.12rem .7rem;border:1px solid var(--line);border-radius:1rem;
text-decoration:none;font-size:.9rem;background:var(--card)}
nav .sub a{font-size:.82rem;background:none}
.notes{background:var(--card);border-left:4px solid var(--accent);border-radius:0 .4rem .4rem 0;
padding:.7rem 1rem .7rem 2rem;margin:1.2rem 0}
.scroll{overflow-x:auto;margin:.7rem 0;border:1px solid var(--line);border-radius:.5rem}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.42rem .7rem;text-align:right;vertical-align:top;border-top:1px solid var(--line)}
thead th{border-top:0;color:var(--dim);font-weight:600;font-size:.8rem;vertical-align:bottom;min-width:6.2em}
th:first-child,td:first-child{text-align:left;min-width:7.5em}
tbody th{font-weight:600}
th .name,td{white-space:nowrap}
.scroll tr:not(.group) th:first-child,.scroll tr:not(.group) td:first-child{position:sticky;left:0;
background:var(--back);background-clip:padding-box}
tr.group th{background:var(--card);text-align:left;font-weight:600}
tr.group span{display:block;position:sticky;left:.7rem;width:fit-content;
max-width:min(100%,calc(100vw - 3.4rem));white-space:normal}
tr.group .counts{font-weight:400;color:var(--dim)}
td .ci{display:block;color:var(--dim);font-size:.8rem;white-space:nowrap}
td .value{white-space:nowrap}
td.better .value{color:var(--good);font-weight:650}
td.worse .value{color:var(--bad);font-weight:650}
td.missing{color:var(--dim);font-style:italic}
.swatch{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.45em}
details{margin:.15rem 0}
summary{cursor:pointer;color:var(--accent);font-size:.85rem}
th summary{white-space:nowrap}
details code,pre{font:12px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere;
white-space:pre-wrap}
th details code{display:block;max-width:min(34em,60vw);font-weight:400;text-align:left}
pre{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.8rem;overflow:auto}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,335px),1fr));gap:1rem;
margin:.8rem 0}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.7rem}
figure svg{display:block;width:100%;height:auto}
figure svg text{font-family:inherit!important}
figcaption{margin-top:.35rem}
.strip{display:flex;overflow-x:auto;gap:.5rem;padding:.3rem 0 .6rem}
.strip figure{padding:.3rem;flex:0 0 auto;text-align:center}
.strip div{display:flex;gap:.2rem;justify-content:center}
.strip img{display:block;width:84px;height:84px;object-fit:cover;border-radius:.35rem}
.strip figcaption{font-variant-numeric:tabular-nums;white-space:pre-line;margin:.25rem 0 0}
footer{margin:3rem 0 2rem}
@media(max-width:600px){header,nav,main{padding:0 .9rem}th,td{padding:.38rem .5rem}body{font-size:15px}}
@media print{details{display:block}.scroll,.strip{overflow:visible}}
"""
