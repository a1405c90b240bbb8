"""The pipeline with the classes of this package, whatever code a folder carries."""

from typing import Any

# diffusers takes a component from a module that has been imported, and imports none itself.
from mindspeed_mm.diffusers import autoencoder as autoencoder
from mindspeed_mm.diffusers import pipeline
from mindspeed_mm.diffusers import transformer as transformer
from mindspeed_mm.diffusers.code import PIPELINE, Code
from mindspeed_mm.diffusers.parts import PARTS, generated


class OpenSoraPlanPipeline(pipeline.OpenSoraPlanPipeline):
    """`pipeline.OpenSoraPlanPipeline` for a process that has this package: needs no trust_remote_code for a local folder."""

    @classmethod
    def load_config(cls, *arguments: Any, **options: Any) -> Any:
        """The folder's model_index.json, with this package's modules instead of the files in the folder."""
        found = super().load_config(*arguments, **options)
        index = found[0] if isinstance(found, tuple) else found
        for component, (name, module, _) in PARTS.items():
            if component == PIPELINE:
                index["_class_name"] = name
            elif component in index and index[component][1] == name:
                index[component] = [f"mindspeed_mm.{module}", name]
        return found

    def _code(self) -> Code:
        return generated()
