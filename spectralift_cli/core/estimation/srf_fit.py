"""The spectral response of each MSI band from what it shows where the LR-HSI shows spectra.

z = (LR-HSI) a + c over the LR pixels, with a = response / gain. Spectra lie in some ten dimensions
above their noise, so that a response of a hundred weights needs more than the data: a bell,
height * exp(-|(l - centre) / width|^shape), fits them with a few numbers, and the response is the
bell times one plus a smooth deviation, as large as predicts held-out blocks of LR pixels best.
Weights are not negative. The spectra's own noise would draw a regression towards wide bells and
small gains; it is taken out of their second moments.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, nnls

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.estimation.imagepair import IntArray

_SHAPES = (2.0, 4.0)
_WIDTHS = 14
# natural logarithm: where the data do not tell, a bell is a Gaussian give or take
_SHAPE_STD = 0.25
_DEVIATIONS = (0.01, 0.05, 0.1, 0.2, 0.4, 0.8)
# real bands differ from a bell by ripples of this size, known or not
_USUAL_DEVIATION = 0.1
_FLOOR = 0.02  # of the bell's peak: what may lie out of band
_FOLDS = 6
# eigenvalues above the noise's by less than this are estimated too poorly to be of use
_ABOVE_NOISE = 1.5
_NOISE_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class Response:
    """The response of one MSI band.

    Args:
        weights: (B,) not negative, sum 1.
        std: (B,) standard errors.
        gain: LR-HSI through `weights` = gain * MSI + offset.
        offset: in units of the LR-HSI.
        covariance: (2, 2) of gain and offset.
        relative_error: expected L2 norm of the error of the weights over their own.
    """

    weights: FloatArray
    std: FloatArray
    gain: float
    offset: float
    covariance: FloatArray
    relative_error: float


@dataclass(frozen=True, eq=False)
class Spectra:
    """The LR-HSI's spectra less most of their noise: mean + scores @ loadings.T.

    Args:
        scores: (n, p) of the components above the noise; each holds noise of variance 1.
        loadings: (B, p).
        mean: (B,).
        noise_std: (B,) of the spectra as they were.
    """

    scores: FloatArray
    loadings: FloatArray
    mean: FloatArray
    noise_std: FloatArray


def clean_spectra(values: FloatArray) -> Spectra:
    """Return (n, B) spectra as their components above the noise.

    Over the noise of each band, the noise's eigenvalues end at (sqrt n + sqrt B)^2 (Marchenko and
    Pastur 1967). What the components leave over gives the noise anew: neighbouring bands, which
    give it first, have noise of their own.
    """
    n, bands = values.shape
    mean = values.mean(axis=0)
    noise_std = band_noise(values)
    edge = (np.sqrt(n) + np.sqrt(bands)) ** 2
    for round_ in range(_NOISE_ROUNDS):
        whitened = (values - mean) / noise_std
        powers, vectors = np.linalg.eigh(whitened.T @ whitened)
        above = powers > _ABOVE_NOISE * edge
        above[-1] = True
        kept = vectors[:, above]
        scores = whitened @ kept
        if round_ == _NOISE_ROUNDS - 1 or kept.shape[1] >= min(n, bands) // 2:
            break
        left = whitened - scores @ kept.T
        share = np.maximum(1 - (kept**2).sum(axis=1), 0.05)  # of a band's noise that is left
        noise_std = noise_std * np.sqrt((left**2).sum(axis=0) / (n - kept.shape[1]) / share)
    return Spectra(scores, kept * noise_std[:, None], mean, noise_std)


def band_noise(values: FloatArray) -> FloatArray:
    """Return (B,) standard deviations of each band's noise in (n, B) spectra.

    Noise is what neighbouring bands do not predict (Bioucas-Dias and Nascimento 2008, IEEE TGRS 46,
    2435).
    """
    n, bands = values.shape
    centred = values - values.mean(axis=0)
    spread = centred.std(axis=0)
    floor = 1e-6 * max(float(spread.max()), 1e-300)
    if bands < 4 or n < 12:
        return np.asarray(np.maximum(1e-3 * spread, floor))
    noise = np.empty(bands)
    # as many neighbours as the pixels can tell apart
    reach = max(1, min(8, (n // 6 - 1) // 2))
    for band in range(bands):
        near = [b for b in range(max(0, band - reach), min(bands, band + reach + 1)) if b != band]
        others = centred[:, near]
        gram = others.T @ others
        gram += np.eye(len(near)) * (1e-6 * np.trace(gram) / len(near) + 1e-300)
        residual = centred[:, band] - others @ np.linalg.solve(gram, others.T @ centred[:, band])
        noise[band] = np.sqrt((residual**2).sum() / max(1, n - len(near) - 1))
    return np.maximum(noise, floor)


@dataclass(frozen=True, eq=False)
class _Moments:
    """Second moments of scores and a band about their means, over some pixels.

    A response a explains the band by its components loadings.T @ a.
    """

    gram: FloatArray  # (p, p), less what the scores' noise adds to it
    cross: FloatArray  # (p,)
    square: float
    loadings: FloatArray  # (B, p)

    def __sub__(self, other: _Moments) -> _Moments:
        return _Moments(
            self.gram - other.gram, self.cross - other.cross, self.square - other.square,
            self.loadings,
        )  # fmt: skip

    @functools.cached_property
    def inverse(self) -> FloatArray:
        """(p, p) of the gram; directions that hold no more than noise count little."""
        powers, vectors = np.linalg.eigh(self.gram)
        floor = max(1e-6 * float(powers[-1]), 1e-300)
        return np.asarray((vectors / np.maximum(powers, floor)) @ vectors.T)

    def cost(self, a: FloatArray) -> float:
        """Return the sum of squares that a response leaves."""
        b = self.loadings.T @ a
        return float(b @ self.gram @ b - 2 * self.cross @ b + self.square)


def fit_response(
    spectra: Spectra,
    z: FloatArray,
    weights: FloatArray,
    labels: IntArray,
    wavelengths_nm: FloatArray | None,
) -> Response:
    """Fit the response of one band.

    Args:
        spectra: of the LR pixels (n, B).
        z: (n,) the MSI band as the LR pixels see it; anything where the weight is 0.
        weights: (n,) of the pixels, 0 to leave one out.
        labels: (n,) their spatial blocks.
        wavelengths_nm: (B,) centres; None to take the bands as evenly spaced in their order.
    """
    bands = spectra.mean.size
    at = np.arange(bands, dtype=np.float64) if wavelengths_nm is None else wavelengths_nm
    use = weights > 0
    w, x, z = weights[use], spectra.scores[use], z[use]
    total = w.sum()
    x_mean, z_mean = w @ x / total, float(w @ z / total)
    dx, dz = x - x_mean, z - z_mean
    _, number = np.unique(labels[use], return_inverse=True)
    parts = [
        _moments(dx, dz, np.where(number % _FOLDS == fold, w, 0), spectra.loadings)
        for fold in range(_FOLDS)
    ]
    whole = _moments(dx, dz, w, spectra.loadings)
    noise = _least_residual(whole, total)
    bell, slopes, precision = _fit_bell(whole, noise, at)
    # the directions of the components err by the noise of the spectra that made them
    noise += float(((bell * spectra.noise_std) ** 2).sum())
    bell, slopes, precision = _fit_bell(whole, noise, at)
    deviation = _choose(whole, parts, noise, bell, at)
    a = _with_deviation(whole, noise, bell, _prior(bell, at, deviation))
    size = float(a.sum())
    residual = dz - dx @ (spectra.loadings.T @ a)
    noise = max(noise, float(w @ residual**2 / total))
    # errors of the bell's numbers, and of deviations that the data do not tell
    usual = _prior(bell, at, max(deviation, _USUAL_DEVIATION))
    covariance = slopes @ np.linalg.pinv(precision, hermitian=True) @ slopes.T
    covariance += _posterior(whole, noise, usual)
    response = a / size
    # d(a / sum a) = (I - response 1') da / sum a
    turn = (np.eye(bands) - np.outer(response, np.ones(bands))) / size
    spread = turn @ covariance @ turn.T
    std = np.sqrt(np.maximum(np.diag(spread), 0))
    gain = 1 / size
    centre = spectra.mean + spectra.loadings @ x_mean
    gain_row = -np.ones(bands) * gain**2
    rows = np.stack([gain_row, turn.T @ centre - gain_row * z_mean])
    lines = rows @ covariance @ rows.T
    lines[1, 1] += gain**2 * noise / total
    return Response(
        weights=response, std=std, gain=gain, offset=float(response @ centre - gain * z_mean),
        covariance=lines, relative_error=float(np.linalg.norm(std) / np.linalg.norm(response)),
    )  # fmt: skip


def _moments(dx: FloatArray, dz: FloatArray, weights: FloatArray, loadings: FloatArray) -> _Moments:
    root = np.sqrt(weights)
    x, z = dx * root[:, None], dz * root
    gram = x.T @ x - weights.sum() * np.eye(x.shape[1])
    return _Moments(gram, x.T @ z, float(z @ z), loadings)


def _least_residual(moments: _Moments, total: float) -> float:
    """Return the variance of what no response at all explains, a floor for the noise."""
    left = moments.square - float(moments.cross @ moments.inverse @ moments.cross)
    spare = max(total - len(moments.cross) - 1, 1.0)
    return max(left / spare, 1e-8 * moments.square / total)


def _bells(at: FloatArray, centre: FloatArray, width: FloatArray, shape: FloatArray) -> FloatArray:
    exponent = np.abs((at[:, None] - centre) / width) ** shape
    return np.asarray(np.exp(-np.minimum(exponent, 700)))


def _spacing_and_span(at: FloatArray) -> tuple[float, float]:
    steps = np.diff(np.sort(at))
    spacing = float(np.median(steps[steps > 0])) if (steps > 0).any() else 1.0
    return spacing, max(float(np.ptp(at)), spacing)


@functools.lru_cache(maxsize=2)
def _grid(at: tuple[float, ...]) -> tuple[FloatArray, FloatArray]:
    """Return (K, 3) centres, widths and shapes to start from, and (B, K) their bells."""
    order = np.sort(at)
    spacing, span = _spacing_and_span(order)
    widths = np.geomspace(0.6 * spacing, max(span / 2, spacing), _WIDTHS)
    grid = np.array([(c, w, s) for s in _SHAPES for w in widths for c in order])
    return grid, _bells(np.array(at), grid[:, 0], grid[:, 1], grid[:, 2])


def _fit_bell(
    moments: _Moments, noise: float, at: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (B,) the bell, (B, 4) its slopes by its numbers, and (4, 4) the numbers' precision."""
    low, high = float(at.min()), float(at.max())
    spacing, span = _spacing_and_span(at)
    grid, bells = _grid(tuple(at.tolist()))
    seen = moments.loadings.T @ bells  # (p, K)
    height = moments.cross @ seen
    power = np.einsum("pk,pk->k", seen, moments.gram @ seen)
    explained = np.where(height > 0, height**2 / np.maximum(power, 1e-9 * power.max()), 0) / noise
    start = grid[int(np.argmax(explained - (np.log(grid[:, 2] / 2) / _SHAPE_STD) ** 2))]
    least = 1e-12 * float(np.trace(moments.gram) * (moments.loadings**2).sum())

    def one(theta: FloatArray) -> FloatArray:
        centre = np.clip(theta[0], low - spacing, high + spacing)
        width = np.exp(np.clip(theta[1], np.log(0.4 * spacing), np.log(2 * span)))
        shape = np.exp(np.clip(theta[2], np.log(1.2), np.log(16)))
        return _bells(at, *(np.array([v]) for v in (centre, width, shape)))[:, 0]

    def height_of(bell: FloatArray) -> tuple[float, float]:
        """Return the best height, and the squares it explains."""
        b = moments.loadings.T @ bell
        pull = max(float(moments.cross @ b), 0.0)
        best = pull / max(float(b @ moments.gram @ b), least, 1e-300)
        return best, best * pull

    def loss(theta: FloatArray) -> float:
        squares = height_of(one(theta))[1]
        return float(-squares / noise + ((theta[2] - np.log(2)) / _SHAPE_STD) ** 2)

    first = np.array([start[0], np.log(start[1]), np.log(start[2])])
    simplex = first + np.array([[0, 0, 0], [spacing, 0, 0], [0, 0.3, 0], [0, 0, 0.2]])
    found = minimize(
        loss, first, method="Nelder-Mead",
        options={"initial_simplex": simplex, "maxiter": 500, "xatol": 1e-4, "fatol": 1e-6},
    ).x  # fmt: skip
    # a band that nothing in the spectra follows still has a response, of no height
    top = max(height_of(one(found))[0], 1e-12)
    slopes = [one(found)]
    for index, step in enumerate((1e-2 * spacing, 1e-3, 1e-3)):
        up, down = found.copy(), found.copy()
        up[index] += step
        down[index] -= step
        slopes.append(top * (one(up) - one(down)) / (2 * step))
    matrix = np.stack(slopes, axis=1)
    told = moments.loadings.T @ matrix
    precision = told.T @ moments.gram @ told / noise
    # numbers that the data do not tell: within a tenth of the spectrum, a factor of e, the shape's
    precision += np.diag([0, (10 / span) ** 2, 1, 1 / _SHAPE_STD**2])
    return top * one(found), matrix, precision


