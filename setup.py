"""Installs llamax, with its configs inside the package."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (HERE / 'llamax/__init__.py').read_text()).group(1)

REQUIRED = [
  'jax>=0.10.2',
  'flax>=0.12.8',
  'optax>=0.2.8',
  'orbax-checkpoint>=0.12.8,<1.0',
  'ml-collections>=1.1',
  # Older ones break with current protobuf.
  'tensorflow-datasets>=4.9.10',
  'importlib-resources',  # tensorflow-datasets needs it without saying so
  'array-record>=0.8.3',
  'grain>=0.2.18',
  'sentencepiece>=0.2.1',
  'tokenizers>=0.22',
  'gguf>=0.17',  # the arithmetic of its quantised blocks alone
  'safetensors>=0.5',
  'ml-dtypes>=0.5',
  'numpy',
  'scipy',  # fits of scaling laws
  'pyarrow',
  'xxhash',  # digests of checkpoints
  'zstandard',
  'matplotlib',
  'plotext>=6,<7',
  'tqdm',
]
EXTRAS = {
  'cuda': ['jax[cuda12]'],
  'tpu': ['jax[tpu]'],
  'tensorboard': ['tensorboardX'],
  'wandb': ['wandb'],
  'sweep': ['optuna>=4'],  # searches
  # The CPU build of torch; a looser pin may bring gigabytes of CUDA.
  'parity': ['torch==2.13.0', 'transformers>=5', 'peft'],
  'test': [
    *('pytest', 'pytest-timeout', 'pytest-xdist', 'hypothesis'),
    *('tensorboardX', 'tiktoken', 'optuna>=4', 'jsonschema'),
  ],
  'lint': ['ruff', 'import-linter', 'mypy'],
}

setup(
  name='llamax',
  version=VERSION,
  description='Pretrains LLaMA-family models in JAX, from a laptop to a pod',
  long_description=(HERE / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=[*find_packages(include=['llamax', 'llamax.*']), 'llamax.configs'],
  package_dir={'llamax.configs': 'configs'},
  package_data={'llamax.sweep': ['page.css', 'page.js']},
  install_requires=REQUIRED,
  extras_require=EXTRAS,
  entry_points={'console_scripts': ['llamax=llamax.cli.main:entry']},
)
