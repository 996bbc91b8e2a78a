# /// script
# requires-python = "==3.11.*"
# dependencies = [
#     "tflite2onnx==0.4.1",
#     "tflite==2.18.0",
#     "onnx==1.14.1",
#     "numpy==1.26.4",
#     "protobuf==4.25.5",
#     "flatbuffers==25.12.19",
#     "setuptools==80.9.0",
# ]
# ///
"""Write a .tflite file's ONNX form: `uv run --script blazeface_to_onnx.py IN.tflite OUT.onnx`.

A script of its own because tflite2onnx needs an onnx that is older than everything else here.
"""

import logging
import sys

import tflite2onnx

if __name__ == "__main__":
    logging.disable(logging.WARNING)  # it warns of every float16 constant
    tflite2onnx.convert(sys.argv[1], sys.argv[2])
