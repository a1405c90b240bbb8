"""VBench's file layout: PROMPT-N.mp4, and the info JSON that its evaluation reads."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mindspeed_mm import atomic
from mindspeed_mm.evaluation.samples import Sample

# The dimensions that VBench measures on prompts of one's own; the others need its own prompts and their facts.
DIMENSIONS = (
    *("subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness"),
    *("dynamic_degree", "aesthetic_quality", "imaging_quality"),
)
_LONGEST = 230  # bytes of a file name; file systems take 255, and a temporary name is longer


def write(samples: Sequence[Sample], folder: Path) -> Path:
    """Writes `videos/`, `full_info.json` and `prompts.json` to a folder; returns the info.

    full_info.json: what VBench's measures read, {prompt_en, dimension, video_list} for each prompt. prompts.json: file name
    -> prompt, the `--prompt_file` of its mode `custom_input`.

    A video is a hard link of the sample's file, or a copy on another disk. A prompt that cannot be a file name (a slash,
    over 230 bytes) and a missing prompt give way to the sample's own name; both JSONs have the prompt.
    """
    videos = folder / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    entries: dict[str, dict] = {}
    prompts: dict[str, str] = {}
    for sample in samples:
        prompt = sample.prompt if sample.prompt is not None else sample.name
        name = _file_name(prompt, counts[prompt], sample)
        counts[prompt] += 1
        _place(sample.file, videos / name)
        entry = entries.setdefault(prompt, {"prompt_en": prompt, "dimension": list(DIMENSIONS), "video_list": []})
        entry["video_list"].append(str((videos / name).resolve()))
        prompts[name] = prompt
    atomic.write_text(folder / "prompts.json", json.dumps(prompts, indent=1, ensure_ascii=False) + "\n")
    info = folder / "full_info.json"
    atomic.write_text(info, json.dumps(list(entries.values()), indent=1, ensure_ascii=False) + "\n")
    return info


def _file_name(prompt: str, number: int, sample: Sample) -> str:
    name = f"{prompt}-{number}{sample.file.suffix}"
    fits = "/" not in name and "\0" not in name and len(name.encode("utf-8", "replace")) <= _LONGEST
    return name if fits and prompt else f"{sample.name}-{number}{sample.file.suffix}"


def _place(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        with atomic.replacing_path(target) as temporary:
            shutil.copyfile(source, temporary)
