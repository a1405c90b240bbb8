"""Weights of the autoencoder goldens: made from names and a seed, as `tests/golden/README.md` describes, or stored."""

import json
import zlib

import numpy as np
import torch
from safetensors.torch import load_file

from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.models.wfvae import WFVAE
from mindspeed_mm.schema import build, node_from_python


def load_case(golden, name):
    """(vae with the case's weights, in eval mode; the case's tensors; its JSON)."""
    facts = json.loads(golden(f"vae/{name}.json").read_text())
    tensors = load_file(golden(f"vae/{name}.safetensors"))
    vae = WFVAE(build(WFVAEConfig, node_from_python(facts["config"], "ae")))
    if facts["weights"]["stored"]:
        weights = {key[2:]: value.float() for key, value in tensors.items() if key.startswith("w.")}
    else:
        weights = recipe_weights(vae.state_dict(), facts["seed"])
    vae.load_state_dict(weights)
    return vae.eval(), tensors, facts


def recipe_weights(state, seed):
    """The recipe's values for the keys and shapes of a state dict; Haar kernels keep theirs."""
    return {
        key: value if "wavelet_transform" in key else _values(key, value.shape, seed) for key, value in state.items()
    }


def _values(key, shape, seed):
    draw = np.random.RandomState(zlib.crc32(f"{seed}:{key}".encode()))
    values = draw.standard_normal(tuple(shape)).astype(np.float32)
    if len(shape) >= 2:
        values = values / float(np.sqrt(np.prod(shape[1:])))  # a Python float keeps numpy in float32
    elif key.endswith(".weight"):
        values = 1 + 0.1 * values
    else:
        values = 0.1 * values
    return torch.from_numpy(values.astype(np.float16).astype(np.float32))
