"""Write a .tflite in few bytes: what is equal is stored once, and what no runtime reads is left out."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

IDENTIFIER = b"TFL3"
ALIGNMENT = 16  # bytes, of the constants; the schema demands it
LARGEST = 1 << 31  # bytes; what is larger than a flatbuffer may be stays as it is


def compact(data: bytes) -> bytes:
    """The same model in fewer bytes; names of inputs, outputs and other activations stay.

    Half of what quantization adds to a file are zero points of weights and biases, 8 bytes for each channel: all of
    them are 0. Equal vectors, tables and names are stored once, which the format allows. Left out are names of
    constants, the empty form of quantization, and notes of converters.
    """
    flat = schema.ModelT.InitFromPackedBuf(bytearray(data))
    for buffer in flat.buffers:
        if buffer.offset > 1:  # large files have constants behind the flatbuffer
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    if sum(len(buffer.data) for buffer in flat.buffers if buffer.data is not None) >= LARGEST:
        return data
    flat.description = flat.metadata = flat.metadataBuffer = None
    share_constants(flat)
    for graph in flat.subgraphs:
        graph.name = None
        for tensor in graph.tensors:
            quantization = tensor.quantization
            if quantization is not None:
                quantization.min = quantization.max = None
                empty = quantization.scale is None or not len(quantization.scale)
                tensor.quantization = None if empty and not quantization.detailsType else quantization
            if flat.buffers[tensor.buffer].data is not None and not used_as_surface(graph, tensor):
                tensor.name = None
            if tensor.shapeSignature is not None and np.array_equal(tensor.shapeSignature, tensor.shape):
                tensor.shapeSignature = None
    builder = Sharing(1 << 20)
    builder.Finish(flat.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def used_as_surface(graph: schema.SubGraphT, tensor: schema.TensorT) -> bool:
    return any(graph.tensors[index] is tensor for index in (*graph.inputs, *graph.outputs))


def share_constants(flat: schema.ModelT) -> None:
    """One buffer for equal constants, and none that nothing refers to; the first is empty by the format's rule."""
    kept, places = [schema.BufferT()], dict[bytes, int]()
    for graph in flat.subgraphs:
        for tensor in graph.tensors:
            data = flat.buffers[tensor.buffer].data
            if data is None or not len(data):
                tensor.buffer = 0
                continue
            content = bytes(bytearray(data))
            if content not in places:
                places[content] = len(kept)
                kept.append(schema.BufferT())
                kept[-1].data = np.frombuffer(content, np.uint8)
            tensor.buffer = places[content]
    flat.buffers = kept


class Sharing(flatbuffers.Builder):
    """A builder that writes equal vectors and strings once."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.written: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, values: np.ndarray) -> int:
        """The place of these values, written here if nowhere else."""
        key = values.dtype.str, values.tobytes()
        if key not in self.written:
            if values.dtype == np.uint8:
                self.Prep(ALIGNMENT, values.nbytes)
            self.written[key] = super().CreateNumpyVector(values)
        return self.written[key]

    def CreateString(self, text: str | bytes, *rest: str) -> int:
        """The place of this text, written here if nowhere else."""
        key = "text", text.encode() if isinstance(text, str) else bytes(text)
        if key not in self.written:
            self.written[key] = super().CreateString(text, *rest)
        return self.written[key]
