"""What two images of one scene say of each other: shift, PSF, radiometry and spectral response."""
