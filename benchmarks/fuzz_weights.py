"""Doors of `benchmarks/fuzz.py` for weights: zip, safetensors, torch_dist, folders of encoders."""

import random
from collections.abc import Callable
from pathlib import Path

import torch
from fuzz_damage import HARMLESS, SILENT, UNNOTICED, Try, mutated

from mindspeed_mm.errors import MMError


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(40, 10, generator=generator) for name in ("w", "b", "n.deep")}


def weights_door(
    folder: Path, save: Callable[[Path], Path], changing: Callable[[Path], list[Path]], strict: bool
) -> Try:
    """save: writes `tensors` to a path that is read as weights; changing: the files that are mutated; strict: the format
    has checksums, so that other values are silent damage."""
    from mindspeed_mm.weights.sources import open_checkpoint

    place = save(folder)
    whole = {path: path.read_bytes() for path in changing(place)}
    wanted = tensors()

    def attempt(chance: random.Random) -> str:
        path = chance.choice(sorted(whole))
        path.write_bytes(mutated(whole[path], chance))
        try:
            weights = open_checkpoint(place).weights(dim_of=lambda name: None)
            found = {name: weights.part(name) for name in weights}
        finally:
            path.write_bytes(whole[path])
        if found.keys() != wanted.keys():
            raise MMError("other names")  # as every network says that is loaded from them (`released.compare`)
        if all(torch.equal(found[name], wanted[name]) for name in wanted):
            return HARMLESS
        finite = all(torch.isfinite(value).all() for value in found.values())
        return SILENT if strict or not finite else UNNOTICED

    return attempt


def zip_door(folder: Path) -> Try:
    def save(folder: Path) -> Path:
        torch.save(tensors(), folder / "w.pt")
        return folder / "w.pt"

    return weights_door(folder, save, lambda path: [path], strict=True)


def safetensors_door(folder: Path) -> Try:
    """The format has no checksums: a changed value cannot be told, and a changed name is another name."""
    from safetensors.torch import save_file

    def save(folder: Path) -> Path:
        save_file(tensors(), folder / "w.safetensors")
        return folder / "w.safetensors"

    return weights_door(folder, save, lambda path: [path], strict=False)


def torch_dist_door(folder: Path) -> Try:
    import torch.distributed.checkpoint as dcp

    def save(folder: Path) -> Path:
        run = folder / "iter_0000003"
        dcp.save({f"model.{name}": value for name, value in tensors().items()}, checkpoint_id=run, no_dist=True)
        torch.save({"iteration": 3}, run / "state.pt")
        (run / "metadata.json").write_text("{}")
        return run

    return weights_door(
        folder, save, lambda run: [*run.glob("*.distcp"), run / ".metadata", run / "state.pt"], strict=True
    )


def encoders_door(folder: Path) -> Try:
    """The folders of T5 and CLIP: config.json, tokenizer, weights. Neither JSON nor safetensors has checksums."""
    from sampling_world import write_world

    from mindspeed_mm.config import model_dialects
    from mindspeed_mm.config.sample import SampleModelConfig
    from mindspeed_mm.sampling.residence import Residence
    from mindspeed_mm.sampling.text import PromptEncoder
    from mindspeed_mm.schema import build, read_json

    world = write_world(folder)
    config = build(SampleModelConfig, model_dialects.sample_node(read_json(world / "sample.json")))
    suffixes = (".json", ".safetensors", ".txt", ".model")
    files = [path for name in ("t5", "clip") for path in (world / name).iterdir() if path.suffix in suffixes]
    whole = {path: path.read_bytes() for path in files}

    def encode():
        return PromptEncoder.load(config, Residence(torch.device("cpu")))(["a red circle"])

    wanted = encode()

    def attempt(chance: random.Random) -> str:
        path = chance.choice(sorted(whole))
        path.write_bytes(mutated(whole[path], chance))
        try:
            found = encode()
        finally:
            path.write_bytes(whole[path])
        if found.sequence.shape != wanted.sequence.shape or found.pooled.shape != wanted.pooled.shape:
            return SILENT
        if not (torch.isfinite(found.sequence).all() and torch.isfinite(found.pooled).all()):
            return SILENT
        same = torch.equal(found.sequence, wanted.sequence) and torch.equal(found.pooled, wanted.pooled)
        return HARMLESS if same else UNNOTICED

    return attempt
