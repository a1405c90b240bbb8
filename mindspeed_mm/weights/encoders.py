"""Checks weights of text encoders in a Hugging Face folder before transformers reads them."""

from pathlib import Path

from mindspeed_mm import families
from mindspeed_mm.config.encoders import encoder_facts
from mindspeed_mm.config.model import TextEncoderConfig, TrainModelConfig
from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.data.text.tokens import Tokenizer
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import safetensors_file, torch_state

_ADAPTER = "adapter_config.json"


def check_widths(model: TrainModelConfig | SampleModelConfig) -> None:
    """Raises ConfigError unless the folders hold the right kinds of encoders, with the widths that the denoiser needs."""
    for key, (name, width) in families.of_denoiser(model.predictor).text_widths(model.predictor).items():
        encoder_facts(getattr(model, key), key).check_width(width, name)


def check_encoders(
    model: TrainModelConfig | SampleModelConfig, tokenizers: tuple[Tokenizer, Tokenizer | None], keys: tuple[str, str]
) -> None:
    """Raises ConfigError or CheckpointError unless the encoders are complete and fit the tokenizers.

    keys: of the tokenizers in their JSON.
    """
    _check_encoder(model.text_encoder, "text_encoder", tokenizers[0], keys[0])
    if model.text_encoder_2 is not None and tokenizers[1] is not None:
        _check_encoder(model.text_encoder_2, "text_encoder_2", tokenizers[1], keys[1])


def _check_encoder(config: TextEncoderConfig, key: str, tokenizer: Tokenizer, tokenizer_key: str) -> None:
    """Raises ConfigError or CheckpointError unless the folder holds complete weights that fit the tokenizer.

    Only tensors are read from pickles; every value of a .bin file is compared with its checksum.
    """
    facts = encoder_facts(config, key)
    facts.check_tokens(
        tokenizer_key, tokenizer.folder, tokenizer.size, tokenizer.max_length, tokenizer.end, tokenizer.padding
    )
    folder = Path(config.from_pretrained)
    if (folder / _ADAPTER).exists():
        raise CheckpointError(
            f"{key}.from_pretrained: {folder / _ADAPTER}: an adapter would change the encoder; remove it"
        )
    found = sorted(folder.glob("model*.safetensors"))
    read = safetensors_file.read
    if not found:
        found, read = sorted(folder.glob("pytorch_model*.bin")), torch_state.load
    if not found:
        raise CheckpointError(f"{key}.from_pretrained: {folder}: holds no model.safetensors and no pytorch_model.bin")
    for path in found:
        try:
            read(path)
        except CheckpointError as error:
            raise CheckpointError(f"{key}.from_pretrained: {error}") from None
