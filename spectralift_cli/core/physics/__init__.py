"""Regression through the physics: an inverter fitted at the pixels that it will be applied to.

A pair of images does not show the HR spectrum x(p) of a pixel p, only its mean over what the
LR-HSI's instrument sees, y = A x + noise, with A = blur and mean over LR pixels. If the spectrum is
a function of the pixel's HR-MSI m(p), linear in its coefficients,

    x(p) = L m(p) + c + W' f(m(p)),    f_j(m) = sqrt(2 / F) cos(w_j . z(m) + b_j),

with z the standardised MSI, then A passes through to the features, A x = L A m + c + W' A f, and the
coefficients are those of a ridge regression on blurred features,

    min  |y - A [m, 1, f] V|^2 + s |y - [m(y), 1, f(m(y))] V|^2 + r |W|^2 + 1e-4 r |L, c|^2,

in closed form. Beside what the pairs of LR pixels teach (the second term, m(y) the LR-HSI seen
through the response), it learns from the HR pixels' own MSI: purer than LR pixels, and with the
camera's noise. With w_j drawn from Student's t distribution of 2 v degrees of freedom and b_j
uniform, f(m) . f(m') approaches a Matern kernel of smoothness v as F grows (v = 5/2 here), so that
this is the Gaussian process of such a kernel observed through A.

Length scale, ridge r and the pairs' weight s (0 or 0.3) are those that predict LR pixels best that
were held out in spatial blocks with a guard band. Leaving out single pixels would choose far too
flexible a model, since wide PSFs make neighbours nearly copies of each other.

Sources: A. Rahimi and B. Recht, Random Features for Large-Scale Kernel Machines, NIPS 2007; C. E.
Rasmussen and C. K. I. Williams, Gaussian Processes for Machine Learning (2006), section 4.2.1 for
the spectral density; that A passes through to a linear model's features is elementary.
"""
