"""TOML is read strictly: what edgepack doesn't understand is an error with file, line and the nearest name."""

from pathlib import Path

import pytest

from edgepack import config, project
from edgepack.errors import ConfigError, UsageError
from edgepack.types import Bound, Precision, Preprocess

BOARD = """\
arch = "aarch64"
os = "linux"
libc = "glibc"
libc_version = "2.36"
engines = ["ncnn"]
precisions = ["fp32", "int8"]
memory_mb = 1024
"""


@pytest.fixture
def board(tmp_path: Path) -> Path:
    path = tmp_path / "board.toml"
    path.write_text(BOARD)
    return path


def refusal(path: Path, text: str | bytes) -> ConfigError:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        config.load_target(path)
    assert str(path) in caught.value.message
    return caught.value


def test_a_profile_by_path_is_called_like_its_file(board: Path) -> None:
    loaded = config.load_target(str(board))

    assert (loaded.name, loaded.arch, loaded.engines) == ("board", "aarch64", ("ncnn",))
    assert loaded.precisions == (Precision.FP32, Precision.INT8)


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        config.load_target("RK3558")

    assert caught.value.id == "EP202"
    assert "'rk3588'" in caught.value.message and "linux-riscv64" in caught.value.hint


def test_a_program_is_fast_and_static_unless_the_profile_says_otherwise(board: Path) -> None:
    plain = config.load_target(board)
    board.write_text(BOARD + 'size = "small"\nstatic = false\n')
    changed = config.load_target(board)

    assert (plain.size, plain.static) == ("fast", True)
    assert (changed.size, changed.static) == ("small", False)
    assert "'small'" in refusal(board, BOARD + 'size = "smal"\n').message


def test_a_library_of_the_users_own_is_seen_from_the_profile(board: Path) -> None:
    (board.parent / "mine.so").write_bytes(b"")
    board.write_text(BOARD + '[libraries]\nonnxruntime = "mine.so"\n')

    assert config.load_target(board).libraries == {"onnxruntime": str(board.parent.resolve() / "mine.so")}
    assert "doesn't exist" in refusal(board, BOARD + '[libraries]\nonnxruntime = "gone.so"\n').message
    assert "onnxruntime only" in refusal(board, BOARD + '[libraries]\nncnn = "mine.so"\n').message
    assert "path of a file" in refusal(board, BOARD + "[libraries]\nonnxruntime = 3\n").message


def test_a_name_never_leaves_the_folder_of_profiles() -> None:
    with pytest.raises(UsageError, match="no target"):
        config.load_target("../targets/rk3588")


def test_a_path_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.toml can't be read"):
        config.load_target(tmp_path / "gone.toml")


def test_an_unknown_key_names_its_line_and_the_nearest_key(board: Path) -> None:
    error = refusal(board, BOARD + 'enginess = ["ncnn"]\n')

    assert error.exit_code == 2
    assert error.message.startswith(f"{board}:8: unknown key 'enginess'. Did you mean 'engines'?")


def test_the_line_is_right_below_comments_and_in_sub_tables(board: Path) -> None:
    error = refusal(board, BOARD + "# a note\n\n[bounds.fp32]\ncosine = 1.0\n[bounds.int8]\ncosin = 0.9\n")

    assert error.message.startswith(f"{board}:13: unknown key 'cosin' in [bounds.int8]. Did you mean 'cosine'?")


