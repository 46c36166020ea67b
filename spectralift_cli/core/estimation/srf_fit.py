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
    """The LR-HSI's spectra less most of their noise.

    Args:
        clean: (n, B) projected onto the components above the noise, about `mean`.
        mean: (B,).
        noise: (B, B) covariance of the noise left in `clean`.
        noise_std: (B,) of the spectra as they were.
        components: how many were kept.
    """

    clean: FloatArray
    mean: FloatArray
    noise: FloatArray
    noise_std: FloatArray
    components: int


def clean_spectra(values: FloatArray) -> Spectra:
    """Project (n, B) spectra onto their components above the noise.

    Over the noise of each band, the noise's eigenvalues end at (sqrt n + sqrt B)^2 (Marchenko and
    Pastur 1967).
    """
    mean = values.mean(axis=0)
    noise_std = band_noise(values)
    whitened = (values - mean) / noise_std
    powers, vectors = np.linalg.eigh(whitened.T @ whitened)
    edge = (np.sqrt(len(values)) + np.sqrt(values.shape[1])) ** 2
    above = powers > _ABOVE_NOISE * edge
    above[-1] = True
    kept = vectors[:, above]
    projector = kept @ kept.T
    noise = projector * np.outer(noise_std, noise_std)
    return Spectra(whitened @ projector * noise_std, mean, noise, noise_std, int(above.sum()))


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
    """Second moments of spectra and a band about their means, over some pixels."""

    gram: FloatArray  # (B, B), less what the spectra's noise adds to it
    cross: FloatArray  # (B,)
    square: float
    components: int

    @functools.cached_property
    def axes(self) -> tuple[FloatArray, FloatArray]:
        """(p,) powers and (B, p) directions in which the spectra vary."""
        powers, vectors = np.linalg.eigh(self.gram)
        kept = powers > 1e-9 * powers[-1]
        kept[: max(0, len(kept) - self.components)] = False
        kept[-1] = True
        return np.maximum(powers[kept], 1e-300), vectors[:, kept]

    def __sub__(self, other: _Moments) -> _Moments:
        return _Moments(
            self.gram - other.gram,
            self.cross - other.cross,
            self.square - other.square,
            self.components,
        )

    def cost(self, a: FloatArray) -> float:
        return float(a @ self.gram @ a - 2 * self.cross @ a + self.square)


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
    w, x, z = weights[use], spectra.clean[use], z[use]
    total = w.sum()
    x_mean, z_mean = w @ x / total, float(w @ z / total)
    dx, dz = x - x_mean, z - z_mean
    _, number = np.unique(labels[use], return_inverse=True)
    parts = [
        _moments(dx, dz, np.where(number % _FOLDS == fold, w, 0), spectra) for fold in range(_FOLDS)
    ]
    whole = _moments(dx, dz, w, spectra)
    noise = _least_residual(whole, total)
    bell, slopes, precision = _fit_bell(whole, noise, at)
    # the directions of the components err by the noise of the spectra that made them
    noise += float(((bell * spectra.noise_std) ** 2).sum())
    bell, slopes, precision = _fit_bell(whole, noise, at)
    deviation = _choose(whole, parts, noise, bell, at)
    a = _with_deviation(whole, noise, bell, _prior(bell, at, deviation))
    size = float(a.sum())
    residual = dz - dx @ a
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
    centre = spectra.mean + x_mean
    gain_row = -np.ones(bands) * gain**2
    rows = np.stack([gain_row, turn.T @ centre - gain_row * z_mean])
    lines = rows @ covariance @ rows.T
    lines[1, 1] += gain**2 * noise / total
    return Response(
        weights=response, std=std, gain=gain, offset=float(response @ centre - gain * z_mean),
        covariance=lines, relative_error=float(np.linalg.norm(std) / np.linalg.norm(response)),
    )  # fmt: skip


def _moments(dx: FloatArray, dz: FloatArray, weights: FloatArray, spectra: Spectra) -> _Moments:
    root = np.sqrt(weights)
    x, z = dx * root[:, None], dz * root
    gram = x.T @ x - weights.sum() * spectra.noise
    return _Moments(gram, x.T @ z, float(z @ z), spectra.components)


def _least_residual(moments: _Moments, total: float) -> float:
    """Return the variance of what no response at all explains, a floor for the noise."""
    powers, axes = moments.axes
    left = moments.square - float(((axes.T @ moments.cross) ** 2 / powers).sum())
    return max(left / max(total - moments.components - 1, 1.0), 1e-8 * moments.square / total)


def _bells(at: FloatArray, centre: FloatArray, width: FloatArray, shape: FloatArray) -> FloatArray:
    exponent = np.abs((at[:, None] - centre) / width) ** shape
    return np.asarray(np.exp(-np.minimum(exponent, 700)))


