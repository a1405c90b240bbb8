"""The form, its progress and its history, in Gradio. Pictures are inline, videos are the server's files.

Gradio's file cache is not used.
"""

import base64
import html
import io
from collections.abc import Iterator

import gradio as gr
import numpy as np
from PIL import Image

from mindspeed_mm.config.sample import ServeConfig
from mindspeed_mm.errors import ConfigError, MMError
from mindspeed_mm.serving import limits
from mindspeed_mm.web.studio import Done, Progress, Studio

_HISTORY = 24
CSS = """
#status progress { width: 100%; height: 1rem; }
#status img, #result video, #result img { width: 100%; border-radius: .5rem; background: #000; }
#status img { filter: saturate(.9); }
.failed { color: #dc2626; font-weight: 600; }
.facts { opacity: .7; font-size: .85rem; }
.history { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1rem; }
.history video, .history img { width: 100%; border-radius: .5rem; background: #000; }
.history figure { margin: 0; } .history figcaption { font-size: .85rem; }
"""


def build_page(studio: Studio, config: ServeConfig) -> gr.Blocks:
    """The page. `config.max_queue` requests may wait while one is processed."""
    model = config.sample.model
    frames, height, width = model.pipeline_config.input_size
    with gr.Blocks(title="Open-Sora Plan v1.5", analytics_enabled=False) as page:
        gr.Markdown("# Open-Sora Plan v1.5")
        with gr.Row():
            with gr.Column(scale=2):
                most = limits.MAX_CHARACTERS
                prompt = gr.Textbox(label="Prompt", lines=3, max_length=most, elem_id="prompt")
                negative = gr.Textbox(label="Negative prompt", lines=2, max_length=most, value=model.negative_prompt)
                with gr.Row():
                    steps = _number("Steps", model.diffusion.num_inference_steps, limits.STEPS)
                    guidance = _number("Guidance", model.diffusion.guidance_scale, limits.GUIDANCE)
                    seed = _number("Seed (empty: any)", None, limits.SEED)
                with gr.Row():
                    size = [
                        _number("Frames", frames, limits.FRAMES),
                        _number("Height", height, limits.HEIGHT),
                        _number("Width", width, limits.WIDTH),
                    ]
                with gr.Row():
                    sample = gr.Button("Sample", variant="primary", elem_id="sample")
                    stop = gr.Button("Stop", elem_id="stop")
            with gr.Column(scale=3):
                status = gr.HTML("", elem_id="status")
                result = gr.HTML("", elem_id="result")
        gr.Markdown("## History")
        history = gr.HTML("", elem_id="history")

        def make(visit: gr.Request, *values) -> Iterator[tuple]:
            yield from _make(studio, visit.session_hash or "", values)

        def stop_it(visit: gr.Request) -> None:
            studio.stop(visit.session_hash or "")

        inputs = [prompt, negative, steps, guidance, seed, *size]
        outputs = [status, result, history]
        work = gr.on(
            [sample.click, prompt.submit], make, inputs, outputs, concurrency_limit=1, show_progress="hidden",
            api_visibility="private", trigger_mode="once",
        )  # fmt: skip
        # After a cancel Gradio requests no further step; `stop_it` ends the current one.
        stop.click(stop_it, None, None, queue=False, api_visibility="private")
        # Shown only after the server has stopped: earlier updates would arrive later and stay visible.
        stop.click(None, cancels=[work]).then(
            lambda: "<p>Stopped.</p>", None, status, queue=False, api_visibility="private"
        )
        # Not queued: Gradio closes a visit's event stream when this ends, and would lose a simultaneous click.
        page.load(
            lambda: _history(studio), None, history, queue=False, show_progress="hidden", api_visibility="private"
        )
    return page.queue(max_size=config.max_queue, api_open=False)


def _number(label: str, value: float | None, range: limits.Range) -> gr.Number:
    field = gr.Number(
        value, label=label, precision=0 if range.whole else None, minimum=range.least, maximum=range.most,
        min_width=80, elem_id=range.name,
    )  # fmt: skip
    # The browser keeps the range by itself; `limits.line_of` checks values that other programs send.
    field.preprocess = lambda payload: payload
    return field


def _make(studio: Studio, owner: str, values: tuple) -> Iterator[tuple]:
    """Content of the three panels (status, result, history) from the click to the video. values: of the form, as sent."""
    unchanged = gr.skip()
    try:
        line = limits.line_of(*values)
    except ConfigError as error:
        yield _said(error), unchanged, unchanged
        return
    yield "<p>Reading the prompt ...</p>", "", unchanged
    picture = ""
    work = studio.make(line, owner)
    try:
        for news in work:
            if isinstance(news, Progress):
                picture = _inline(news.preview) if news.preview is not None else picture
                yield _progress(news) + picture, unchanged, unchanged
            elif isinstance(news, Done):
                warning = "" if news.warning is None else _said(news.warning)
                yield warning, _figure(news.entry, autoplay=True), _history(studio)
    except MMError as error:
        yield _said(error), unchanged, unchanged
    finally:
        work.close()


def _said(fault: MMError | str) -> str:
    return f'<p class="failed" role="alert">{escape(str(fault))}</p>'


def _progress(news: Progress) -> str:
    left = news.elapsed_s / news.number * (news.total - news.number)
    then = f"about {left:.0f} s left" if news.number < news.total else "decoding ..."
    return (
        f'<progress value="{news.number}" max="{news.total}"></progress>'
        f"<p>Step {news.number} of {news.total}, {news.elapsed_s:.1f} s, {then}</p>"
    )


def _inline(frame: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="JPEG", quality=85)
    code = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="preview of the first frame" src="data:image/jpeg;base64,{code}">'


def _history(studio: Studio) -> str:
    entries = studio.history(_HISTORY)
    return f'<div class="history">{"".join(_figure(entry) for entry in entries)}</div>'


def _figure(entry: dict, autoplay: bool = False) -> str:
    """A sample with its settings."""
    sample = entry["sample"]
    settings = sample["settings"]
    frames, height, width = settings["pipeline_config"]["input_size"]
    source = f"samples/{entry['file']}"
    if entry["file"].endswith(".png"):
        media = f'<img src="{source}" alt="">'
    else:
        media = f'<video src="{source}" controls loop muted playsinline {"autoplay" if autoplay else ""}></video>'
    diffusion = settings["diffusion"]
    facts = (
        f"seed {sample['seed']}, {frames} x {height} x {width}, {diffusion['num_inference_steps']} steps, "
        f"guidance {diffusion['guidance_scale']:g}, {entry['timing']['denoise_s']:.1f} s"
    )
    links = f'<a href="{source}" download>file</a>, <a href="samples/{entry["name"]}.json">settings</a>'
    text = f'{escape(sample["prompt"])}<br><span class="facts">{facts}, {links}</span>'
    return f"<figure>{media}<figcaption>{text}</figcaption></figure>"


def escape(text: str) -> str:
    """Escapes text for HTML; Gradio's template marks are escaped too."""
    return html.escape(text).replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")
