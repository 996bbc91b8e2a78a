"""The user's data either become this model's inputs, or a sentence says why not and what to do."""

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgepack import calibration, project
from edgepack.errors import CalibrationError, OutOfSpace
from edgepack.types import Preprocess, TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=(1, 3, 8, 6))
IDS = TensorSpec(name="ids", dtype="int64", shape=(1, 5))
MASK = TensorSpec(name="mask", dtype="float32", shape=(1, 5))
RATE = TensorSpec(name="sr", dtype="int64", shape=())
TO_X = Preprocess(resize=(8, 6), mean=(127.5,), std=(127.5,))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pictures(folder: Path, count: int, size: tuple[int, int] = (12, 10)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def npz(path: Path, **content: np.ndarray) -> Path:
    np.savez(path, **content)
    return path


def refusal(source: Path, tmp_path: Path, *inputs: TensorSpec, how: dict[str, Preprocess] | None = None) -> str:
    """The message and the hint of the refusal."""
    with pytest.raises(CalibrationError) as caught:
        calibration.gather(source, inputs or (X,), how or {}, tmp_path / "out")
    assert caught.value.hint
    return f"{caught.value.message} / {caught.value.hint}"


def gathered(tmp_path: Path, index: int = 0) -> np.ndarray:
    return np.load(tmp_path / "out" / f"{index}.npy", allow_pickle=False)


# --- pictures -------------------------------------------------------------------------------------------------------


def test_pictures_become_samples_in_the_order_of_their_names(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 20)
    (source / "0000.txt").write_text("notes")
    pictures(source / "sub", 1, (30, 30))

    count = calibration.gather(source, (X,), {"x": TO_X}, tmp_path / "out")

    found = gathered(tmp_path)
    assert count == 21 and found.shape == (21, 1, 3, 8, 6) and found.dtype == np.float32
    first = calibration.preprocess.load_image(source / "000.png")
    np.testing.assert_array_equal(found[0], calibration.preprocess.apply(first, TO_X, X.shape, "float32"))
    assert -1 <= found.min() < -0.5 and 0.5 < found.max() <= 1


def test_the_star_stands_for_the_only_input(tmp_path: Path) -> None:
    assert calibration.gather(pictures(tmp_path / "in", 2), (X,), {"*": TO_X}, tmp_path / "out") == 2


def test_hidden_files_are_not_data(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 2)
    (source / "._000.png").write_bytes(b"macOS writes these")
    pictures(source / ".thumbnails", 3)

    assert calibration.gather(source, (X,), {"x": TO_X}, tmp_path / "out") == 2


def test_more_pictures_than_the_limit_are_thinned_evenly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = pictures(tmp_path / "in", 12)

    assert calibration.gather(source, (X,), {"x": TO_X}, tmp_path / "out", limit=4) == 4

    chosen = [calibration.preprocess.load_image(source / f"{i:03}.png") for i in (1, 4, 7, 10)]
    expected = [calibration.preprocess.apply(image, TO_X, X.shape, "float32") for image in chosen]
    np.testing.assert_array_equal(gathered(tmp_path), expected)
    assert "4 of the 12 samples" in capsys.readouterr().err


def test_pictures_without_a_declaration_are_refused_with_one_to_paste(tmp_path: Path) -> None:
    spec = TensorSpec(name='in "put"\n', dtype="float32", shape=(1, 8, 6, 3))
    for each, layout in ((X, "NCHW"), (spec, "NHWC")):
        said = refusal(pictures(tmp_path / "in", 2), tmp_path, each)
        assert "not declared" in said
        pasted = tmp_path / "preprocess.toml"
        pasted.write_text("[input" + said.split("[input", 1)[1])
        (declared,) = project.load(pasted).preprocess.values()
        assert (declared.layout, declared.resize) == (layout, (8, 6))


def test_a_corrupt_picture_is_named(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 2)
    (source / "001.png").write_bytes((source / "001.png").read_bytes()[:60])

    assert "001.png can't be decoded" in refusal(source, tmp_path, how={"x": TO_X})


def test_a_picture_that_does_not_fit_the_declaration_is_named(tmp_path: Path) -> None:
    said = refusal(pictures(tmp_path / "in", 2), tmp_path, how={"x": Preprocess()})

    assert "000.png: The declaration gives 12x10 pixels" in said and "resize = [8, 6]" in said


def test_a_folder_of_pictures_does_not_feed_two_inputs(tmp_path: Path) -> None:
    assert "has 2: 'x', 'ids'" in refusal(pictures(tmp_path / "in", 2), tmp_path, X, IDS)


def test_a_folder_without_pictures_is_refused_and_points_at_the_arrays_in_it(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert "holds no pictures" in refusal(tmp_path / "in", tmp_path)
    npz(tmp_path / "in" / "data.npz", x=noise(2, 3, 8, 6))
    assert "data.npz" in refusal(tmp_path / "in", tmp_path)


def test_a_declaration_for_an_input_that_the_model_lacks_names_the_nearest(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 2)
    spec = TensorSpec(name="images", dtype="float32", shape=X.shape)

    assert "Did you mean 'images'?" in refusal(source, tmp_path, spec, how={"image": TO_X})
    assert "one input; this one has 2" in refusal(source, tmp_path, X, IDS, how={"*": TO_X})


def test_identical_pictures_are_refused(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 1)
    (source / "copy.png").write_bytes((source / "000.png").read_bytes())

    assert "All 2 samples" in refusal(source, tmp_path, how={"x": TO_X})


def test_black_pictures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "ab":
        Image.new("RGB", (6, 8)).save(tmp_path / "in" / f"{name}.png")

    assert "the same number" in refusal(tmp_path / "in", tmp_path, how={"x": TO_X})


# --- arrays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3, 8, 6), (4, 1, 3, 8, 6)])
def test_arrays_come_with_or_without_the_batch_axis(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = noise(*shape)

    assert calibration.gather(npz(tmp_path / "in.npz", x=values), (X,), {}, tmp_path / "out") == 4
    np.testing.assert_array_equal(gathered(tmp_path), values.reshape(4, 1, 3, 8, 6))


def test_an_npy_or_an_unnamed_array_feeds_the_only_input(tmp_path: Path) -> None:
    values = noise(3, 3, 8, 6)
    np.save(tmp_path / "in.npy", values)
    np.savez(tmp_path / "in.npz", values)
    for name in ("in.npy", "in.npz"):
        assert calibration.gather(tmp_path / name, (X,), {}, tmp_path / "out") == 3
        np.testing.assert_array_equal(gathered(tmp_path)[:, 0], values)


def test_a_model_with_several_inputs_takes_an_npz_by_name(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 9, (6, 5))
    source = npz(tmp_path / "in.npz", sr=np.full(6, 16000), mask=np.ones((6, 5), np.float32), ids=ids, label=np.ones(6))

    assert calibration.gather(source, (IDS, MASK, RATE), {}, tmp_path / "out") == 6
    np.testing.assert_array_equal(gathered(tmp_path, 0)[:, 0], ids)
    assert gathered(tmp_path, 1).shape == (6, 1, 5)
    assert gathered(tmp_path, 2).tolist() == [16000] * 6


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_every_way_that_numpy_stores_floats_gives_the_same_samples(
    tmp_path: Path, compressed: bool, order: str, dtype: str
) -> None:
    values = np.asarray(noise(5, 3, 8, 6).astype(np.float16).astype(dtype), order=order)  # type: ignore[call-overload]
    (np.savez_compressed if compressed else np.savez)(tmp_path / "in.npz", x=values)
    np.save(tmp_path / "in.npy", values)

    for name in ("in.npz", "in.npy"):
        calibration.gather(tmp_path / name, (X,), {}, tmp_path / "out", limit=3)
        np.testing.assert_array_equal(gathered(tmp_path)[:, 0], values[[0, 2, 4]].astype(np.float32))


def test_whole_numbers_of_another_width_are_taken_when_they_fit(tmp_path: Path) -> None:
    small = TensorSpec(name="ids", dtype="int32", shape=(1, 5))
    ids = np.arange(20).reshape(4, 5)

    calibration.gather(npz(tmp_path / "in.npz", ids=ids), (small,), {}, tmp_path / "out")
    assert gathered(tmp_path).dtype == np.int32
    said = refusal(npz(tmp_path / "big.npz", ids=ids + 2**40), tmp_path, small)
    assert "is int32" in said and "'ids'" in said


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.zeros((4, 3, 8, 6), np.uint8), "raw pixels"),
        (np.zeros((4, 3, 8, 6), np.int64), "astype('float32')"),
        (np.zeros((4, 3, 8, 6), bool), "holds bool"),
        (np.zeros((4, 3, 8, 6), np.complex64), "not plain numbers"),
        (np.array([["a"]]), "not plain numbers"),
        (noise(4, 8, 6, 3), "channels-last (NHWC) for a channels-first (NCHW) model: x.transpose([0, 3, 1, 2])"),
        (noise(4, 1, 8, 6, 3), "x.transpose([0, 1, 4, 2, 3])"),
        (noise(3, 8, 6), "one sample: add an axis"),
        (noise(4, 3, 8, 7), "should be [samples, 3, 8, 6]"),
        (noise(4, 144), "should be [samples, 3, 8, 6]"),
        (np.float32(3), "should be [samples, 3, 8, 6]"),
        (noise(0, 3, 8, 6), "0 samples"),
        (np.zeros((4, 3, 8, 6), np.float32), "the same number"),
        (np.repeat(noise(1, 3, 8, 6), 4, 0), "All 4 samples"),
        (np.full((4, 3, 8, 6), 1e300), "an infinite value"),
    ],
)
def test_arrays_that_can_not_be_this_input_are_refused_with_a_cure(
    tmp_path: Path, values: np.ndarray, expected: str
) -> None:
    assert expected in refusal(npz(tmp_path / "in.npz", x=values), tmp_path)


