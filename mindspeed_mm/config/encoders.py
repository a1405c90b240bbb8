"""Facts about a frozen text encoder, read from its folder's config.json before any weights.

A wrong tokenizer or encoder gives features of other words, or fails in the middle of a batch. So vocabulary, length,
width and special tokens are compared at the start.
"""

import dataclasses
import json
import os

from mindspeed_mm.config.model import TextEncoderConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.text_encoders import TEXT_ENCODERS

_LARGEST = 2**24  # bytes of a config.json
_OLD_END = 2  # value for the last token in early CLIP files; its id is then the largest of all


@dataclasses.dataclass(frozen=True, slots=True)
class EncoderFacts:
    """Facts from an encoder's folder; `key` and `folder` are for messages."""

    key: str
    folder: str
    vocabulary: int
    width: int  # width of its features
    max_length: int | None  # tokens; None: any number
    end: int  # id of the token that ends a text
    padding: int | None  # None: any; tokens after the end of a text are ignored

    def check_width(self, wanted: int, name: str) -> None:
        """name: key in the predictor's block that gives the width `wanted`."""
        if self.width != wanted:
            raise ConfigError(
                f"{self.key}.from_pretrained: the features of {self.folder} are {self.width} wide, predictor.{name} is "
                f"{wanted}; give the encoder that the denoiser was trained with"
            )

    def check_tokens(self, key: str, folder: str, size: int, length: int, end: int | None, padding: int | None) -> None:
        """Raises ConfigError unless a tokenizer belongs to this encoder.

        size: of its vocabulary. length: tokens per text. end, padding: ids of these special tokens.
        """
        fit = f"{self.key} ({self.folder}) and {key} ({folder}) do not belong together"
        if size > self.vocabulary:
            raise ConfigError(f"{fit}: the encoder knows {self.vocabulary} tokens, the tokenizer has {size}")
        if self.max_length is not None and length > self.max_length:
            raise ConfigError(f"{fit}: the encoder reads {self.max_length} tokens, the tokenizer gives {length}")
        wanted = self.vocabulary - 1 if self.end == _OLD_END and self.padding is None else self.end
        if end != wanted:
            raise ConfigError(f"{fit}: the end of a text is token {wanted} for the encoder, {end} for the tokenizer")
        if self.padding not in (None, padding):
            raise ConfigError(f"{fit}: padding is token {self.padding} for the encoder, {padding} for the tokenizer")


def encoder_facts(config: TextEncoderConfig, key: str) -> EncoderFacts:
    """Reads the config.json of an encoder's folder. key: of the encoder in its JSON. ConfigError for an unsupported
    kind.
    """
    folder = config.from_pretrained
    said = _read(os.path.join(folder, "config.json"), key, config.model_id)
    kind = TEXT_ENCODERS[config.model_id]
    wanted = kind.model_types
    found = said.get("model_type", wanted[0])
    if found not in wanted:
        raise ConfigError(
            f"{key}.from_pretrained: {folder} is an encoder of type {found!r}; model_id {config.model_id} needs {wanted[0]!r}"
        )
    if not kind.is_clip:
        return EncoderFacts(
            key,
            folder,
            vocabulary=_number(said, "vocab_size", 32128, key, folder),
            width=_number(said, "d_model", 512, key, folder),
            max_length=None,
            end=_number(said, "eos_token_id", 1, key, folder),
            padding=_number(said, "pad_token_id", 0, key, folder),
        )
    text = said.get("text_config") if found == "clip" else said
    text = text if isinstance(text, dict) else {}
    return EncoderFacts(
        key,
        folder,
        vocabulary=_number(text, "vocab_size", 49408, key, folder),
        width=_number(text, "projection_dim" if kind.pooled else "hidden_size", 512, key, folder),
        max_length=_number(text, "max_position_embeddings", 77, key, folder),
        end=_number(text, "eos_token_id", 49407, key, folder),
        padding=None,
    )


def _read(path: str, key: str, kind: str) -> dict:
    if not os.path.isfile(path):
        raise ConfigError(
            f"{key}.from_pretrained: {path}: no such file; expected a Hugging Face folder with a {kind} encoder"
        )
    if os.path.getsize(path) > _LARGEST:
        raise ConfigError(f"{key}.from_pretrained: {path}: has {os.path.getsize(path)} bytes; it is no config")
    try:
        with open(path, encoding="utf-8") as file:
            said = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{key}.from_pretrained: {path}: is damaged ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(said, dict):
        raise ConfigError(
            f"{key}.from_pretrained: {path}: holds {type(said).__name__}, not the object of an encoder's config"
        )
    for name in ("auto_map", "quantization_config"):
        if name in said:
            raise ConfigError(
                f"{key}.from_pretrained: {path}: {name} asks for code or weights of another kind, which are not read; "
                f"use the plain {kind} encoder"
            )
    return said


def _number(said: dict, name: str, default: int, key: str, folder: str) -> int:
    value = said.get(name, default)
    if type(value) is not int or value < 0:
        raise ConfigError(
            f"{key}.from_pretrained: {folder}/config.json: {name} is {str(value)[:40]}, not a number of things"
        )
    return value
