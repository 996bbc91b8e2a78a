"""templates/device/measure.sh and restore.sh, run by real shells over trees of /sys in a folder."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgepack import process
from edgepack.errors import DeviceFailed
from edgepack.measuring import Answer, Order, Place, measure, parse
from edgepack.transports.remote import script
from edgepack.types import Completed, Device, Probe
from tests.conftest import ROOT, need
from tests.sysfs import CPUS, NO_CPUFREQ, PHONE, RASPBERRY_PI_4, RK3588, THERMAL, governors, plant

SHELLS = (["sh"], ["bash"], ["busybox", "sh"])
GOOD = """#!/bin/sh
echo '{"type":"context","schema":1,"load_ns":1000,"engine_version":"1"}'
echo '{"type":"golden","index":0,"status":"ok"}'
echo '{"type":"sample","variant":0,"block":0,"ns":1500}'
echo '{"type":"sample","variant":0,"block":0,"ns":1600}'
echo '{"type":"end","status":"ok","peak_rss_bytes":4096}'
"""
PROBE = Probe(
    machine="aarch64", kernel="6.1", os="linux", libc="glibc", libc_version="2.36", glibcxx="", cpu_features=(),
    clusters=(), cpus=(), memory_mb=0, free_bytes=0, temperatures=(), tools=frozenset(), writable=True, noexec=False,
    npu="", clock=0,
)  # fmt: skip


class Shell:
    """A transport to this machine by one shell, with an environment."""

    name, version = "shell", "1"

    def __init__(self, shell: list[str], env: dict[str, str] | None = None) -> None:
        self.shell = shell
        self.env = env

    def run(self, argv: list[str], timeout: float, *, stdin: bytes | None = None) -> Completed:
        assert argv[0] == "sh"
        return process.run([*self.shell, *argv[1:]], env=self.env, limits=process.Limits(seconds=timeout))

    def push(self, local: Path, remote: str, *, offset: int = 0) -> None: ...
    def pull(self, remote: str, local: Path) -> None: ...
    def close(self) -> None: ...


@pytest.fixture
def board(tmp_path: Path) -> Callable[..., Place]:
    """Make a place with a tree of /sys in ``tmp_path/tree`` and a bundle's folder in ``tmp_path/bundle``."""

    def make(tree: object = RK3588, shell: list[str] | None = None, env: dict[str, str] | None = None) -> Place:
        plant(tree, tmp_path / "tree")  # type: ignore[arg-type]
        (tmp_path / "bundle").mkdir(exist_ok=True)
        write(tmp_path / "bundle" / "good", GOOD)
        return Place(
            device=Device(name="board", target="rk3588", transport="shell"),
            probe=PROBE,
            transport=Shell(shell or ["sh"], env),
            root=str(tmp_path / "root"),
            folder=str(tmp_path / "bundle"),
            sysfs=str(tmp_path / "tree"),
        )

    return make


def write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def order(*programs: tuple[str, ...], turns: tuple[int, ...] = (0,), **facts: object) -> Order:
    return Order(**{"programs": programs or (("./good",),), "order": turns, "limit": 20, "deadline": 60, **facts})  # type: ignore[arg-type]


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "root").iterdir())


def eventually(what: Callable[[], bool], seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_programs_run_in_order_with_the_clocks_up_and_put_back(
    shell: list[str], board: Callable[..., Place], tmp_path: Path
) -> None:
    need(shell[0], "apt install busybox-static bash")
    place = board(shell=shell)
    seen = f'cat {shlex.quote(str(tmp_path))}/tree{CPUS}/cpufreq/policy*/scaling_governor >>"$1"\n'
    write(tmp_path / "bundle" / "looks", GOOD + seen)
    log = tmp_path / "what it saw"

    answer = measure(place, order(("./good",), ("./looks", str(log)), turns=(0, 1, 1, 0)))

    assert [block.program for block in answer.blocks] == [0, 1, 1, 0]
    assert all(block.samples == (1500, 1600) and not block.error for block in answer.blocks)
    assert log.read_text().split() == ["performance"] * 6
    assert governors(tmp_path / "tree") == {"policy0": "ondemand", "policy4": "ondemand", "policy6": "ondemand"}
    assert len(answer.changed) == len(answer.restored) == 3 and not answer.stuck and not answer.refused
    assert [policy.top for policy in answer.policies] == [1800000, 2400000, 2400000]
    assert answer.zones == [(85000, "soc-thermal"), (85000, "bigcore0-thermal"), (0, "littlecore-thermal")]
    assert answer.coolings[2] == (4, "pwm-fan")
    assert answer.states[0].temperatures == (42538, 42538, 41615)
    assert left(tmp_path) == []


@pytest.mark.parametrize("toolbox", ["busybox", "toybox"])
def test_a_small_toolbox_is_enough(toolbox: str, board: Callable[..., Place], tmp_path: Path) -> None:
    """Nothing but busybox (its shell, too), or toybox and a POSIX shell."""
    program = need(toolbox, "apt install busybox-static toybox")
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "sed", "sleep", "cat", "rm", "mkdir", "tail", "setsid", "taskset"):
        (tools / tool).symlink_to(need("dash", "apt install dash") if (toolbox, tool) == ("toybox", "sh") else program)

    answer = measure(board(env={"PATH": str(tools)}), order(turns=(0, 0), mask="1"))

    assert [block.samples for block in answer.blocks] == [(1500, 1600)] * 2
    assert answer.allowed == "0" and len(answer.restored) == 3
    assert set(governors(tmp_path / "tree").values()) == {"ondemand"}


