"""Distillation: a student learns to make without guidance, and in few steps, what a frozen teacher makes with guidance.

`DistillConfig` holds the flags of a run. `Distilled` is what checkpoints and weights say of themselves afterwards; sampling
takes its defaults from it.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from mindspeed_mm.config import hub
from mindspeed_mm.config.model import DiffusionConfig, TrainModelConfig
from mindspeed_mm.errors import CheckpointError, ConfigError
from mindspeed_mm.schema import Node, flag, flags_of

GUIDANCE, STEPS = "guidance", "steps"
DISTILLED = "distilled"  # key of the record in files
# Name -> what the student learns.
METHODS = {
    GUIDANCE: "the teacher's guided velocity at any noise level (2210.03142, section 3.1)",
    STEPS: "the teacher's mean guided velocity over each of a few steps (2202.00512; windows as in 2405.07510)",
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """What a run distills. `settled` completes it from the model JSON."""

    method: str | None = flag(
        None,
        "--distill",
        choices=tuple(METHODS),
        help="learn from a frozen teacher, not from clips: its guided velocity (guidance), or its result over each of "
        "--distill-steps steps (steps); default: ordinary training",
    )
    teacher: str | None = flag(
        None,
        "--distill-teacher",
        metavar="PATH",
        help="weights of the teacher, in any form that predictor.from_pretrained takes; default: predictor.from_pretrained, "
        "from which the student begins",
    )
    guidance: float | None = flag(
        None,
        "--distill-guidance",
        at_least=1,
        at_most=1e4,
        help="guidance scale of the teacher, 1 for none; default: guidance_scale of the model JSON's diffusion",
    )
    rescale: float | None = flag(
        None,
        "--distill-rescale",
        at_least=0,
        at_most=1,
        help="guidance rescaling of the teacher; default: guidance_rescale of the model JSON's diffusion",
    )
    negative_prompt: str = flag(
        "",
        "--distill-negative-prompt",
        metavar="TEXT",
        may_be_empty=True,
        help="text in place of the caption in the teacher's other half of guidance; default: the empty text",
    )
    steps: int = flag(4, "--distill-steps", at_least=1, at_most=1000, help="sampling steps of the student")
    teacher_steps: int = flag(
        2, "--distill-teacher-steps", at_least=1, at_most=1000, help="steps of the teacher within each of the student's"
    )

    def diffusion_of(self, diffusion: DiffusionConfig) -> DiffusionConfig:
        """The diffusion block with which the teacher is guided."""
        given = {"guidance_scale": self.guidance, "guidance_rescale": self.rescale}
        return dataclasses.replace(diffusion, **{key: value for key, value in given.items() if value is not None})

    def record(self, diffusion: DiffusionConfig, teacher: str | None) -> "Distilled | None":
        """What the run's weights say of themselves. diffusion: of the run. teacher: fingerprint of its weights."""
        if self.method is None:
            return None
        guided, few = self.diffusion_of(diffusion), self.method == STEPS
        student = dataclasses.replace(diffusion, num_inference_steps=self.steps)
        return Distilled(
            method=self.method,
            steps=self.steps if few else None,
            schedule=_schedule(student) if few else None,
            shift=student.sampling_shift if few else None,
            guidance=1.0,
            teacher_guidance=guided.guidance_scale,
            teacher_rescale=guided.guidance_rescale,
            teacher_steps=self.teacher_steps if few else None,
            teacher=teacher,
            teacher_path=self.teacher,
        )


def settled(flags: DistillConfig, given: frozenset[str], model: TrainModelConfig, model_node: Node) -> DistillConfig:
    """The flags with the teacher's path. given: names of the flags that were given. Raises ConfigError."""
    named = {one.path[-1]: one.name for one in flags_of(DistillConfig)}
    if flags.method is None:
        others = [name for name in named.values() if name in given]
        if others:
            raise ConfigError(f"{others[0]}: only with --distill, which learns from a teacher")
        return flags
    source = model.predictor.from_pretrained
    if source is None:
        raise model_node.error("predictor.from_pretrained is missing; with --distill the student begins from weights")
    teacher = source if flags.teacher is None else hub.local(flags.teacher)
    if not os.path.exists(teacher):
        raise ConfigError(f"--distill-teacher {teacher}: no such file or directory")
    few = [named["steps"], named["teacher_steps"]]
    if flags.method != STEPS and any(name in given for name in few):
        raise ConfigError(f"{' and '.join(few)}: only with --distill {STEPS}")
    return dataclasses.replace(flags, teacher=teacher)


