"""Prompts and their features, as `T2VPipeline` makes them, for the diffusers pipeline."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from mindspeed_mm.sampling.prompts import compose
from mindspeed_mm.types import TextFeatures

_T5_LENGTH = 512  # tokens of a text


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """Settings of an inference JSON that are neither weights nor the scheduler's: how prompts are read, and defaults."""

    version: str = "v1.5"  # of the prompt template
    use_prompt_template: bool = True
    use_prompt_preprocess: bool = True
    clean_caption: bool = True
    support_chinese: bool = False
    negative_prompt: str = ""  # added to the template's
    use_attention_mask: bool = True  # of T5
    num_frames: int = 121
    height: int = 576
    width: int = 1024
    num_inference_steps: int = 50
    guidance_scale: float = 4.5
    guidance_rescale: float = 0.7
    use_linear_quadratic_schedule: bool = False  # with a scheduler of shift 1

    def composed(self, prompts: list[str], negatives: list[str]) -> tuple[list[str], list[str]]:
        """Prompts and negative prompts after template and cleaning."""
        texts = [
            compose(
                prompt,
                self.version,
                negative,
                template=self.use_prompt_template,
                preprocess=self.use_prompt_preprocess,
                clean=self.clean_caption,
                keep_cjk=self.support_chinese,
            )
            for prompt, negative in zip(prompts, negatives, strict=True)
        ]
        return [text.positive for text in texts], [text.negative for text in texts]


class EncodesPrompts:
    """The text side of the pipeline."""

    defaults: SamplingDefaults
    tokenizer: Any
    text_encoder: Any
    tokenizer_2: Any
    text_encoder_2: Any
    _execution_device: Any  # diffusers' property

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        device: torch.device | None = None,
    ) -> tuple[Tensor | None, ...]:
        """Features of prompts after template and cleaning: T5's sequence [B,L,D], its mask [B,L] and CLIP's pooled [B,P],
        then the same three for the negative prompts (None without guidance).

        negative_prompt: added to the template's; default: the settings'.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negative = self.defaults.negative_prompt if negative_prompt is None else negative_prompt
        negatives = len(prompts) * [negative] if isinstance(negative, str) else list(negative)
        if len(negatives) != len(prompts):
            raise ValueError(f"negative_prompt has {len(negatives)} texts, prompt {len(prompts)}")
        device = self._execution_device if device is None else device
        wanted, unwanted = self.defaults.composed(prompts, negatives)
        found = [self._encode(texts, device) for texts in (wanted, unwanted)[: 1 + do_classifier_free_guidance]]
        features = [value for part in found for value in repeated(part, num_videos_per_prompt).tensors()]
        return (*features, *[None] * (6 - len(features)))

    def _encode(self, texts: list[str], device: Any) -> TextFeatures:
        """One text at a time, so that features do not depend on the batch."""
        seen: dict[str, TextFeatures] = {}
        for text in dict.fromkeys(texts):
            first = _tokens(self.tokenizer, text, _T5_LENGTH).to(device)
            second = _tokens(self.tokenizer_2, text, self.tokenizer_2.model_max_length).to(device)
            mask = first.attention_mask if self.defaults.use_attention_mask else None
            sequence = self.text_encoder(input_ids=first.input_ids, attention_mask=mask)[0]
            pooled = self.text_encoder_2(input_ids=second.input_ids).text_embeds
            seen[text] = TextFeatures(sequence, first.attention_mask.bool(), pooled)
        return TextFeatures.concatenate([seen[text] for text in texts])


def repeated(features: TextFeatures, count: int) -> TextFeatures:
    """Each text `count` times, one after the other."""
    return features.map(lambda value: value.repeat_interleave(count, dim=0))


def _tokens(tokenizer: Any, text: str, length: int) -> Any:
    return tokenizer(
        [text],
        max_length=length,
        padding="max_length",
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
