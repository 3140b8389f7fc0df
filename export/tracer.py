"""torch's exporter to ONNX, without the passes that take most of a deep decoder's time and change nothing.

Measured on 30 layers of SmolVLM-256M, 65 s of one core in all: lowering operators that need none took 28 s, one
rewrite rule 11 s, since it looks through the whole graph at every node, and running every operator once more to find
those whose inputs differ in type 4 s. They are left out where they have no effect on the graph; where an operator does
need lowering, everything is as torch does it.
"""

from __future__ import annotations

import gc
import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from onnxscript import rewriter

from edgemm.export.attention_op import TRANSLATION
from edgemm.export.traced import Traced

# Joins slices that split a tensor in two halves into one Split; the only rule with two outputs.
_QUADRATIC_RULES = ("SlicesSplit",)
_ATEN = torch.ops.aten
_NO_EFFECT = (_ATEN.detach_.default, _ATEN.detach.default)
_CASTS = (_ATEN.to.dtype, _ATEN.to.device, _ATEN.to.dtype_layout)
_NAMED_PADDING = {_ATEN.conv1d.padding: _ATEN.conv1d.default, _ATEN.conv2d.padding: _ATEN.conv2d.default}


def onnx_of(
    module: torch.nn.Module,
    feeds: Mapping[str, torch.Tensor],
    dynamic: Mapping[str, Mapping[int, Any]],
    outputs: Sequence[str],
    opset: int,
) -> Traced:
    """The graph of `module`, called with `feeds`; `dynamic` are the free dimensions of each of them."""
    names = {"input_names": list(feeds), "output_names": list(outputs)}
    how: dict[str, Any] = {"dynamo": True, "opset_version": opset, "verbose": False, **names}
    how["custom_translation_table"] = TRANSLATION
    called: dict[str, Any] = {"kwargs": {"feeds": dict(feeds)}, "dynamic_shapes": {"feeds": dict(dynamic)}}
    with _quiet(), _without_quadratic_rules(), _without_rerunning(), _without_collection(), torch.no_grad():
        try:
            program = torch.export.export(module, (), strict=False, **called)
            _lower_only_if_needed(program)
            result = torch.onnx.export(program, **how)
        except Exception:
            # All that torch knows to do: other ways of capturing, and lowering whatever ONNX lacks.
            result = torch.onnx.export(module, **called, **how)
    assert result is not None
    return Traced.of(result.model)


def _lower_only_if_needed(program: torch.export.ExportedProgram) -> None:
    """Make the exporter's call of `run_decompositions` return at once if ONNX has every operator as it is."""
    lower = program.run_decompositions

    def run_decompositions(table: Any = None, **more: Any) -> torch.export.ExportedProgram:
        return program if table is not None and _is_low(program.graph, table) else lower(table, **more)

    program.run_decompositions = run_decompositions


def _is_low(graph: torch.fx.Graph, table: Mapping[Any, Any]) -> bool:
    for node in list(graph.nodes):
        if node.target in _CASTS:
            _lower_cast(graph, node)
        elif node.target in _NO_EFFECT:
            _leave_out(graph, node)
        elif node.target in _NAMED_PADDING:
            _lower_padding(node)
    operators = {node.target for node in graph.nodes if node.op == "call_function"}
    return not any(op in table or getattr(getattr(op, "_schema", None), "is_mutable", False) for op in operators)


def _lower_cast(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    before, after = node.args[0].meta["val"].dtype, node.meta["val"].dtype
    if before == after:
        _leave_out(graph, node)
        return
    node.target, node.args, node.kwargs = _ATEN._to_copy.default, node.args[:1], {"dtype": after}


def _lower_padding(node: torch.fx.Node) -> None:
    given = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | node.kwargs
    if given.get("padding", "valid") == "valid":
        node.target, node.args, node.kwargs = _NAMED_PADDING[node.target], (), {**given, "padding": 0}


def _leave_out(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    node.replace_all_uses_with(node.args[0])
    graph.erase_node(node)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about other people's operators off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _without_quadratic_rules() -> Iterator[None]:
    # The name is onnxscript's own: where another version has none, its passes are left as they are.
    name = "_DEFAULT_REWRITE_RULES"
    rules = getattr(rewriter, name, None)
    if rules is None:
        yield
        return
    setattr(rewriter, name, tuple(rule for rule in rules if rule.name not in _QUADRATIC_RULES))
    try:
        yield
    finally:
        setattr(rewriter, name, rules)


@contextmanager
def _without_rerunning() -> Iterator[None]:
    """Insert casts where inputs differ in type by what tracing recorded of each operator, without running it again.

    A cast never changes the type that later operators see, so what was recorded stays true.
    """
    # The names are torch's own: where another version has others, its pass is left as it is.
    try:
        type_promotion = importlib.import_module("torch.onnx._internal.fx.passes.type_promotion")
        interpreter, rule_of = type_promotion._TypePromotionInterpreter, type_promotion.get_type_promotion_rule
    except (ImportError, AttributeError):
        yield
        return
    run = torch.fx.Interpreter.run_node

    def run_node(self: Any, node: torch.fx.Node) -> Any:
        rule = rule_of(node, self.type_promotion_table)
        if rule is not None:
            with self._set_current_node(node):
                self._maybe_promote_node(node, rule)
        known = node.op == "call_function" and "val" in node.meta
        return node.meta["val"] if known else run(self, node)

    before, interpreter.run_node = interpreter.run_node, run_node
    try:
        yield
    finally:
        interpreter.run_node = before


@contextmanager
def _without_collection() -> Iterator[None]:
    """No garbage collection: tracing makes millions of objects, and hardly one is free before it ends."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()
