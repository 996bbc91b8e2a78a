"""Speech that is generated: espeak-ng, by its C interface, reads real sentences aloud."""

from __future__ import annotations

import ctypes

import espeakng_loader
import numpy as np

RETRIEVAL, SYNCHRONOUS, UTF8 = 1, 2, 1
RATE = 16000
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(sentences: list[str], voice: str, seed: int) -> np.ndarray:
    """The sentences as float32 in -1..1 at 16 kHz, with pauses, a little room noise and changing loudness."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if rate <= 0:
        raise SystemExit("espeak-ng could not be started.")
    pieces: list[np.ndarray] = []

    def keep(samples, count, _events):
        if samples and count:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = Callback(keep)  # must outlive the calls below
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise SystemExit(f"espeak-ng has no voice {voice!r}.")
    random = np.random.default_rng(seed)
    spoken = []
    for sentence in sentences:
        pieces.clear()
        text = sentence.encode()
        library.espeak_Synth(
            text, ctypes.c_size_t(len(text) + 1), ctypes.c_uint(0), ctypes.c_int(1), ctypes.c_uint(0),
            ctypes.c_uint(UTF8), None, None,
        )  # fmt: skip
        wave = np.concatenate([*pieces, np.zeros(rate // 2, np.int16)]) / 32768
        spoken.append(wave * random.uniform(0.2, 0.9))
    wave = np.concatenate(spoken)
    places = np.arange(0, len(wave) - 1, rate / RATE)
    resampled = np.interp(places, np.arange(len(wave)), wave)
    return (resampled + random.normal(0, 2e-3, len(resampled))).astype(np.float32)
