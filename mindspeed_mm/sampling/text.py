"""Encodes prompts: each text is encoded once, and its features are kept on the host.

Texts are encoded one by one, so that features do not depend on other texts in a batch.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch

from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.data.text.tokens import Tokenizer, load_tokenizer
from mindspeed_mm.errors import SamplingError
from mindspeed_mm.models.text.encoders import TextEncoders
from mindspeed_mm.sampling.residence import Residence
from mindspeed_mm.types import TORCH_DTYPES, TextFeatures
from mindspeed_mm.weights.encoders import check_encoders, check_widths

_T5_LENGTH = 512  # fixed in the original, whatever model_max_length says


class PromptEncoder:
    """Turns composed texts into TextFeatures on the device. Keeps the features of the last `capacity` texts (None:
    all).
    """

    def __init__(
        self,
        encoders: TextEncoders,
        tokenizers: tuple[Tokenizer, Tokenizer | None],
        residence: Residence,
        capacity: int | None = None,
    ):
        self.encoders: TextEncoders | None = encoders.eval()
        self.tokenizers = tokenizers
        self.residence = residence
        self.capacity = capacity
        self.misses = 0  # texts encoded so far
        self._features: OrderedDict[str, TextFeatures] = OrderedDict()

    @classmethod
    def load(cls, config: SampleModelConfig, residence: Residence, capacity: int | None = None) -> "PromptEncoder":
        """Loads the encoders and tokenizers of an inference JSON."""
        check_widths(config)  # first: transformers reads the same files with less clear errors
        tokenizers = tokenizers_of(config)
        check_encoders(config, tokenizers, ("tokenizer", "tokenizer_2"))
        encoders = TextEncoders(config.text_encoder, config.text_encoder_2, TORCH_DTYPES[config.weight_dtype])
        return cls(encoders.to(residence.home), tokenizers, residence, capacity)

    def __call__(self, texts: Sequence[str]) -> TextFeatures:
        """Features [B,...] of the texts, in their order."""
        new = [text for text in dict.fromkeys(texts) if text not in self._features]
        if new:
            self._encode(new)
        for text in texts:
            self._features.move_to_end(text)
        features = TextFeatures.concatenate([self._features[text] for text in texts]).to(self.residence.device)
        while self.capacity is not None and len(self._features) > self.capacity:
            self._features.popitem(last=False)
        return features

    def leave(self) -> None:
        """Drops the encoders and their memory; features of encoded texts stay available."""
        self.encoders = None

    def _encode(self, texts: list[str]) -> None:
        if self.encoders is None:
            raise ValueError(f"the text encoders have left, and {texts[0][:60]!r} was not encoded before")
        with self.residence.using(self.encoders):
            for text in texts:
                tokens = (None if tokenizer is None else tokenizer([text]) for tokenizer in self.tokenizers)
                features = self.encoders(*(ids and ids.to(self.residence.device) for ids in tokens))
                _check_finite(text, features)
                self._features[text] = features.to("cpu")
                self.misses += 1


def tokenizers_of(config: SampleModelConfig) -> tuple[Tokenizer, Tokenizer | None]:
    """Tokenizers of T5 and CLIP (None without) of an inference JSON."""
    first = load_tokenizer(config.tokenizer, "tokenizer", _T5_LENGTH)
    return first, load_tokenizer(config.tokenizer_2, "tokenizer_2") if config.tokenizer_2 else None


def _check_finite(text: str, features: TextFeatures) -> None:
    for key, values in {"text_encoder": features.sequence, "text_encoder_2": features.pooled}.items():
        if values is not None and not torch.isfinite(values).all():
            raise SamplingError(
                f"{key}: its features of {text[:60]!r} are not finite; {values.dtype} may be too narrow for its "
                f"weights, try bf16 or fp32 ({key}.dtype)"
            )