def _prior(bell: FloatArray, at: FloatArray, deviation: float) -> FloatArray:
    """Return (B, B) the covariance of smooth deviations from the bell."""
    share = bell / bell.sum()
    middle = share @ at
    width = np.sqrt(max(share @ (at - middle) ** 2, 1e-12))
    near = np.exp(-(((at[:, None] - at) / width) ** 2) / 2)
    size = deviation * np.maximum(bell, _FLOOR * bell.max())
    return np.asarray(np.outer(size, size) * near + np.diag((0.1 * size) ** 2))


def _posterior(moments: _Moments, noise: float, prior: FloatArray) -> FloatArray:
    """Return (B, B) the covariance of the deviations that the data leave."""
    seen = moments.loadings.T @ prior
    middle = seen @ moments.loadings + noise * moments.inverse
    return np.asarray(prior - seen.T @ np.linalg.solve(middle, seen))


def _mean(moments: _Moments, noise: float, bell: FloatArray, prior: FloatArray) -> FloatArray:
    """Return the most likely response where weights may be negative."""
    seen = moments.loadings.T @ prior
    wanted = moments.inverse @ moments.cross - moments.loadings.T @ bell
    middle = seen @ moments.loadings + noise * moments.inverse
    return np.asarray(bell + seen.T @ np.linalg.solve(middle, wanted))