def test_channels_first_for_a_channels_last_model_is_recognised(tmp_path: Path) -> None:
    last = TensorSpec(name="x", dtype="float32", shape=(1, 8, 6, 3))

    assert "x.transpose([0, 2, 3, 1])" in refusal(npz(tmp_path / "in.npz", x=noise(4, 3, 8, 6)), tmp_path, last)


@pytest.mark.parametrize(("bad", "what"), [(np.nan, "NaN"), (-np.inf, "an infinite value")])
def test_a_value_that_is_not_finite_names_sample_and_input(tmp_path: Path, bad: float, what: str) -> None:
    values = noise(4, 3, 8, 6)
    values[2, 1, 3, 3] = bad

    assert f"Sample 2 of the input 'x' from {tmp_path / 'in.npz'} has {what}" in refusal(
        npz(tmp_path / "in.npz", x=values), tmp_path
    )


def test_different_numbers_of_samples_per_input_are_refused(tmp_path: Path) -> None:
    source = npz(tmp_path / "in.npz", ids=np.zeros((6, 5), int), mask=noise(5, 5))

    assert "'ids' has 6, 'mask' has 5" in refusal(source, tmp_path, IDS, MASK)


def test_a_missing_input_names_the_nearest_array(tmp_path: Path) -> None:
    source = npz(tmp_path / "in.npz", idz=np.zeros((6, 5), int), mask=noise(6, 5))

    assert "no array for the input 'ids'" in (said := refusal(source, tmp_path, IDS, MASK)) and "rename 'idz'" in said


