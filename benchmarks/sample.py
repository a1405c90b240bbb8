"""Time and memory of sampling, by component: text encoders, denoiser (guidance, step cache), autoencoder (tiles).

    python benchmarks/sample.py                        # a narrow v1.5 with random weights, on this machine
    python benchmarks/sample.py --device cuda --dtype bf16 --width 3072 --channels 160 --size 121 576 1024
    python benchmarks/sample.py --mm-model sample.json # a trained model: how far the step cache is off

Memory is what tensors take at once beside the weights. For the decoder it is also counted at v1.5's full size, on the
meta device, where nothing is computed.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone, too

from common import SPARSITIES, STAGES, denoiser_config, peak_bytes, synchronize, table

from mindspeed_mm.config.sample import SampleModelConfig, SamplingOptions
from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.models.build import build_autoencoder, build_denoiser
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.platforms.select import select
from mindspeed_mm.sampling.pipeline import T2VPipeline
from mindspeed_mm.sampling.prompt_files import read_prompts
from mindspeed_mm.sampling.requests import Request
from mindspeed_mm.sampling.residence import Residence
from mindspeed_mm.schema import build, find, read_json
from mindspeed_mm.types import TORCH_DTYPES, TextFeatures

PUBLISHED = Path(__file__).resolve().parents[1] / "examples" / "opensoraplan1.5" / "inference_t2v_model1_5.json"
FULL_SIZE = (121, 576, 1024)
MIB = 2**20


def main() -> None:
    flags = parse()
    select(flags.device).prepare()
    if flags.mm_model:
        print(step_cache_errors(flags))
        return
    print(text_and_denoiser(flags), "\n")
    print(autoencoder(flags), "\n")
    print(autoencoder_at_full_size())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mm-model", metavar="JSON", help="an inference JSON with trained weights")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "npu"))
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--width", type=int, default=256, help="width of the denoiser, a multiple of 128 (v1.5: 3072)")
    parser.add_argument("--channels", type=int, default=32, help="base channels of the autoencoder (v1.5: 160)")
    parser.add_argument("--size", type=int, nargs=3, default=(33, 192, 192), metavar=("T", "H", "W"), help="denoised")
    parser.add_argument("--decode", type=int, nargs=3, default=(9, 384, 640), metavar=("T", "H", "W"), help="decoded")
    parser.add_argument("--tile", type=int, nargs=2, default=(256, 64), metavar=("SIZE", "OVERLAP"), help="in pixels")
    parser.add_argument("--compile", action="store_true", help="the denoiser compiled, too")
    parser.add_argument("--steps", type=int, default=10, help="over which the step cache is timed")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


class RandomText(nn.Module):
    """T5 and CLIP of a narrow or the published size, with random weights."""

    def __init__(self, wide: bool):
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

        super().__init__()
        t5 = T5Config(d_model=2048, d_ff=5120, num_layers=24, num_heads=32, feed_forward_proj="gated-gelu")
        clip = CLIPTextConfig(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20)
        if not wide:
            t5 = T5Config(d_model=2048, d_ff=512, d_kv=16, num_layers=4, num_heads=4)
            clip = CLIPTextConfig(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512)
        clip.projection_dim = 1280
        self.t5, self.clip = T5EncoderModel(t5), CLIPTextModelWithProjection(clip)

    @torch.no_grad()
    def forward(self, texts: list[str]) -> TextFeatures:
        device, count = self.t5.device, len(texts)
        keep = (torch.arange(512, device=device) < 120).expand(count, 512)
        ids = torch.ones(count, 512, dtype=torch.long, device=device)
        sequence = self.t5(input_ids=ids, attention_mask=keep.long()).last_hidden_state
        return TextFeatures(sequence, keep, self.clip(input_ids=ids[:, :77]).text_embeds)


class Remembered:
    """Called as a PromptEncoder, and computes once: the memory of the denoiser is wanted without the encoders'."""

    def __init__(self, text: RandomText):
        self.encoders, self.tokenizers = text, (argparse.Namespace(max_length=512),)
        self._found: dict[tuple[str, ...], TextFeatures] = {}

    def __call__(self, texts: list[str]) -> TextFeatures:
        if tuple(texts) not in self._found:
            self._found[tuple(texts)] = self.encoders(texts)
        return self._found[tuple(texts)]


