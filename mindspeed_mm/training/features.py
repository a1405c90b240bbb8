"""Settings that stored features depend on, as plain values: a store is used only if they are equal."""

import dataclasses
import hashlib
from pathlib import Path

from mindspeed_mm.config.run import RunConfig

# A large file is identified by its ends and by samples spread over it. Training changes every tensor, so samples
# reveal other weights. They take a second, while reading 11 GB of T5 takes minutes.
_WHOLE_BYTES = 64 * 2**20
_PIECES, _PIECE_BYTES = 1024, 16 * 2**10

_SAMPLING = ("num_frames", "frame_interval", "ae_stride_t", "sp_size", "train_fps", "speed_factor", "min_num_frames")
# Autoencoder settings that do not affect the posterior; shift and scale are applied after it.
_NOT_OF_THE_ENCODER = ("from_pretrained", "vae_scale_factor", "scale", "shift", "dtype")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".ckpt")
_TOKENIZER_SUFFIXES = (".model", ".json", ".txt")


def video_settings(config: RunConfig) -> dict:
    """Settings that determine the posterior of a clip, apart from the clip itself (see `Clip.identity`)."""
    preprocess = config.data.dataset_param.preprocess_parameters
    autoencoder = {
        key: value
        for key, value in dataclasses.asdict(config.model.ae).items()
        if key not in _NOT_OF_THE_ENCODER and not key.startswith("decoder_") and "upsample" not in key
    }
    autoencoder["precision"] = config.precision.autoencoder
    autoencoder["weights"] = file_fingerprint(Path(config.autoencoder_weights))
    images = config.data.dataset_param.image_conditions
    # the ratio of "text" is drawn while a run trains
    kinds: dict[str, object] = (
        {} if images is None else {"image_conditions": {**dataclasses.asdict(images), "text": None}}
    )
    if preprocess.auto_buckets:  # which bucket is part of the clip's identity
        kinds["auto_buckets"] = True
    return {
        **kinds,
        "sampling": {name: getattr(preprocess, name) for name in _SAMPLING},
        "transforms": {
            kind: [
                f"{type(step).__name__} {dataclasses.asdict(step)}" for step in getattr(preprocess.train_pipeline, kind)
            ]
            for kind in ("video", "image")
        },
        "autoencoder": autoencoder,
        "patch_size": config.model.predictor.patch_size,
    }


def text_settings(config: RunConfig) -> dict:
    """Settings that determine the features of a text."""
    dataset, model = config.data.dataset_param, config.model
    pairs = {
        "first": (model.text_encoder, dataset.tokenizer_config),
        "second": (model.text_encoder_2, dataset.tokenizer_config_2),
    }
    settings: dict = {"model_max_length": dataset.model_max_length}
    for name, (encoder, tokenizer) in pairs.items():
        if encoder is None or tokenizer is None:
            continue
        settings[name] = {
            "encoder": encoder.model_id,
            "use_attention_mask": encoder.use_attention_mask,
            "precision": config.precision.text_encoders,
            "weights": folder_fingerprint(Path(encoder.from_pretrained), _WEIGHT_SUFFIXES),
            "tokenizer": folder_fingerprint(Path(tokenizer.from_pretrained), _TOKENIZER_SUFFIXES),
            "tokenizer_class": tokenizer.autotokenizer_name,
            "tokenizer_length": tokenizer.model_max_length,
        }
    return settings


def folder_fingerprint(folder: Path, suffixes: tuple[str, ...]) -> str:
    """Fingerprint, by name and content, of the files in a folder that end in one of `suffixes`."""
    files = sorted(file for file in folder.iterdir() if file.suffix in suffixes and file.is_file())
    parts = [f"{file.name} {file_fingerprint(file)}" for file in files]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def file_fingerprint(path: Path) -> str:
    """Fingerprint of a file's content, whatever its name and date: all bytes up to 64 MiB, else samples."""
    size = path.stat().st_size
    known = hashlib.blake2b(str(size).encode(), digest_size=8)
    with open(path, "rb") as file:
        if size <= _WHOLE_BYTES:
            known.update(file.read())
        else:
            for piece in range(_PIECES):
                file.seek((size - _PIECE_BYTES) * piece // (_PIECES - 1))
                known.update(file.read(_PIECE_BYTES))
    return known.hexdigest()