def test_the_line_is_right_in_inline_tables_and_dotted_keys(board: Path) -> None:
    assert f"{board}:8:" in refusal(board, BOARD + "bounds = { int8 = { cosin = 0.9 } }\n").message
    assert f"{board}:9:" in refusal(board, BOARD + "\nbounds.int8.cosin = 0.9\n").message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('memory_mb = "1024"', "should be a whole number"),
        ("memory_mb = true", "should be a whole number"),
        ("memory_mb = 0", "at least 1"),
        ('engines = "ncnn"', "should be a list of strings"),
        ("engines = []", "nothing to build"),
        ('engines = ["ncn"]', "Did you mean 'ncnn'?"),
        ('precisions = ["int4"]', "unknown precision 'int4'"),
        ('arch = "aarch46"', "Did you mean 'aarch64'?"),
        ('libc_version = "bookworm"', "not a version"),
        ('libc_version = ""', "not a version"),
        ('clusters = [["cortex-a55"]]', "not [core, count]"),
        ('clusters = [["cortex-a55", 0]]', "not [core, count]"),
        ('bounds = { int8 = { cosine = 1.5 } }', "from 0 to 1"),
        ('bounds = { int8 = { sqnr_db = nan } }', "a number of dB"),
        ('bounds = { int8 = { cosine = "off" } }', "from 0 to 1"),
        ('bounds = { int4 = { cosine = 0.9 } }', "unknown precision 'int4'"),
        ("bounds = { int8 = 0.9 }", "should be a table"),
        ("absent = { tflite = 3 }", "say in a sentence why"),
        ('absent = { ncnn = "slow" }', "both in `engines` and in [absent]"),
        ('absent = { tflight = "x" }', "unknown engine 'tflight'. Did you mean 'tflite'?"),
        ('cmake_toolchain_file = "gone.cmake"', "doesn't exist"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_line(board: Path, line: str, expected: str) -> None:
    key = line.split(" ")[0]
    kept = "".join(each + "\n" for each in BOARD.splitlines() if each.split(" ")[0] != key)
    error = refusal(board, kept + line + "\n")

    assert expected in error.message
    assert error.message.startswith(f"{board}:{len(kept.splitlines()) + 1}:")


def test_missing_keys_are_told_all_at_once(board: Path) -> None:
    error = refusal(board, 'arch = "aarch64"\nos = "linux"\n')

    assert "libc, libc_version, engines, precisions, memory_mb not set" in error.message
    assert "extends" in error.hint


def test_broken_toml_names_the_line(board: Path) -> None:
    assert refusal(board, BOARD + "cpu = \n").message.startswith(f"{board}:8: this is not TOML")


def test_a_file_that_is_not_utf8_names_the_line(board: Path) -> None:
    error = refusal(board, BOARD.encode() + 'description = "Gerät"\n'.encode("latin-1"))

    assert error.message.startswith(f"{board}:8: byte ") and "UTF-8" in error.hint


def test_absurd_nesting_is_refused(board: Path) -> None:
    assert refusal(board, "a = " + "[" * 100_000).exit_code == 2


def test_windows_line_ends_and_a_byte_order_mark_are_fine(board: Path) -> None:
    plain = config.load_target(board)
    board.write_bytes(b"\xef\xbb\xbf" + BOARD.replace("\n", "\r\n").encode())

    assert config.load_target(board) == plain


def test_a_file_name_that_can_not_name_a_bundle_is_refused(tmp_path: Path) -> None:
    assert "Rename the file" in refusal(tmp_path / "my board!.toml", BOARD).hint


def test_a_directory_is_no_profile(tmp_path: Path) -> None:
    (tmp_path / "dir.toml").mkdir()
    with pytest.raises(UsageError, match="can't be read"):
        config.load_target(tmp_path / "dir.toml")


def test_extends_takes_everything_that_the_file_does_not_say(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "rk3588"\nmemory_mb = 16384\n[bounds.int8]\ncosine = 0.9\n')
    mine, base = config.load_target(path), config.load_target("rk3588")

    assert (mine.name, mine.memory_mb) == ("mine", 16384)
    assert (mine.engines, mine.cpu_features, mine.libc_version) == (base.engines, base.cpu_features, base.libc_version)
    assert mine.bounds[Precision.INT8] == Bound(cosine=0.9, sqnr_db=base.bounds[Precision.INT8].sqnr_db)


def test_extends_merges_bounds_of_a_chain_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(BOARD + "[bounds.int8]\nsqnr_db = 3\ntop1 = 0.5\n")
    (tmp_path / "b.toml").write_text('extends = "a.toml"\n[bounds.int8]\ntop1 = 0.7\nsqnr_db = "off"\n')
    (tmp_path / "c.toml").write_text('extends = "b"\n[bounds.int8]\ncosine = 0.8\n')

    assert config.load_target("c", tmp_path).bounds[Precision.INT8] == Bound(cosine=0.8, sqnr_db=None, top1=0.7)


def test_an_engine_that_the_nearer_file_offers_is_no_longer_absent(tmp_path: Path) -> None:
    path = tmp_path / "newer.toml"
    path.write_text('extends = "linux-aarch64"\nengines = ["onnxruntime", "tflite"]\n')
    newer = config.load_target(path)

    assert newer.engines == ("onnxruntime", "tflite")
    assert newer.absent == {"ncnn": "the profile newer leaves it out"}


def test_an_engine_that_the_nearer_file_calls_absent_is_no_longer_offered(tmp_path: Path) -> None:
    path = tmp_path / "older.toml"
    path.write_text('extends = "rk3588"\n[absent]\ntflite = "our image is Debian 11"\n')
    older = config.load_target(path)

    assert "tflite" not in older.engines and older.absent == {"tflite": "our image is Debian 11"}


def test_extends_in_a_circle_is_refused_and_shows_the_circle(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "b"\n')
    (tmp_path / "b.toml").write_text('extends = "a"\n')

    with pytest.raises(ConfigError, match="a -> b -> a"):
        config.load_target("a", tmp_path)


def test_extending_an_unknown_profile_names_line_and_nearest(board: Path) -> None:
    error = refusal(board, '# mine\nextends = "rk3558"\n')

    assert error.message.startswith(f"{board}:2:") and "Did you mean 'rk3588'?" in error.message


def test_an_error_in_what_is_extended_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(BOARD + "cpuu = 'x'\n")
    (tmp_path / "mine.toml").write_text('extends = "base"\n')

    with pytest.raises(ConfigError, match=r"base\.toml:8: unknown key 'cpuu'\. Did you mean 'cpu'"):
        config.load_target("mine", tmp_path)


def test_a_toolchain_file_is_seen_from_the_profile(board: Path) -> None:
    (board.parent / "arm.cmake").write_text("")
    board.write_text(BOARD + 'cmake_toolchain_file = "arm.cmake"\n')

    assert config.load_target(board).cmake_toolchain_file == str((board.parent / "arm.cmake").resolve())


# --- preprocess -----------------------------------------------------------------------------------------------------


def declared(tmp_path: Path, text: str) -> dict[str, Preprocess]:
    path = tmp_path / "preprocess.toml"
    path.write_text(text)
    return dict(project.load(path).preprocess)


def test_a_declaration_is_read_whole(tmp_path: Path) -> None:
    found = declared(
        tmp_path,
        '[input."a.b\\n/c"]\nlayout = "NHWC"\ncolor = "BGR"\nresize = 256\nmethod = "nearest"\ncrop = [224, 200]\n'
        "mean = [1, 2.5, 3]\nstd = 58.0\n[input.plain]\n",
    )

    assert found["a.b\n/c"] == Preprocess(
        layout="NHWC", color="BGR", resize=256, method="nearest", crop=(224, 200), mean=(1.0, 2.5, 3.0), std=(58.0,)
    )
    assert found["plain"] == Preprocess()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("means = 1", "unknown key 'means' in [input.x]. Did you mean 'mean'?"),
        ('layout = "NCWH"', "layout = 'NCWH' is not known. Did you mean"),
        ('color = "rgb"', "Did you mean 'RGB'?"),
        ("color = 3", "color = 3 is not known"),
        ("resize = 0", "should be [height, width] in pixels, or the shorter side"),
        ("resize = [224]", "should be [height, width]"),
        ("resize = 70000", "should be [height, width]"),
        ("crop = 224", "should be [height, width]"),
        ("crop = [true, 224]", "should be [height, width]"),
        ("mean = [1, 2]", "one number, or 3, one per channel"),
        ("mean = []", "one number, or 3"),
        ('mean = "0"', "one number, or 3"),
        ("std = [1, 0, 1]", "can't be 0"),
        ("std = inf", "one number, or 3"),
        ("std = 1e-31", "too far from 1 for float32"),
        ("mean = [0, 1e31, 0]", "too far from 1 for float32"),
        ('fit = "inside"', "fit = 'inside' needs resize = [height, width]"),
        ('fit = "fill"', "fit = 'fill' is not known"),
        ("pad = 640", "should be [height, width]"),
        ("pad_value = 114", "does nothing without pad"),
        ('pad_place = "top_left"', "does nothing without pad"),
        ('pad_place = "left"', "Did you mean 'top_left'?"),
    ],
)
def test_a_wrong_declaration_is_refused_with_its_line(tmp_path: Path, line: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        declared(tmp_path, f"[input.x]\n# note\n{line}\n")

    assert expected in caught.value.message
    assert caught.value.message.startswith(f"{tmp_path / 'preprocess.toml'}:3:")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('resize = 640\nfit = "inside"\n', "needs resize = [height, width] to fit into"),
        ("pad = [640, 640]\npad_value = 256\n", "pad_value = [256.0] is outside 0..255"),
        ("pad = [640, 640]\npad_value = [1, 2]\n", "one number, or 3"),
        ("crop = [224, 224]\npad = [224, 200]\n", "pad = [224, 200] is smaller than crop = [224, 224]"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        declared(tmp_path, f"[input.x]\n{text}")

    assert expected in caught.value.message and "preprocess.toml:3:" in caught.value.message


def test_a_letterbox_is_declared_with_pad_and_fit(tmp_path: Path) -> None:
    text = '[input.x]\nresize = [640, 640]\nfit = "inside"\npad = [640, 640]\npad_value = 114\nstd = 255\n'

    assert declared(tmp_path, text)["x"] == Preprocess(
        resize=(640, 640), fit="inside", pad=(640, 640), pad_value=(114.0,), pad_place="center", std=(255.0,)
    )


def test_means_of_the_0_to_1_scale_are_refused_with_the_right_numbers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        declared(tmp_path, "[input.x]\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n")

    assert "mean = [123.675, 116.28, 103.53]" in caught.value.hint
    assert "std = [58.395, 57.12, 57.375]" in caught.value.hint


def test_gray_takes_one_mean(tmp_path: Path) -> None:
    assert declared(tmp_path, '[input.x]\ncolor = "GRAY"\nmean = [127.5]\n')["x"].mean == (127.5,)
    with pytest.raises(ConfigError, match=r"should be one number\."):
        declared(tmp_path, '[input.x]\ncolor = "GRAY"\nmean = [1, 2, 3]\n')


@pytest.mark.parametrize("text", ["", "[input]\n", "[inputs.x]\n", "[input]\nx = 3\n", "input = 3\n"])
def test_a_file_without_a_declaration_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"preprocess\.toml"):
        declared(tmp_path, text)


def test_an_edgepack_toml_beside_the_model_declares_its_inputs(tmp_path: Path) -> None:
    model = tmp_path / "models" / "net.onnx"
    model.parent.mkdir()
    model.write_bytes(b"")
    assert project.beside(str(model)) == project.Project()

    (model.parent / "edgepack.toml").write_text('[input."x"]\nstd = 255\n')
    assert project.beside(str(model)).preprocess["x"].std == (255.0,)
    assert project.beside("package.module:factory", tmp_path) == project.Project()
    assert project.beside("package.module:factory", model.parent).preprocess["x"].std == (255.0,)

    (model.parent / "edgepack.toml").write_text("[inputs]\n")
    with pytest.raises(ConfigError, match=r"edgepack.toml:1: unknown key 'inputs'"):
        project.beside(str(model))
