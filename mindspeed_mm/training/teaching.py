"""Builds the task of a run: flow matching on its clips, or distillation from a frozen teacher."""

from pathlib import Path

import torch

from mindspeed_mm import logs
from mindspeed_mm.adapters.attach import set_aside
from mindspeed_mm.config.distillation import GUIDANCE, DistillConfig, Distilled
from mindspeed_mm.config.run import RunConfig
from mindspeed_mm.data.feed.dataset import load_tokens
from mindspeed_mm.data.stored.sources import StoredTexts
from mindspeed_mm.data.text.cleaning import preprocess
from mindspeed_mm.errors import DataError
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.models.denoiser import Denoiser
from mindspeed_mm.parallel.collectives import from_first_rank
from mindspeed_mm.parallel.meeting import meet
from mindspeed_mm.training.distillation import GuidanceDistillation, StepDistillation, Teacher
from mindspeed_mm.training.encoders import FrozenEncoders
from mindspeed_mm.training.task import FlowMatchingTask
from mindspeed_mm.types import TextFeatures, TokenIds
from mindspeed_mm.weights import load_denoiser
from mindspeed_mm.weights.adapters import fingerprint_of
from mindspeed_mm.weights.distilled import distilled_of

_log = logs.get(__name__)


def build_task(
    config: RunConfig, network: Denoiser, encoders: FrozenEncoders
) -> tuple[FlowMatchingTask, Distilled | None]:
    """The task of a run, and what its weights say of their distillation; collective.

    network: the student, with its weights. Raises DataError if the text in place of captions has no stored features.
    """
    distill = config.distill
    plain = FlowMatchingTask(config.model.diffusion, config.model.predictor, config.seed)
    if distill.method is None:
        return plain, None
    parallel, guided = network.parallel, distill.diffusion_of(plain.diffusion)
    negative = _negative(config, encoders) if guided.guidance_scale > 1 else None
    found = None
    if parallel.is_first:
        found, taught = fingerprint_of(str(distill.teacher)), distilled_of(str(distill.teacher))
        if taught is not None and taught.guidance < guided.guidance_scale:
            _log.warning(
                f"the teacher {distill.teacher} is distilled to sample {taught}, but is asked with guidance "
                f"{guided.guidance_scale:g}; --distill-guidance {taught.guidance:g} takes it as it is"
            )
    meet("the fingerprint of the teacher", parallel)
    record = distill.record(plain.diffusion, from_first_rank(found))
    if config.adapter.kind is not None and distill.teacher == config.model.predictor.from_pretrained:
        teacher = Teacher(network, guided, negative, lambda: set_aside(network))
        weights = "the student's base"
    else:
        teacher = Teacher(_frozen(config, network, encoders.device), guided, negative)
        weights = "beside the student's"
    _log.info(
        f"distillation ({distill.method}) from {distill.teacher}, whose weights are {weights}: guidance "
        f"{guided.guidance_scale:g}, rescaling {guided.guidance_rescale:g}; the student will sample {record}"
    )
    return task_of(distill, plain, teacher), record


def task_of(distill: DistillConfig, plain: FlowMatchingTask, teacher: Teacher) -> FlowMatchingTask:
    """The task of a student. plain: that of the same run without a teacher."""
    shared = (plain.diffusion, plain.denoiser, plain.seed, teacher)
    if distill.method == GUIDANCE:
        return GuidanceDistillation(*shared)
    return StepDistillation(*shared, distill.steps, distill.teacher_steps)


def _frozen(config: RunConfig, student: Denoiser, device: torch.device) -> Denoiser:
    """The teacher's network with its weights, in the student's layout and precision."""
    network = build_denoiser(
        config.model.predictor, student.parallel, device=device, dtype=config.precision.denoiser, seed=None
    )
    load_denoiser(network, str(config.distill.teacher))
    return network.requires_grad_(False).eval()


@torch.no_grad()
def _negative(config: RunConfig, encoders: FrozenEncoders) -> TextFeatures:
    """Features [1,...] of the text in place of captions, on the device; which tokens are real is said on the host."""
    dataset, stored, text = config.data.dataset_param, config.stored, config.distill.negative_prompt
    if dataset.enable_text_preprocessing:
        text = preprocess(text, dataset.use_clean_caption, dataset.support_chinese)
    if stored is not None and stored.texts:
        source = StoredTexts(Path(stored.folder), dataset.model_max_length, config.model.text_encoder_2 is not None)
        try:
            features, _ = source.load(text)
        except DataError as error:
            raise DataError(
                f"--distill-negative-prompt: {error}; the empty text has features if captions are dropped (cfg above 0 in "
                "data.json) when they are extracted. Train without load_text_features for another text"
            ) from None
        keep = features.keep
    else:
        first, second = load_tokens(dataset).load(text)
        assert encoders.text is not None, "captions are tokens only where there are text encoders"
        features, keep = encoders.text(_on(first, encoders), second and _on(second, encoders)), first.keep
    return TextFeatures(
        features.sequence.to(encoders.device),
        keep,
        None if features.pooled is None else features.pooled.to(encoders.device),
    )


def _on(tokens: TokenIds, encoders: FrozenEncoders) -> TokenIds:
    return tokens.to(encoders.device)
