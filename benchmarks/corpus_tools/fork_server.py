"""Run one converter script many times without starting Python and importing its packages each time.

    python fork_server.py CONVERTER.py [MODULE.py]

Each line of standard input is a JSON object: ``request`` (file), ``cwd``, ``log`` (for its stderr), ``seconds``,
``memory`` (bytes). A fork of this process runs the script's ``main`` for it, so that a crash, a leak or a hang of one
model touches no other. The answer is one JSON line: ``code`` (as subprocess has it; null: killed after its time).
"""

import contextlib
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path


def main() -> None:
    script = Path(sys.argv[1]).resolve()
    sys.path.insert(0, str(script.parent))
    spec = importlib.util.spec_from_file_location("converter", script)
    module = importlib.util.module_from_spec(spec)
    talk = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    spec.loader.exec_module(module)
    if script.stem == "run_ncnn":
        import ncnn  # noqa: F401 - for the forks
    if script.stem == "simplify_onnx":
        import onnxruntime  # noqa: F401 - for the forks
    if script.stem in ("onnx_to_tflite", "bare_onnx2tf"):
        warm_up(module)
    if script.stem == "tensorflow_to_onnx":
        import tensorflow  # noqa: F401 - for the forks
    if len(sys.argv) > 2:  # the module of a model's code
        sys.path.insert(0, str(Path(sys.argv[2]).parent))
        with contextlib.suppress(ImportError):
            importlib.import_module(Path(sys.argv[2]).stem).preload()
    for line in sys.stdin:
        job = json.loads(line)
        talk.write(json.dumps({"code": run(module, script, job)}) + "\n")
        talk.flush()


def warm_up(module) -> None:
    """Convert one small model here: onnx2tf imports most of itself when it first does, and every fork would."""
    import onnx
    from onnx import helper

    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        module.onnx2tf.convert(
            input_onnx_file_path=str(path),
            output_folder_path=str(Path(folder, "made")),
            not_use_onnxsim=True,
            non_verbose=True,
        )


def run(module, script: Path, job: dict) -> int | None:
    pid = os.fork()
    if pid == 0:
        child(module, script, job)
    until = time.monotonic() + job["seconds"]
    pause = 0.002
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            kill(pid)
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(pause * 1.3, 0.05)
    kill(pid)
    os.waitpid(pid, 0)
    return None


def kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def child(module, script: Path, job: dict) -> None:
    code = 1
    try:
        os.setsid()
        os.chdir(job["cwd"])
        for stream, name in ((1, job["log"] + ".out"), (2, job["log"])):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(HOME=job["cwd"], TMPDIR=job["cwd"])
        resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv = [str(script), job["request"]]
        os.execve = lambda *_: None  # onnx_to_ort starts itself again for the sake of equal bytes
        if script.stem == "run_ncnn":
            subprocess.run = lambda *_, **__: forked(module, job)
        module.main()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
        if isinstance(leaving.code, str):
            sys.stderr.write(leaving.code + "\n")
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def forked(module, job: dict) -> subprocess.CompletedProcess:
    """What ``run_ncnn.py`` does with a second Python: run its ``work`` where it may crash."""
    said = Path(job["log"]).with_suffix(".child")
    pid = os.fork()
    if pid == 0:
        code = 1
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
        try:
            module.work(json.loads(Path(job["request"]).read_text()))
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    return subprocess.CompletedProcess([], os.waitstatus_to_exitcode(status), stderr=said.read_bytes())


if __name__ == "__main__":
    main()
