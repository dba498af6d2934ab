"""Packaging: the source root is `collections/`, and the YAML of `conf/` travels in the wheel."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent

# Why each of these is needed stands in CONTRIBUTING.rst; constraints.txt pins what CI runs.
REQUIRES = [
    "datasets>=4",
    "espeakng-loader>=0.2.4",
    "hydra-core>=1.3.2,<1.4",
    "jiwer>=3.1",
    "lhotse>=1.33",
    "lightning>=2.4,<2.5",
    "matplotlib>=3.8",
    "nemo_toolkit[asr,core]==3.0.0",
    "numpy>=1.26",
    "omegaconf>=2.3,<2.4",
    "peft>=0.18",
    "pydantic>=2.11,<3",
    "pyyaml>=6",
    "sacrebleu>=2.5",
    "safetensors>=0.4",
    "sentencepiece>=0.2",
    "soundfile>=0.12",
    "soxr>=0.5",
    "tensorboard>=2.16",
    "tokenizers>=0.22",
    "torch>=2.6",
    "tqdm>=4.66",
    "transformers>=5,<6",
]
PHONEMES = ["g2p_en>=2.1"]
TEST = ["docutils>=0.21", "hypothesis>=6.100", "pytest>=8", "pytest-xdist>=3.6", "setuptools>=70.1"]
DEV = [*TEST, "import-linter>=2.3", "ruff>=0.9"]


class BuildWithConf(build_py):
    """Copy `conf/` into the built package; a development install reads the checkout's own."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "whalesong" / "conf"
            shutil.copytree(HERE / "conf", target, dirs_exist_ok=True)


def version() -> str:
    """The version that the package states, read without importing it."""
    text = (HERE / "collections" / "whalesong" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)[1]


setup(
    name="whalesong",
    version=version(),
    description="Speech and audio language models, built the NeMo way",
    author="Whalesong authors",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={"": "collections"},
    packages=find_packages("collections", include=["whalesong", "whalesong.*"]),
    package_data={"whalesong.core.scaffold": ["templates/**/*.tmpl"]},
    install_requires=REQUIRES,
    extras_require={"phonemes": PHONEMES, "test": TEST, "dev": DEV},
    entry_points={
        "console_scripts": [
            "xlm = whalesong.cli:main",
            "xlm-scaffold = whalesong.core.scaffold.command:main",
        ]
    },
    cmdclass={"build_py": BuildWithConf},
    zip_safe=False,
)