def test_words_are_data(board: Callable[..., Place], tmp_path: Path) -> None:
    words = ("a b", "$(touch stolen)", "'", '"', "`id`", "*", "", "--", "\n", "é")
    write(tmp_path / "bundle-echo", GOOD)
    place = board()
    write(tmp_path / "bundle" / "tells", GOOD + 'for word in "$@"; do printf "%s\\0" "$word"; done >told\n')

    answer = measure(place, order(("./good",), ("./tells", *words), turns=(1,)))

    assert not answer.blocks[0].error
    assert (tmp_path / "bundle" / "told").read_text().split("\0")[:-1] == list(words)
    assert not (tmp_path / "bundle" / "stolen").exists()


def test_without_a_performance_governor_the_lowest_clock_is_raised(board: Callable[..., Place], tmp_path: Path) -> None:
    answer = measure(board(PHONE), order())

    assert answer.changed[f"{CPUS}/cpufreq/policy6/scaling_min_freq"] == "2802000"
    assert answer.restored[f"{CPUS}/cpufreq/policy6/scaling_min_freq"] == "408000"
    assert set(governors(tmp_path / "tree").values()) == {"sched_pixel"}


def test_a_device_without_cpufreq_is_measured_as_it_is(board: Callable[..., Place]) -> None:
    answer = measure(board(NO_CPUFREQ), order())

    assert answer.blocks[0].samples == (1500, 1600)
    assert not answer.policies and not answer.changed and not answer.refused


def test_clocks_that_may_not_be_set_are_said(board: Callable[..., Place], tmp_path: Path) -> None:
    place = board(RASPBERRY_PI_4)
    governor = tmp_path / f"tree{CPUS}/cpufreq/policy0/scaling_governor"
    governor.unlink()
    governor.symlink_to("/proc/sys/kernel/ostype")  # that not even root can write

    answer = measure(place, order())

    assert list(answer.refused) == [f"{CPUS}/cpufreq/policy0/scaling_governor"]
    assert answer.blocks[0].samples and not answer.stuck


def test_without_setsid_no_clock_is_touched(board: Callable[..., Place], tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "sed", "sleep", "cat", "rm", "mkdir", "tail"):
        (tools / tool).symlink_to(need(tool, "coreutils"))

    answer = measure(board(env={"PATH": str(tools)}), order())

    assert "setsid" in answer.refused["-"] and not answer.changed
    assert answer.blocks[0].samples


def start(place: Place, what: Order) -> subprocess.Popen[str]:
    """Start the script as sshd would: in a process group of its own, its output a pipe."""
    caught: list[list[str]] = []

    class Catch(Shell):
        def run(self, argv: list[str], timeout: float, *, stdin: bytes | None = None) -> Completed:
            caught.append(argv)
            raise EOFError

    with pytest.raises(EOFError):
        measure(Place(**{**vars(place), "transport": Catch(["sh"])}), what)
    return subprocess.Popen(
        caught[0], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )


def slow(tmp_path: Path) -> None:
    write(tmp_path / "bundle" / "slow", "#!/bin/sh\necho $$ >pid\nexec sleep 300\n")


def gone(tmp_path: Path) -> bool:
    """Has the slow program ended?"""
    pid = int((tmp_path / "bundle" / "pid").read_text())
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


def running(tmp_path: Path) -> bool:
    pid = tmp_path / "bundle" / "pid"
    return pid.exists() and bool(pid.read_text().strip())


