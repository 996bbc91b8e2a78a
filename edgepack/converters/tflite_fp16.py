"""Weights of a .tflite as float16, widened at run time."""

from collections import Counter

import numpy as np
from ai_edge_litert.tools import flatbuffer_utils
from ai_edge_quantizer import quantizer
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.qtyping import (
    BuiltinOperator,
    ComputePrecision,
    OperatorT,
    OpQuantizationConfig,
    TensorDataType,
    TensorQuantizationConfig,
    TensorType,
    TFLOperationName,
)
from ai_edge_quantizer.transformations import transformation_utils
from ai_edge_quantizer.utils import tfl_flatbuffer_utils

SMALLEST = 256  # values; a smaller constant isn't worth a float16 copy
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")


def fp16(model: str) -> bytes:
    weights = TensorQuantizationConfig(num_bits=16, dtype=TensorDataType.FLOAT)
    config = OpQuantizationConfig(
        weight_tensor_config=weights, compute_precision=ComputePrecision.FLOAT, explicit_dequantize=True
    )
    worker = quantizer.Quantizer(halve_tables(model))
    worker.update_quantization_recipe(".*", TFLOperationName.ALL_SUPPORTED, config, AlgorithmName.FLOAT_CASTING)
    return bytes(worker.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model)


def halve_tables(model: str) -> bytes:
    """Store as float16 what the tool leaves in float32: the large constants of any other operator."""
    flat = tfl_flatbuffer_utils.read_model(model)
    weighted = {getattr(BuiltinOperator, name) for name in WEIGHTED}
    for graph in flat.subgraphs:
        kept = {
            index
            for operator in graph.operators
            if flat.operatorCodes[operator.opcodeIndex].builtinCode in weighted
            for index in operator.inputs
        }
        used = {index for operator in graph.operators for index in operator.inputs}
        shared = Counter(tensor.buffer for tensor in graph.tensors)
        for index in sorted(used - kept - set(graph.outputs) - {-1}):
            tensor = graph.tensors[index]
            buffer = flat.buffers[tensor.buffer]
            if tensor.type != TensorType.FLOAT32 or buffer.data is None or shared[tensor.buffer] > 1:
                continue
            full = np.frombuffer(bytes(buffer.data), np.float32)
            if full.size < SMALLEST or np.abs(full).max() > np.finfo(np.float16).max:
                continue
            wide = transformation_utils.add_new_activation_tensor(
                tensor.name + b"_wide", tensor.shape, TensorType.FLOAT32, graph
            )
            for operator in graph.operators:
                operator.inputs = [wide if number == index else number for number in operator.inputs]
            widen = OperatorT()
            widen.opcodeIndex = transformation_utils.add_op_code(BuiltinOperator.DEQUANTIZE, flat.operatorCodes)
            widen.inputs, widen.outputs = [index], [wide]
            graph.operators.insert(0, widen)
            tensor.type = TensorType.FLOAT16
            buffer.data = np.frombuffer(full.astype(np.float16).tobytes(), np.uint8)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(flat))