def text_and_denoiser(flags: argparse.Namespace) -> str:
    config = denoiser_config(flags.width, STAGES, SPARSITIES, sparse=True)
    text = RandomText(wide=flags.width >= 3072).to(flags.device, TORCH_DTYPES[flags.dtype]).eval()
    rows = [row("text encoders, both prompts", lambda: text(["a", "b"]), text, flags)]
    variants = {
        "denoiser, a step, halves in one batch": SamplingOptions(guidance_mode="batched"),
        "denoiser, a step, halves one after the other": SamplingOptions(guidance_mode="sequential"),
        "denoiser, a step, step cache 2": SamplingOptions(guidance_mode="batched", step_cache="2"),
        "denoiser, a step, step cache 3": SamplingOptions(guidance_mode="batched", step_cache="3"),
    }
    if flags.compile:
        variants["denoiser, a step, batched, compiled"] = SamplingOptions(guidance_mode="batched", compile=True)
    for name, options in tqdm(variants.items(), desc="denoiser", disable=None):
        pipeline, request = random_pipeline(config, Remembered(text), flags, options)

        def sample(pipeline=pipeline, request=request):
            return pipeline.denoise([request], progress=False)

        rows.append(row(name, sample, pipeline.denoiser, flags, flags.steps))
    frames, height, width = flags.size
    head = f"{frames}x{height}x{width}, width {flags.width}, {flags.dtype} on {flags.device}, {flags.steps} steps"
    return f"Text and denoiser: {head}\n" + table(["component", "s", "activations MiB", "weights MiB"], rows)


def random_pipeline(config: SparseUMMDiTConfig, text: Remembered, flags, options: SamplingOptions):
    """A pipeline with random weights and a request of `flags.size`."""
    model = build(SampleModelConfig, read_json(PUBLISHED))
    model = dataclasses.replace(
        model,
        predictor=config,
        weight_dtype=flags.dtype,
        prompt="a red circle",
        diffusion=dataclasses.replace(model.diffusion, num_inference_steps=flags.steps),
        pipeline_config=dataclasses.replace(model.pipeline_config, input_size=tuple(flags.size)),
    )
    denoiser = build_denoiser(config, ParallelContext.current(), device=flags.device, dtype=flags.dtype, seed=0)
    none = build_autoencoder(dataclasses.replace(model.ae, base_channels=8), device="meta")
    pipeline = T2VPipeline(model, denoiser, none, text, Residence(torch.device(flags.device)), options)
    return pipeline, Request(model, seed=0)


