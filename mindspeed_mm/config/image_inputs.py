"""Files that a sample starts from: images, and clips to extend or to paint in."""

import dataclasses
from collections.abc import Iterator

from mindspeed_mm.schema import flag, option


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FrameInput:
    """An item of `frames`: the image of one frame."""

    at: int = option(at_least=0, at_most=2**20)  # number of the frame, from 0
    image: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImageInputs:
    """Images and clips that a sample starts from; the keys of a prompt, and flags of `mindspeed-mm sample`."""

    image: str | None = flag(
        None, "--image", metavar="FILE", help="image of the first frame; the sample takes its aspect ratio"
    )
    last_image: str | None = flag(None, "--last-image", metavar="FILE", help="image of the last frame")
    frames: tuple[FrameInput, ...] = ()  # images of any frames: {"at": 8, "image": "b.png"}
    extend: str | None = flag(
        None, "--extend", metavar="CLIP", help="clip to extend: its last frames are the first frames of the sample"
    )
    extend_frames: int | None = flag(
        None,
        "--extend-frames",
        at_least=1,
        at_most=2**20,
        help="number of frames taken from --extend, best 8n+1; default: about half of the sample's",
    )
    inpaint: str | None = flag(
        None, "--inpaint", metavar="CLIP", help="clip of which a region is made anew, see --mask"
    )
    mask: str | None = flag(None, "--mask", metavar="FILE", help="image that is white where --inpaint is made anew")

    @property
    def files(self) -> dict[str, str]:
        """Every file, by its key."""
        single = {name: getattr(self, name) for name in ("image", "last_image", "extend", "inpaint", "mask")}
        several = {f"frames {item.at}": item.image for item in self.frames}
        return {name: file for name, file in {**single, **several}.items() if file is not None}

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.extend is not None and self.image is not None:
            yield "extend", "and image: both give the first frame; leave one out"
        if self.extend_frames is not None and self.extend is None:
            yield "extend_frames", f"{self.extend_frames}: only with extend, the clip they are taken from"
        if (self.inpaint is None) != (self.mask is None):
            yield "inpaint", "and mask: give both, the clip and the image that is white where it is made anew"
        if self.inpaint is not None and len(self.files) > 2:
            yield "inpaint", "gives all frames; leave image, last_image, frames and extend out"
        numbers = [item.at for item in self.frames]
        if len(set(numbers)) < len(numbers):
            yield "frames", f"{numbers}: a frame is given twice"
