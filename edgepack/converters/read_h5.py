# /// script
# requires-python = ">=3.11"
# dependencies = ["h5py==3.14.0", "numpy==2.4.6"]
# ///
"""Take the configuration of a Keras model out of an HDF5 file, without TensorFlow and without loading anything of it.

Request: ``source``. Writes ``config.json``, or no file where the HDF5 file holds no model.
"""

import json
import sys
from pathlib import Path

import h5py


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out = Path(request["out"])
    try:
        with h5py.File(request["source"], "r") as file:
            config = file.attrs.get("model_config")
    except Exception as error:
        raise SystemExit(f"the file is damaged: {' '.join(str(error).split())[:300]}") from error
    if config is not None:
        (out / "config.json").write_text(
            config if isinstance(config, str) else bytes(config).decode("utf-8", "replace")
        )
    (out / "result.json").write_text("{}")


if __name__ == "__main__":
    main()
