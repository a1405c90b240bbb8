"""Turns texts into token ids with the Hugging Face tokenizer of a local folder. Imports `transformers` on first use."""

import importlib
from collections.abc import Sequence
from pathlib import Path

import torch

from mindspeed_mm.config.model import TokenizerConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.types import TokenIds


class Tokenizer:
    """Fixed-length token ids of texts; see `load_tokenizer`. Can be pickled for worker processes."""

    def __init__(self, backend, max_length: int, folder: str = ""):
        """folder: where it was loaded from, for messages."""
        self._backend = backend
        self.max_length = max_length
        self.folder = folder

    @property
    def size(self) -> int:
        """Size of the vocabulary, with added tokens."""
        return len(self._backend)

    @property
    def end(self) -> int | None:
        """Id of the token that ends a text."""
        return self._backend.eos_token_id

    @property
    def padding(self) -> int:
        """Id of the padding token."""
        return self._backend.pad_token_id

    def __call__(self, texts: Sequence[str]) -> TokenIds:
        """ids and keep [B, max_length]: adds special tokens, cuts or pads at the end. "" keeps its special tokens."""
        tokens = self._backend(
            list(texts),
            max_length=self.max_length,
            padding="max_length",
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return TokenIds(tokens["input_ids"].to(torch.int64), tokens["attention_mask"].bool())


def load_tokenizer(config: TokenizerConfig, key: str, max_length: int | None = None) -> Tokenizer:
    """Loads the tokenizer in the folder `config.from_pretrained`.

    key: path of the config in its JSON, for messages. max_length: tokens per text; None takes the config's
    model_max_length, or else the folder's own (77 for CLIP).
    """
    folder = Path(config.from_pretrained)
    if not folder.is_dir():
        raise ConfigError(
            f"{key}.from_pretrained: folder {folder} does not exist; it must hold a Hugging Face tokenizer"
        )
    # Imported here, because it takes seconds and most tests of this folder do not need it; by name, as its class is, so that
    # a type checker does not read the 3,000 files of the package.
    transformers = importlib.import_module("transformers")
    try:
        backend = getattr(transformers, config.autotokenizer_name).from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises OSError, ValueError, ImportError, KeyError ... for a bad folder
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{key}.from_pretrained: {config.autotokenizer_name} cannot load {folder}: {type(error).__name__}: {reason} "
            "(a folder that holds spiece.model only needs the packages sentencepiece and protobuf)"
        ) from None
    length = max_length or config.model_max_length or backend.model_max_length
    if length > 1_000_000:  # transformers' value if the folder states none
        raise ConfigError(f"{key}.model_max_length: give it; tokenizer_config.json in {folder} does not state one")
    if backend.pad_token is None:
        raise ConfigError(f"{key}.from_pretrained: the tokenizer in {folder} has no padding token")
    return Tokenizer(backend, length, str(folder))
