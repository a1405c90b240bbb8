"""Images that a video starts from or ends with, for the diffusers pipeline: what `T2VPipeline` makes of them."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from mindspeed_mm.config.geometry import size_like
from mindspeed_mm.data.decode.transforms import covering
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.models.image_conditions import as_seen, latent_mask
from mindspeed_mm.types import ImageFeatures

Images = list[np.ndarray]  # uint8 [H,W,3], one for each prompt


class TakesImages:
    """The image side of the pipeline."""

    transformer: Any
    vae: Any
    _execution_device: Any  # diffusers' property

    def _images(self, name: str, given: Any, prompts: int) -> Images | None:
        """The images of an argument. Raises ConfigError or ValueError for what cannot be used."""
        if given is None:
            return None
        if not self.transformer.config.image_mask_channels:
            raise ConfigError(
                f"{name}: the transformer takes no images (image_mask_channels 0); use a model that was trained with "
                "image_conditions"
            )
        found = [_pixels(name, one) for one in (given if isinstance(given, list) else prompts * [given])]
        if len(found) != prompts:
            raise ValueError(f"{name}: {len(found)} images for {prompts} prompts; give one for each, or one for all")
        return found

    def _size_like(self, images: list[Images | None], height: int, width: int) -> tuple[int, int]:
        """(height, width) of the first image's aspect ratio, and about as many pixels as height x width."""
        shown = next((found[0].shape for found in images if found is not None), None)
        if shown is None:
            return height, width
        units = [stride * self.transformer.config.patch_size for stride in self.vae.settings.strides[1:]]
        return size_like((shown[0], shown[1]), height * width, (units[0], units[1]))

    @torch.no_grad()
    def encode_images(
        self, first: Images | None, last: Images | None, extent: tuple[int, int, int], num_videos_per_prompt: int = 1
    ) -> ImageFeatures | None:
        """Known latents and their mask [N,...] of videos of `extent` (frames, height, width) in pixels.

        first, last: the known first and last frames, one image for each prompt.
        """
        count = len(first or last or ())
        if not count:
            return None
        video, pixels = torch.zeros(count, 3, *extent), torch.zeros(count, *extent)
        for place, images in ((0, first), (extent[0] - 1, last)):
            for number, image in enumerate(images or ()):
                frame = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
                video[number, :, place] = covering(frame, extent[1:])[0]
                pixels[number, place] = 1.0
        video = video.to(self._execution_device, self.vae.dtype)
        pixels = pixels.to(video)
        mean = self.vae.encode(video * pixels[:, None], return_dict=False)[0].mean
        said, count = self.vae.config, mean.shape[1]
        shift, scale = (
            torch.tensor(values).to(mean).view(1, -1, 1, 1, 1)
            for values in (said.shift or count * (0.0,), said.scale or count * (1.0,))
        )
        found = as_seen((mean - shift) * scale, latent_mask(pixels, self.vae.settings.strides))
        return found.map(lambda value: value.repeat_interleave(num_videos_per_prompt, dim=0))


def _pixels(name: str, given: Any) -> np.ndarray:
    """uint8 [H,W,3] of a PIL image, or of such an array."""
    found = np.asarray(given.convert("RGB")) if isinstance(given, Image.Image) else given
    if not isinstance(found, np.ndarray) or found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3:
        shown = f"{found.dtype} {list(found.shape)}" if hasattr(found, "dtype") else type(found).__name__
        raise ValueError(f"{name}: {shown}; give PIL images or arrays uint8 [H,W,3]")
    return found