@pytest.fixture
def hangups_arrive() -> Iterator[None]:
    """Under nohup they are ignored, and every child inherits that."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangups_arrive")
@pytest.mark.parametrize("how", ["kill -9 of the group", "kill -9 of the script alone", "TERM", "HUP"])
def test_a_script_that_is_ended_leaves_the_clocks_as_they_were(
    how: str, board: Callable[..., Place], tmp_path: Path
) -> None:
    place = board()
    slow(tmp_path)
    child = start(place, order(("./slow",)))
    assert eventually(lambda: running(tmp_path))
    assert set(governors(tmp_path / "tree").values()) == {"performance"}

    if "group" in how:
        os.killpg(child.pid, signal.SIGKILL)
    else:
        os.kill(child.pid, {"TERM": signal.SIGTERM, "HUP": signal.SIGHUP}.get(how, signal.SIGKILL))

    assert eventually(lambda: set(governors(tmp_path / "tree").values()) == {"ondemand"})
    assert eventually(lambda: gone(tmp_path) and left(tmp_path) == [])
    child.wait(20)


def test_a_lost_link_ends_the_measuring_and_restores_the_clocks(board: Callable[..., Place], tmp_path: Path) -> None:
    """sshd closes the pipe of a session whose link is lost; the next line that is written says so."""
    place = board()
    write(tmp_path / "bundle" / "short", GOOD + "sleep 0.2\n")
    child = start(place, order(("./short",), turns=(0,) * 1000))
    assert child.stdout is not None
    assert any(line.startswith("block") for line in iter(child.stdout.readline, ""))
    assert set(governors(tmp_path / "tree").values()) == {"performance"}

    child.stdout.close()

    assert child.wait(20) != 0
    assert set(governors(tmp_path / "tree").values()) == {"ondemand"}
    assert eventually(lambda: left(tmp_path) == [])


def test_a_program_that_hangs_is_killed_and_the_clocks_are_restored(
    board: Callable[..., Place], tmp_path: Path
) -> None:
    place = board()
    slow(tmp_path)

    answer = measure(place, order(("./slow",), ("./good",), turns=(0, 1), limit=1))

    assert "SIGKILL" in answer.blocks[0].error
    assert len(answer.blocks) == 1, "the host leaves the program out and asks again"
    assert set(governors(tmp_path / "tree").values()) == {"ondemand"}


def test_the_guard_ends_a_script_that_the_host_forgot(board: Callable[..., Place], tmp_path: Path) -> None:
    place = board()
    slow(tmp_path)
    child = start(place, order(("./slow",), deadline=1))

    assert child.wait(20) == 143
    assert set(governors(tmp_path / "tree").values()) == {"ondemand"}
    assert eventually(lambda: gone(tmp_path))


def test_what_takes_long_comes_in_several_answers(board: Callable[..., Place], tmp_path: Path) -> None:
    place = board(RASPBERRY_PI_4)
    uptime = tmp_path / "tree/proc/uptime"
    write(tmp_path / "bundle" / "long", GOOD + f"echo 1050.00 1 >{shlex.quote(str(uptime))}\n")

    answer = measure(place, order(("./long",), turns=(0, 0, 0), limit=10, deadline=60))

    assert len(answer.blocks) == 1 and not answer.blocks[0].error
    assert governors(tmp_path / "tree") == {"policy0": "ondemand"}


@pytest.mark.parametrize("boot", ["the same boot", "another boot"])
def test_what_a_killed_guard_left_is_put_back_by_the_next_measuring(
    boot: str, board: Callable[..., Place], tmp_path: Path
) -> None:
    place = board(RASPBERRY_PI_4)
    governor = f"{CPUS}/cpufreq/policy0/scaling_governor"
    (tmp_path / f"tree{governor}").write_text("performance\n")
    (tmp_path / "root").mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    boot_id = RASPBERRY_PI_4["/proc/sys/kernel/random/boot_id"] if boot == "the same boot" else "other"
    (tmp_path / "root" / f"bench.{ended.pid}.restore").write_text(f"boot {boot_id}\n{governor} performance ondemand\n")

    answer = measure(place, order())

    assert answer.leftover == 1
    assert governors(tmp_path / "tree") == {"policy0": "ondemand" if boot == "the same boot" else "performance"}
    assert left(tmp_path) == []


def test_another_program_that_changes_the_governor_is_noticed(board: Callable[..., Place], tmp_path: Path) -> None:
    place = board(RASPBERRY_PI_4)
    governor = f"{CPUS}/cpufreq/policy0/scaling_governor"
    write(tmp_path / "bundle" / "meddles", GOOD + f"echo powersave >{shlex.quote(str(tmp_path))}/tree{governor}\n")

    answer = measure(place, order(("./meddles",)))

    assert answer.moved == {governor: "powersave"}
    assert governors(tmp_path / "tree") == {"policy0": "ondemand"}


def test_it_cools_down_to_a_condition(board: Callable[..., Place], tmp_path: Path) -> None:
    place = board(RASPBERRY_PI_4)
    temperature = tmp_path / f"tree{THERMAL}/thermal_zone0/temp"
    temperature.write_text("70000\n")
    threading.Timer(1.5, temperature.write_text, ["50000\n"]).start()

    answer = measure(place, order(cool=(51000, 30)))

    assert answer.cooled is not None and 1 <= answer.cooled <= 10
    assert answer.states[-1].hottest == 50000


def test_cooling_down_has_a_bound(board: Callable[..., Place], tmp_path: Path) -> None:
    place = board(RASPBERRY_PI_4)

    assert measure(place, order(cool=(20000, 1))).cooled == 1


def test_the_cores_are_set_and_what_they_are_is_said(board: Callable[..., Place], tmp_path: Path) -> None:
    need("taskset", "apt install util-linux")
    place = board(NO_CPUFREQ)
    write(tmp_path / "bundle" / "where", GOOD + "grep Cpus_allowed_list /proc/self/status >where.txt\n")

    answer = measure(place, order(("./where",), mask="1"))

    assert answer.allowed == "0"
    assert (tmp_path / "bundle" / "where.txt").read_text().split() == ["Cpus_allowed_list:", "0"]
    with pytest.raises(DeviceFailed, match="taskset"):
        measure(place, order(mask=f"{1 << 900:x}"))


def test_a_harness_that_dies_is_an_error_with_its_last_words(board: Callable[..., Place], tmp_path: Path) -> None:
    place = board()
    write(tmp_path / "bundle" / "dies", GOOD.replace('"end"', '"en') + "echo 'edgepack: no luck' >&2\nkill -SEGV $$\n")
    write(tmp_path / "bundle" / "wrong", GOOD.replace('"status":"ok"}', '"status":"failed"}', 1) + "exit 1\n")

    answer = measure(place, order(("./dies",), ("./wrong",), turns=(0,)))
    other = measure(place, order(("./dies",), ("./wrong",), turns=(1,)))
    absent = measure(place, order(("./absent",)))

    assert answer.blocks[0].error == "the harness ended with signal 11 (SIGSEGV): no luck"
    assert "differ from the golden" in other.blocks[0].error
    assert "exit 127" in absent.blocks[0].error


def test_a_root_that_cant_be_written_is_said(board: Callable[..., Place], tmp_path: Path) -> None:
    place = board()
    (tmp_path / "root").write_text("a file")

    with pytest.raises(DeviceFailed, match="own folder can't be written"):
        measure(place, order())


def test_an_answer_that_is_cut_off_is_no_answer(board: Callable[..., Place]) -> None:
    whole = "welcome to board\nedgepack-measure 1\nallowed 0-3\nend\n"

    assert isinstance(parse(whole, "board"), Answer)
    for cut in range(len(whole) - 1):
        with pytest.raises(DeviceFailed, match="board"):
            parse(whole[:cut], "board")


def test_ctrl_c_on_the_host_leaves_the_clocks_as_they_were(board: Callable[..., Place], tmp_path: Path) -> None:
    place = board()
    slow(tmp_path)
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from edgepack.measuring import Order, Place, measure
from edgepack.transports.local import Local
from edgepack.types import Device
device = Device(name="local", target="host", transport="local")
place = Place(device=device, probe=None, transport=Local(device), root={place.root!r}, folder={place.folder!r},
              sysfs={place.sysfs!r})
measure(place, Order(programs=(("./slow",),), order=(0,), limit=60, deadline=60))
"""
    child = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert eventually(lambda: running(tmp_path))
    assert set(governors(tmp_path / "tree").values()) == {"performance"}

    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=30)

    assert "KeyboardInterrupt" in stderr
    assert eventually(lambda: set(governors(tmp_path / "tree").values()) == {"ondemand"})
    assert eventually(lambda: gone(tmp_path) and left(tmp_path) == [])


def test_the_scripts_say_what_they_are() -> None:
    for name in ("measure", "restore"):
        assert script(name).startswith("# sh -c THIS edgepack ")
