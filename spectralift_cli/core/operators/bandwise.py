"""Apply a function of one image to every band of a cube, with the memory of one band."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spectralift_cli.core.cube import AnyArray, FloatArray


def per_band(
    values: AnyArray, shape: tuple[int, int], function: Callable[[FloatArray], FloatArray]
) -> AnyArray:
    """Return `function` of every band.

    Args:
        values: (H, W) or (H, W, B).
        shape: (h, w) that the function makes of an (H, W) image.
        function: from (H, W) float64, C-contiguous, to (h, w) float64.

    Returns:
        (h, w) or (h, w, B) of the type of `values` if that is floating, else float64.
    """
    array = np.asarray(values)
    dtype = array.dtype if array.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    if array.ndim == 2:
        return function(np.ascontiguousarray(array, dtype=np.float64)).astype(dtype)
    result = np.empty((*shape, array.shape[2]), dtype)
    for band in range(array.shape[2]):
        result[:, :, band] = function(np.ascontiguousarray(array[:, :, band], dtype=np.float64))
    return result
