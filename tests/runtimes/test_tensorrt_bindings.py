"""The names that edgemm uses of TensorRT's bindings, held against the bindings themselves: no library, no GPU.

The list in `tensorrt_api` is held against the code first, by reading the code. TensorRT's own bindings are a wheel of
1 MB each; what they link to is replaced by a library of the same names that does nothing, so they can be imported, not
called. To run it: `pytest -m slow tests/runtimes/test_tensorrt_bindings.py` (it fetches the wheels with pip).
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgemm.runtimes import tensorrt, tensorrt_api, tensorrt_engine
from edgemm.runtimes.tensorrt_api import NAMES, OPTIONAL
from tests.runtimes import pretend_gpu

# Variables of the code that hold an object of the bindings, and its class.
_HELD = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "layer": "ILayer",
    "attention": "IAttention", "error": "ParserError", "made": "IOptimizationProfile", "engine": "ICudaEngine",
    "context": "IExecutionContext", "_runtime": "Runtime", "_cache": "IRuntimeCache",
}  # fmt: skip
_CONFIG = {tensorrt_api: "IBuilderConfig", tensorrt_engine: "IRuntimeConfig", tensorrt: ""}
_OWN = {("ParserError", "strerror"), ("ILayer", "__class__"), ("ILayer", "attention")}  # not the bindings' own


def _used(module: Any) -> Iterator[tuple[str, str]]:
    """(class, member) for every name of the bindings that a module of edgemm reads; a member may be ""."""
    held = _HELD | {"config": _CONFIG[module]}
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if not isinstance(node, ast.Attribute):
            continue
        base = _name(node.value)
        if base == "trt":
            yield node.attr, ""
        elif held.get(base):
            yield held[base], node.attr
        elif isinstance(node.value, ast.Attribute) and _name(node.value.value) == "trt":
            yield node.value.attr, node.attr


def _name(node: ast.expr) -> str:
    """`engine` of `engine`, `self.engine` and `it.engine`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "it", "self._it"):
        return node.attr
    return ""


@pytest.mark.parametrize("module", _CONFIG, ids=lambda m: m.__name__.rpartition(".")[2])
def test_every_name_that_the_code_uses_is_listed(module: Any) -> None:
    known = {(kind, member) for table in (NAMES, OPTIONAL) for kind, members in table.items() for member in members}
    kinds = NAMES.keys() | OPTIONAL.keys()
    used = {u for u in _used(module) if u not in _OWN and not u[1].startswith("__") and u[0] not in ("__version__",)}
    assert len(used) > 3
    unlisted = {u for u in used if u not in known and not (u[0] in kinds and u[1] in ("", "__members__"))}
    assert not unlisted


def test_every_name_that_is_listed_is_used() -> None:
    text = "".join(Path(m.__file__ or "").read_text() for m in _CONFIG)
    text = text.replace("NAMES: dict", "").split("_UNUSED =", 1)[1]  # what comes after the list itself
    for table in (NAMES, OPTIONAL):
        for members in table.values():
            assert [m for m in members if m not in text and m != "SM86"] == []


def missing(trt: Any, table: dict[str, tuple[str, ...]]) -> list[str]:
    """What of the list the bindings do not have."""
    lacking = []
    for kind, members in table.items():
        found = getattr(trt, kind, None)
        lacking += [kind] if found is None else [f"{kind}.{m}" for m in members if not hasattr(found, m)]
    return lacking


def test_tensorrt_rtx_has_them_all() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this machine")
    assert missing(trt, NAMES) == []
    assert missing(trt, OPTIONAL) == []


def test_the_pretended_library_has_no_members_of_its_own() -> None:
    """The kinds that the contracts pass with, and the bits that refusals are told by, are the real library's."""
    trt = pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this machine")
    for kind in (pretend_gpu.DataType, pretend_gpu.TensorIOMode, pretend_gpu.TensorLocation):
        assert missing(trt, {kind.__name__: tuple(kind.__members__)}) == []
    for bit in pretend_gpu.EngineInvalidityDiagnostics:
        assert int(getattr(trt.EngineInvalidityDiagnostics, bit.name)) == int(bit)


_SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
_CHILD = """
import json, sys
import tensorrt_bindings as trt
def missing(table):
    for kind, members in table.items():
        found = getattr(trt, kind, None)
        if found is None:
            yield kind
        else:
            yield from (f"{kind}.{m}" for m in members if not hasattr(found, m))
names, optional = json.loads(sys.stdin.read())
strong = int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
print(json.dumps([trt.__version__, list(missing(names)), list(missing(optional)), strong]))
"""
# Version → what of the optional names it lacks: TensorRT-RTX alone has kernels to cache and engines to ask.
_RTX_ONLY = [
    "ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability",
    "Runtime.engine_header_size", "Runtime.get_engine_validity", "EngineValidity", "EngineInvalidityDiagnostics",
    "IRuntimeConfig.create_runtime_cache", "IRuntimeConfig.set_runtime_cache", "IRuntimeConfig.cuda_graph_strategy",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy", "IRuntimeCache", "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
]  # fmt: skip
_NO_ATTENTION = ["LayerType.ATTENTION_INPUT", "IAttentionInputLayer", "IAttention"]
BINDINGS = {
    "tensorrt-cu12-bindings==10.13.0.35": [*_RTX_ONLY, *_NO_ATTENTION],
    "tensorrt-cu13-bindings==11.4.0.106": _RTX_ONLY,
}


def _stubs(folder: Path, major: str) -> None:
    source = folder / "stub.c"
    source.write_text("".join(f"long {name}() {{ return 0; }}\n" for name in _SYMBOLS))
    for name in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-o", folder / f"lib{name}.so.{major}", source], check=True, timeout=60
        )


@pytest.mark.slow
@pytest.mark.parametrize("wheel", BINDINGS)
def test_tensorrt_has_them_all(wheel: str, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc to build the stub with")
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    fetched = subprocess.run([*fetch, "-d", tmp_path, wheel], capture_output=True, text=True, timeout=300)
    if fetched.returncode:
        pytest.skip(f"{wheel} cannot be had here: {fetched.stderr.strip().splitlines()[-1][:200]}")
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(tmp_path / "site")
    _stubs(tmp_path, wheel.partition("==")[2].partition(".")[0])
    environment = {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
    tables = json.dumps([NAMES, OPTIONAL])
    child = subprocess.run(
        [sys.executable, "-c", _CHILD], input=tables, env=environment, capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr
    version, lacking, optional, strong = json.loads(child.stdout)
    assert version == wheel.partition("==")[2]
    assert lacking == []
    assert sorted(optional) == sorted(BINDINGS[wheel])
    assert strong == (1 if version.startswith("10") else 0)  # why flags are looked up by name
