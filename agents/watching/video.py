"""Writing a recording as an animation: GIF with Pillow, MP4 with ffmpeg."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agents.watching.overlay import Overlay
from agents.watching.record import Recording
from lab.disk.output import ANIMATION_ENDINGS, check_output, whole_file

ENDINGS = ANIMATION_ENDINGS
LAST_FRAME_MILLISECONDS = 1500

#: A format that every browser plays; libx264 is left out of some builds of ffmpeg.
ENCODER = "libx264"

#: Frames whose colours make up the palette of a GIF, evenly over the episode.
PALETTE_FRAMES = 6


def check_animation(path: Path) -> None:
    """Refuse a path to which no animation can be written, and a missing writer.

    Raises:
        ValueError: if the name does not end in .gif or .mp4, the folder is missing or not
            writable, or there is no ffmpeg for an MP4.
    """
    check_output(path, ENDINGS)
    if path.suffix.lower() == ".mp4":
        find_ffmpeg()


def save_animation(recording: Recording, path: Path, frames_per_second: float) -> int:
    """Draw and write the animation that ``path`` is named for; return the number of frames.

    Args:
        recording: the episode.
        path: ends in .gif or .mp4.
        frames_per_second: how fast it goes.
    """
    save = save_mp4 if path.suffix.lower() == ".mp4" else save_gif
    return save(recording, path, frames_per_second)


def save_gif(recording: Recording, path: Path, frames_per_second: float) -> int:
    """Write a GIF; return the number of frames. The last one stays longer."""
    overlay = Overlay(recording)
    count = len(recording.frames)
    durations = [round(1000 / frames_per_second)] * count
    durations[-1] = max(durations[-1], LAST_FRAME_MILLISECONDS)
    chosen = np.linspace(0, count - 1, min(count, PALETTE_FRAMES)).round().astype(int)
    palette = common_palette([overlay.draw(int(t)) for t in chosen])

    def frames() -> Iterator[Image.Image]:
        for t in range(count):
            yield to_indexed(overlay.draw(t), palette)

    drawn = frames()  # one after the other: all at once would fill the memory
    with whole_file(path) as temporary:
        next(drawn).save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=drawn,
            duration=durations,
            loop=0,
        )
    return count


def common_palette(images: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """One palette for all frames, which keeps colours still and the file small.

    It holds the most frequent colours of several frames: one frame alone can lack a colour, such
    as that of a key picked up, or of an action never taken before. Pillow's own choice of 256
    colours would mix neighbours, and white would no longer be white.

    Args:
        images: RGB.

    Returns:
        Colours (at most 256, 3), the most frequent first.

    >>> common_palette([Image.new("RGB", (2, 1), colour) for colour in ("white", "red")]).tolist()
    [[255, 0, 0], [255, 255, 255]]
    """
    pixels = np.concatenate([np.asarray(image).reshape(-1, 3) for image in images])
    codes = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    colours, counts = np.unique(codes, return_counts=True)
    colours = colours[np.argsort(-counts, kind="stable")]
    # Pillow tells colours apart by the upper six bits of each channel: one for each of those.
    _, first = np.unique(colours & 0xFCFCFC, return_index=True)
    frequent = colours[np.sort(first)[:256]]
    return np.stack([frequent >> 16, frequent >> 8 & 255, frequent & 255], -1).astype(np.uint8)


def to_indexed(image: Image.Image, palette: NDArray[np.uint8]) -> Image.Image:
    """Map each pixel to the nearest colour of the palette; colours that are in it stay exact."""
    coarse = Image.new("P", (1, 1))
    coarse.putpalette((palette & 0xFC).tobytes())
    # Pillow compares the lower end of what it cannot tell apart: so both are brought there.
    indexed = image.point(lambda value: value & 0xFC).quantize(
        palette=coarse, dither=Image.Dither.NONE
    )
    indexed.putpalette(palette.tobytes())
    return indexed


def save_mp4(recording: Recording, path: Path, frames_per_second: float) -> int:
    """Write an MP4 that browsers play; return the number of frames.

    Raises:
        ValueError: if there is no ffmpeg.
        OSError: if ffmpeg fails; it says why.
    """
    overlay = Overlay(recording)
    count = len(recording.frames)
    width, height = overlay.draw(0).size
    with whole_file(path) as temporary:
        command = _mp4_command(find_ffmpeg(), width, height, frames_per_second, temporary)
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            complaint = _feed(process, (overlay.draw(t).tobytes() for t in range(count)))
        if process.returncode:
            reason = complaint.decode(errors="replace").strip().splitlines()[-1:]
            raise OSError(f"ffmpeg could not write {str(path)!r}: {' '.join(reason)}")
    return count


def _feed(process: subprocess.Popen[bytes], frames: Iterable[bytes]) -> bytes:
    """Write all frames to a process and wait for its end; return what it complains about."""
    assert process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it gave up, and says why
            for frame in frames:
                process.stdin.write(frame)
        return process.communicate()[1]
    except BaseException:
        process.kill()
        raise


def _mp4_command(
    ffmpeg: str, width: int, height: int, frames_per_second: float, path: Path
) -> list[str]:
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}"]
    return [
        *(ffmpeg, "-hide_banner", "-loglevel", "error", "-y"),
        *(*raw, "-framerate", str(frames_per_second), "-i", "-"),
        # Browsers play no other pixel format; the index in front lets playing begin at once.
        *("-c:v", ENCODER, "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart"),
        *("-f", "mp4", str(path)),
    ]


def find_ffmpeg() -> str:
    """The ffmpeg of imageio-ffmpeg, else the system's, if it can encode H.264.

    Raises:
        ValueError: if there is none.
    """
    for candidate in _ffmpegs():
        command = [candidate, "-hide_banner", "-encoders"]
        try:
            listed = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:  # IMAGEIO_FFMPEG_EXE names what is not there or cannot be run
            continue
        if ENCODER in listed.stdout:
            return candidate
    raise ValueError(
        "--out: writing MP4 needs ffmpeg; pip install 'rims-toolkit[video]' "
        "or give a name ending in .gif."
    )


def _ffmpegs() -> Iterator[str]:
    try:
        import imageio_ffmpeg

        yield imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # not installed; or it brought none for this platform
        pass
    system = shutil.which("ffmpeg")
    if system is not None:
        yield system
