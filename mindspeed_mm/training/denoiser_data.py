"""Data of a denoiser's run: clips with captions, decoded from their files or stored as features."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindspeed_mm import logs
from mindspeed_mm.config.data import DatasetConfig
from mindspeed_mm.config.model import StoredFeatures
from mindspeed_mm.config.run import RunConfig
from mindspeed_mm.data.feed.dataset import emptied_captions, load_tokens
from mindspeed_mm.data.feed.video import VideoSource
from mindspeed_mm.data.lists.filters import Clip
from mindspeed_mm.data.stored.features import TEXT, VIDEO, check_settings, summary
from mindspeed_mm.data.stored.sources import StoredTexts, StoredVideos, check_texts, check_videos
from mindspeed_mm.errors import DataError
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.training.data import RunData
from mindspeed_mm.training.features import text_settings, video_settings

_log = logs.get(__name__)


class DenoiserData(RunData):
    """Makes the loaders of a run of the denoiser; every method is collective."""

    def __init__(self, run: RunConfig, parallel: ParallelContext):
        super().__init__(run, run.data, parallel, run.model.ae.strides, run.model.predictor.patch_size)
        self.run = run

    @property
    def shares_encoders(self) -> bool:
        """True if the ranks of one sample share the encoding (`enable_encoder_dp`)."""
        return self.run.model.enable_encoder_dp and len(self.hosts.sharers) > 1

    def _findings(self, config: DatasetConfig, clips: Sequence[Clip]) -> dict[str, object]:
        """Captions that cleaning empties, as the first rank finds them; too many end the run."""
        found = self.hosts.from_first(lambda: emptied_captions(clips, config))
        for line in found.lines():
            _log.warning(line)
        if config.support_chinese:
            _log.info("data: support_chinese: captions keep Chinese, which the published T5 reads as unknown pieces")
        if (fault := found.fault(self.run.max_empty_captions)) is not None:
            raise DataError(f"{config.basic_parameters.data_path}: {fault}")
        return {"empty_captions": found.report()}

    def _sources(self, config: DatasetConfig, clips: Sequence[Clip]) -> tuple[Any, Any]:
        """Stored features where the model JSON asks for them, else the files."""
        videos = texts = None
        if (stored := self.run.stored) is not None:
            folder = Path(stored.folder)
            fault = self.hosts.from_first(lambda: self._stored_fault(stored, config, clips))
            if fault is not None:
                raise DataError(fault)
            listed = self.hosts.from_first(lambda: summary(folder))
            self.must_agree(listed.items() <= summary(folder).items(), folder, "folder of stored features")
            if stored.videos:
                videos = StoredVideos(folder, config.image_conditions is not None)
            if stored.texts:
                texts = StoredTexts(folder, config.model_max_length, self.run.model.text_encoder_2 is not None)
        return videos or VideoSource(config.preprocess_parameters), texts or load_tokens(config)

    def _stored_fault(self, stored: StoredFeatures, config: DatasetConfig, clips: Sequence[Clip]) -> str | None:
        """Reason why stored features cannot be used, or None. Reads weights and checks every file, so one rank calls
        it.
        """
        folder = Path(stored.folder)
        try:
            if stored.videos:
                check_settings(folder, VIDEO, video_settings(self.run))
                check_videos(folder, clips, config.preprocess_parameters.fixed_crops)
            if stored.texts:
                check_settings(folder, TEXT, text_settings(self.run))
                check_texts(folder, clips, config)
        except DataError as error:
            return str(error)
        return None
