"""What a server does with a request: checks it, keeps its image, puts it into the queue, answers with its state.

This file knows no web; `app.py` is its door.
"""

import contextlib
import dataclasses
import math
import secrets
import time
from pathlib import Path
from typing import Any

from mindspeed_mm import atomic, families
from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.errors import ConfigError, DataError, ServerFull
from mindspeed_mm.sampling.images import fitted
from mindspeed_mm.serving import queue as states
from mindspeed_mm.serving.faults import Refusal
from mindspeed_mm.serving.fields import IMAGES, Asked, asked_of
from mindspeed_mm.serving.keys import Key
from mindspeed_mm.serving.maker import SampleMaker
from mindspeed_mm.serving.metrics import Metrics
from mindspeed_mm.serving.queue import Job, New, Queue, Repeated
from mindspeed_mm.serving.worker import Worker

_CANCELLED = "cancelled"
_MOST_LISTED = 100
_LONGEST_REPEAT_KEY = 255
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}  # by the first bytes of a file


class Desk:
    """Takes the requests of a server. Methods raise Refusal, or OSError if the disk cannot be written."""

    def __init__(self, queue: Queue, worker: Worker, maker: SampleMaker, metrics: Metrics, model_name: str):
        self.queue = queue
        self.worker = worker
        self.maker = maker
        self.metrics = metrics
        self.model_name = model_name
        self.started = int(time.time())

    @property
    def model(self) -> SampleModelConfig:
        return self.maker.config.model

    def create(
        self, key: Key, values: dict[str, Any], files: dict[str, bytes], repeat_key: str | None
    ) -> dict[str, Any]:
        """Accepts a request for a video, or finds the one that had the same Idempotency-Key. Returns its state."""
        if repeat_key is not None and not 0 < len(repeat_key) <= _LONGEST_REPEAT_KEY:
            raise Refusal(422, f"Idempotency-Key: 1 to {_LONGEST_REPEAT_KEY} characters", param="Idempotency-Key")
        asked = asked_of(values, files, self.model, self.model_name)
        id = f"video_{time.strftime('%Y%m%d%H%M%S')}{secrets.token_hex(8)}"
        images: dict[str, Path] = {}
        is_new = False
        try:
            for field, image in asked.images.items():
                images[field] = self._keep(id, field, image)
            line = self._settled(asked, images)
            request = {"line": line, "seconds": asked.seconds, "warning": self.maker.warning(line)}
            job, is_new = self.queue.add(New(id, key.name, request, asked.digest, repeat_key), key.limit)
        except ServerFull as error:
            raise Refusal(429, str(error), code="queue_full", retry_s=self._retry_s()) from None
        except Repeated:
            reason = "Idempotency-Key: it came before with another request, or its video was deleted; use another"
            raise Refusal(422, reason, code="idempotency_key_reused", param="Idempotency-Key") from None
        finally:
            if not is_new:
                for image in images.values():
                    with contextlib.suppress(OSError):
                        image.unlink()
        self.worker.wake()
        return self.state(job)

    def _settled(self, asked: Asked, images: dict[str, Path]) -> dict[str, Any]:
        """images: kept files, by field."""
        line = dataclasses.replace(asked.line, **{IMAGES[field]: str(path) for field, path in images.items()})
        try:
            if asked.follows_image:
                size = fitted(self.model.for_prompt(line)).pipeline_config.input_size
                line = dataclasses.replace(line, input_size=size)
            return self.maker.settled(line)
        except (ConfigError, DataError) as error:
            text, param = str(error), next(iter(images), None)
            for field, path in images.items():  # where a file lies is not for others
                param = field if str(path) in text else param
                text = text.replace(str(path), field)
            raise Refusal(422, text, code="invalid_value", param=param) from None

    def _keep(self, id: str, field: str, image: bytes) -> Path:
        suffix = next((suffix for begin, suffix in _SUFFIXES.items() if image.startswith(begin)), None)
        if suffix is None:
            raise Refusal(422, f"{field}: send PNG, JPEG or WebP", code="invalid_value", param=field)
        path = self.maker.inputs / f"{id}.{IMAGES[field]}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as file:
            file.write(image)
        return path

    def sweep(self) -> None:
        """Removes images whose request was not accepted, since the server was killed before. Call it at the start."""
        for image in self.maker.inputs.glob("*"):
            if self.queue.get(image.name.partition(".")[0]) is None:
                image.unlink(missing_ok=True)

    def _retry_s(self) -> int:
        """When a place in the queue will be free: after about the time of one job."""
        return min(600, max(1, math.ceil(self.queue.seconds_per_job() or 5)))

    def get(self, key: Key, id: str) -> dict[str, Any]:
        return self.state(self._job(key, id))

    def list(self, key: Key, limit: int, after: str | None, order: str) -> dict[str, Any]:
        """A page of a key's videos, as OpenAI's lists are."""
        if not 1 <= limit <= _MOST_LISTED:
            raise Refusal(422, f"limit {limit}: from 1 to {_MOST_LISTED}", param="limit")
        if order not in ("asc", "desc"):
            raise Refusal(422, f"order {order[:20]!r}: asc or desc", param="order")
        found = self.queue.list(key.name, limit + 1, after, order == "desc")
        if found is None:
            raise Refusal(404, "after: there is no such video", code="video_not_found", param="after")
        page = [self.state(job) for job in found[:limit]]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return {"object": "list", "data": page, "has_more": len(found) > limit, **ends}

    def delete(self, key: Key, id: str) -> dict[str, Any]:
        """Removes a video and its files; the work at it ends within a block of the denoiser."""
        if not self.worker.remove(id, key.name):
            raise _no_such(id)
        return {"id": id, "object": "video.deleted", "deleted": True}

    def cancel(self, key: Key, id: str) -> dict[str, Any]:
        """Ends the work at a video within a block of the denoiser, and keeps what is known of it."""
        self._job(key, id)
        if self.queue.fail(id, _CANCELLED, "cancelled by its owner"):
            self.worker.cancel(id)
        return self.get(key, id)

    def content(self, key: Key, id: str, variant: str) -> Path | bytes:
        """The file of a finished video; or with the variant `thumbnail` a JPEG of its first frame.

        A thumbnail of the video at work shows how it looks by now; asking for it has a newer one made.
        """
        job = self._job(key, id)
        if variant not in ("video", "thumbnail"):
            raise Refusal(422, f"variant {variant[:20]!r}: video or thumbnail", param="variant")
        if variant == "thumbnail" and job.status == states.RUNNING:
            picture = self.worker.previews.look(id)
            if picture is None:
                raise Refusal(409, f"{id}: there is no picture of it yet", code="video_not_ready")
            return picture
        if job.status != states.DONE or job.file is None:
            code = "video_failed" if job.status == states.FAILED else "video_not_ready"
            raise Refusal(409, f"{id}: is {job.status}; its content is there once it is completed", code=code)
        path = self.maker.folder / job.file
        if not path.is_file():
            raise Refusal(404, f"{id}: its file is no longer there", code="file_missing")
        if variant == "video":
            return path
        try:
            return self.maker.thumbnail(job.file)
        except DataError:
            raise Refusal(404, f"{id}: its file can no longer be read", code="file_missing") from None

    def models(self) -> dict[str, Any]:
        """The model, and the extensions of this server: what a request may leave out, and what it may hold."""
        settings, diffusion = self.model, self.model.diffusion
        frames, height, width = settings.pipeline_config.input_size
        entry = {
            "id": self.model_name,
            "object": "model",
            "created": self.started,
            "owned_by": "mindspeed-mm",
            "defaults": {
                "size": f"{width}x{height}",
                "frames": frames,
                "negative_prompt": settings.negative_prompt or "",
                "guidance_scale": diffusion.guidance_scale,
                "num_inference_steps": diffusion.num_inference_steps,
            },
            "frames_per_second": settings.rate,
            "images": list(IMAGES) if families.takes_images(settings.predictor) else [],
        }
        return {"object": "list", "data": [entry]}

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether the server makes samples, and why not."""
        fault = None if self.worker.is_alive else "the worker has ended"
        fault = fault or self.worker.disk_fault
        return fault is None, {"status": "ok" if fault is None else "failing", "reason": fault}

    def state(self, job: Job) -> dict[str, Any]:
        """A video as OpenAI's client reads it, and the extensions of this server."""
        line = job.request["line"]
        frames, height, width = line["input_size"]
        keep_s = self.worker.keep_s
        progress = 100 if job.status == states.DONE else int(99 * self.worker.progress(job.id))
        return {
            "id": job.id,
            "object": "video",
            "model": self.model_name,
            "status": job.status,
            "progress": progress,
            "created_at": int(job.created),
            "completed_at": None if job.status != states.DONE or job.finished is None else int(job.finished),
            "expires_at": None if job.finished is None or keep_s is None else int(job.finished + keep_s),
            "error": None if job.code is None else {"code": job.code, "message": job.message},
            "prompt": line["prompt"],
            "seconds": job.request["seconds"] or f"{frames / self.model.rate:.4g}",
            "size": f"{width}x{height}",
            "remixed_from_video_id": None,
            "seed": line["seed"],
            "frames": frames,
            "negative_prompt": line.get("negative_prompt", ""),
            "guidance_scale": line["guidance_scale"],
            "num_inference_steps": line["num_inference_steps"],
            "started_at": None if job.started is None else int(job.started),
            "queue_position": self.queue.position(job.id) if job.status == states.QUEUED else None,
            "warning": job.request.get("warning"),
        }

    def _job(self, key: Key, id: str) -> Job:
        job = self.queue.get(id, key.name)
        if job is None:
            raise _no_such(id)
        return job


def _no_such(id: str) -> Refusal:
    return Refusal(404, f"{id[:80]}: there is no such video", code="video_not_found", param="video_id")
