"""The real adbd in a network namespace of its own, for tests.

Debian has an adbd since trixie. Its package and what it needs are downloaded once by apt (with lists of its own, from
the system's own mirror, and the system's keys) into a cache folder, unpacked and never installed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import need

SUITE = "trixie"
SECONDS = 240.0  # for everything that apt does
INSIDE = """
ip link set lo up
echo $$ >"$1/pid"
adb -L "localfilesystem:$1/adb.sock" nodaemon server >"$1/server.log" 2>&1 &
[ ! -d "$1/phone" ] || PREPARE
exec $CHROOT "$2" --library-path "$3" "$4" >"$1/adbd.log" 2>&1
"""
# What Android has where other systems have /usr: toybox and mksh alone, and a folder that programs don't start from.
PHONE = """{
  mount --make-rprivate / && cd "$1/phone" || exit
  for folder in dev lib lib64 proc sys usr/lib; do mount --rbind "/$folder" "$folder" || exit; done
  mount --bind "$5" "${5#/}" && mount -t tmpfs -o noexec tmpfs sdcard || exit
  CHROOT="/usr/sbin/chroot $PWD"
  PATH=/bin HOME=/data
}"""
PORT = 5577


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "edgepack-tests" / f"adbd-{SUITE}"


def fetch() -> Path | str:
    """The folder with adbd's files, or why there is none."""
    folder = cache()
    if (folder / "complete").exists():
        return folder
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return "adbd is fetched by apt, as root, on Debian"
    end = time.monotonic() + SECONDS
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _download(folder, end)
        for package in sorted((folder / "archives").glob("*.deb")):
            _run(["dpkg-deb", "-x", str(package), str(folder / "root")], end)
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", b"") or b""
        return f"adbd can't be fetched: {said.decode(errors='replace').strip()[-300:] or error}"
    shutil.rmtree(folder / "archives")
    (folder / "complete").touch()
    return folder


def _download(folder: Path, end: float) -> None:
    """Fill folder/archives with adbd and all that it needs, by an apt that knows nothing of this system's packages."""
    form = "$(ORIGIN) $(RELEASE) $(REPO_URI)"
    told = _run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"], end).stdout.decode()
    lines = [line.split() for line in told.splitlines() if line.startswith("Debian ") and "security" not in line]
    if not lines:
        raise OSError("apt knows no Debian mirror")
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    for name in ("lists/partial", "archives/partial", "parts", "preferences"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(f"deb [signed-by={keys}] {lines[0][2]} {SUITE} main\n")
    settings = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": folder / "parts",
        "Dir::Etc::PreferencesParts": folder / "preferences",
        "Dir::State::Lists": folder / "lists",
        "Dir::State::Status": folder / "status",
        "Dir::Cache": folder,
        "Dir::Cache::Archives": folder / "archives",
        "APT::Sandbox::User": "root",
        "APT::Get::List-Cleanup": "0",
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false",
        "Acquire::http::Timeout": "20",
        "Acquire::Retries": "1",
    }
    apt = ["apt-get", "-q", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]
    _run([*apt, "update"], end)
    _run([*apt, "--yes", "--download-only", "--no-install-recommends", "install", "adbd"], end)
    shutil.rmtree(folder / "lists")


def _run(argv: list[str], end: float) -> subprocess.CompletedProcess[bytes]:
    left = max(1.0, end - time.monotonic())
    return subprocess.run(argv, check=True, capture_output=True, timeout=left, stdin=subprocess.DEVNULL)


def phone(folder: Path) -> Path:
    """A root folder like Android's, to be mounted together by `running`; returns it."""
    root = folder / "phone"
    for name in ("dev", "lib", "lib64", "proc", "sys", "usr/lib", "bin", "sdcard", "data/local/tmp", f".{cache()}"):
        (root / name).mkdir(parents=True)
    toybox, mksh = (need(name, f"apt install {name}") for name in ("toybox", "mksh"))
    for program, name in ((toybox, "box"), (mksh, "sh")):
        shutil.copy(program, root / "bin" / name)
    for tool in subprocess.run([toybox], capture_output=True, text=True, check=True).stdout.split():
        (root / "bin" / tool).symlink_to("box")
    (root / "bin" / "toybox").symlink_to("box")
    (root / "bin" / "getprop").write_text("#!/bin/sh\n[ $1 != ro.build.version.sdk ] || echo 30\n")
    (root / "bin" / "getprop").chmod(0o755)
    return root


@contextlib.contextmanager
def running(files: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    """adbd and an adb server that is connected to nothing yet, both in one namespace; (serial, server's socket).

    Where `scratch` has a `phone`, adbd and all that it starts see that as their root folder.
    """
    root = files / "root"
    loader = next(p for p in (root / "lib64/ld-linux-x86-64.so.2", *root.glob("**/ld-linux-*.so.*")) if p.exists())
    libraries = ":".join(sorted({str(p.parent) for p in root.glob("**/*.so*") if p.is_file()}))
    daemon = next(p for p in root.glob("**/adbd") if p.is_file() and os.access(p, os.X_OK))
    script = INSIDE.replace("PREPARE", PHONE)
    argv = ["timeout", "900", "unshare", "-n", "-m", "sh", "-c", script, "adbd"]
    argv += [*map(str, (scratch, loader)), libraries, str(daemon), str(files)]
    environment = {**os.environ, "ADBD_PORT": str(PORT), "HOME": str(scratch), "ADB_MDNS": "0", "ADB_USB": "0"}
    child = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        server = scratch / "adb.sock"
        end = time.monotonic() + 20
        while time.monotonic() < end and not _answers(server):
            if child.poll() is not None:
                logs = "\n".join(p.read_text(errors="replace")[-400:] for p in sorted(scratch.glob("*.log")))
                raise OSError(f"adbd ended with {child.returncode}: {logs}")
            time.sleep(0.1)
        yield f"127.0.0.1:{PORT}", server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _answers(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        return True
    return False
