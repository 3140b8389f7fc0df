"""fp16 the safe way: the module is halved before it is traced, rotary frequencies stay in fp32.

A converter that halves a finished graph also halves the angles of rotary embeddings, whose cosine is then
wrong by up to 0.9 at position 4,000.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from edgemm.export.graph import GraphPlan, Port
from edgemm.export.wrappers import EmbedTokens

_KEEP = ("inv_freq",)


def half_plan(plan: GraphPlan) -> GraphPlan:
    """The same component with fp16 weights, inputs and outputs."""
    module = copy.deepcopy(plan.module).half()
    for name, buffer in plan.module.named_buffers():
        if name.endswith(_KEEP):
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, buffer)
    build = module.graph if isinstance(module, EmbedTokens) else plan.build
    return replace(
        plan,
        module=module.eval(),
        inputs=tuple(map(_half, plan.inputs)),
        outputs=tuple(map(_half, plan.outputs)),
        build=build,
    )


def _half(port: Port) -> Port:
    return replace(port, dtype=torch.float16) if port.dtype == torch.float32 else port
