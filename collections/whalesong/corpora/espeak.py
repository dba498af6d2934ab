"""Speech from text through the C library of espeak-ng, which PyPI's `espeakng-loader` carries."""

import _ctypes
import ctypes
import difflib
import shutil
import tempfile
from pathlib import Path

import numpy as np
import soxr

from whalesong.core.errors import DataError

# Names and values of espeak-ng's speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_PARAMETER_RATE = 1
_PARAMETER_PITCH = 3
_POSITION_CHARACTER = 1
_CHARS_UTF8 = 1
_INITIALIZE_DONT_EXIT = 0x8000

_RATE_RANGE = range(80, 451)
_PITCH_RANGE = range(0, 100)

_SynthCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Synthesizer:
    """Turn text into speech; equal arguments give equal samples, whatever was spoken before.

    espeak-ng keeps state between utterances (noise, filters, flutter) that neither its parameters
    nor a new initialization clears, so each utterance starts from a freshly loaded library, which
    takes 0.5 ms. Every instance loads a copy of its own, for a library that others hold open
    would not be loaded afresh.

    Args:
        sample_rate: the rate of the returned waveforms in Hz.

    Raises:
        DataError: if the library or its data cannot be loaded.
    """

    def __init__(self, *, sample_rate: int = 16000) -> None:
        self.sample_rate = sample_rate
        installed_library, installed_data = _locate_library()
        self._folder = tempfile.TemporaryDirectory(prefix="espeak-")
        self._data_path = Path(self._folder.name) / "data"
        _link_data(installed_data, self._data_path)
        self._library_path = Path(self._folder.name) / installed_library.name
        shutil.copyfile(installed_library, self._library_path)
        self._voices = _list_names(self._data_path / "lang")
        self._variants = _list_names(self._data_path / "voices" / "!v")
        self._library = _open_library(self._library_path)
        self._chunks: list[bytes] = []
        self._callback = _SynthCallback(self._collect)  # ctypes needs it alive during synthesis
        self._native_rate = self._initialize()

    def speak(
        self, text: str, *, voice: str, variant: str, rate_wpm: int, pitch: int
    ) -> np.ndarray:
        """Synthesize one utterance.

        Args:
            text: what to say.
            voice: an espeak-ng voice that sets language and accent, such as "en-us".
            variant: an espeak-ng variant that sets the speaker, such as "f2"; its case counts.
            rate_wpm: speed in words per minute, 80 to 450.
            pitch: base pitch, 0 to 99; 50 is the voice's own.

        Returns:
            The waveform at `sample_rate`, float32 in [-1, 1], (N,).

        Raises:
            DataError: if an argument is out of range, the voice is unknown or the text is silent.
        """
        _check_range("rate_wpm", rate_wpm, _RATE_RANGE)
        _check_range("pitch", pitch, _PITCH_RANGE)
        _check_name("voice", voice, self._voices)
        _check_name("variant", variant, self._variants)
        self._reload()
        status = self._library.espeak_SetVoiceByName(f"{voice}+{variant}".encode())
        assert status == 0, f"espeak-ng refused {voice}+{variant} ({status})"
        self._library.espeak_SetParameter(_PARAMETER_RATE, rate_wpm, 0)
        self._library.espeak_SetParameter(_PARAMETER_PITCH, pitch, 0)
        samples = self._synthesize(text)
        if not samples.any():
            raise DataError(f"`text` must hold words that can be spoken, but is {text!r} instead.")
        waveform = samples.astype(np.float32) / 32768
        return soxr.resample(waveform, self._native_rate, self.sample_rate).clip(-1, 1)

    def _synthesize(self, text: str) -> np.ndarray:
        data = text.encode()
        self._chunks.clear()
        status = self._library.espeak_Synth(
            data, len(data) + 1, 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None
        )
        if status != 0:
            raise DataError(f"espeak-ng must accept `text`, but refused {text!r} ({status}).")
        return np.frombuffer(b"".join(self._chunks), dtype=np.int16)

    def _collect(self, samples: object, num_samples: int, events: object) -> int:
        if num_samples > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * num_samples))
        return 0

    def _initialize(self) -> int:
        native_rate = self._library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, 0, str(self._data_path).encode(), _INITIALIZE_DONT_EXIT
        )
        if native_rate <= 0:
            raise DataError(
                f"The data of espeak-ng must be readable, but {self._data_path} is not."
            )
        self._library.espeak_SetSynthCallback(self._callback)
        # espeak-ng seeds its noise from the clock, and one of its vocoders draws from C's rand().
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        ctypes.CDLL(None).srand(1)
        return native_rate

    def _reload(self) -> None:
        self._library.espeak_Terminate()
        _ctypes.dlclose(self._library._handle)
        self._library = _open_library(self._library_path)
        self._initialize()


def _locate_library() -> tuple[Path, Path]:
    try:
        import espeakng_loader
    except ImportError as error:
        raise DataError(
            f"Speech synthesis needs the package `espeakng-loader`, but {error}."
        ) from error
    return Path(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())


def _link_data(installed: Path, folder: Path) -> None:
    """Link the data of espeak-ng with each voice at `lang/<lower-case name>`.

    A voice that is not found at that path costs a scan of all voice files, 4 ms in each utterance.
    """
    (folder / "lang").mkdir(parents=True)
    for path in installed.iterdir():
        if path.name != "lang":
            (folder / path.name).symlink_to(path)
    for path in (installed / "lang").rglob("*"):
        if path.is_file():
            (folder / "lang" / path.name.lower()).symlink_to(path)


def _open_library(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise DataError(f"espeak-ng must load from {path}, but fails with {error}.") from error


def _list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _check_name(argument: str, name: str, known: list[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise DataError(
            f"`{argument}` must be a name that espeak-ng knows, such as {near!r}, "
            f"but is {name!r} instead."
        )


def _check_range(name: str, value: int, allowed: range) -> None:
    if value not in allowed:
        raise DataError(
            f"`{name}` must be a whole number from {allowed[0]} to {allowed[-1]}, "
            f"but is {value!r} instead."
        )