# Name of a schedule of noise levels -> its keys of the diffusion block.
SCHEDULES: dict[str, dict[str, bool]] = {
    "shift": {"use_dynamic_shifting": False, "use_linear_quadratic_schedule": False},
    "dynamic": {"use_dynamic_shifting": True, "use_linear_quadratic_schedule": False},
    "linear-quadratic": {"use_dynamic_shifting": False, "use_linear_quadratic_schedule": True},
}


def _schedule(diffusion: DiffusionConfig) -> str:
    if diffusion.use_linear_quadratic_schedule:
        return "linear-quadratic"
    return "dynamic" if diffusion.use_dynamic_shifting else "shift"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Distilled:
    """What weights say of their distillation.

    steps, schedule, shift: of the student's sampling; None: any. guidance: of the student's sampling, 1 for none. teacher_steps: within
    each step of the student. teacher: fingerprint of its weights; None: not known. teacher_path: where they were; for people.
    """

    method: str
    guidance: float
    steps: int | None = None
    schedule: str | None = None  # a key of SCHEDULES
    shift: float | None = None
    teacher_guidance: float | None = None
    teacher_rescale: float | None = None
    teacher_steps: int | None = None
    teacher: str | None = None
    teacher_path: str | None = None

    def plain(self) -> dict[str, Any]:
        """As plain values, for a file; without what is not known."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def defaults(self) -> dict[str, Any]:
        """Keys of the diffusion block that these weights were made for."""
        found: dict[str, Any] = {"guidance_scale": self.guidance}
        if self.steps is not None:
            found |= {"num_inference_steps": self.steps, "solver": "euler", "shift_of_steps": ()}
        if self.schedule is not None:
            found |= SCHEDULES[self.schedule]
        if self.shift is not None:
            found["shift"] = self.shift
        return found

    def __str__(self) -> str:
        steps = "" if self.steps is None else f"in {self.steps} steps "
        return f"{steps}{'without guidance' if self.guidance <= 1 else f'with guidance {self.guidance:g}'}"


def _kinds() -> dict[str, tuple[type, ...]]:
    """Types of each value of the record; a whole number stands for a float, too."""
    hints = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(Distilled).items()}
    return {name: (*kinds, int) if float in kinds else kinds for name, kinds in hints.items()}


def read_record(plain: object, origin: str) -> Distilled | None:
    """The inverse of `plain`; None for weights that are not distilled. Raises CheckpointError for values that it never
    writes. Keys of a later version are left out.
    """
    if plain is None:
        return None
    held, known = plain if isinstance(plain, Mapping) else {}, _kinds()
    for key, kinds in known.items():
        value = held.get(key)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise CheckpointError(f"{origin}: what it says of its distillation is damaged: {key} is {value!r}")
    values: dict[str, Any] = {key: held.get(key) for key in known}
    found = Distilled(**values)
    numbers = (found.steps is None or found.steps >= 1) and (found.shift is None or 0 < found.shift <= 1e6)
    if not numbers or found.schedule not in (None, *SCHEDULES):
        raise CheckpointError(f"{origin}: what it says of its distillation is damaged: {dict(held)}")
    return found


def check_same(mine: Distilled | None, held: object, origin: str = "the checkpoint") -> None:
    """Raises CheckpointError unless a run and a checkpoint are distilled alike. held: what the checkpoint says."""
    theirs = read_record(held, origin)
    if mine is None and theirs is None:
        return
    if mine is None:
        raise CheckpointError(
            f"{origin}: is of a run with --distill; give its flags, or begin from its weights (predictor.from_pretrained) in "
            "another --save"
        )
    if theirs is None:
        raise CheckpointError(
            f"{origin}: is of a run without --distill; name its weights in predictor.from_pretrained and begin in another --save"
        )
    if None not in (mine.teacher, theirs.teacher) and mine.teacher != theirs.teacher:
        raise CheckpointError(
            f"{origin}: learned from another teacher: its weights have fingerprint {str(theirs.teacher)[:16]} "
            f"({theirs.teacher_path}), those of --distill-teacher {mine.teacher_path} {str(mine.teacher)[:16]}"
        )
    where = ("teacher", "teacher_path")
    now, then = ({k: v for k, v in one.plain().items() if k not in where} for one in (mine, theirs))
    if now != then:
        changed = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
        raise CheckpointError(
            f"{origin}: its distillation had {', '.join(f'{key} {then.get(key)}' for key in changed)}, and has "
            f"{', '.join(f'{key} {now.get(key)}' for key in changed)} now; give the same flags, or begin in another --save"
        )