def _fit_bell(
    moments: _Moments, noise: float, at: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (B,) the bell, (B, 4) its slopes by its numbers, and (4, 4) the numbers' precision."""
    order = np.sort(at)
    steps = np.diff(order)
    spacing = float(np.median(steps[steps > 0])) if (steps > 0).any() else 1.0
    span = max(float(order[-1] - order[0]), spacing)
    widths = np.geomspace(0.6 * spacing, max(span / 2, spacing), _WIDTHS)
    grid = np.array([(c, w, s) for s in _SHAPES for w in widths for c in order])
    bells = _bells(at, grid[:, 0], grid[:, 1], grid[:, 2])
    height = moments.cross @ bells
    power = np.einsum("bk,bk->k", bells, moments.gram @ bells)
    usual = np.maximum(power, 1e-9 * power.max())
    explained = np.where(height > 0, height**2 / usual, 0) / noise
    start = grid[int(np.argmax(explained - (np.log(grid[:, 2] / 2) / _SHAPE_STD) ** 2))]

    def one(theta: FloatArray) -> FloatArray:
        centre = np.clip(theta[0], order[0] - spacing, order[-1] + spacing)
        width = np.exp(np.clip(theta[1], np.log(0.4 * spacing), np.log(2 * span)))
        shape = np.exp(np.clip(theta[2], np.log(1.2), np.log(16)))
        return _bells(at, *(np.array([v]) for v in (centre, width, shape)))[:, 0]

    def top_of(bell: FloatArray) -> float:
        power = max(float(bell @ moments.gram @ bell), 1e-12 * float(np.trace(moments.gram)))
        return max(float(moments.cross @ bell), 0.0) / power

    def loss(theta: FloatArray) -> float:
        bell = one(theta)
        explained = top_of(bell) * float(moments.cross @ bell) / noise
        return float(-explained + ((theta[2] - np.log(2)) / _SHAPE_STD) ** 2)

    first = np.array([start[0], np.log(start[1]), np.log(start[2])])
    simplex = first + np.array([[0, 0, 0], [spacing, 0, 0], [0, 0.3, 0], [0, 0, 0.2]])
    found = minimize(
        loss, first, method="Nelder-Mead",
        options={"initial_simplex": simplex, "maxiter": 500, "xatol": 1e-4, "fatol": 1e-6},
    ).x  # fmt: skip
    # a band that nothing in the spectra follows still has a response, of no height
    top = max(top_of(one(found)), 1e-12)
    slopes = [one(found)]
    for index, step in enumerate((1e-2 * spacing, 1e-3, 1e-3)):
        up, down = found.copy(), found.copy()
        up[index] += step
        down[index] -= step
        slopes.append(top * (one(up) - one(down)) / (2 * step))
    matrix = np.stack(slopes, axis=1)
    precision = matrix.T @ moments.gram @ matrix / noise
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
    powers, axes = moments.axes
    seen = axes.T @ prior
    middle = seen @ axes + np.diag(noise / powers)
    return np.asarray(prior - seen.T @ np.linalg.solve(middle, seen))


def _mean(moments: _Moments, noise: float, bell: FloatArray, prior: FloatArray) -> FloatArray:
    """Return the most likely response where weights may be negative."""
    powers, axes = moments.axes
    seen = axes.T @ prior
    wanted = axes.T @ moments.cross / powers - axes.T @ bell
    middle = seen @ axes + np.diag(noise / powers)
    return np.asarray(bell + seen.T @ np.linalg.solve(middle, wanted))


def _choose(
    whole: _Moments, parts: list[_Moments], noise: float, bell: FloatArray, at: FloatArray
) -> float:
    """Return the size of deviations from the bell that predicts held-out blocks best."""
    costs = [0.0] * len(_DEVIATIONS)
    priors = [_prior(bell, at, deviation) for deviation in _DEVIATIONS]
    for part in parts:
        rest = whole - part
        for number, prior in enumerate(priors):
            costs[number] += part.cost(_mean(rest, noise, bell, prior))
    return _DEVIATIONS[int(np.argmin(costs))]


def _with_deviation(
    moments: _Moments, noise: float, bell: FloatArray, prior: FloatArray
) -> FloatArray:
    """Return the most likely response without negative weights."""
    a = _mean(moments, noise, bell, prior)
    if a.min() >= 0:
        return a
    powers, axes = moments.axes
    root = np.linalg.cholesky(prior)
    rows = axes.T * np.sqrt(powers / noise)[:, None]
    wanted = axes.T @ moments.cross / np.sqrt(powers * noise)
    inverse = np.linalg.solve(root, np.eye(len(root)))
    scale = bell.max()  # numbers near 1
    found, _ = nnls(
        np.concatenate([rows, inverse]) * scale,
        np.concatenate([wanted, inverse @ bell]),
        maxiter=50 * len(bell),
    )
    return np.asarray(found * scale)
