"""One camera image as JPEG: what `wam.v1` peers may put on the wire where both ends declared it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from wamserve.action_codec.errors import WireError


@dataclass(frozen=True)
class Jpeg:
    """A compressed image that decodes to uint8 [H, W, 3] RGB. Lossy: scores measured with it say so."""

    data: bytes  # one JPEG file
    shape: tuple[int, int, int]  # H, W, 3 as declared by the sender; checked against the file

    @classmethod
    def from_array(cls, image: np.ndarray, quality: int = 95) -> Jpeg:
        """Compresses uint8 [H, W, 3] RGB, chroma at full resolution so that thin coloured parts survive."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise WireError(
                "not an image", seen=f"{image.dtype} {list(image.shape)}", expected="uint8 [H, W, 3] RGB"
            )
        buffer = io.BytesIO()
        _pillow().fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=quality, subsampling=0)
        return cls(buffer.getvalue(), (image.shape[0], image.shape[1], 3))

    def to_array(self) -> np.ndarray:
        """uint8 [H, W, 3] RGB; the file's size is compared before a pixel is decoded. Raises WireError."""
        pillow = _pillow()
        try:
            with pillow.open(io.BytesIO(self.data), formats=["JPEG"]) as file:
                if (file.height, file.width, 3) != self.shape or file.mode != "RGB":
                    raise WireError(
                        "the JPEG is not the declared image",
                        seen=f"{file.mode} {file.height}x{file.width}",
                        expected=f"RGB {self.shape[0]}x{self.shape[1]}",
                    )
                return np.asarray(file)
        except WireError:
            raise
        except Exception as error:  # pillow's decoders raise whatever they meet
            raise WireError(f"not a JPEG image: {str(error)[:80]}") from error


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise WireError("JPEG images need pillow", fix="pip install pillow") from error
    return Image
