"""The effective point spread function, by regularised least squares.

An LR value is a weighted sum of HR values around its centre, and the weights (blur and the LR
pixel's area together) are the unknowns: y_m = gain_m (sum over t of kernel[t] x_m[centre - t]) +
offset_m, all bands jointly. The kernel is made of tents on a grid of a quarter of an LR pixel, is
not negative, has its centroid at the centre and sums to 1. What the data do not determine is filled
in by the Gaussian blur that fits them best: second differences of the deviation from it are
penalised, by the factor that predicts held-out blocks of LR pixels best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.ndimage import convolve
from scipy.optimize import nnls

from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.estimation.footprint import LEAST_SHARE, axis_weights
from spectralift_cli.core.estimation.imagepair import LEAST_PIXELS, ImagePair, IntArray
from spectralift_cli.core.estimation.shift import Joint, weighted_lines
from spectralift_cli.core.placement import Placement

_FOLDS = 6
_LAMBDAS = tuple(10.0**exponent for exponent in np.arange(-7.0, 3.01, 0.5))
_REACH = 2.75  # standard deviations of the Gaussian fit beyond the LR pixel's edge
_ROUNDS = 3
_CONSTRAINT = 1e4
_LAGS = 3  # LR pixels over which errors may have something in common
# L2 distance of other blurs' kernels from the nearest Gaussian's: .05 Moffat, .08 parabola
_USUAL_DEVIATION = 0.1
_MAX_HALF_PX = 127
_MOST_KNOTS = 10  # to either side: more are fitted no better, and slowly


@dataclass(frozen=True, eq=False)
class Kernel:
    """An effective point spread function.

    Args:
        values: (2n+1, 2n+1) on the HR grid, sum 1, convolved as `Blur` does; holds the footprint.
        std: (2n+1, 2n+1) standard errors.
        gain: (M,) refitted with it.
        offset: (M,) likewise.
        covariance: (2M, 2M) of gains and offsets, the kernel's uncertainty included.
        weights: (h, w) of the LR pixels, 0 where they are left out.
        seen: (h, w, M) what the LR pixels see of the MSI through it.
        noise: (M,) standard deviation of the residuals, in units of y.
        explained: (M,) share of y's variance that is explained.
        smoothing: the penalty's factor that was chosen.
        relative_error: expected L2 norm of its error over its own.
    """

    values: FloatArray
    std: FloatArray
    gain: FloatArray
    offset: FloatArray
    covariance: FloatArray
    weights: FloatArray
    seen: FloatArray
    noise: FloatArray
    explained: FloatArray
    smoothing: float
    relative_error: float


@dataclass(frozen=True)
class Tents:
    """A grid of tents (linear B-splines) on the HR grid.

    Args:
        half: knots to either side of the centre.
        spacing: HR pixels between knots.
    """

    half: int
    spacing: int

    @property
    def count(self) -> int:
        """Knots along a side."""
        return 2 * self.half + 1

    @property
    def reach(self) -> int:
        """Half width of the kernel in HR pixels."""
        return (self.half + 1) * self.spacing - 1

    def matrix(self) -> FloatArray:
        """Return the (2 reach + 1, count) values of the tents."""
        at = np.arange(-self.reach, self.reach + 1)[:, None]
        knots = self.knots()[None, :]
        return np.asarray(np.maximum(0, 1 - np.abs(at - knots) / self.spacing))

    def knots(self) -> FloatArray:
        """Return (count,) the knots' distances from the centre in HR pixels."""
        return np.arange(-self.half, self.half + 1, dtype=np.float64) * self.spacing


def tents_for(placement: Placement, sigma_px: tuple[float, float], size: int | None) -> Tents:
    """Return the tents that hold the kernel; their support follows the ratio and the blur."""
    scale = max(placement.scale)
    spacing = max(1, round(min(placement.scale) / 4))
    reach = scale / 2 + _REACH * max(sigma_px) if size is None else (size - 1) / 2
    reach = min(reach, _MAX_HALF_PX)
    spacing = max(spacing, int(np.ceil((reach + 1) / (_MOST_KNOTS + 1))))
    return Tents(max(1, int(np.ceil((reach + 1) / spacing)) - 1), spacing)


