"""The frozen text encoders, T5 and CLIP, from Hugging Face transformers."""

import contextlib
import importlib
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from mindspeed_mm.config.model import TextEncoderConfig
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.families.text_encoders import TEXT_ENCODERS
from mindspeed_mm.types import TORCH_DTYPES, TextFeatures, TokenIds


class TextEncoder(nn.Module):
    """One encoder: token ids -> [B,L,D] features, or [B,P] pooled ones for CLIPWithProjection."""

    def __init__(self, config: TextEncoderConfig, dtype: torch.dtype):
        """Reads the weights from the local folder `config.from_pretrained`; downloads nothing.

        dtype: used if the config names none.
        """
        super().__init__()
        dtype = TORCH_DTYPES[config.dtype] if config.dtype else dtype
        self.pooled = TEXT_ENCODERS[config.model_id].pooled
        self.use_attention_mask = config.use_attention_mask and not self.pooled
        self.model = _load(config, dtype).requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, tokens: TokenIds) -> Tensor:
        mask = tokens.keep.long() if self.use_attention_mask else None
        output = self.model(input_ids=tokens.ids, attention_mask=mask)
        return output.text_embeds if self.pooled else output.last_hidden_state


class TextEncoders(nn.Module):
    """T5 for the sequence, CLIP for the pooled vector (None without): encodes captions for the denoiser."""

    def __init__(self, sequence: TextEncoderConfig, pooled: TextEncoderConfig | None, dtype: torch.dtype):
        super().__init__()
        self.sequence = TextEncoder(sequence, dtype)
        self.pooled = None if pooled is None else TextEncoder(pooled, dtype)

    def forward(self, text: TokenIds, pooled_text: TokenIds | None) -> TextFeatures:
        """pooled_text: the same texts as tokens of the second encoder."""
        pooled = None if self.pooled is None else self.pooled(pooled_text)
        return TextFeatures(self.sequence(text), text.keep, pooled)


def _load(config: TextEncoderConfig, dtype: torch.dtype) -> nn.Module:
    # by name, as the class is, so that a type checker does not read the 3,000 files behind the package
    transformers = importlib.import_module("transformers")
    folder = Path(config.from_pretrained)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: no config.json; expected a Hugging Face folder with a {config.model_id} encoder"
        )
    cls = getattr(transformers, TEXT_ENCODERS[config.model_id].transformers_class)
    with _quiet(transformers.utils.logging):
        try:
            # torch_dtype, not dtype: transformers 4.51 to 5.x all accept this name
            model, info = cls.from_pretrained(
                folder, local_files_only=True, torch_dtype=dtype, output_loading_info=True
            )
        except Exception as error:  # transformers and its readers raise many kinds of errors for a bad folder
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{folder}: {config.model_id} encoder cannot be loaded ({reason})") from None
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CheckpointError(
            f"{folder}: {len(missing)} weights of {config.model_id} are missing, for example {missing[0]}"
        )
    for name, values in model.named_parameters():
        if values.is_floating_point() and not all(map(math.isfinite, torch.aminmax(values.detach()))):
            raise CheckpointError(f"{folder}: {name} has values that are not finite in {dtype}; is the file damaged?")
    return model


@contextlib.contextmanager
def _quiet(logging):
    """Silences transformers' progress bar and its list of the other CLIP tower's weights, which the text encoder
    ignores.
    """
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
