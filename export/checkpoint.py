"""Finding and reading a checkpoint: a directory of configuration and safetensors, nothing that runs code."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgemm.bundle.files import sha256_of
from edgemm.errors import CheckpointError

_PICKLES = ("pytorch_model*.bin", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Graphs that come ready, with their weights: of ONNX, and of OpenVINO as optimum-intel names them.
_GRAPHS = ("*.onnx", "*.onnx_data", "*.onnx.data", "openvino_*.xml", "openvino_*.bin")
_HEADER_MAX_BYTES = 100 << 20


@dataclass(frozen=True)
class Tensor:
    """What a safetensors header says of one tensor. `dtype` is its own name, such as "F16"."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's directory and its `config.json`."""

    path: Path
    config: dict[str, Any]

    @property
    def name(self) -> tuple[str, str]:
        """Id and revision: those of the hub for a directory in its cache, else the directory's name."""
        path = self.path.resolve()
        if path.parent.name == "snapshots" and path.parents[1].name.startswith("models--"):
            return path.parents[1].name.removeprefix("models--").replace("--", "/"), path.name
        return path.name, str(self.config.get("_commit_hash") or "")

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", ""))

    @property
    def parts(self) -> dict[str, Path]:
        """Name → directory of the models of a composite checkpoint; itself alone otherwise."""
        if self.model_type != "composite":
            return {"main": self.path}
        return {str(k): self.path / str(v) for k, v in self.config["models"].items()}

    def json(self, name: str) -> dict[str, Any]:
        """One of the checkpoint's JSON files; empty where it is absent."""
        return _read_json(self.path / name) if (self.path / name).is_file() else {}

    @property
    def towers(self) -> tuple[Checkpoint, ...]:
        """The checkpoints that hold weights of this one: a Frambicus may leave its towers where they are."""
        place = self.config.get("towers") if self.model_type == "frambicus" else None
        if not isinstance(place, str):
            return ()
        return tuple(Checkpoint(p, _read_json(p / "config.json")) for p in _parts_at(self.path / place))

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """The weight files that the index or the usual names give, in the order of their names; towers' after them."""
        return (*self._own_weight_files, *(file for tower in self.towers for file in tower.weight_files))

    @property
    def _own_weight_files(self) -> tuple[Path, ...]:
        index = self.json("model.safetensors.index.json")
        if index:
            names = sorted({str(n) for n in index.get("weight_map", {}).values()})
        else:
            names = sorted(p.name for p in self.path.glob("*.safetensors")) or self._graph_files()
        missing = [n for n in names if not (self.path / n).is_file()]
        if missing:
            raise CheckpointError(
                f"{self.path} lacks {', '.join(missing)}, which its index names",
                hint="copy the whole checkpoint again",
            )
        return tuple(self.path / n for n in names)

    def _graph_files(self) -> list[str]:
        return sorted(p.name for pattern in _GRAPHS for p in self.path.glob(pattern))

    @cached_property
    def pickles(self) -> tuple[Path, ...]:
        """The files of the first kind of pickle that there is; empty where the weights are safer than that."""
        if self.weight_files:
            return ()
        kinds = (sorted(self.path.glob(pattern)) for pattern in _PICKLES)
        return tuple(next(filter(None, kinds), []))

    @cached_property
    def sha256(self) -> str:
        """Hash over the hashes of the weight files, in the order of their names."""
        return hashlib.sha256("".join(map(sha256_of, self.weight_files)).encode()).hexdigest()

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name, from the headers alone: no weight is loaded."""
        tensors: dict[str, Tensor] = {}
        for file in self.weight_files:
            if file.suffix == ".safetensors":
                tensors |= _header(file)
        return tensors

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def parameters(self) -> int:
        """Number of weights that the safetensors headers declare."""
        return sum(t.parameters for t in self.tensors.values())


def find_checkpoint(path: Path | str, *, allow_pickle: bool = False) -> Checkpoint:
    """Read a checkpoint's configuration and refuse what can't be exported safely.

    Raises CheckpointError for a missing directory, a missing or torn config.json, and weights that exist only
    as pickles, unless `allow_pickle` says that they may (nothing reads them here).
    """
    root = Path(path)
    if not root.is_dir():
        what = "is a file, not a checkpoint directory" if root.exists() else "does not exist"
        raise CheckpointError(f"{root} {what}", hint="give a directory with config.json and *.safetensors")
    if not (root / "config.json").is_file():
        raise CheckpointError(f"{root} has no config.json", hint="give a checkpoint's directory")
    config = _read_json(root / "config.json")
    if not config.get("model_type"):
        raise CheckpointError(f"{root / 'config.json'} names no model_type", hint="run: edgemm export --list-families")
    checkpoint = Checkpoint(root, config)
    if checkpoint.model_type == "composite":
        for part in checkpoint.parts.values():
            find_checkpoint(part, allow_pickle=allow_pickle)
    elif not checkpoint.weight_files and not (allow_pickle and checkpoint.pickles):
        raise _no_weights(checkpoint)
    return checkpoint


def _parts_at(root: Path) -> tuple[Path, ...]:
    """The towers of the composite checkpoint at `root`. Raises CheckpointError where they are not there."""
    parts = tuple(root / name for name in ("labels", "speech"))
    absent = [part for part in parts if not (part / "config.json").is_file()]
    if absent:
        raise CheckpointError(
            f"{absent[0]} is not here: weights of the checkpoint are in it",
            hint="copy the towers too, or give a checkpoint that was saved whole",
        )
    return parts


def _no_weights(checkpoint: Checkpoint) -> CheckpointError:
    if checkpoint.pickles:
        name = checkpoint.pickles[0].name
        return CheckpointError(
            f"{checkpoint.path} has its weights only as a pickle ({name}), which can run code when it is read",
            hint="save it again with save_pretrained(..., safe_serialization=True), or add --allow-pickle",
        )
    return CheckpointError(f"{checkpoint.path} has no *.safetensors", hint="copy the whole checkpoint again")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return data


def _header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file (8 bytes of header length, then JSON)."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _HEADER_MAX_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        tensors = {k: _tensor(v) for k, v in header.items() if k != "__metadata__"}
        end = max(v["data_offsets"][1] for k, v in header.items() if k != "__metadata__")
    except (OSError, AttributeError, LookupError, ValueError, TypeError, RecursionError, struct.error) as error:
        raise CheckpointError(f"{path} is torn or no safetensors file: {error}", hint="copy it again") from error
    if path.stat().st_size != 8 + length + end:
        raise CheckpointError(
            f"{path} is torn: {path.stat().st_size} bytes, {8 + length + end} expected",
            hint="copy it again",
        )
    return tensors


def _tensor(entry: dict[str, Any]) -> Tensor:
    first, last = entry["data_offsets"]
    return Tensor(str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), int(last) - int(first))
