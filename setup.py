"""Packaging of keras_bnrnn: what it needs, and what each extra adds."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (HERE / "keras_bnrnn/__init__.py").read_text(encoding="utf-8"), re.M
)[1]
SPEECH = [
    "espeakng-loader>=0.2.4,<0.3",
    "kaldiio>=2.18,<3",
    "pocketsphinx>=5.1,<6",
    "soundfile>=0.12,<1",
    "soxr>=0.5,<2",
    "tqdm>=4.60,<5",
]
CLUSTER = ["distributed>=2024.5"]
TEXT = ["tensorflow-text>=2.16.1,<3"]
TFIO = ["tensorflow-io[tensorflow]>=0.37.1,<0.38"]
ONNX = ["onnx>=1.17,<2", "onnxruntime>=1.20,<2", "tf2onnx>=1.16.1,<2"]
DECODE = ["kaldi-decoder>=0.3.2,<0.4", "kaldifst>=1.8.3,<2"]
LITERT = ["ai-edge-litert>=1.3,<3"]
TRAIN = [
    "absl-py>=2.0,<3",
    "jiwer>=4.0,<5",
    "matplotlib>=3.8,<4",
    "tensorboard>=2.16,<3",
    "tqdm>=4.60,<5",
]
EXPERIMENTS = ["scikit-learn>=1.5,<2"]
DOCS = [
    "ipykernel>=6.29,<8",
    "jupytext>=1.16,<2",
    "matplotlib>=3.8,<4",
    "mkdocs>=1.6,<2",
    "mkdocs-material>=9.6,<10",
    "mkdocstrings-python>=2.0,<3",
    "nbclient>=0.10,<1",
    "nbconvert>=7.16,<8",
]
TEST = [
    "build>=1.2,<2",
    "hypothesis>=6.100,<7",
    "kaldi-native-fbank>=1.20,<2",
    "pytest>=8,<10",
    "pytest-xdist>=3.5,<4",
    "ruff>=0.9,<1",
    "setuptools>=77,<81",
    "tabulate>=0.9,<1",
]


def description():
    """README.md for a package index: a path that leads nowhere there is named, not linked."""

    def named(match):
        picture, text, path = match.groups()
        if picture:
            return f"*Picture `{path}`: {' '.join(text.split())}.*"
        return f"`{path}`" if path.endswith(text) else f"{text} (`{path}`)"

    readme = (HERE / "README.md").read_text(encoding="utf-8")
    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?://)([\w./#-]+)\)", named, readme)


setup(
    name="keras-bnrnn",
    version=VERSION,
    description="Batch-normalised recurrent networks for Keras 3 on TensorFlow",
    long_description=description(),
    long_description_content_type="text/markdown",
    author="The keras_bnrnn authors",
    project_urls={"Paper": "https://arxiv.org/abs/1510.01378"},
    keywords=[
        "batch normalization",
        "recurrent neural networks",
        "LSTM",
        "GRU",
        "Keras",
        "TensorFlow",
        "speech recognition",
        "language modelling",
    ],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["keras_bnrnn", "keras_bnrnn.*"]),
    package_data={"keras_bnrnn": ["py.typed", "*.pyi"]},
    install_requires=["tensorflow>=2.16.1,<3", "keras>=3.10,<4", "numpy>=1.26,<3"],
    extras_require={
        "speech": SPEECH,
        "cluster": CLUSTER,
        "text": TEXT,
        "tfio": TFIO,
        "train": TRAIN,
        "onnx": ONNX,
        "litert": LITERT,
        "decode": DECODE,
        "experiments": EXPERIMENTS,
        "docs": DOCS,
        "dev": sorted({*SPEECH, *CLUSTER, *TEXT, *TRAIN, *EXPERIMENTS, *TEST}),
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
