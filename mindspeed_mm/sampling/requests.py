"""Requests for samples: their inputs, their order and their batches."""

import dataclasses
from collections.abc import Sequence

from mindspeed_mm import logs
from mindspeed_mm.config import checks
from mindspeed_mm.config.run import LaunchConfig
from mindspeed_mm.config.sample import MAX_PIXELS, PromptConfig, SampleModelConfig
from mindspeed_mm.errors import ConfigError, DataError
from mindspeed_mm.sampling import images
from mindspeed_mm.sampling.prompts import Prompt, compose, warning
from mindspeed_mm.schema import Node

_log = logs.get(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One sample: all inputs that determine its pixels, except the weights.

    model: the inference JSON with this prompt's settings. address: (prompt index, sample index), which with the seed
    addresses its noise. name: name of its files, without the suffix.
    """

    model: SampleModelConfig
    seed: int
    address: tuple[int, int] = (0, 0)
    name: str = "sample"

    @property
    def texts(self) -> Prompt:
        """The prompt as the text encoders read it, after the config's template and cleaning."""
        model = self.model
        return compose(
            model.prompt,
            model.pipeline_config.version,
            model.negative_prompt,
            template=model.use_prompt_template,
            preprocess=model.use_prompt_preprocess,
            clean=model.clean_caption,
            keep_cjk=model.support_chinese,
        )

    @property
    def warning(self) -> str | None:
        """A line about a prompt that cleaning empties, such as a Chinese one; or None."""
        model = self.model
        return warning(
            model.prompt,
            preprocess=model.use_prompt_preprocess,
            clean=model.clean_caption,
            keep_cjk=model.support_chinese,
        )

    @property
    def guided(self) -> bool:
        return self.model.diffusion.guidance_scale > 1

    @property
    def is_image(self) -> bool:
        return self.model.pipeline_config.input_size[0] == 1

    @property
    def file(self) -> str:
        """File name of the video or image."""
        return f"{self.name}.{'png' if self.is_image else 'mp4'}"

    def alike(self, other: "Request") -> bool:
        """True if both requests fit in one batch."""
        return (
            self.model.pipeline_config.input_size == other.model.pipeline_config.input_size
            and self.model.diffusion == other.model.diffusion
        )


def requests_of(
    model: SampleModelConfig,
    lines: Sequence[PromptConfig],
    seed: int,
    launch: LaunchConfig,
    file: str = "",
    max_pixels: int = MAX_PIXELS,
) -> list[Request]:
    """`num_samples_per_prompt` requests for each line, in order. Raises ConfigError for a line that cannot be sampled.

    A line with its own seed uses the noise of (its seed, 0, sample index), wherever it stands in the file.
    """
    requests = []
    for index, line in enumerate(lines):
        place = Node(None, file, 0, f"prompt {index + 1}")
        try:
            settings = images.settings_of(model, line)
        except (ConfigError, DataError) as error:
            raise place.error(str(error)) from None
        checks.check_sample_size(settings, launch, place, max_pixels)
        if (text := Request(settings, seed).warning) is not None:
            _log.warning(f"prompt {index + 1}: {text}")
        for sample in range(model.num_samples_per_prompt):
            requests.append(
                Request(
                    model=settings,
                    seed=seed if line.seed is None else line.seed,
                    address=(index if line.seed is None else 0, sample),
                    name=_name(settings, index, sample),
                )
            )
    return requests


def batches(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Groups consecutive requests that are alike into batches of up to `size`.

    Finished samples stay in the batches, so that a resumed job computes the same batches as an unbroken one.
    """
    result: list[list[Request]] = []
    for request in requests:
        if result and len(result[-1]) < size and result[-1][0].alike(request):
            result[-1].append(request)
        else:
            result.append([request])
    return result


def _name(model: SampleModelConfig, index: int, sample: int) -> str:
    kind = "image" if model.pipeline_config.input_size[0] == 1 else "video"
    of_several = f"_i{sample:06d}" if model.num_samples_per_prompt > 1 else ""
    return f"{kind}_{index:06d}{of_several}"
