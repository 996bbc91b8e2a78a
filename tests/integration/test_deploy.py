"""Installing on a device: only what is missing, proven there, switched in one step, whatever fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgepack.bundle import Bundle, open_bundle
from edgepack.device_steps import _text
from edgepack.errors import Busy, DeviceFailed, DeviceUnreachable, UsageError
from edgepack.shipment import ship
from tests.conftest import need
from tests.devices import (
    HostKilled,
    active,
    check_no_orphans,
    compile_harness,
    make_bundle,
    of_a_dead_process,
    session,
)
from tests.mounts import mounted, own_mounts

MEGABYTE = 1 << 20


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("cc", "apt install gcc libc6-dev")
    return compile_harness(tmp_path_factory.mktemp("harness"))


@pytest.fixture
def make(tmp_path: Path, harness: Path):
    def bundle(version: str = "1", **how):
        return make_bundle(tmp_path / f"v{version}.edgepack", harness, version=version, **how)

    return bundle


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "device"


def test_a_deploy_makes_a_whole_bundle_active_and_keeps_the_one_before(make, root: Path) -> None:
    one, two, three = make("1"), make("2"), make("3")

    for bundle in (one, two, three):
        deployed = session(root).deploy(bundle)
        assert deployed.status == "installed" and dict(deployed.self_tests)["null-fp32"].passed

    assert active(root).manifest == three.manifest
    assert active(root, link="previous").manifest == two.manifest
    assert deployed.previous == two.manifest["digest"]
    check_no_orphans(root)
    assert os.access(root / "models/tiny/current/bin/edgepack-null", os.X_OK)


def test_each_input_set_is_proven_on_its_own_golden_samples_and_a_selection_brings_only_those(make, root: Path) -> None:
    variants = ("null-fp32", "null-fp32@wide", "null-fp32@tall")
    deployed = session(root).deploy(make("1", variants=variants))

    assert {name: test.passed for name, test in deployed.self_tests} == dict.fromkeys(variants, True)

    session(root).deploy(make("2", variants=variants), ("null-fp32@wide",))
    current = root / "models/tiny/current"
    assert sorted(path.name for path in current.glob("golden*")) == ["golden@wide"]
    assert [path.name for path in (current / "variants").iterdir()] == ["null-fp32@wide"]


def test_an_unchanged_deploy_takes_at_most_3_round_trips_and_20_kb(make, root: Path) -> None:
    bundle = make(files={f"variants/null-fp32/{i}.bin": os.urandom(1000) for i in range(100)})
    session(root).deploy(bundle)
    again = session(root)

    assert again.deploy(bundle).status == "unchanged"

    link = again.transport
    assert link.calls <= 3 and link.sent + link.received <= 20_000, (link.calls, link.sent, link.received)


def test_of_100_files_the_changed_one_is_sent_and_little_else(make, root: Path) -> None:
    files = {f"variants/null-fp32/{i}.bin": os.urandom(200_000) for i in range(100)}
    session(root).deploy(make("1", files=files))
    changed = make("2", files={**files, "variants/null-fp32/50.bin": os.urandom(200_000)})
    second = session(root)

    deployed = second.deploy(changed)

    assert deployed.files == 3  # the file, the weights' few bytes, the manifest
    manifest = (changed.path / "manifest.json").stat().st_size
    assert second.transport.sent <= 1.2 * 200_000 + manifest
    assert active(root).manifest == changed.manifest


@pytest.mark.parametrize("cut", [500_000, 3_300_000, 5 * MEGABYTE + 77])
def test_after_a_cut_the_deploy_goes_on_and_sends_at_most_a_megabyte_again(make, root: Path, cut: int) -> None:
    files = {"variants/null-fp32/large.bin": os.urandom(4 * MEGABYTE)}
    files |= {f"variants/null-fp32/{i}.bin": os.urandom(100_000) for i in range(30)}
    bundle = make(files=files)
    whole = session(root.with_name("other"))
    whole.deploy(bundle)
    opened = session(root, cut_after=cut)

    assert opened.deploy(bundle).status == "installed"

    assert opened.transport.cut_after is None
    scripts = 30_000  # asking again, and the same steps again
    assert opened.transport.sent - whole.transport.sent <= MEGABYTE + scripts
    assert active(root).manifest == bundle.manifest
    check_no_orphans(root)


def test_a_link_that_stays_down_ends_the_deploy_and_the_next_one_goes_on(make, root: Path) -> None:
    def down_from(number: int):
        def call(n: int) -> None:
            if n >= number:
                raise DeviceUnreachable("The link is down.", "")

        return call

    bundle = make(files={"variants/null-fp32/large.bin": os.urandom(MEGABYTE)})
    with pytest.raises(DeviceUnreachable):  # the small files and the large one are there, the commit is not
        of_a_dead_process(session(root, at_call=down_from(6))).deploy(bundle)

    deployed = session(root).deploy(bundle)

    assert deployed.status == "installed" and deployed.sent == 0
    check_no_orphans(root)


BAD = {
    "wrong": "cosine 0.25",
    "crash": "SIGABRT",
    "hang": "killed after 2 s",
}


@pytest.mark.parametrize("does", BAD)
def test_a_bundle_that_fails_on_the_device_never_becomes_active(make, root: Path, does: str) -> None:
    good = make("1")
    session(root).deploy(good)

    with pytest.raises(DeviceFailed, match="old version") as caught:
        try:
            session(root, seconds=2).deploy(make("2", does=does))
        except DeviceFailed as error:
            assert BAD[does] in error.message and error.id == "EP604" and error.exit_code == 6
            raise DeviceFailed(error.message + error.hint) from error

    assert "null-fp32" in str(caught.value)
    assert active(root).manifest == good.manifest
    check_no_orphans(root)


def test_chosen_variants_come_as_a_bundle_of_their_own(make, root: Path) -> None:
    bundle = make(variants=("null-fp32", "null-int8"))

    session(root).deploy(bundle, ("null-int8",))

    found = active(root)
    assert [v["name"] for v in found.manifest["variants"]] == ["null-int8"]
    assert found.manifest["selected_from"] == bundle.manifest["digest"]
    assert not (found.path / "variants" / "null-fp32").exists()
    with pytest.raises(UsageError, match="no variant 'null-fp16'"):
        session(root).deploy(bundle, ("null-fp16",))


def test_a_dry_run_says_what_would_be_sent_and_changes_nothing(make, root: Path) -> None:
    bundle = make()

    planned = session(root).deploy(bundle, dry_run=True)

    assert planned.status == "planned" and planned.files == len(bundle.manifest["files"]) + 1 and planned.sent > 0
    assert not root.exists()


def test_rollback_goes_back_and_forth_and_says_when_there_is_nothing(make, root: Path) -> None:
    one, two = make("1"), make("2")
    for words in ("no model 'tiny'", None, "keeps no earlier version"):
        if words is None:
            session(root).deploy(one)
            continue
        with pytest.raises(DeviceFailed, match=words):
            session(root).rollback("tiny")
    session(root).deploy(two)

    assert session(root).rollback("tiny") == (two.manifest["digest"], one.manifest["digest"])
    assert active(root).manifest == one.manifest and active(root, link="previous").manifest == two.manifest
    assert session(root).rollback("tiny")[1] == two.manifest["digest"]
    check_no_orphans(root)


def test_rollback_never_switches_to_a_damaged_version(make, root: Path) -> None:
    session(root).deploy(make("1"))
    session(root).deploy(make("2"))
    (root / "models/tiny/previous/variants/null-fp32/weights.bin").write_text("rotten")

    with pytest.raises(DeviceFailed, match="damaged"):
        session(root).rollback("tiny")
    assert active(root).manifest["digest"] == make("2").manifest["digest"]


def test_bytes_that_rot_on_the_device_are_found_and_sent_again(make, root: Path) -> None:
    bundle = make()
    session(root).deploy(bundle)
    weights = root / "models/tiny/current/variants/null-fp32/weights.bin"
    weights.write_text("rotten")  # the object too: it is the same file

    deployed = session(root).deploy(bundle)

    assert deployed.status == "installed" and deployed.files == 1
    assert active(root).manifest == bundle.manifest
    check_no_orphans(root)


def test_two_models_share_a_device(make, root: Path) -> None:
    one, other = make("1"), make("2", name="other")
    session(root).deploy(one)
    session(root).deploy(other)

    assert active(root).manifest == one.manifest and active(root, "other").manifest == other.manifest
    check_no_orphans(root)


def test_what_a_process_uses_is_not_collected(make, root: Path) -> None:
    bundles = [make(str(i)) for i in range(4)]
    session(root).deploy(bundles[0])
    inside = (root / "models/tiny/current").resolve()
    user = subprocess.Popen(["sleep", "60"], cwd=inside)
    try:
        for bundle in bundles[1:]:
            session(root).deploy(bundle)
        assert open_bundle(inside).manifest == bundles[0].manifest
    finally:
        user.kill()
        user.wait()
    session(root).deploy(make("5"))

    assert not inside.exists()
    check_no_orphans(root)


def test_a_second_deploy_at_the_same_time_is_told_who_holds_the_device(make, root: Path) -> None:
    first = session(root)
    first.deploy(make("1"))
    first.steps.lock(100)

    with pytest.raises(Busy, match=rf"is held by .+@.+ \(process {os.getpid()}, for at most \d+ s more\)") as caught:
        session(root).deploy(make("2"))

    assert caught.value.exit_code == 9 and caught.value.id == "EP902"
    assert session(root).deploy(make("1")).status == "unchanged"  # looking needs no lock
    first.steps.release()
    assert session(root).deploy(make("2")).status == "installed"


def test_who_is_told_to_wait_removes_nothing_of_the_one_who_began(make, root: Path) -> None:
    first = session(root)
    first.steps.begin(ship(make("1")), 100)

    with pytest.raises(Busy):
        session(root).deploy(make("2"))

    assert {path.name for path in root.iterdir()} == {"lock", "stage", "objects", "bundles", "models"}


def test_of_eight_deploys_at_once_each_ends_whole_or_is_told_to_wait(make, root: Path) -> None:
    bundles = [make(str(i)) for i in range(8)]
    said: list[str] = []

    def deploy(bundle) -> None:
        try:
            said.append(session(root).deploy(bundle).status)
        except Busy:
            said.append("busy")

    threads = [threading.Thread(target=deploy, args=[bundle]) for bundle in bundles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(said) == 8 and set(said) <= {"installed", "busy"} and "installed" in said
    assert active(root).manifest["digest"] in {b.manifest["digest"] for b in bundles}
    check_no_orphans(root)


def test_a_lease_that_is_over_is_taken_and_its_owner_notices(make, root: Path) -> None:
    slow = session(root)
    slow.deploy(make("1"))
    slow.steps.lock(1)
    time.sleep(2.5)

    assert session(root).deploy(make("2")).status == "installed"
    with pytest.raises(Busy):
        slow.steps.abandon(10)


@pytest.mark.parametrize("shell", ["dash", "bash --posix", "busybox sh", "mksh"])
def test_of_many_who_take_over_the_same_lease_one_has_it(root: Path, shell: str) -> None:
    need(shell.split()[0], f"apt install {shell.split()[0]}")
    need("flock", "apt install util-linux")
    boot, argv = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), [*shell.split(), "-c", _text("lock")]
    root.mkdir()
    for _ in range(3):
        (root / "lock").unlink(missing_ok=True)
        (root / "lock").symlink_to(f"me@there,1,x,t:{boot}:1")
        tries = [subprocess.Popen([*argv, "edgepack", root, f"me@here,1,x,{i}", "60", ""], stdout=-1) for i in range(8)]
        assert sorted(each.wait(60) for each in tries) == [0] + 7 * [9]
        assert {path.name for path in root.iterdir()} == {"lock"}


def test_a_lock_of_a_killed_deploy_on_this_machine_or_before_a_reboot_is_taken_at_once(make, root: Path) -> None:
    killed = of_a_dead_process(session(root))
    killed.deploy(make("1"))
    killed.steps.lock(10_000)
    assert session(root).deploy(make("2")).status == "installed"

    alive = session(root)
    alive.steps.lock(10_000)
    owner, _, deadline = str((root / "lock").readlink()).split(":")
    (root / "lock").unlink()
    (root / "lock").symlink_to(f"{owner}:00000000-before-the-reboot:{deadline}")
    assert session(root).deploy(make("3")).status == "installed"


def test_the_host_killed_at_any_message_leaves_a_whole_bundle_and_the_next_deploy_converges(make, root: Path) -> None:
    files = {"variants/null-fp32/large.bin": os.urandom(400_000)}
    one, two = make("1"), make("2", files=files)
    session(root).deploy(one)
    kept = shutil.copytree(root, root.with_name("kept"), symlinks=True)
    counter = session(root)
    counter.deploy(two)

    for last in range(1, counter.transport.calls + 1):
        shutil.rmtree(root)
        shutil.copytree(kept, root, symlinks=True)

        def killed_at(n: int, last: int = last) -> None:
            if n >= last:
                raise HostKilled

        with pytest.raises(HostKilled):
            of_a_dead_process(session(root, at_call=killed_at)).deploy(two)
        assert active(root).manifest == one.manifest, last
        assert session(root).deploy(two).status == "installed"
        assert active(root).manifest == two.manifest, last
        check_no_orphans(root)


TOOLS = (
    "awk basename busybox cat chmod cmp cp cut date dd df dirname env expr find flock getconf grep head id ln ls mkdir "
    "mv readlink rm rmdir sed sh sha256sum sleep sort stat sync tail tar test toybox touch tr true uname uniq wc xargs"
).split()
CHANGING = ("cat", "chmod", "cp", "ln", "mkdir", "mv", "rm", "rmdir", "sync", "tar", "dd")


def counting_path(folder: Path, action: str) -> Path:
    """A PATH whose tools count what they change, and do `action` (with $n) before they do it."""
    folder.mkdir()
    (folder / "count").write_text("0")
    for tool in TOOLS:
        real = shutil.which(tool)
        if real is None:
            continue
        if tool in CHANGING:
            (folder / tool).write_text(
                f"#!/bin/sh\nread -r n <{folder}/count; n=$((n + 1)); echo $n >{folder}/count\n{action}\n"
                f'exec {real} "$@"\n'
            )
            (folder / tool).chmod(0o755)
        else:
            (folder / tool).symlink_to(real)
    (folder / "sleep").unlink()
    (folder / "sleep").symlink_to("/bin/true")
    return folder


def shimmed_path(folder: Path, **shims: str) -> Path:
    """A PATH whose tools do what their shim says and then what they usually do."""
    folder.mkdir()
    for tool in TOOLS:
        if real := shutil.which(tool):
            (folder / tool).symlink_to(real)
    for tool, shim in shims.items():
        (folder / tool).unlink()
        (folder / tool).write_text(f'#!/bin/sh\n{shim}\nexec {shutil.which(tool)} "$@"\n')
        (folder / tool).chmod(0o755)
    return folder


def killed_and_deployed_again(root: Path, kept: Path, one: Bundle, two: Bundle, **faults) -> str:
    """Deploy `two` over `kept` (a copy of `one`'s device) to a device that dies; what was active then.

    The next deploy converges.
    """
    shutil.rmtree(root)
    shutil.copytree(kept, root, symlinks=True)
    dead = []

    def call(_: int) -> None:
        if dead:
            raise HostKilled

    try:
        of_a_dead_process(session(root, at_call=call, **faults)).deploy(two)
    except DeviceFailed:
        dead.append(True)
    except HostKilled:
        pass
    found: str = active(root).manifest["digest"]
    assert found in (one.manifest["digest"], two.manifest["digest"])
    session(root).deploy(two)
    assert active(root).manifest == two.manifest
    check_no_orphans(root)
    return found


def test_the_device_killed_before_a_write_rename_link_or_flush_keeps_a_whole_bundle(
    make, root: Path, tmp_path: Path
) -> None:
    """A sample of every kind of call that changes a disk; EDGEPACK_EVERY_CHANGE=1 takes all of them."""
    library, changes = tmp_path / "changes.so", tmp_path / "changes"
    source = Path(__file__).parent.parent / "changes.c"
    subprocess.run([need("cc", "apt install gcc"), "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    one, two = make("1"), make("2")
    session(root).deploy(one)
    kept = shutil.copytree(root, root.with_name("kept"), symlinks=True)

    def fault(at: int) -> dict[str, object]:
        changes.write_bytes(bytes(70_000))
        return {"LD_PRELOAD": library, "CHANGES": changes, "KILL_AT": at}

    of_a_dead_process(session(root, env=fault(0))).deploy(two)
    recorded = changes.read_bytes()
    kinds = recorded[4 : 4 + int.from_bytes(recorded[:4], "little")].decode()
    assert set(kinds) == set("rslumfwo"), kinds
    switches = [at for at, kind in enumerate(kinds, 1) if kind == "r"]
    others = [at for at, kind in enumerate(kinds, 1) if kind not in "r"]

    chosen = {*switches[:: -(-len(switches) // 10)], *others[:: -(-len(others) // 14)], switches[-1], len(kinds)}
    if os.environ.get("EDGEPACK_EVERY_CHANGE") == "1":
        chosen = set(range(1, len(kinds) + 1))
    seen = {killed_and_deployed_again(root, kept, one, two, env=fault(at)) for at in sorted(chosen)}

    assert len(seen) == 2


@pytest.mark.slow
def test_the_device_killed_before_any_change_keeps_a_whole_bundle_and_the_next_deploy_converges(
    make, root: Path, tmp_path: Path
) -> None:
    one, two = make("1"), make("2")
    session(root).deploy(one)
    kept = shutil.copytree(root, root.with_name("kept"), symlinks=True)
    path = counting_path(tmp_path / "path", f'[ $n != "$(/bin/cat {tmp_path}/path/at)" ] || kill -9 0')
    (path / "at").write_text("0")
    session(root, path=path).deploy(two)
    changes = int((path / "count").read_text())
    assert changes > 40

    seen = set()
    for at in range(1, changes + 1):
        (path / "at").write_text(str(at))
        (path / "count").write_text("0")
        seen.add(killed_and_deployed_again(root, kept, one, two, path=path))
        (path / "at").write_text("0")
    assert len(seen) == 2


@pytest.mark.slow
def test_a_power_cut_before_any_change_keeps_a_whole_bundle(make, tmp_path: Path) -> None:
    """The image is copied while it is mounted: what the device had not flushed is lost, as when the power fails."""
    mkfs = shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:" + os.environ["PATH"]) or need("mkfs.ext4", "e2fsprogs")
    image = tmp_path / "disk.img"
    with image.open("wb") as stream:
        stream.truncate(48 * MEGABYTE)
    subprocess.run([mkfs, "-q", image], check=True)
    root, one, two = tmp_path / "disk" / "edgepack", make("1"), make("2")
    with own_mounts():
        with mounted("ext4", image, root.parent, "loop", "commit=300"):
            of_a_dead_process(session(root)).deploy(one)  # its lock's end may not be on the disk yet
            copy = f"/bin/cp --sparse=always {image} {tmp_path}/cut.$n.img"
            of_a_dead_process(session(root, path=counting_path(tmp_path / "path", copy))).deploy(two)
        digests = {one.manifest["digest"]: 0, two.manifest["digest"]: 0}
        cuts = sorted(tmp_path.glob("cut.*.img"), key=lambda path: int(path.name.split(".")[1]))
        for cut in cuts:
            with mounted("ext4", cut, root.parent, "loop"):
                digests[active(root).manifest["digest"]] += 1
                if cut in cuts[::8]:
                    session(root).deploy(two)
                    assert active(root).manifest == two.manifest
                    check_no_orphans(root)
    assert len(cuts) > 40 and all(digests.values())


def test_a_disk_that_fills_up_in_the_middle_keeps_the_old_version(make, tmp_path: Path) -> None:
    with own_mounts(), mounted("tmpfs", "tmpfs", tmp_path / "disk", "size=40m") as disk:
        root = disk / "edgepack"
        one, two = make("1"), make("2", files={"variants/null-fp32/large.bin": os.urandom(4 * MEGABYTE)})
        session(root).deploy(one)

        def fill(n: int) -> None:
            if n == 4:  # the lock is taken, the space was checked
                subprocess.run(["dd", "if=/dev/zero", f"of={disk}/full", "bs=1M"], stderr=subprocess.DEVNULL)

        with pytest.raises(DeviceFailed, match=r"[Ss]pace"):
            session(root, at_call=fill).deploy(two)
        assert active(root).manifest == one.manifest

        (disk / "full").unlink()
        session(root).deploy(two)
        assert active(root).manifest == two.manifest
        check_no_orphans(root)

        too_large = make("3", files={"variants/null-fp32/large.bin": os.urandom(30 * MEGABYTE)})
        before = sorted(disk.rglob("*"))
        with pytest.raises(DeviceFailed, match=r"needs \d+\.\d MB more .* but \d+\.\d MB are free"):
            session(root).deploy(too_large)
        assert sorted(disk.rglob("*")) == before

        session(root).deploy(one)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(DeviceFailed, match="read-only"):
            session(root).deploy(two)
        assert active(root).manifest == one.manifest


NO_HARD_LINKS = 'case $1 in -s*) ;; *) echo "ln: Operation not permitted" >&2; exit 1 ;; esac'


def test_where_there_are_no_hard_links_a_bundle_is_of_copies(make, root: Path, tmp_path: Path) -> None:
    path = shimmed_path(
        tmp_path / "path", ln='case $1 in -s*) ;; *) echo "ln: Operation not permitted" >&2; exit 1 ;; esac'
    )
    one, two = make("1"), make("2", files={"variants/null-fp32/large.bin": os.urandom(400_000)})

    for bundle in (one, two):
        session(root, path=path).deploy(bundle)

    inside = [path for path in (root / "models/tiny/current/").resolve().rglob("*") if path.is_file()]
    assert inside and all(path.stat().st_nlink == 1 for path in inside)
    assert active(root).manifest == two.manifest
    check_no_orphans(root)
    assert session(root, path=path).deploy(two).status == "unchanged"
    session(root, path=path).rollback("tiny")
    assert active(root).manifest == one.manifest
    (root / "models/tiny/current/variants/null-fp32/weights.bin").write_text("rotten")  # the object is another file
    assert session(root, path=path).deploy(one).sent == 0
    assert active(root).manifest == one.manifest


def test_copies_are_counted_before_they_fill_the_disk(make, tmp_path: Path) -> None:
    path = shimmed_path(tmp_path / "path", ln=NO_HARD_LINKS)
    bundle = make(files={"variants/null-fp32/large.bin": os.urandom(10 * MEGABYTE)})
    with own_mounts(), mounted("tmpfs", "tmpfs", tmp_path / "disk", "size=32m") as disk:
        with pytest.raises(DeviceFailed, match=r"needs 2\d\.\d MB more"):
            session(disk / "edgepack", path=path).deploy(bundle)
        assert session(disk / "edgepack").deploy(bundle).status == "installed"  # with links it fits


def test_a_file_system_without_symbolic_links_is_refused_before_the_first_byte(
    make, root: Path, tmp_path: Path
) -> None:
    path = shimmed_path(tmp_path / "path", ln='echo "ln: Operation not permitted" >&2; exit 1')
    opened = session(root, path=path)

    with pytest.raises(DeviceFailed, match="without symbolic links, such as FAT") as caught:
        opened.deploy(make())

    assert caught.value.id == "EP602" and opened.transport.calls == 1 and not root.exists()


@pytest.mark.parametrize("box", ["busybox", "toybox"])
def test_a_board_with_nothing_but_a_small_toolbox_works(make, root: Path, tmp_path: Path, box: str) -> None:
    program = need(box, f"apt install {box}")
    (path := tmp_path / "path").mkdir()
    listed = subprocess.run([program, "--list"] if box == "busybox" else [program], capture_output=True, text=True)
    for tool in set(listed.stdout.split()) & set(TOOLS):
        (path / tool).symlink_to(program)
    if not (path / "sh").exists():
        (path / "sh").symlink_to(need("dash", "apt install dash"))
    one, two = make("1"), make("2", files={"variants/null-fp32/large.bin": os.urandom(400_000)})

    for bundle in (one, two):
        session(root, path=path).deploy(bundle)
    session(root, path=path).rollback("tiny")

    assert active(root).manifest == one.manifest
    check_no_orphans(root)
    session(root, path=path).deploy(make("3"))
    assert session(root, path=path).deploy(make("3")).status == "unchanged"
    check_no_orphans(root)


def test_a_refused_bundle_reaches_no_disk(make, root: Path) -> None:
    opened = session(root)
    opened._probe = replace(opened.probe, machine="riscv64")

    with pytest.raises(DeviceFailed, match=r"built for x86_64.*the device is riscv64"):
        opened.deploy(make())
    assert opened.transport.calls == 1 and not root.exists()


def test_small_files_of_a_device_are_read_and_written(root: Path, tmp_path: Path) -> None:
    opened = session(root)
    governor = tmp_path / "scaling_governor"
    governor.write_text("schedutil\n")

    assert opened.write(str(governor), "performance") and not opened.write("/proc/no/such", "x")
    assert opened.read([str(tmp_path / "no"), str(governor), "/proc/version"]) == {
        str(governor): "performance",
        "/proc/version": Path("/proc/version").read_text().rstrip("\n"),
    }


def test_the_command_line_deploys_runs_rolls_back_and_tells_each_device(edgepack, make, tmp_path: Path) -> None:
    import numpy as np

    one, two = make("1"), make("2")
    entry = '[devices.{0}]\ntarget = "host"\ntransport = "local"\nroot = "{1}"\ntags = ["lab"]\n'
    (tmp_path / "devices.toml").write_text(entry.format("a", tmp_path / "a") + entry.format("b", "/proc/no"))
    np.savez(tmp_path / "in.npz", x=np.arange(4, dtype=np.float32))

    def call(*argv: object):
        return edgepack(*argv, cwd=tmp_path, XDG_CONFIG_HOME=str(tmp_path / "config"))

    assert call("deploy", one.path, "--device", "a").code == 0
    assert call("deploy", two.path, "--device", "a", "--json").json["status"] == "installed"
    assert active(tmp_path / "a").manifest == two.manifest

    run = ("--variant", "null-fp32", "--input", "in.npz", "--output", "out.npz", "--device", "a")
    assert call("run", two.path, *run).code == 0
    assert np.load(tmp_path / "out.npz")["y"].tolist() == [0, 1, 2, 3]
    refused = call("run", one.path, *run)
    assert refused.code == 6 and "edgepack deploy" in refused.err
    check_no_orphans(tmp_path / "a")

    back = call("rollback", "tiny", "--device", "a", "--json").json
    assert (back["from"], back["to"]) == (two.manifest["digest"], one.manifest["digest"])

    some = call("deploy", two.path, "--tag", "lab", "--json")
    found = {each["device"]: each for each in some.json["devices"]}
    assert some.code == 7 and some.json["error"]["id"] == "EP701"
    assert found["a"]["status"] == "installed" and found["b"]["status"] == "failed" and found["b"]["id"] == "EP602"
    assert json.loads(call("deploy", two.path, "--device", "b", "--json").out)["error"]["exit_code"] == 6


def test_run_on_a_device_takes_the_input_set_of_the_arrays(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from edgepack import inventory, running
    from edgepack.types import Device

    device = Device(name="a", target="host", transport="local", root=str(tmp_path / "a"))
    monkeypatch.setattr(inventory, "find", lambda name: device)
    bundle = make("1", variants=("null-fp32", "null-fp32@wide"))
    session(tmp_path / "a").deploy(bundle)

    for size, variant in ((4, "null-fp32"), (5, "null-fp32@wide")):
        np.savez(tmp_path / "in.npz", x=np.arange(size, dtype=np.float32))
        facts = running.run(bundle.path, "null-fp32", tmp_path / "in.npz", tmp_path / "out.npz", device="a", threads=1)
        assert facts["variant"] == variant and facts["outputs"][0]["shape"] == [size]
        assert np.load(tmp_path / "out.npz")["y"].shape == (size,)
