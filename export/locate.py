"""From what the user names to a directory of configuration and safetensors: a path, a hub id, an adapter, a pickle."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from edgemm.errors import CheckpointError, missing_extra

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")
_PICKLED = ("pytorch_model*.bin",)
_WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")
ADAPTER = "adapter_config.json"


@contextmanager
def located(source: Path | str, *, revision: str | None = None, allow_pickle: bool = False) -> Iterator[Path]:
    """A directory that `export` can read, for as long as the block lasts.

    `source` is a directory or a hub id (`owner/name`, from the local cache or the hub; `HF_HUB_OFFLINE` is
    respected). A PEFT adapter is merged into its base model first. Weights that exist only as a pickle are
    read, without running code from it, where `allow_pickle` says so.

    Raises CheckpointError where nothing is found, and RuntimeUnavailable where a needed package is missing.
    """
    with ExitStack() as stack:
        path = _directory(source, revision, allow_pickle)
        if (path / ADAPTER).is_file():
            base = stack.enter_context(located(_base_of(path), allow_pickle=allow_pickle))
            path = _merged(base, path, _scratch(stack, path.name))
        elif allow_pickle and not any(path.glob("*.safetensors")) and any(path.glob(_PICKLED[0])):
            path = _unpickled(path, _scratch(stack, path.name))
        yield path


def _scratch(stack: ExitStack, name: str) -> Path:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgemm-"))) / name
    folder.mkdir()
    return folder


def is_hub_id(source: Path | str) -> bool:
    """Whether this names a model of the hub: `owner/name`, and nothing on the disk."""
    return _HUB_ID.fullmatch(str(source)) is not None and not Path(source).exists()


def cached(source: str) -> Path:
    """Where the hub's local cache has a model. Raises CheckpointError where it has not; nothing is downloaded."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{source} does not exist, and without huggingface_hub no cache of the hub can be looked into",
            hint='check the path, or run: pip install "edgemm[export]"',
        ) from error
    try:
        return Path(snapshot_download(source, local_files_only=True))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{source} is neither a path nor in the hub's local cache",
            hint=f"check the path, or run: hf download {source}",
        ) from error


def _directory(source: Path | str, revision: str | None, allow_pickle: bool) -> Path:
    if not Path(source).exists() and not is_hub_id(source):
        raise CheckpointError(
            f"{source} does not exist, and is no hub id", hint="give a checkpoint's directory or owner/name"
        )
    if not is_hub_id(source):
        return Path(source)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as error:
        raise missing_extra("huggingface_hub", "export", error) from error
    wanted = [*_WANTED, *(_PICKLED if allow_pickle else ())]
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=wanted))
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"the hub has no model {source}", hint="check its name; or run: hf auth login") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{source} is neither a directory nor in the hub's local cache, and the hub cannot be asked: "
            f"{type(error).__name__}",
            hint="give a checkpoint's directory, or unset HF_HUB_OFFLINE and check the network",
        ) from error


def _base_of(adapter: Path) -> str:
    settings = json.loads((adapter / ADAPTER).read_text())
    base = settings.get("base_model_name_or_path")
    if not base:
        raise CheckpointError(f"{adapter / ADAPTER} names no base model", hint="set base_model_name_or_path in it")
    beside = adapter / str(base)
    return str(beside if beside.is_dir() else base)


def _merged(base: Path, adapter: Path, target: Path) -> Path:
    """Write the base model with the adapter merged into its weights to `target`."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise missing_extra("peft", "export", error) from error
    from edgemm.export.checkpoint import find_checkpoint
    from edgemm.export.loading import from_pretrained

    model = from_pretrained(_architecture(base), find_checkpoint(base))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
            PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(target)
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise CheckpointError(f"the adapter {adapter} does not fit {base}: {reason}") from error
    for folder in (base, adapter):
        _copy_but_weights(folder, target, keep_config=False)
    return target


def _architecture(base: Path) -> Any:
    import transformers

    config = json.loads((base / "config.json").read_text())
    names = config.get("architectures") or []
    found = getattr(transformers, names[0], None) if names else None
    if found is None:
        raise CheckpointError(
            f"{base / 'config.json'} names no architecture that transformers has: {', '.join(names) or 'none'}",
            hint="merge the adapter by hand and export the result",
        )
    return found


def _unpickled(path: Path, target: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    files = sorted(p for pattern in _PICKLED for p in path.glob(pattern))
    tensors: dict[str, Any] = {}
    for file in files:
        try:
            tensors |= torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise CheckpointError(f"{file} holds more than weights, or is torn: {reason}") from error
    # Tied tensors share memory in a pickle, which safetensors refuses.
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, target / "model.safetensors", {"format": "pt"})
    _copy_but_weights(path, target, keep_config=True)
    return target


def _copy_but_weights(source: Path, target: Path, *, keep_config: bool) -> None:
    """Copy tokenizer, processor and configuration files; the last directory that has one wins."""
    skipped = {f.name for pattern in _WEIGHTS for f in source.glob(pattern)} | {ADAPTER}
    if not keep_config:
        skipped.add("config.json")
    for file in source.iterdir():
        if file.is_file() and file.name not in skipped and file.suffix in (".json", ".txt", ".jinja", ".model"):
            shutil.copyfile(file, target / file.name)
