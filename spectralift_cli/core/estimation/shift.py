"""Sub-pixel shift, blur width, gain and offset at once, by robust least squares.

The model is y_m = gain_m z_m(shift, sigma) + offset_m, where y is the LR-HSI seen through the
spectral response and z the HR-MSI seen through the blur model of `footprint`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.estimation.footprint import (
    LEAST_SIGMA_PX,
    Blurring,
    respond,
    seen_through,
    whole_pixels,
)
from spectralift_cli.core.estimation.imagepair import LEAST_PIXELS, ImagePair

_MAX_SHIFT_PX = 2.5
_GRID_PX = 0.5
_SEARCH_SIDE = 48
_SEARCH_SIGMA = 0.45  # of the ratio
_COMPONENTS = 15
_HUBER = 2.0
_ROUNDS = 3  # of weights
_STEPS = 40
_TRIES = 8
_CONVERGED = 1e-7  # of the cost
_SHIFT_STEP = 1e-3
_WIDEST = 1.5  # sigma of the blur, of the ratio
_LONGEST_STEP = np.array([1.0, 1.0, 4.0, 4.0])


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
        raise too_small()
    return trials[int(np.argmin(costs))]


def too_small() -> DataError:
    """Return the error of images that leave too few LR pixels."""
    return DataError(
        f"fewer than {LEAST_PIXELS} LR pixels see nothing but valid HR pixels: the images are too "
        "small, or their overlap is",
        "give images that share more ground",
    )


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
    """Fit shift, widths, gains and offsets: Levenberg-Marquardt, with Huber weights of the pixels.

    Args:
        pair: the images.
        y: (h, w, M) the LR-HSI seen through the response.
        start: from `search_shift`.
        free_shift: fit the shift, else keep it.

    Raises:
        DataError: too few LR pixels see nothing but valid HR pixels.
    """
    best = theta = np.array([*start.shift_px, *np.square(start.sigma_px)])
    weights: FloatArray = np.ones(pair.hsi_valid.shape)
    for round_ in range(_ROUNDS):
        z, ok = respond(pair, _blurring(theta))
        if ok.sum() < LEAST_PIXELS:
            break  # ran out of the image: where it was before is as good as this gets
        best = theta
        if round_:
            weights = _huber(z, y, ok, weights)
        noise = _noise(z, y, ok, weights)
        theta = _minimise(_Residuals(pair, y, ok, weights, noise), theta, free_shift)
    else:
        if whole_pixels(pair, _blurring(theta)).sum() >= LEAST_PIXELS:
            best = theta
    return _joint(pair, y, _blurring(best), weights, free_shift)


def _blurring(theta: FloatArray) -> Blurring:
    """Return the blurring of (shift rows, shift cols, sigma^2 rows, sigma^2 cols)."""
    sigma = np.sqrt(np.maximum(theta[2:], LEAST_SIGMA_PX**2))
    return Blurring((float(theta[0]), float(theta[1])), (float(sigma[0]), float(sigma[1])))


@dataclass(frozen=True, eq=False)
class _Residuals:
    """Weighted residuals as a function of shift and squared widths, gains and offsets at their best."""

    pair: ImagePair
    y: FloatArray
    ok: BoolArray
    weights: FloatArray
    noise: FloatArray

    def __call__(self, theta: FloatArray) -> FloatArray:
        """Return (n M,)."""
        z = seen_through(self.pair, _blurring(theta))
        w, y = self.weights[self.ok], self.y[self.ok]
        slope, intercept = weighted_lines(z[self.ok], y, w)
        return np.ravel((y - slope * z[self.ok] - intercept) * np.sqrt(w)[:, None] / self.noise)

    @property
    def widest_px(self) -> float:
        """Widest blur that is looked for, in HR pixels."""
        return _WIDEST * max(self.pair.placement.scale)

    def jacobian(self, theta: FloatArray, free_shift: bool) -> FloatArray:
        """Return (n M, 4) by central differences."""
        width = 2e-3 * self.pair.placement.scale[0]
        columns = []
        for index, step in enumerate((_SHIFT_STEP, _SHIFT_STEP, width, width)):
            if index < 2 and not free_shift:
                columns.append(np.zeros(int(self.ok.sum()) * self.pair.msi_bands))
                continue
            up, down = theta.copy(), theta.copy()
            up[index] += step
            down[index] -= step
            columns.append((self(up) - self(down)) / (2 * step))
        return np.stack(columns, axis=1)


def _minimise(residuals: _Residuals, theta: FloatArray, free_shift: bool) -> FloatArray:
    current = residuals(theta)
    cost = float(current @ current)
    damping = 1e-3
    for _ in range(_STEPS):
        jacobian = residuals.jacobian(theta, free_shift)
        normal, gradient = jacobian.T @ jacobian, jacobian.T @ current
        scale = np.diag(normal).copy()
        scale[scale <= 0] = max(float(scale.max()), 1.0)
        for _ in range(_TRIES):
            step = np.linalg.solve(normal + np.diag((damping + 1e-12) * scale), -gradient)
            trial = theta + np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
            trial[2:] = np.clip(trial[2:], LEAST_SIGMA_PX**2, residuals.widest_px**2)
            moved = residuals(trial)
            lower = float(moved @ moved)
            if lower < cost:
                break
            damping *= 5
        else:
            return theta
        gain, theta, current, cost = cost - lower, trial, moved, lower
        damping = max(damping / 5, 1e-9)
        if gain < _CONVERGED * cost:
            break
    return theta


def _noise(z: FloatArray, y: FloatArray, ok: BoolArray, weights: FloatArray) -> FloatArray:
    """Return (M,) standard deviations of the residuals, never 0."""
    w = weights[ok]
    slope, intercept = weighted_lines(z[ok], y[ok], w)
    residual = y[ok] - slope * z[ok] - intercept
    spread = np.sqrt((w @ residual**2) / np.maximum(w.sum(), 1e-300))
    return np.asarray(np.maximum(spread, 1e-9 * np.abs(y[ok]).max(axis=0) + 1e-300))


def _huber(z: FloatArray, y: FloatArray, ok: BoolArray, weights: FloatArray) -> FloatArray:
    """Return (h, w) weights that take LR pixels whose residuals stand out for less."""
    slope, intercept = weighted_lines(z[ok], y[ok], weights[ok])
    residual = y[ok] - slope * z[ok] - intercept
    spread = 1.4826 * np.median(np.abs(residual), axis=0)  # the std of a Gaussian
    spread = np.maximum(spread, 1e-9 * np.abs(y[ok]).max(axis=0) + 1e-300)
    size = np.sqrt(((residual / spread) ** 2).mean(axis=1))
    made = np.ones(weights.shape)
    made[ok] = np.minimum(1, _HUBER / np.maximum(size, 1e-300))
    return made


def _joint(
    pair: ImagePair, y: FloatArray, blurring: Blurring, weights: FloatArray, free_shift: bool
) -> Joint:
    """Return the fit with its uncertainties."""
    z, ok = respond(pair, blurring)
    if ok.sum() < LEAST_PIXELS:
        raise too_small()
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
            moved.append(seen_through(pair, trial)[ok])
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
