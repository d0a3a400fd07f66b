"""Named arrays in files of the format "safetensors": eight bytes of length, a header in JSON, the arrays' bytes."""

import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from t2t.errors import UserError

KINDS = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
}


def dumps(arrays: dict[str, np.ndarray]) -> bytes:
    """The file of `arrays`, of types among `KINDS`."""
    names = {dtype: name for name, dtype in KINDS.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    begin = 0
    for name, x in arrays.items():
        header[name] = {"dtype": names[x.dtype], "shape": list(x.shape), "data_offsets": [begin, begin + x.nbytes]}
        begin += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(x.tobytes() for x in arrays.values())])


def load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file; they are read when they are used.

    Raises:
        UserError: it cannot be read, or is no such file.
    """
    try:
        content = np.memmap(path, np.uint8, mode="r")
        begin = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header = json.loads(content[8:begin].tobytes())
        header.pop("__metadata__", None)
        return {name: _array(content[begin:], about) for name, about in header.items()}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise UserError(f"{path} is damaged: it is no whole file of the format safetensors") from None


def _array(content: np.ndarray, about: dict[str, Any]) -> np.ndarray:
    dtype, shape, (begin, end) = KINDS[about["dtype"]], about["shape"], about["data_offsets"]
    if not 0 <= begin <= end <= len(content) or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError("the header does not fit what follows")
    return content[begin:end].view(dtype).reshape(shape)