def median_s(function: Callable[[], object], flags: argparse.Namespace) -> float:
    """Median seconds of some runs, after one that warms up."""
    seconds = []
    for _ in range(flags.repeats + 1):
        synchronize(flags.device)
        started = time.perf_counter()
        function()
        synchronize(flags.device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def row(name: str, function, network: nn.Module, flags, parts: int = 1) -> list:
    seconds = median_s(function, flags) / parts
    weights = sum(parameter.nbytes for parameter in network.parameters())
    return [name, seconds, round(peak_bytes(function, flags.device) / MIB), round(weights / MIB)]


def autoencoders(channels: int, tile: tuple[int, int], device: str, dtype: str) -> dict[str, nn.Module]:
    """The published decoder with other channels: all at once, in chunks of time, and in tiles too."""
    published = build(WFVAEConfig, find(read_json(PUBLISHED), "ae"))
    config = dataclasses.replace(published, base_channels=channels, dtype=dtype)
    size, overlap = tile
    variants = {
        "whole": {"use_tiling": False},
        "chunks of time": {"use_tiling": True},
        "chunks and tiles": {
            "use_tiling": True,
            "use_spatial_tiling": True,
            "spatial_tile": size,
            "spatial_tile_overlap": overlap,
        },
    }
    torch.manual_seed(0)
    networks = {
        name: build_autoencoder(dataclasses.replace(config, **keys), device=device) for name, keys in variants.items()
    }
    for network in networks.values():
        if device != "meta":
            network.load_state_dict(networks["whole"].state_dict())
    return networks


@torch.no_grad()
def autoencoder(flags: argparse.Namespace) -> str:
    networks = autoencoders(flags.channels, flags.tile, flags.device, flags.dtype)
    frames, height, width = flags.decode
    shape = (1, networks["whole"].config.latent_dim, (frames - 1) // 8 + 1, height // 8, width // 8)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(flags.device, networks["whole"].dtype)
    work = {name: lambda network=network: network.decode(z) for name, network in networks.items()}
    seconds = {name: median_s(function, flags) for name, function in work.items()}
    memory = {name: peak_bytes(function, flags.device) for name, function in work.items()}
    whole = work["whole"]().float()
    rows = []
    for name, function in work.items():
        error = (function().float() - whole).square().mean().sqrt().item()
        ratios = [seconds[name] / seconds["whole"], memory[name] / memory["whole"]]
        rows.append([name, seconds[name], round(memory[name] / MIB), *ratios, error])
    head = f"{frames}x{height}x{width}, {flags.channels} channels, tiles {flags.tile[0]}/{flags.tile[1]}"
    columns = ["decoding", "s", "MiB", "time / whole", "memory / whole", "rms error of 2"]
    return f"Decoding: {head}, {flags.dtype} on {flags.device}\n" + table(columns, rows)


@torch.no_grad()
def autoencoder_at_full_size() -> str:
    default = build(WFVAEConfig, find(read_json(PUBLISHED), "ae"))
    tile = (default.spatial_tile, default.spatial_tile_overlap)
    frames, height, width = FULL_SIZE
    z = torch.empty(1, 32, (frames - 1) // 8 + 1, height // 8, width // 8, dtype=torch.bfloat16, device="meta")
    networks = autoencoders(160, tile, "meta", "bf16")
    memory = {name: peak_bytes(lambda network=network: network.decode(z), "meta") for name, network in networks.items()}
    rows = [[name, round(size / 2**30, 1), size / memory["whole"]] for name, size in memory.items()]
    head = f"Decoding {frames}x{height}x{width} at v1.5's size in bf16, tiles {tile[0]}/{tile[1]}, counted, not run"
    return f"{head}\n" + table(["decoding", "GiB", "memory / whole"], rows)


def step_cache_errors(flags: argparse.Namespace) -> str:
    """The trained model's videos with the step cache against those without, over the first prompts of its JSON."""
    model = build(SampleModelConfig, read_json(flags.mm_model))
    lines = read_prompts(model.prompt)[:4]
    pipeline = T2VPipeline.from_config(model, device=flags.device)
    requests = [Request(model.for_prompt(line), 1234, (number, 0)) for number, line in enumerate(lines)]
    latents, seconds = {}, {}
    for every in tqdm((1, 2, 3, 4), desc="step cache", disable=None):
        pipeline.options = SamplingOptions(guidance_mode="batched", step_cache=str(every))
        seconds[every] = median_s(lambda: pipeline.denoise(requests, progress=False), flags)
        latents[every] = pipeline.denoise(requests, progress=False)
    reference = pipeline.decode(latents[1]).astype(float)
    other = pipeline.decode(pipeline.denoise([dataclasses.replace(r, seed=1) for r in requests], progress=False))
    rows = []
    for every, found in latents.items():
        error = (found - latents[1]).square().mean().sqrt() / latents[1].square().mean().sqrt()
        pixels = abs(pipeline.decode(found) - reference).mean()
        rows.append([every, seconds[1] / seconds[every], error.item(), pixels])
    steps = model.diffusion.num_inference_steps
    columns = [
        "step cache",
        "speed-up of denoising",
        "relative rms error of latents",
        "mean difference of pixels (of 255)",
    ]
    text = f"Step cache, {steps} steps, {len(lines)} prompts of {flags.mm_model}\n" + table(columns, rows)
    return f"{text}\nOf another seed's videos the pixels differ by {abs(other - reference).mean():.3g}."


if __name__ == "__main__":
    main()
