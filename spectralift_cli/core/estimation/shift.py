"""Sub-pixel shift, blur width, gain and offset at once, by robust least squares.

The model is y_m = gain_m z_m(shift, sigma) + offset_m, where y is the LR-HSI seen through the
spectral response and z the HR-MSI seen through the blur model of `footprint`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.estimation.footprint import LEAST_SIGMA_PX, Blurring, respond
from spectralift_cli.core.estimation.imagepair import LEAST_PIXELS, ImagePair

_MAX_SHIFT_PX = 2.5
_GRID_PX = 0.5
_SEARCH_SIDE = 48
_SEARCH_SIGMA = 0.45  # of the ratio
_COMPONENTS = 15
_HUBER = 2.0
_STEPS = 40


@dataclass(frozen=True, eq=False)
class Joint:
    """What the joint fit found.

    Args:
        blurring: shift and widths.
        gain: (M,).
        offset: (M,).
        covariance: (p, p) of the parameters (shift rows, shift cols, sigma rows, sigma cols,
            gains, offsets), clustered over blocks.
        blocks: how many clusters there were.
        weights: (h, w) of the LR pixels, 0 where they are left out.
        seen: (h, w, M) what the LR pixels see of the MSI.
        noise: (M,) robust standard deviation of the residuals, in units of y.
        explained: (M,) share of y's variance that the model explains.
    """

    blurring: Blurring
    gain: FloatArray
    offset: FloatArray
    covariance: FloatArray
    blocks: int
    weights: FloatArray
    seen: FloatArray
    noise: FloatArray
    explained: FloatArray


def search_shift(pair: ImagePair, free: bool = True) -> Blurring:
    """Return the shift, to half an LR pixel, at which the MSI follows best from the LR-HSI.

    Needs no response: a band is predicted from the LR-HSI's first 15 principal components. Looks up
    to 2.5 LR pixels away, on the middle of the images.

    Args:
        pair: the images.
        free: look for a shift at all.

    Raises:
        DataError: no position leaves enough LR pixels.
    """
    pair = pair.central(_SEARCH_SIDE)
    down, across = pair.placement.scale
    sigma = _SEARCH_SIGMA * down, _SEARCH_SIGMA * across
    steps = int(_MAX_SHIFT_PX / _GRID_PX) if free else 0
    grid = [float(step) * _GRID_PX for step in range(-steps, steps + 1)]
    scores = component_scores(pair)
    trials = [Blurring((row, col), sigma) for row in grid for col in grid]
    costs = [_unexplained(pair, scores, trial) for trial in trials]
    if not np.isfinite(costs).any():
        raise DataError(
            f"fewer than {LEAST_PIXELS} LR pixels see nothing but valid HR pixels: the images are "
            "too small, or their overlap is",
            "give images that share more ground",
        )
    return trials[int(np.argmin(costs))]


def component_scores(pair: ImagePair, count: int = _COMPONENTS) -> FloatArray:
    """Return (h, w, p) the LR-HSI's first principal components, standardised; 0 in holes."""
    values = pair.hsi[pair.hsi_valid]
    values = values - values.mean(axis=0)
    keep = max(1, min(count, len(values) // 12, values.shape[1]))
    _, vectors = np.linalg.eigh(values.T @ values)
    found = np.zeros((*pair.hsi_valid.shape, keep))
    scores = values @ vectors[:, ::-1][:, :keep]
    found[pair.hsi_valid] = scores / np.maximum(scores.std(axis=0), 1e-300)
    return found


def _unexplained(pair: ImagePair, scores: FloatArray, blurring: Blurring) -> float:
    seen, ok = respond(pair, blurring)
    if ok.sum() < max(LEAST_PIXELS, 2 * scores.shape[2]):
        return np.inf
    design = np.column_stack([np.ones(int(ok.sum())), scores[ok]])
    basis, _ = np.linalg.qr(design)
    z = seen[ok]
    z = z - z.mean(axis=0)
    total = (z**2).sum(axis=0)
    left = total - ((basis.T @ z) ** 2).sum(axis=0)
    dof = len(z) - design.shape[1]
    share = np.maximum(left / dof, 1e-12 * total / len(z)) / np.maximum(total / len(z), 1e-300)
    return float(np.log(share[total > 0]).mean()) if (total > 0).any() else np.inf


def weighted_lines(
    z: FloatArray, y: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return (M,) slopes and intercepts of y on z by weighted least squares."""
    total = weights.sum()
    z_mean, y_mean = weights @ z / total, weights @ y / total
    dz, dy = z - z_mean, y - y_mean
    slope = (weights @ (dz * dy)) / np.maximum(weights @ dz**2, 1e-300)
    return slope, y_mean - slope * z_mean


def fit_joint(pair: ImagePair, y: FloatArray, start: Blurring, free_shift: bool = True) -> Joint:
    """Fit shift, widths, gains and offsets.

    Args:
        pair: the images.
        y: (h, w, M) the LR-HSI seen through the response.
        start: from `search_shift`.
        free_shift: fit the shift, else keep it.
    """
    theta = np.array([*start.shift_px, *np.square(start.sigma_px)])
    steps = np.array([1e-3, 1e-3, 0, 0])
    weights: FloatArray = np.ones(pair.hsi_valid.shape)
    damping = 1e-3
    cost = np.inf
    for round_ in range(3):
        # the weights change between the rounds, the mask with them
        z, ok = respond(pair, _blurring(theta))
        if round_:
            weights = _huber(z, y, ok, weights)
        noise = _noise(z, y, ok, weights)
        current = _residuals(pair, y, theta, ok, weights, noise)
        cost = float((current**2).sum())
        for _ in range(_STEPS):
            steps[2:] = 1e-3 * pair.placement.scale[0] * 2
            jacobian = _jacobian(pair, y, theta, ok, weights, noise, steps, free_shift)
            normal, gradient = jacobian.T @ jacobian, jacobian.T @ current
            scale = np.diag(normal).copy()
            scale[scale <= 0] = 1.0
            moved = False
            for _ in range(8):
                delta = np.linalg.solve(
                    normal + np.diag(damping * scale + 1e-12 * scale.max()), -gradient
                )
                trial = theta + np.clip(delta, -1.0, 1.0) * np.array([1, 1, 4, 4])
                trial[2:] = np.maximum(trial[2:], LEAST_SIGMA_PX**2)
                residual = _residuals(pair, y, trial, ok, weights, noise)
                new = float((residual**2).sum())
                if new < cost:
                    moved = True
                    break
                damping *= 5
            if not moved:
                break
            damping = max(damping / 5, 1e-9)
            small = (cost - new) < 1e-9 * cost
            theta, cost, current = trial, new, residual
            if small:
                break
    return _joint(pair, y, theta, weights, free_shift)


def _blurring(theta: FloatArray) -> Blurring:
    sigma = np.sqrt(np.maximum(theta[2:], LEAST_SIGMA_PX**2))
    return Blurring((float(theta[0]), float(theta[1])), (float(sigma[0]), float(sigma[1])))


def _residuals(
    pair: ImagePair,
    y: FloatArray,
    theta: FloatArray,
    ok: BoolArray,
    weights: FloatArray,
    noise: FloatArray,
) -> FloatArray:
    """Return (n M,) weighted residuals after the best gains and offsets."""
    z, _ = respond(pair, _blurring(theta))
    w = weights[ok]
    slope, intercept = weighted_lines(z[ok], y[ok], w)
    return np.ravel((y[ok] - slope * z[ok] - intercept) * np.sqrt(w)[:, None] / noise)


def _jacobian(
    pair: ImagePair,
    y: FloatArray,
    theta: FloatArray,
    ok: BoolArray,
    weights: FloatArray,
    noise: FloatArray,
    steps: FloatArray,
    free_shift: bool,
) -> FloatArray:
    columns = []
    for index, step in enumerate(steps):
        if index < 2 and not free_shift:
            columns.append(np.zeros(int(ok.sum()) * pair.msi_bands))
            continue
        up, down = theta.copy(), theta.copy()
        up[index] += step
        down[index] -= step
        high = _residuals(pair, y, up, ok, weights, noise)
        low = _residuals(pair, y, down, ok, weights, noise)
        columns.append((high - low) / (2 * step))
    return np.stack(columns, axis=1)


def _noise(z: FloatArray, y: FloatArray, ok: BoolArray, weights: FloatArray) -> FloatArray:
    w = weights[ok]
    slope, intercept = weighted_lines(z[ok], y[ok], w)
    residual = y[ok] - slope * z[ok] - intercept
    spread = np.sqrt((w @ residual**2) / np.maximum(w.sum(), 1e-300))
    floor = 1e-9 * np.abs(y[ok]).max(axis=0) + 1e-300
    return np.maximum(spread, floor)


def _huber(z: FloatArray, y: FloatArray, ok: BoolArray, weights: FloatArray) -> FloatArray:
    """Return (h, w) weights that take LR pixels whose residuals stand out for less."""
    slope, intercept = weighted_lines(z[ok], y[ok], weights[ok])
    residual = y[ok] - slope * z[ok] - intercept
    spread = 1.4826 * np.median(np.abs(residual), axis=0)
    spread = np.maximum(spread, 1e-9 * np.abs(y[ok]).max(axis=0) + 1e-300)
    size = np.sqrt(((residual / spread) ** 2).mean(axis=1))
    made = np.ones(weights.shape)
    made[ok] = np.minimum(1, _HUBER / np.maximum(size, 1e-300))
    return made


def _joint(
    pair: ImagePair, y: FloatArray, theta: FloatArray, weights: FloatArray, free_shift: bool
) -> Joint:
    blurring = _blurring(theta)
    z, ok = respond(pair, blurring)
    w = weights[ok]
    slope, intercept = weighted_lines(z[ok], y[ok], w)
    noise = _noise(z, y, ok, weights)
    residual = y[ok] - slope * z[ok] - intercept
    bands = pair.msi_bands
    # derivative of the prediction by (shift, sigma): through z alone
    sigma = np.array(blurring.sigma_px)
    base = np.array([*blurring.shift_px, *sigma])
    parts = []
    for index in range(4):
        step = 1e-3 if index < 2 else 1e-3 * sigma[index - 2] + 1e-4
        moved = []
        for sign in (1, -1):
            values = base.copy()
            values[index] += sign * step
            trial = Blurring(tuple(values[:2]), tuple(values[2:]))
            moved.append(respond(pair, trial)[0][ok])
        parts.append((moved[0] - moved[1]) / (2 * step) * slope)
    if not free_shift:
        parts[0][:] = parts[1][:] = 0
    size = 4 + 2 * bands
    labels = pair.blocks()[ok]
    names = np.unique(labels)
    normals, scores = np.zeros((len(names), size, size)), np.zeros((len(names), size))
    for m in range(bands):
        rows = np.zeros((len(w), size))
        rows[:, :4] = np.stack([part[:, m] for part in parts], axis=1)
        rows[:, 4 + m] = z[ok][:, m]
        rows[:, 4 + bands + m] = 1
        rows *= (np.sqrt(w) / noise[m])[:, None]
        pull = rows * (residual[:, m] * np.sqrt(w) / noise[m])[:, None]
        for number, name in enumerate(names):
            mine = labels == name
            normals[number] += rows[mine].T @ rows[mine]
            scores[number] += pull[mine].sum(axis=0)
    covariance = jackknife(normals, scores)
    kept = np.zeros(pair.hsi_valid.shape)
    kept[ok] = w
    total = (w @ (y[ok] - (w @ y[ok]) / w.sum()) ** 2) / w.sum()
    explained = 1 - noise**2 / np.maximum(total, 1e-300)
    return Joint(blurring, slope, intercept, covariance, len(names), kept, z, noise, explained)


def jackknife(normals: FloatArray, scores: FloatArray) -> FloatArray:
    """Return the covariance of a least-squares solution from leaving out one block at a time.

    Args:
        normals: (G, p, p) normal matrices of the blocks.
        scores: (G, p) gradients of the blocks at the solution.
    """
    count = len(normals)
    whole = normals.sum(axis=0)
    scale = 1 / np.sqrt(np.maximum(np.diag(whole), 1e-300))
    moves = np.stack([
        scale * (np.linalg.pinv((whole - part) * np.outer(scale, scale), rcond=1e-12, hermitian=True)
                 @ (scale * score))
        for part, score in zip(normals, scores, strict=True)
    ])  # fmt: skip
    return np.asarray(moves.T @ moves * ((count - 1) / count))
