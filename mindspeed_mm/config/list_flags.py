"""Flags of a training run that change what the data JSON says of its list and captions, for small lists of one's own."""

import dataclasses
import os

from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import check, flag


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ListFlags:
    """Each takes precedence over the key of the data JSON of the same name."""

    data_path: str | None = flag(
        None,
        "--data-path",
        metavar="PATH",
        help="clips to train on instead of the data JSON's: data.txt, an annotation file, a .tar, or a folder of clips and "
        "images with a .txt beside each",
    )
    trigger_word: str | None = flag(
        None,
        "--trigger-word",
        metavar="WORD",
        help="put this word before every caption that does not hold it; a line of data.txt may say trigger=OTHER",
    )
    shuffle_tags: bool = flag(
        False, "--shuffle-tags", help="draw a new order of the comma-separated parts of a caption at each access"
    )
    keep_tags: int | None = flag(
        None,
        "--keep-tags",
        at_least=0,
        at_most=1000,
        help="first parts that --shuffle-tags leaves in front; default: 0",
    )
    auto_buckets: int | None = flag(
        None,
        "--auto-buckets",
        at_least=1,
        at_most=256,
        help="choose N sample sizes from the ratios of the clips, instead of a size for every ratio; needs force_resolution false",
    )

    def problems(self):
        if self.data_path is not None and not os.path.exists(self.data_path):
            yield "data_path", f"{self.data_path}: no such file or folder"

    def applied(self, data: DataConfig) -> DataConfig:
        """The data JSON with the given flags in it."""
        dataset = data.dataset_param
        sources, parameters = dataset.basic_parameters, dataset.preprocess_parameters
        if self.data_path is not None:
            sources = dataclasses.replace(sources, data_path=self.data_path)
        given = {
            name: value
            for name in ("trigger_word", "shuffle_tags", "keep_tags", "auto_buckets")
            if (value := getattr(self, name)) not in (None, False)
        }
        if self.keep_tags and not (self.shuffle_tags or parameters.shuffle_tags):
            raise ConfigError(f"--keep-tags {self.keep_tags}: only with --shuffle-tags, which moves the other parts")
        parameters = dataclasses.replace(parameters, **given)
        check(parameters)
        dataset = dataclasses.replace(dataset, basic_parameters=sources, preprocess_parameters=parameters)
        return dataclasses.replace(data, dataset_param=dataset)
