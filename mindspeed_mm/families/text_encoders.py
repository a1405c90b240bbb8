"""The kinds of frozen text encoders, without tensors. To add one, add a row."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class TextEncoderFamily:
    """Facts about a kind of text encoder of Hugging Face transformers."""

    transformers_class: str
    model_types: tuple[str, ...]  # values of `model_type` in its config.json; the first one if there is none
    pooled: bool = False  # True: one vector of a text, False: one of each token

    @property
    def is_clip(self) -> bool:
        """True for CLIP's text tower, whose config.json has other keys and which reads a fixed number of tokens."""
        return "clip" in self.model_types


_T5, _CLIP = ("t5", "mt5"), ("clip", "clip_text_model")
TEXT_ENCODERS = {
    "T5": TextEncoderFamily("T5EncoderModel", _T5),
    "MT5": TextEncoderFamily("MT5EncoderModel", _T5),
    "CLIP": TextEncoderFamily("CLIPTextModel", _CLIP),
    "CLIPWithProjection": TextEncoderFamily("CLIPTextModelWithProjection", _CLIP, pooled=True),
}
