"""What is released: metadata, the links of its pages, and a wheel that works on its own."""

import os
import re
import runpy
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import keras_bnrnn

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = (".", "benchmarks", "docs", "docs/notebooks", "docs/reference", "results")
PAGES = [page for folder in FOLDERS for page in (REPOSITORY / folder).glob("*.md")]


def read(name):
    return (REPOSITORY / name).read_text(encoding="utf-8")


def relative_links(page):
    """Where links and pictures lead that have no host; what is in a code block is none."""
    text = re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)
    return re.findall(r"\]\((?!https?://)([^)#]+)", text)


@pytest.fixture(scope="module")
def arguments():
    """What setup.py hands to setuptools."""
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **kwargs: given.update(kwargs))
        runpy.run_path(str(REPOSITORY / "setup.py"))
    return given


def test_all_pages_name_the_version_of_the_package(arguments):
    assert arguments["version"] == keras_bnrnn.__version__
    released, date = re.search(r"^## \[([\d.]+)\] - (.+)$", read("CHANGELOG.md"), re.M).groups()
    assert released == keras_bnrnn.__version__
    citation = read("CITATION.cff").splitlines()
    assert f"version: {released}" in citation
    assert f"date-released: {date}" in citation


def test_the_description_links_to_nothing_that_an_index_lacks(arguments):
    description = arguments["long_description"]
    assert relative_links(read("README.md"))
    assert relative_links(description) == []
    assert "(https://arxiv.org/abs/1510.01378)" in description
    assert "Choosing a mode (`docs/CHOOSING.md`) has the reasons" in description
    assert "*Picture `results/digits-speech.png`: Frame-wise cross-entropy and" in description


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_between_pages_lead_to_files(page):
    links = relative_links(read(page))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(
    "constraints,extras",
    [("tf221", ["dev", "docs", "decode", "onnx", "litert"]), ("tf216", ["dev", "tfio"])],
)
def test_each_environment_pins_what_the_package_asks_for(arguments, constraints, extras):
    pins = dict(
        line.split("==")
        for line in read(f"constraints/{constraints}.txt").splitlines()
        if not line.startswith("#")
    )
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    asked = [*arguments["install_requires"]]
    asked += [line for extra in extras for line in arguments["extras_require"][extra]]
    for requirement in map(Requirement, asked):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The sdist and the wheel that `make dist` builds."""
    folder = tmp_path_factory.mktemp("dist")
    run(["-m", "build", "--no-isolation", "--outdir", folder], cwd=REPOSITORY)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def run(arguments, **kwargs):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(distributions):
    _, wheel = distributions
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = message_from_bytes(archive.read(metadata))
    package = (REPOSITORY / "keras_bnrnn").rglob("*")
    sources = [path for path in package if path.suffix in (".py", ".pyi", ".typed")]
    assert sorted(names) == sorted(str(path.relative_to(REPOSITORY)) for path in sources)
    assert metadata["Version"] == keras_bnrnn.__version__
    assert metadata.get_all("Project-URL")
    assert relative_links(metadata.get_payload(decode=True).decode()) == []


@pytest.mark.slow
def test_the_sdist_holds_what_its_pages_name(distributions):
    sdist, _ = distributions
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    named = [
        os.path.relpath(page.parent / link, REPOSITORY)
        for page in PAGES
        for link in relative_links(read(page))
    ]
    assert [name for name in named if name not in names] == []
    assert {
        "Makefile",
        "mkdocs.yml",
        "constraints/tf221.txt",
        "training/demo.py",
        "tests/conftest.py",
    } <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


USE = """
import importlib.metadata
import sys
from pathlib import Path

extras = "kaldiio", "matplotlib", "pocketsphinx", "soundfile", "soxr", "tensorflow_text", "tqdm"
sys.modules.update(dict.fromkeys(extras))  # They cannot be imported.

import keras
import numpy as np
import tensorflow as tf

import keras_bnrnn
from keras_bnrnn import BatchNormLSTM, serving
from keras_bnrnn.data import LogMelFilterBank

assert Path(keras_bnrnn.__file__).is_relative_to(sys.argv[1]), keras_bnrnn.__file__
assert importlib.metadata.version("keras-bnrnn") == keras_bnrnn.__version__

samples = np.random.default_rng(0).normal(size=(2, 4000)).astype("float32")
features = LogMelFilterBank(sample_rate=8000)(samples)
model = keras.Sequential(
    [keras.Input((None, features.shape[-1])), BatchNormLSTM(4, return_sequences=True)]
)
model.compile("sgd", "mse")
model.fit(features, np.zeros((*features.shape[:2], 4)), verbose=0)

assert serving.export(model, "exported") == ["serve", "step"]
served = tf.saved_model.load("exported").signatures["serve"]
[answer] = served(tf.constant(features)).values()
np.testing.assert_allclose(answer, model(features), atol=1e-5)
"""


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(distributions, tmp_path):
    _, wheel = distributions
    site = tmp_path / "site"
    run(["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel])
    run(["-c", USE, site], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)})
