"""A static page with the videos of two runs side by side, played together; can hide which is which and count votes."""

import html
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

from mindspeed_mm import atomic
from mindspeed_mm.evaluation.samples import Sample

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ margin: 0 2rem 2rem; background: #18181b; color: #e4e4e7; font: 15px/1.5 system-ui, sans-serif; }}
header {{ position: sticky; top: 0; background: #18181b; padding: .8rem 0; z-index: 1; }}
button, select {{ font: inherit; color: inherit; background: #3f3f46; border: 0; border-radius: .3rem; padding: .2rem .7rem; }}
article {{ background: #27272a; border-radius: .5rem; margin: 1rem 0; padding: .8rem; }}
.pair {{ display: flex; gap: .8rem; }} .pair.swapped {{ flex-direction: row-reverse; }}
figure {{ flex: 1; margin: 0; min-width: 0; }} video {{ width: 100%; max-height: 70vh; background: #000; display: block; }}
figcaption, table {{ color: #a1a1aa; font-size: 13px; }} td, th {{ padding: 0 1rem 0 0; text-align: left; }}
.blind figcaption, .blind table, .blind h1 {{ display: none; }} .votes {{ display: none; }} .blind .votes {{ display: block; }}
.chosen {{ background: #2563eb; }}
</style></head><body><header>
<button id="play">play</button> <button id="back">-1 frame</button> <button id="on">+1 frame</button>
<select id="rate"><option>0.25</option><option>0.5</option><option selected>1</option><option>2</option></select> x
<button id="blind">hide which is which</button> <span id="tally"></span></header>
<h1>{title}</h1>{table}
{pairs}
<script>
const rate = document.getElementById("rate"), FRAME = {frame};
const pairs = [...document.querySelectorAll(".pair")].map(box => [...box.querySelectorAll("video")]);
const every = pairs.flat();
function together(pair) {{
  const [first, second] = pair;
  function follow() {{ if (Math.abs(second.currentTime - first.currentTime) > FRAME / 2) second.currentTime = first.currentTime; }}
  for (const name of ["seeked", "timeupdate"]) first.addEventListener(name, follow);
  first.addEventListener("play", () => {{ second.play(); }});
  first.addEventListener("pause", () => {{ second.pause(); follow(); }});
  for (const one of pair) one.addEventListener("click", () => {{ if (first.paused) first.play(); else first.pause(); }});
}}
pairs.forEach(together);
const play = document.getElementById("play");
play.onclick = () => {{
  const start = play.textContent === "play";
  play.textContent = start ? "pause" : "play";
  for (const [first] of pairs) if (start) first.play(); else first.pause();
}};
function step(frames) {{
  for (const one of every) {{
    one.pause();
    one.currentTime = Math.min(Math.max(0, one.currentTime + frames * FRAME), one.duration || 0);
  }}
  play.textContent = "play";
}}
document.getElementById("back").onclick = () => step(-1);
document.getElementById("on").onclick = () => step(1);
rate.onchange = () => {{ for (const one of every) one.playbackRate = Number(rate.value); }};
const blind = document.getElementById("blind"), tally = document.getElementById("tally");
blind.onclick = () => {{
  const hides = document.body.classList.toggle("blind");
  blind.textContent = hides ? "show which is which" : "hide which is which";
  if (hides) {{
    for (const box of document.querySelectorAll(".pair")) box.classList.toggle("swapped", Math.random() < 0.5);
    for (const one of document.querySelectorAll(".chosen")) one.classList.remove("chosen");
    tally.textContent = "";
  }} else {{
    const counts = {{ A: 0, same: 0, B: 0 }};
    for (const box of document.querySelectorAll("article")) {{
      const vote = box.querySelector(".chosen"), swapped = box.querySelector(".pair").classList.contains("swapped");
      if (vote) counts[vote.value === "same" ? "same" : (vote.value === "left") !== swapped ? "A" : "B"]++;
    }}
    tally.textContent = `A better: ${{counts.A}}, same: ${{counts.same}}, B better: ${{counts.B}}`;
  }}
}};
for (const box of document.querySelectorAll(".votes")) box.addEventListener("click", event => {{
  if (event.target.value === undefined) return;
  for (const one of box.children) one.classList.toggle("chosen", one === event.target);
}});
</script></body></html>
"""
_PAIR = """<article><p>{prompt}</p><div class="pair"><figure><video src="{a}" loop muted playsinline preload="auto"></video>
<figcaption>A: {name}</figcaption></figure><figure><video src="{b}" loop muted playsinline preload="auto"></video>
<figcaption>B: {name}</figcaption></figure></div>
<p class="votes"><button value="left">left is better</button> <button value="same">same</button>
<button value="right">right is better</button></p></article>"""


def write(
    path: Path,
    pairs: Sequence[tuple[Sample, Sample]],
    folders: tuple[Path, Path],
    means: tuple[Mapping[str, float], Mapping[str, float]],
    fps: float,
) -> None:
    """Writes the page. pairs: samples of A and B. means: their measures, for the table. fps: sets the length of a step.

    Videos are named relative to the page, so the three folders move together.
    """
    rows = [
        f"<tr><td>{html.escape(name)}</td>{''.join(_cell(one.get(name)) for one in means)}</tr>"
        for name in dict.fromkeys((*means[0], *means[1]))
    ]
    head = "".join(f"<th>{mark}: {html.escape(str(folder))}</th>" for mark, folder in zip("AB", folders, strict=True))
    body = [
        _PAIR.format(
            prompt=html.escape(a.prompt or b.prompt or ""),
            name=html.escape(a.name),
            a=_address(a.file, path.parent),
            b=_address(b.file, path.parent),
        )
        for a, b in pairs
    ]
    title = " and ".join(html.escape(folder.resolve().name) for folder in folders)
    table = f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, _PAGE.format(title=title, table=table, pairs="\n".join(body), frame=1 / fps))


def _cell(value: float | None) -> str:
    return "<td></td>" if value is None else f"<td>{value:.4g}</td>"


def _address(file: Path, folder: Path) -> str:
    """Address of a file from a page in `folder`."""
    relative = os.path.relpath(file.resolve(), folder.resolve())
    return html.escape(urllib.parse.quote(relative.replace(os.sep, "/")))