def fit_kernel(pair: ImagePair, y: FloatArray, joint: Joint, size: int | None = None) -> Kernel:
    """Fit the effective kernel at the shift that is known.

    Args:
        pair: the images.
        y: (h, w, M) the LR-HSI seen through the response.
        joint: shift, widths, gains and weights so far.
        size: side of the kernel in HR pixels, odd; None for one that follows ratio and blur.
    """
    blurring = joint.blurring
    placement = pair.placement.shifted(blurring.shift_px)
    tents = _that_fit(pair, placement, tents_for(placement, blurring.sigma_px, size))
    samples, ok = _sample(pair, placement, tents)
    if ok.sum() < LEAST_PIXELS:
        raise DataError(
            f"{int(ok.sum())} LR pixels see {2 * tents.reach + 1} valid HR pixels a side, "
            f"{LEAST_PIXELS} are needed to estimate how they blur",
            "give images that share more ground, or a smaller --psf-size",
        )
    w = joint.weights[ok] + 1e-6  # pixels at the edge that the joint fit had to leave out
    system = _System([a[ok].reshape(len(w), -1) for a in samples], y[ok], w, pair.blocks()[ok], ok)
    prior, penalty = _penalty(placement, tents, blurring.sigma_px)
    knots = tents.knots()
    centroid = np.stack(np.meshgrid(knots, knots, indexing="ij")).reshape(2, -1)
    fit = _Fit(prior, joint.gain, joint.offset, joint.noise)
    smoothing = 0.0
    for round_ in range(_ROUNDS):
        normals, rights = system.normals(fit)
        if round_ < 2:
            smoothing = _choose(normals, rights, penalty)
        coefficients = _solve_positive(
            normals.sum(axis=0), rights.sum(axis=0), smoothing * penalty, centroid
        )
        fit = system.lines(coefficients / coefficients.sum())
    matrix = tents.matrix()
    spread = np.kron(matrix, matrix)  # (K K, J J)
    total = tents.spacing**2  # the sum of a tent's values
    values = (spread @ fit.coefficients / total).reshape(len(matrix), -1)
    overlap = _overlap(values, placement.scale)
    covariance, lines = _errors(system, fit, smoothing, penalty, centroid, overlap)
    variance = np.einsum("ij,jk,ik->i", spread, covariance, spread, optimize=True)
    std = np.sqrt(np.maximum(variance, 0)).reshape(values.shape) / total
    seen = np.full((*ok.shape, pair.msi_bands), np.nan)
    seen[ok] = system.seen(fit.coefficients)
    kept = np.zeros(ok.shape)
    kept[ok] = w
    explained = 1 - fit.noise**2 / np.maximum(system.variance, 1e-300)
    return Kernel(
        values=values / values.sum(), std=std, gain=fit.gain, offset=fit.offset, covariance=lines,
        weights=kept, seen=seen, noise=fit.noise, explained=explained, smoothing=smoothing,
        relative_error=float(np.linalg.norm(std) / np.linalg.norm(values)),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Fit:
    """A kernel's coefficients, which sum to 1, with gains and offsets (M,) and noise (M,)."""

    coefficients: FloatArray
    gain: FloatArray
    offset: FloatArray
    noise: FloatArray


@dataclass(frozen=True, eq=False)
class _System:
    """The equations of all LR pixels that see all of the kernel.

    Args:
        designs: per band (n, J J) what each tent sees.
        targets: (n, M) the LR-HSI seen through the response.
        weights: (n,).
        labels: (n,) spatial blocks.
        pixels: (h, w) which LR pixels they are.
    """

    designs: list[FloatArray]
    targets: FloatArray
    weights: FloatArray
    labels: IntArray
    pixels: BoolArray

    @property
    def variance(self) -> FloatArray:
        """(M,) of the targets."""
        w = self.weights / self.weights.sum()
        return np.asarray(w @ (self.targets - w @ self.targets) ** 2)

    def seen(self, coefficients: FloatArray) -> FloatArray:
        """Return (n, M) what the pixels see."""
        return np.stack([a @ coefficients for a in self.designs], axis=1)

    def lines(self, coefficients: FloatArray) -> _Fit:
        """Return the fit with the gains and offsets that suit a kernel."""
        seen = self.seen(coefficients)
        gain, offset = weighted_lines(seen, self.targets, self.weights)
        residual = self.targets - gain * seen - offset
        noise = np.sqrt(self.weights @ residual**2 / self.weights.sum())
        floor = 1e-9 * np.abs(self.targets).max(axis=0) + 1e-300
        return _Fit(coefficients, gain, offset, np.maximum(noise, floor))

    def normals(self, fit: _Fit) -> tuple[FloatArray, FloatArray]:
        """Return per fold of blocks (F, p, p) and (F, p), the offsets taken out by the means."""
        w = self.weights
        _, number = np.unique(self.labels, return_inverse=True)
        size = self.designs[0].shape[1]
        normals, rights = np.zeros((_FOLDS, size, size)), np.zeros((_FOLDS, size))
        for m, design in enumerate(self.designs):
            a = (design - w @ design / w.sum()) * (fit.gain[m] * np.sqrt(w) / fit.noise[m])[:, None]
            target = self.targets[:, m]
            y = (target - w @ target / w.sum()) * np.sqrt(w) / fit.noise[m]
            for fold in range(_FOLDS):
                mine = number % _FOLDS == fold
                normals[fold] += a[mine].T @ a[mine]
                rights[fold] += a[mine].T @ y[mine]
        return normals, rights


def _that_fit(pair: ImagePair, placement: Placement, tents: Tents) -> Tents:
    """Shrink the support until enough LR pixels see all of it."""
    while tents.half > 1:
        margin = tents.reach + 1 - int(min(placement.scale) / 2)
        inside = placement.inside((max(0, margin), max(0, margin))) & pair.hsi_valid
        if inside.sum() >= max(2 * LEAST_PIXELS, 0.15 * pair.hsi_valid.sum()):
            break
        tents = Tents(tents.half - 1, tents.spacing)
    return tents


def _sample(
    pair: ImagePair, placement: Placement, tents: Tents
) -> tuple[list[FloatArray], BoolArray]:
    """Return per band (h, w, J, J) what each tent sees, and (h, w) where all is there."""
    rows, cols = (_tent_weights(placement, axis, tents) for axis in (0, 1))
    h, w = placement.lr_shape
    shape = (h, tents.count, w, tents.count)
    each = [
        (cols @ (rows @ pair.msi[:, :, m]).T).T.reshape(shape).transpose(0, 2, 1, 3)
        for m in range(pair.msi_bands)
    ]
    share = (cols @ (rows @ pair.msi_valid.astype(np.float64)).T).T.reshape(shape).sum(axis=(1, 3))
    whole = np.outer(*(m.sum(axis=1).reshape(n, -1).sum(axis=1) for m, n in ((rows, h), (cols, w))))
    total = float(tents.count**2)
    ok = (share >= LEAST_SHARE * total) & (whole >= total * (1 - 1e-9)) & pair.hsi_valid
    return each, ok


def _tent_weights(placement: Placement, axis: int, tents: Tents) -> sparse.csr_array:
    """Return (n J, N): for LR pixel i and tent j the weights of HR pixels along one axis."""
    point = placement.weights(axis, "point").tocoo()
    at, pixel, share = point.row, point.col, point.data
    values = tents.matrix()  # (K, J)
    offset, tent = np.nonzero(values)
    count = tents.count
    # Blur convolves: kernel[t] meets x[centre - t]
    where = pixel[:, None] - (offset - tents.reach)[None, :]
    rows = at[:, None] * count + tent[None, :]
    weights = share[:, None] * values[offset, tent][None, :] / tents.spacing
    size = placement.hr_shape[axis]
    kept = (where >= 0) & (where < size)
    triple = (weights[kept], (rows[kept], where[kept]))
    return sparse.csr_array(triple, shape=(placement.lr_shape[axis] * count, size))


def _penalty(
    placement: Placement, tents: Tents, sigma_px: tuple[float, float]
) -> tuple[FloatArray, FloatArray]:
    """Return (J J,) the Gaussian kernel, and (J J, J J) the penalty of what is not a multiple of it."""
    sides = []
    for axis in (0, 1):
        # the point sampling between HR pixels blurs by f (1 - f) itself
        starts = (
            placement.origin_px[axis]
            + placement.scale[axis] * (np.arange(placement.lr_shape[axis]) + 0.5)
            - 0.5
        )
        fraction = starts - np.floor(starts)
        between = float((fraction * (1 - fraction)).mean())
        sigma = np.sqrt(max(sigma_px[axis] ** 2 - between, 0.05))
        alone = Placement((1, 1), (2 * tents.reach + 1,) * 2, (placement.scale[axis],) * 2,
                          (tents.reach + 0.5 - placement.scale[axis] / 2,) * 2)  # fmt: skip
        dense = axis_weights(alone, 0, 0.0, sigma).toarray()[0]
        sides.append(dense[tents.spacing - 1 :: tents.spacing][: tents.count])
    prior = np.outer(*sides).ravel()
    n = tents.count
    second = np.diff(np.pad(np.eye(n), ((2, 2), (0, 0))), n=2, axis=0)
    first = np.diff(np.pad(np.eye(n), ((1, 1), (0, 0))), axis=0)
    bend, slope = second.T @ second, first.T @ first
    eye = np.eye(n)
    rough = np.kron(bend, eye) + np.kron(eye, bend) + 2 * np.kron(slope, slope)
    pull = rough @ prior
    return prior, rough - np.outer(pull, pull) / float(prior @ pull)


def _choose(normals: FloatArray, rights: FloatArray, penalty: FloatArray) -> float:
    """Return the penalty's factor that predicts the held-out folds best."""
    normal, right = normals.sum(axis=0), rights.sum(axis=0)
    unit = float(np.trace(normal) / np.trace(penalty))
    costs = []
    for factor in _LAMBDAS:
        cost = 0.0
        for held, pull in zip(normals, rights, strict=True):
            k = _solve(normal - held, right - pull, factor * unit * penalty)
            cost += float(k @ held @ k - 2 * pull @ k)
        costs.append(cost)
    return float(_LAMBDAS[int(np.argmin(costs))] * unit)


def _solve(normal: FloatArray, right: FloatArray, penalty: FloatArray) -> FloatArray:
    matrix = normal + penalty
    matrix = matrix + np.eye(len(matrix)) * (1e-10 * np.trace(matrix) / len(matrix))
    return np.asarray(np.linalg.solve(matrix, right))


def _solve_positive(
    normal: FloatArray, right: FloatArray, penalty: FloatArray, centroid: FloatArray
) -> FloatArray:
    """Return the minimum of k' (N + P) k - 2 b' k over k >= 0 with its centroid at 0."""
    matrix = normal + penalty
    weight = _CONSTRAINT * np.trace(matrix) / len(matrix) / float((centroid**2).mean())
    matrix = matrix + weight * (centroid.T @ centroid)
    matrix += np.eye(len(matrix)) * (1e-10 * np.trace(matrix) / len(matrix))
    factor = np.linalg.cholesky(matrix)
    # |L' k - L^-1 b|^2 has the same minimum
    found, _ = nnls(factor.T, np.linalg.solve(factor, right), maxiter=30 * len(matrix))
    return np.asarray(found)


def _errors(
    system: _System, fit: _Fit, smoothing: float, penalty: FloatArray, centroid: FloatArray,
    overlap: FloatArray,
) -> tuple[FloatArray, FloatArray]:  # fmt: skip
    """Return the covariances of the coefficients and of (gains, offsets), each with the other's.

    The penalty is taken for a prior, so that what smoothing leaves out counts; it is not taken for
    stronger than blurs that are no Gaussians warrant. The MSI's noise reaches all LR pixels whose
    kernels overlap, so that neighbours err together; its share of the residuals is what neighbours
    have in common.
    """
    bands, size = len(system.designs), fit.coefficients.size
    total = size + 2 * bands
    w, seen = system.weights, system.seen(fit.coefficients)
    residual = system.targets - fit.gain * seen - fit.offset
    normal = np.zeros((total, total))
    rows = []
    for m, design in enumerate(system.designs):
        row = np.zeros((len(w), total))
        row[:, :size] = fit.gain[m] * design
        row[:, size + m] = seen[:, m]
        row[:, size + bands + m] = 1
        row *= (np.sqrt(w) / fit.noise[m])[:, None]
        normal += row.T @ row
        rows.append(row)
    powers = np.linalg.eigvalsh(penalty)
    room = float((1 / powers[powers > 1e-9 * powers[-1]]).sum())
    loosest = room / (_USUAL_DEVIATION**2 * float(fit.coefficients @ fit.coefficients))
    normal[:size, :size] += min(smoothing, loosest) * penalty
    # only what keeps sum and centroid may vary
    fixed = np.concatenate([np.ones((1, size)), centroid])
    free = np.linalg.svd(fixed)[2][3:].T
    basis = np.zeros((total, total - 3))
    basis[:size, : size - 3] = free
    basis[size:, size - 3 :] = np.eye(2 * bands)
    inner = basis.T @ normal @ basis
    scale = 1 / np.sqrt(np.maximum(np.diag(inner), 1e-300))
    inverse = np.linalg.pinv(inner * np.outer(scale, scale), rcond=1e-12, hermitian=True)
    inverse *= np.outer(scale, scale)
    posterior = basis @ inverse @ basis.T
    extra = np.zeros((2 * bands, 2 * bands))
    for m, row in enumerate(rows):
        influence = np.zeros((*system.pixels.shape, 2 * bands))
        influence[system.pixels] = (row @ basis) @ (inverse @ basis[size:].T)
        errors = np.zeros(system.pixels.shape)
        errors[system.pixels] = residual[:, m] * np.sqrt(w) / fit.noise[m]
        shared = _shared_variance(errors, system.pixels, overlap)
        near = np.stack(
            [convolve(influence[:, :, i], overlap, mode="constant") for i in range(2 * bands)],
            axis=2,
        )
        extra += shared * np.einsum("yxi,yxj->ij", influence, near - influence)
    lines = posterior[size:, size:]
    ratio = np.maximum(1 + np.diag(extra) / np.maximum(np.diag(lines), 1e-300), 1)
    return (
        posterior[:size, :size] * float(np.median(ratio)),
        lines * np.sqrt(np.outer(ratio, ratio)),
    )


def _overlap(kernel: FloatArray, scale: tuple[float, float]) -> FloatArray:
    """Return (2 lag + 1, 2 lag + 1) the correlation of what white noise makes of two LR pixels."""
    padded = np.pad(kernel, len(kernel) // 2 + 1)
    power = np.abs(np.fft.rfft2(padded, [2 * n for n in padded.shape])) ** 2
    both = np.fft.irfft2(power, [2 * n for n in padded.shape])
    lags = [np.rint(np.arange(-_LAGS, _LAGS + 1) * s).astype(np.int64) for s in scale]
    near = [np.abs(lag) < len(kernel) for lag in lags]
    found = both[np.ix_(*(lag % n for lag, n in zip(lags, both.shape, strict=True)))]
    return np.asarray(np.maximum(found, 0) * np.outer(*near) / both[0, 0])


def _shared_variance(errors: FloatArray, pixels: BoolArray, overlap: FloatArray) -> float:
    """Return which share of (h, w) standardised errors is noise that overlapping kernels share."""
    middle = len(overlap) // 2
    common, weight = 0.0, 0.0
    for axis in (0, 1):
        count = pixels.shape[axis] - 1
        both = np.take(pixels, range(count), axis) & np.take(pixels, range(1, count + 1), axis)
        product = np.take(errors, range(count), axis) * np.take(errors, range(1, count + 1), axis)
        rho = float(overlap[middle + (axis == 0), middle + (axis == 1)])
        common += rho * float(product.sum())
        weight += rho**2 * float(both.sum())
    return float(np.clip(common / max(weight, 1e-300), 0, 1)) if weight > 0 else 0.0
