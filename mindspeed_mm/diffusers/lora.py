"""LoRA adapters of the pipeline, as diffusers and as PEFT write them."""

import json
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_pipeline import CogVideoXLoraLoaderMixin
from safetensors.torch import load_file
from torch import Tensor

_PEFT = "base_model.model."  # prefix of PEFT's names
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class OpenSoraPlanLoraMixin(CogVideoXLoraLoaderMixin):
    """diffusers' generic loader for a pipeline with one transformer, which also reads a folder of PEFT."""

    transformer: Any

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **options: Any,
    ) -> None:
        """Loads an adapter: a folder of PEFT with adapter_config.json, or whatever diffusers reads."""
        source = pretrained_model_name_or_path_or_dict
        if isinstance(source, (str, Path)) and (Path(source) / _CONFIG).is_file():
            state, settings = read_peft(Path(source))
            self.transformer.load_lora_adapter(
                state,
                prefix=None,
                adapter_name=adapter_name,
                hotswap=hotswap,
                metadata=settings,
                _pipeline=self,
                **options,
            )
        else:
            super().load_lora_weights(
                str(source) if isinstance(source, Path) else source,
                adapter_name=adapter_name,
                hotswap=hotswap,
                **options,
            )


def read_peft(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights of a PEFT folder by the network's names, and the settings that diffusers passes on to LoraConfig."""
    said = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    state = {name.removeprefix(_PEFT): value for name, value in load_file(folder / _WEIGHTS).items()}
    names = (
        "r",
        "lora_alpha",
        "target_modules",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "use_dora",
        "lora_bias",
    )
    return state, {name: said[name] for name in names if name in said}
