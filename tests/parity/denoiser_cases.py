"""The golden denoiser cases as networks and inputs."""

import dataclasses
import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.models.sparse_ummdit.model import SparseUMMDiT
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.partition import partition_dims, shard
from mindspeed_mm.schema import build, node_from_python
from mindspeed_mm.types import TextFeatures

OUTPUT, GRADIENT = 2e-5, 1e-4
CASES = [
    "a_base_4x16_div",
    "b_5stage_notdiv_vmask",
    "c_5stage_div_b1",
    "d_single_ff",
    "f_noskip",
    "g_dense",
    "h_rmsnorm",
    "j_rope_scale_square",
    "k_rope_scale_nonsquare",
    "l_uniform_rope",
    "n_text_all_masked",
    "o_video_all_masked",
]


@dataclasses.dataclass
class Case:
    """One golden file: its config, and its tensors by name."""

    config: SparseUMMDiTConfig
    tensors: dict[str, Tensor]
    meta: dict

    @classmethod
    def read(cls, path: Path) -> "Case":
        with safe_open(path, "pt") as file:
            meta = json.loads(file.metadata()["meta"])
            # cloned: safetensors maps the file unaligned, which moves results by 2e-6
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return cls(build(SparseUMMDiTConfig, node_from_python(meta["config"], "predictor")), tensors, meta)

    def weights(self) -> dict[str, Tensor]:
        return {name[2:]: value.float() for name, value in self.tensors.items() if name.startswith("w.")}

    def network(self, parallel: ParallelContext, **options) -> SparseUMMDiT:
        """The case's network, holding this rank's part of the golden weights."""
        network = build_denoiser(self.config, parallel, seed=None, **options)
        dims, weights = partition_dims(network), self.weights()
        assert set(dims) == set(weights)
        network.load_state_dict({name: shard(weights[name], dim, parallel) for name, dim in dims.items()}, strict=False)
        return network

    def inputs(self, requires_grad: bool = False) -> dict[str, Tensor]:
        """latents, sigma, sequence and pooled, as leaves, and both masks."""
        t = self.tensors
        floats = {
            "latents": t["in.hidden_states"],
            "sigma": t["in.timestep"] / 1000,
            "sequence": t["in.encoder_hidden_states"][:, 0],
            "pooled": t["in.pooled_projections"][:, 0],
        }
        masks = {"text_keep": t["in.encoder_attention_mask"][:, 0].bool(), "keep": t["in.attention_mask"].bool()}
        return {name: value.clone().requires_grad_(requires_grad) for name, value in floats.items()} | masks


@dataclasses.dataclass(frozen=True)
class Offset:
    """Stands in for a micro-batch's draws, with the offset of RoPE that the original drew."""

    offset: tuple[int, ...]

    def integers(self, purpose: str, limits) -> tuple[int, ...]:
        assert purpose == "rope" and all(drawn <= limit for drawn, limit in zip(self.offset, limits, strict=True))
        return self.offset


def run(network, inputs: dict[str, Tensor], rope_offset=None) -> Tensor:
    text = TextFeatures(inputs["sequence"], inputs["text_keep"], inputs["pooled"])
    draws = None if rope_offset is None else Offset(rope_offset)
    return network(inputs["latents"], inputs["sigma"], text, inputs["keep"], draws=draws)


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest wanted value; absolute where all wanted values are zero."""
    return ((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-9)).item()


def train_gradients(case: Case, network, rope_offset=None) -> tuple[Tensor, Tensor, dict, dict]:
    """Training output, loss, gradients of the parameters and of the inputs (in the golden names)."""
    inputs = case.inputs(requires_grad=True)
    network.train()
    out = run(network, inputs, rope_offset)
    loss = (out * case.tensors["in.loss_weight"]).mean()
    loss.backward()
    gradients = {
        "hidden_states": inputs["latents"].grad,
        "timestep": inputs["sigma"].grad / 1000,
        "encoder_hidden_states": inputs["sequence"].grad[:, None],
        "pooled_projections": inputs["pooled"].grad[:, None],
    }
    return out.detach(), loss.detach(), {name: p.grad for name, p in network.named_parameters()}, gradients
