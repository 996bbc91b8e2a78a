"""The steps of a build, each a function from files to a remembered folder.

In the order of a build: `source`, `colours`, `simplification`, `variants`, `runtime`, `packing`. Every function here
asks the cache for a `Step` whose key holds all that decides the output; what a step does not receive can't make the
cache lie.
"""

from edgepack.inference import infer
from edgepack.sampling import Samples, gather_samples, samples_of
from edgepack.steps.colours import check_channel_order
from edgepack.steps.packing import build_key, loudest, pack_golden, pack_variant, self_test
from edgepack.steps.runtime import build_config, build_core, build_harness
from edgepack.steps.simplification import apply_pass, simplify
from edgepack.steps.source import (
    IMPORT_BOUND,
    check_import,
    import_model,
    read_model,
    run_onnx,
    run_reference,
)
from edgepack.steps.variants import Checked, check, export

__all__ = [
    "IMPORT_BOUND",
    "Checked",
    "Samples",
    "apply_pass",
    "build_config",
    "build_core",
    "build_harness",
    "build_key",
    "check",
    "check_channel_order",
    "check_import",
    "export",
    "gather_samples",
    "import_model",
    "infer",
    "loudest",
    "pack_golden",
    "pack_variant",
    "read_model",
    "run_onnx",
    "run_reference",
    "samples_of",
    "self_test",
    "simplify",
]
