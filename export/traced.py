"""A graph and its weights apart: the weights of a large model are views of the checkpoint's, never copied whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto

_LARGE_BYTES = 1024

Weights = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Traced:
    """`model`, in which the initializers named in `weights` have their type and shape but no values."""

    model: onnx.ModelProto
    weights: Weights

    @classmethod
    def of(cls, model: ir.Model) -> Traced:
        """Take the large initializers out of `model`, and put the rest into a proto."""
        weights = {}
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes >= _LARGE_BYTES:
                weights[name] = tensor.numpy()
                value.const_value = ir.ExternalTensor(
                    "", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
                )
        return cls(ir.to_proto(model), weights)

    def whole(self) -> onnx.ModelProto:
        """The proto with every value inside."""
        for tensor in self.model.graph.initializer:
            if tensor.name in self.weights:
                tensor.ClearField("external_data")
                tensor.data_location = TensorProto.DEFAULT
                tensor.raw_data = np.ascontiguousarray(self.weights[tensor.name]).tobytes()
        return self.model
