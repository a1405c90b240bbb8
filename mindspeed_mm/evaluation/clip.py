"""CLIP score: how well the frames of a video fit its prompt, with a CLIP whose both halves lie in one folder."""

import importlib
from pathlib import Path

import torch
from torch import Tensor

from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.evaluation.samples import Video
from mindspeed_mm.sampling.sheets import pick

_FRAMES = 16  # of a video, evenly spread
_NETWORK, _PREPROCESSING = (
    "config.json",
    ("preprocessor_config.json", "processor_config.json"),
)  # the last: transformers 5


class Clip:
    """Both halves of a CLIP from a Hugging Face folder; nothing is downloaded."""

    def __init__(self, folder: str, device: torch.device):
        """Raises CheckpointError if the folder does not hold a text half, a picture half and their preprocessing."""
        transformers = importlib.import_module("transformers")  # by name: see models/text/encoders.py
        files = {path.name for path in Path(folder).iterdir()}
        if _NETWORK not in files or files.isdisjoint(_PREPROCESSING):
            raise CheckpointError(
                f"{folder}: needs {_NETWORK} and {_PREPROCESSING[0]}; --clip takes a Hugging Face folder of a whole CLIP, "
                "with the half that sees pictures and its preprocessing"
            )
        try:
            model, info = transformers.CLIPModel.from_pretrained(
                folder, local_files_only=True, output_loading_info=True, torch_dtype=torch.float32
            )
            self.processor = transformers.CLIPProcessor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers and its readers raise many kinds of errors for a bad folder
            raise CheckpointError(f"{folder}: CLIP cannot be loaded ({' '.join(str(error).split())[:200]})") from None
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise CheckpointError(
                f"{folder}: {len(missing)} weights of CLIP are missing, for example {missing[0]}; text encoders alone do "
                "not see pictures"
            )
        self.model = model.to(device).eval()
        self.device = device

    @torch.no_grad()
    def __call__(self, video: Video, prompt: str | None) -> dict[str, float]:
        """{"CLIP score": 100 x mean cosine of frames and prompt, "CLIP consistency": mean cosine of each frame and the next}.

        The first is left out without a prompt, the second for a single frame. At most 16 frames, evenly spread.
        """
        frames = [video.frames[number] for number in pick(len(video.frames), _FRAMES)]
        pixels = self.processor(images=frames, return_tensors="pt").to(self.device)
        pictures = _unit(self.model.get_image_features(**pixels))
        found = {}
        if prompt is not None:
            tokens = self.processor(text=[prompt], return_tensors="pt", truncation=True).to(self.device)
            text = _unit(self.model.get_text_features(**tokens))
            found["CLIP score"] = 100 * (pictures @ text[0]).mean().item()
        if len(pictures) > 1:
            found["CLIP consistency"] = (pictures[1:] * pictures[:-1]).sum(1).mean().item()
        return found


def _unit(features) -> Tensor:
    """Features of length 1. transformers 5 wraps them in an output, 4 gives the tensor."""
    features = features if isinstance(features, Tensor) else features.pooler_output
    return features / features.norm(dim=-1, keepdim=True)
