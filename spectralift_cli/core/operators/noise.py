"""White Gaussian noise at a signal-to-noise ratio, band by band.

std[b] = sqrt(mean(x[..., b]^2) / 10^(snr/10)), the mean over the valid pixels of the band. Source:
HyperBench 0.1.0.
"""

from __future__ import annotations

import math

import numpy as np

from spectralift_cli.core.cube import AnyArray, FloatArray
from spectralift_cli.core.cubeio import row_blocks
from spectralift_cli.core.errors import DataError

_BLOCK_VALUES = 2**20


def noise_std(values: AnyArray, snr_db: float) -> FloatArray:
    """Return the (B,) standard deviations that give each band its signal-to-noise ratio.

    Args:
        values: (H, W, B), NaN in holes.
        snr_db: decibels; infinity for no noise.

    Raises:
        DataError: the ratio is NaN or minus infinity.
    """
    if math.isnan(snr_db) or snr_db == -math.inf:
        raise DataError(
            f"a signal-to-noise ratio of {snr_db} dB means nothing",
            "give decibels, or inf for none",
        )
    power = np.zeros(values.shape[2])
    for band in range(values.shape[2]):
        squares = np.square(values[:, :, band], dtype=np.float64)
        valid = np.isfinite(squares)
        power[band] = squares[valid].mean() if valid.any() else 0.0
    std: FloatArray = np.sqrt(power) * 10.0 ** (-snr_db / 20)
    return std


def published_noise(values: AnyArray, snr_db: float, generator: np.random.RandomState) -> AnyArray:
    """Return the image with the noise of the published protocol.

    One draw of the whole (H, W, B) array in C order from the standard normal distribution, cast to
    float32 and then multiplied by each band's standard deviation. The caller draws for the MSI first
    and then, from the same generator, for the HSI; a draw is made even where there is no noise, so
    that the next image's noise does not depend on this one's ratio.

    Args:
        values: (H, W, B) float32.
        snr_db: decibels; infinity for no noise.
        generator: `numpy.random.RandomState(seed)`.

    Returns:
        (H, W, B) float32.
    """
    std = noise_std(values, snr_db).astype(np.float32)
    result = np.empty(values.shape, np.float32)
    row_values = values.shape[1] * values.shape[2]
    for rows in row_blocks(values.shape[0], _BLOCK_VALUES // row_values):
        # the generator is sequential: draws by rows are the rows of one draw
        draw = generator.normal(size=values[rows].shape).astype(np.float32)
        result[rows] = values[rows] + draw * std
    return result


def physical_noise(values: AnyArray, snr_db: float, seed: int, role: int) -> AnyArray:
    """Return the image with noise whose draws depend on the seed, the image and the band alone.

    Args:
        values: (H, W, B) float32.
        snr_db: decibels; infinity for no noise.
        seed: of the scene.
        role: number of the image in the scene, so that two images have different noise.

    Returns:
        (H, W, B) float32.
    """
    std = noise_std(values, snr_db)
    result = np.array(values, dtype=np.float32)
    for band in np.flatnonzero(std):
        stream = np.random.SeedSequence(seed, spawn_key=(role, int(band)))
        generator = np.random.Generator(np.random.PCG64(stream))
        for rows in row_blocks(values.shape[0], _BLOCK_VALUES // values.shape[1]):
            part = result[rows, :, band]
            part += generator.standard_normal(part.shape) * std[band]
    return result
