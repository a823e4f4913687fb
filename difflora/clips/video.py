"""Clips as H.264 files, read and written frame by frame, so that at most one clip's pixels are in memory.

Frames are (height, width, 3) uint8, sRGB. PyAV comes with ComfyUI; it is imported when a clip is read or written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import FileError, OutputError

Frame: TypeAlias = NDArray[np.uint8]

# H.264's codes. Without them a browser assumes BT.601 for small videos and shows other colours.
_BT709, _LIMITED_RANGE = 1, 1
# A keyframe every so many frames, so that a player can seek.
KEY_EVERY = 8
_TO_YUV: Mapping[str, Any] = {"format": "yuv420p", "dst_colorspace": "ITU709", "dst_color_range": "MPEG"}
# Encoder settings of videos for the page's player only: three times the size, in two thirds of the time.
PREVIEW: Mapping[str, Any] = {"crf": 18, "preset": "ultrafast"}


def write_video(
    path: Path,
    frames: Iterable[Frame],
    fps: float,
    metadata: Mapping[str, object] | None = None,
    crf: int = 16,
    preset: str = "veryfast",
    scaled: tuple[int, int] | None = None,
) -> list[Frame]:
    """Encode frames into an .mp4 that every browser plays.

    A width or height that is odd is made even by doubling the last column or row: 4:2:0 needs that.

    metadata    entries such as ComfyUI's prompt and workflow, written as JSON
    crf         x264's quality; 16 is hard to tell from the original
    preset      x264's, of which the faster ones make larger files of the same quality
    scaled      (width, height): also return every frame at this size
    """
    import av
    from av.video.reformatter import Interpolation, VideoReformatter

    small: list[Frame] = []
    scaler, converter = VideoReformatter(), VideoReformatter()
    with av.open(str(path), "w", format="mp4", options={"movflags": "use_metadata_tags+faststart"}) as file:
        for key, value in (metadata or {}).items():
            file.metadata[key] = json.dumps(value)
        stream: Any = None
        for pixels in frames:
            if stream is None:
                rate = Fraction(fps).limit_denominator(1000)
                stream = file.add_stream("libx264", rate=rate, options={"preset": preset, "crf": str(crf)})
                stream.height, stream.width = _even(pixels).shape[:2]
                stream.pix_fmt = "yuv420p"
                context = stream.codec_context
                context.gop_size, context.thread_count = KEY_EVERY, 0
                context.colorspace = context.color_primaries = context.color_trc = _BT709
                context.color_range = _LIMITED_RANGE
            frame = _as_frame(_even(pixels))
            if scaled:
                if scaled == (pixels.shape[1], pixels.shape[0]):
                    small.append(pixels)
                else:
                    whole = frame if _is_even(pixels) else _as_frame(np.ascontiguousarray(pixels))
                    # To planes, because packing them is slower in the scaler; the values are the same.
                    shrunk = scaler.reformat(whole, *scaled, format="gbrp", interpolation=Interpolation.AREA)
                    small.append(np.asarray(shrunk.to_ndarray(), np.uint8))
            file.mux(stream.encode(converter.reformat(frame, **_TO_YUV)))
        if stream is None:
            raise OutputError(f"{path.name}: there are no frames to write.")
        file.mux(stream.encode())
    return small


def read_video(path: Path, only: Collection[int] | None = None, size: tuple[int, int] | None = None) -> Iterator[Frame]:
    """Decode a clip's frames, in order; with `only`, just those numbers. size: (width, height) to cut padding off."""
    import av

    try:
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            stream.thread_type = "AUTO"
            for number, frame in enumerate(file.decode(stream)):
                if only is None or number in only:
                    rgb = frame.reformat(format="rgb24", src_colorspace="ITU709", dst_color_range="JPEG").to_ndarray()
                    yield rgb[: size[1], : size[0]] if size else rgb
    except (av.error.FFmpegError, IndexError) as problem:
        raise FileError(
            f"{path.name}: this clip cannot be read ({problem}). Replace or delete it; clips of a sweep are made again."
        ) from problem


def read_metadata(path: Path) -> dict[str, str]:
    """ComfyUI's entries in a video, as the JSON texts that they are."""
    import av

    with av.open(str(path)) as file:
        return {key: text for key, text in file.metadata.items() if key in ("prompt", "workflow")}


def plays(path: Path, frames: int, width: int, height: int) -> bool:
    """Whether this is a clip of so many frames of this size whose first and last frame can be decoded."""
    import av

    try:
        with av.open(str(path)) as file:
            [stream] = file.streams.video
            sizes = (stream.width, stream.height)
            if stream.frames != frames or sizes != (width + width % 2, height + height % 2):
                return False
            if next(file.decode(stream), None) is None:
                return False
            last_one = Fraction(frames - 1) / (stream.average_rate or 1)
            file.seek(int(last_one / (stream.time_base or 1)), stream=stream)
            last = [frame.time for frame in file.decode(stream)][-1:]
            return bool(last) and (last[0] or 0) > float(last_one) - 1e-3
    except (av.error.FFmpegError, OSError, ValueError, IndexError):
        return False


def at_rate(path: Path, copy: Path, fps: float) -> None:
    """Copy a clip so that it plays at this many frames a second. Nothing is encoded again."""
    import av

    with av.open(str(path)) as old, av.open(str(copy), "w", format="mp4", options={"movflags": "faststart"}) as new:
        source = old.streams.video[0]
        stream = new.add_stream_from_template(source)
        slower = float(source.average_rate or fps) / fps
        for packet in old.demux(source):
            if packet.dts is None or packet.pts is None:
                continue  # the end
            packet.pts, packet.dts = round(packet.pts * slower), round(packet.dts * slower)
            packet.duration = round((packet.duration or 0) * slower)
            packet.stream = stream
            new.mux(packet)


def _as_frame(pixels: Frame) -> Any:
    """The same memory as a video frame, where PyAV takes it: not if nobody may write there."""
    import av

    take = av.VideoFrame.from_numpy_buffer if pixels.flags.writeable else av.VideoFrame.from_ndarray
    return take(pixels, format="rgb24")


def _is_even(pixels: Frame) -> bool:
    height, width = pixels.shape[:2]
    return bool(height % 2 == 0 and width % 2 == 0)


def _even(pixels: Frame) -> Frame:
    if not _is_even(pixels):
        pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(pixels)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
