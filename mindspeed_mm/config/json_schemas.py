"""JSON Schemas of the files that the programs read, in both published dialects."""

import dataclasses
from collections.abc import Callable, Mapping

from mindspeed_mm import families
from mindspeed_mm.config import data, sample, transforms
from mindspeed_mm.config.kinds import KINDS
from mindspeed_mm.config.model import TextEncoderConfig, TokenizerConfig, TrainModelConfig
from mindspeed_mm.families.base import DTYPES, Family
from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.schema.fields import facts_of
from mindspeed_mm.schema.json_schema import Schema, Spellings, Writer

NAMES = tuple(kind.name for kind in KINDS)


def schema(name: str) -> Schema:
    """The schema of a kind of file, see `NAMES`."""
    kind = next(kind for kind in KINDS if kind.name == name)
    return Writer(_READERS, _DIALECTS).file(kind.config, f"{name} JSON of Open-Sora Plan v1.5")


def _network(table: Mapping[str, Family]) -> Callable[[Writer], Schema]:
    """A block of one of the families."""

    def block(writer: Writer) -> Schema:
        found = [writer.object(family.config) for family in table.values()]
        return found[0] if len(found) == 1 else {"anyOf": found}

    return block


def _transforms(writer: Writer) -> Schema:
    """The list of a train_pipeline."""
    entries = []
    for name, cls in transforms.TRANSFORMS.items():
        needs = any(field.default is dataclasses.MISSING for field in dataclasses.fields(cls))
        entry = {"trans_type": {"const": name}, "param": writer.object(cls)}
        required = ["trans_type", *(["param"] if needs else [])]
        entries.append({"type": "object", "properties": entry, "required": required, "additionalProperties": False})
    return {"type": "array", "items": {"anyOf": entries}}


def _one_or_two(cls: type) -> Callable[[Writer], Schema]:
    """An object, or MindSpeed-MM's list of one for T5 and one for CLIP."""

    def either(writer: Writer) -> Schema:
        one = writer.object(cls)
        second = {"anyOf": [one, {"type": "null"}]}
        return {"anyOf": [one, {"type": "array", "prefixItems": [one, second], "minItems": 1, "maxItems": 2}]}

    return either


def _more_choices(cls: type, key: str, *more: str) -> Schema:
    """A key of a dataclass with choices of another dialect as well."""
    field = next(field for field in dataclasses.fields(cls) if field.name == key)
    return {key: {"enum": [*facts_of(field).choices, *more], "default": field.default}}


def _sized(*keys: str) -> Spellings:
    """`transform_size` of MindSpeed-MM, instead of the size or the number of pixels."""
    side = {"type": "integer", "minimum": 1, "maximum": 2**16 if len(keys) == 2 else 2**31 - 1}
    size = {"type": "object", "properties": dict.fromkeys(keys, side), "required": list(keys)}
    return Spellings({"transform_size": size}, {"size" if len(keys) == 2 else "max_hxw": "transform_size"})


def _model(writer: Writer) -> Spellings:
    return Spellings({"text_encoder": _one_or_two(TextEncoderConfig)(writer)})


def _sample(writer: Writer) -> Spellings:
    pairs = {"text_encoder": TextEncoderConfig, "tokenizer": TokenizerConfig}
    found = {key: _one_or_two(cls)(writer) for key, cls in pairs.items()}
    return Spellings({**found, "dtype": {"enum": list(DTYPES)}})


def _dataset(writer: Writer) -> Spellings:
    """In MindSpeed-MM's list the first tokenizer's length is that of the captions, which is never null."""
    one = writer.object(TokenizerConfig)
    first = {"allOf": [one, {"properties": {"model_max_length": {"type": "integer"}}}]}
    two = {"type": "array", "prefixItems": [first, {"anyOf": [one, {"type": "null"}]}], "minItems": 1, "maxItems": 2}
    return Spellings({"tokenizer_config": {"anyOf": [one, two]}, "use_text_processer": {"const": True}})


def _denoiser(writer: Writer) -> Spellings:
    side = {"type": "integer", "minimum": 1, "maximum": 64}
    sizes = {"type": "array", "items": side, "minItems": 3, "maxItems": 3}
    return Spellings({"patch_size_thw": sizes, **_more_choices(SparseUMMDiTConfig, "norm_cls", "fp32_layer_norm")})


def _autoencoder(writer: Writer) -> Spellings:
    return Spellings({"statistics": {"type": "string"}, **_more_choices(WFVAEConfig, "norm_type", "aelayernorm")})


_READERS = {
    families.read_denoiser: _network(families.DENOISERS),
    families.read_autoencoder: _network(families.AUTOENCODERS),
    transforms.read_transforms: _transforms,
    data.read_video_reader: lambda writer: {"enum": [*data.VIDEO_READERS, *data.OLD_VIDEO_READERS]},
}
_ASPECT = {
    "anyOf": [{"type": "number", "minimum": 1, "maximum": 1e6}, {"enum": [None, 0]}]
}  # 0: MindSpeed-MM's default
_DIALECTS: Mapping[type, Callable[[Writer], Spellings]] = {
    TrainModelConfig: _model,
    sample.SampleModelConfig: _sample,
    sample.PipelineConfig: lambda writer: Spellings({"use_attention_mask": {"const": True}}),
    data.DatasetConfig: _dataset,
    data.PreprocessConfig: lambda writer: Spellings({"hw_aspect_thr": _ASPECT}),
    data.LoaderConfig: lambda writer: Spellings(
        {"group_frame": {"const": False}, "group_resolution": {"const": False}}
    ),
    transforms.CenterCropResizeVideo: lambda writer: _sized("max_height", "max_width"),
    transforms.LongSideResizeVideo: lambda writer: _sized("max_height", "max_width"),
    transforms.MaxHWResizeVideo: lambda writer: _sized("max_hxw"),
    transforms.MaxHWStrideResizeVideo: lambda writer: _sized("max_hxw"),
    SparseUMMDiTConfig: _denoiser,
    WFVAEConfig: _autoencoder,
}