def _choose(
    whole: _Moments, parts: list[_Moments], noise: float, bell: FloatArray, at: FloatArray
) -> float:
    """Return the smallest deviation from the bell that held-out blocks do not tell from the best.

    That is, within a standard error over the folds.
    """
    priors = [_prior(bell, at, deviation) for deviation in _DEVIATIONS]
    rests = [whole - part for part in parts]
    costs = np.array([
        [part.cost(_mean(rest, noise, bell, prior)) for prior in priors]
        for part, rest in zip(parts, rests, strict=True)
    ])  # fmt: skip
    excess = costs - costs[:, [int(np.argmin(costs.sum(axis=0)))]]
    allowed = excess.std(axis=0, ddof=1) * np.sqrt(len(parts))
    return _DEVIATIONS[int(np.flatnonzero(excess.sum(axis=0) <= allowed)[0])]


def _with_deviation(
    moments: _Moments, noise: float, bell: FloatArray, prior: FloatArray
) -> FloatArray:
    """Return the most likely response without negative weights."""
    a = _mean(moments, noise, bell, prior)
    if a.min() >= 0:
        return a
    half = np.linalg.cholesky(np.linalg.inv(moments.inverse) / noise)
    rows = half.T @ moments.loadings.T
    wanted = half.T @ moments.inverse @ moments.cross
    root = np.linalg.cholesky(prior)
    inverse = np.linalg.solve(root, np.eye(len(root)))
    scale = bell.max()  # numbers near 1
    found, _ = nnls(
        np.concatenate([rows, inverse]) * scale,
        np.concatenate([wanted, inverse @ bell]),
        maxiter=50 * len(bell),
    )
    return np.asarray(found * scale)
