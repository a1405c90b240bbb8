"""Package metadata. `pip install -e .` for development; requirements.txt holds the exact versions that were tested."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

_HERE = Path(__file__).parent
_VERSION = re.search(r'__version__ = "(.+)"', (_HERE / "mindspeed_mm" / "version.py").read_text(encoding="utf-8"))[1]


class BuildWithPublishedFiles(build_py):
    """Puts the published configs and prompts, which lie beside the package, into it: `mindspeed-mm config init` needs them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # the files are found where they are
        folder = Path(self.build_lib, "mindspeed_mm", "published")
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in ("examples/opensoraplan1.5/*.json", "examples/opensoraplan1.5/*.txt", "configs/tool/tools.json"):
            for file in _HERE.glob(pattern):
                shutil.copy(file, folder / file.name)


setup(
    name="mindspeed_mm",
    version=_VERSION,
    description="Open-Sora Plan v1.5, maintained: text-to-video training and sampling on Ascend NPUs, CUDA and CPUs",
    long_description=(_HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    cmdclass={"build_py": BuildWithPublishedFiles},
    entry_points={"console_scripts": ["mindspeed-mm = mindspeed_mm.cli.main:main"]},
    packages=find_packages(include=["mindspeed_mm", "mindspeed_mm.*"]),
    package_data={"mindspeed_mm.serving": ["page/*"]},
    install_requires=[
        "torch>=2.7,<2.14",
        "megatron-core>=0.16.1,<0.20",  # 0.17 and later need Python 3.12
        "transformers>=4.51.3,<6",
        "tokenizers",
        "safetensors>=0.4",
        "numpy>=1.26,<3",
        "sentencepiece>=0.2",  # the published T5 folder holds spiece.model only; reading it needs both
        "protobuf>=4",
        "av>=14",
        "pillow>=10",
        "beautifulsoup4>=4.12",
        "ftfy>=6.1",
        "psutil>=5.9",  # megatron-core writes torch_dist with it and does not ask for it
        "tqdm>=4.60",
        "matplotlib>=3.8",
        "pyarrow>=14",  # lists in .parquet
        "shtab>=1.7",  # mindspeed-mm completion
        # Checksums of checkpoints ten times as fast; without a wheel of it zlib's serve.
        'isal>=1.9,<2; platform_machine == "x86_64" or platform_machine == "aarch64"',
    ],
    extras_require={
        "test": ["pytest>=8", "pytest-xdist>=3.5", "ruff>=0.6", "jsonschema>=4.20"],
        # torch_npu pairs with one torch and one CANN version (docs: which); MindSpeed is installed from its repository.
        "npu": ["torch_npu", "einops", "scipy"],
        "serve": ["fastapi>=0.115", "uvicorn>=0.30", "python-multipart>=0.0.18"],  # the page and the HTTP API
        "readers": ["decord2>=3.0"],
        "docs": ["mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.29"],  # python tools/build_site.py
        "diffusers": ["diffusers>=0.36", "accelerate>=1.0", "peft>=0.17"],  # mindspeed_mm.diffusers; peft for adapters
    },
)