def test_arrays_outside_the_declared_range_are_refused(tmp_path: Path) -> None:
    source = npz(tmp_path / "in.npz", x=np.abs(noise(4, 3, 8, 6)) * 100)

    said = refusal(source, tmp_path, how={"x": TO_X})
    assert "the declared mean and std give -1 to 1" in said and "(x - mean) / std" in said


def test_arrays_that_fill_little_of_the_declared_range_are_doubted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = npz(tmp_path / "in.npz", x=np.random.default_rng(0).random((16, 3, 8, 6)).astype(np.float32))

    calibration.gather(source, (X,), {"x": Preprocess()}, tmp_path / "out")

    assert "is that the same scale?" in capsys.readouterr().err


def test_few_samples_are_doubted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibration.gather(npz(tmp_path / "in.npz", x=noise(1, 3, 8, 6)), (X,), {}, tmp_path / "out")

    assert "only 1 sample(s)" in capsys.readouterr().err


# --- files that lie -------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, ("pwned",)


def test_a_pickle_in_an_npz_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "in.npz", x=np.array([Evil()], dtype=object))

    assert "unpickles nothing" in refusal(tmp_path / "in.npz", tmp_path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 but no zip", b"\x93NUMPY\x01\x00\xff\xff{", b"text\n" * 100])
def test_what_is_no_array_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.npz").write_bytes(content)

    assert "in.npz can't be used" in refusal(tmp_path / "in.npz", tmp_path)


@pytest.mark.parametrize("name", ["in.npy", "in.npz"])
def test_damage_anywhere_ends_in_a_refusal_or_in_plain_numbers(tmp_path: Path, name: str) -> None:
    whole = npz(tmp_path / "in.npz", x=noise(2, 3, 8, 6)).read_bytes()
    if name == "in.npy":
        np.save(tmp_path / name, noise(2, 3, 8, 6))
        whole = (tmp_path / name).read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[random.integers(200)] = random.integers(256)  # headers are where the harm is done
        (tmp_path / name).write_bytes(damaged)
        try:
            calibration.gather(tmp_path / name, (X,), {}, tmp_path / "out")
        except CalibrationError as error:
            refused += 1
            assert name in error.message
    assert refused > 50


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", noise(4, 3, 8, 6))
    content = (tmp_path / "in.npy").read_bytes()
    (tmp_path / "in.npy").write_bytes(content[:-100])
    assert "declares 2304 bytes" in refusal(tmp_path / "in.npy", tmp_path)

    whole = npz(tmp_path / "in.npz", x=noise(4, 3, 8, 6)).read_bytes()
    (tmp_path / "in.npz").write_bytes(whole[:-100])
    assert "in.npz can't be used" in refusal(tmp_path / "in.npz", tmp_path)


def test_a_flipped_bit_in_an_npz_is_found_by_its_checksum(tmp_path: Path) -> None:
    whole = bytearray(npz(tmp_path / "in.npz", x=noise(4, 3, 8, 6)).read_bytes())
    whole[1000] ^= 1
    (tmp_path / "in.npz").write_bytes(whole)

    assert "CRC" in refusal(tmp_path / "in.npz", tmp_path)


def declaring(path: Path, shape: tuple[int, ...], content: bytes = b"") -> Path:
    """An .npz whose header says `shape`, whatever follows."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", stream.getvalue() + content)
    return path


@pytest.mark.parametrize("shape", [(10**9, 3, 8, 6), (-1, 3, 8, 6), (10**30,)])
def test_a_header_that_declares_more_than_there_is_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert "declares" in refusal(declaring(tmp_path / "in.npz", shape, b"\0" * 576), tmp_path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.arrays.ALWAYS_FINE", 1 << 20)
    path = declaring(tmp_path / "in.npz", (14000, 3, 8, 6), b"\0" * (14000 * 576))

    assert "more than 8 times its own size" in refusal(path, tmp_path)


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    whole = bytearray(npz(tmp_path / "in.npz", x=noise(2, 3, 8, 6)).read_bytes())
    whole[6] |= 1  # the flag in the local header, and in the directory at the end
    whole[whole.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "in.npz").write_bytes(whole)

    assert "in.npz can't be used" in refusal(tmp_path / "in.npz", tmp_path)


def test_no_file_and_a_single_picture_are_refused(tmp_path: Path) -> None:
    assert "can't be read" in refusal(tmp_path / "gone.npz", tmp_path)
    picture = pictures(tmp_path / "in", 1) / "000.png"
    assert "one picture" in refusal(picture, tmp_path)


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())

    with pytest.raises(OutOfSpace, match="samples need"):
        calibration.gather(npz(tmp_path / "in.npz", x=noise(4, 3, 8, 6)), (X,), {}, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path, suffix: str) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 3, 64, 64))
    values = noise(400, 3, 64, 64)  # 19 MB
    source = tmp_path / f"in{suffix}"
    np.savez(source, x=values) if suffix == ".npz" else np.save(source, values)
    del values

    tracemalloc.start()
    calibration.gather(source, (spec,), {}, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 2_000_000


# --- split, synthetic, digests --------------------------------------------------------------------------------------


def folder_of(tmp_path: Path, count: int) -> Path:
    (tmp_path / "all").mkdir()
    np.save(tmp_path / "all" / "0.npy", np.arange(count * 2, dtype=np.float32).reshape(count, 1, 2))
    np.save(tmp_path / "all" / "1.npy", np.arange(count, dtype=np.int64))
    return tmp_path / "all"


def test_enough_samples_are_parted_without_overlap(tmp_path: Path) -> None:
    counts = calibration.split(folder_of(tmp_path, 40), 40, tmp_path / "c", tmp_path / "v", verify=16)

    used, held = np.load(tmp_path / "c" / "1.npy"), np.load(tmp_path / "v" / "1.npy")
    assert counts == (24, 16) == (len(used), len(held))
    assert sorted([*used, *held]) == list(range(40))
    assert np.diff(held).max() <= 3, "held-out samples are spread over the whole set"
    np.testing.assert_array_equal(np.load(tmp_path / "v" / "0.npy")[:, 0, 0], held * 2)


def test_few_samples_serve_both_purposes(tmp_path: Path) -> None:
    counts = calibration.split(folder_of(tmp_path, 31), 31, tmp_path / "c", tmp_path / "v", verify=16)

    assert counts == (31, 31)
    assert (
        calibration.digest(tmp_path / "c") == calibration.digest(tmp_path / "v") == calibration.digest(tmp_path / "all")
    )


def test_made_up_samples_are_the_same_every_time_and_fit_the_inputs(tmp_path: Path) -> None:
    pixels = TensorSpec(name="pixels", dtype="uint8", shape=(1, 8, 6, 3))
    flags = TensorSpec(name="flags", dtype="bool", shape=(1, 4))
    mask = TensorSpec(name="attention_mask", dtype="int64", shape=(1, 5))
    state = TensorSpec(name="h", dtype="float32", shape=(2, 1, 64))
    inputs = (X, IDS, mask, RATE, pixels, flags, state)
    for name in ("a", "b"):
        calibration.synthetic(inputs, {"x": TO_X}, tmp_path / name, count=16)

    assert calibration.digest(tmp_path / "a") == calibration.digest(tmp_path / "b")
    made = [np.load(tmp_path / "a" / f"{index}.npy") for index in range(len(inputs))]
    for spec, values in zip(inputs, made, strict=True):
        assert values.shape == (16, *spec.shape) and values.dtype == spec.dtype
    assert -1 <= made[0].min() < made[0].max() <= 1, "a declared picture stays in the declared range"
    assert made[1].min() >= 0 and made[1].max() < 10
    assert (made[2] == 1).all() and (made[3] == 16000).all()
    assert made[4].max() > 100 and made[5].any() and not made[5].all()
    assert not np.array_equal(made[0][0], made[0][1])


def test_made_up_pictures_without_a_declaration_are_smooth_and_normal(tmp_path: Path) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 3, 128, 128))
    calibration.synthetic((spec,), {}, tmp_path / "a", count=4)

    made = np.load(tmp_path / "a" / "0.npy")
    assert abs(made.mean()) < 1e-3 and abs(made.std() - 1) < 1e-3
    assert np.abs(np.diff(made, axis=-1)).mean() < 0.5, "white noise would differ by 1.1 between neighbours"


def test_the_digest_of_the_users_data_follows_names_and_bytes_of_pictures_only(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 3)
    before = calibration.from_source_digest(source)

    (source / "notes.txt").write_text("x")
    assert calibration.from_source_digest(source) == before
    (source / "001.png").rename(source / "zzz.png")
    renamed = calibration.from_source_digest(source)
    assert renamed != before
    (source / "zzz.png").write_bytes((source / "000.png").read_bytes())
    assert calibration.from_source_digest(source) not in (before, renamed)


def test_the_digest_of_a_file_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"gone\.npz can't be read"):
        calibration.from_source_digest(tmp_path / "gone.npz")


def test_the_digest_of_the_code_is_stable() -> None:
    assert calibration.code_digest() == calibration.code_digest() != ""
