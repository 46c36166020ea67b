"""A page about a scene or a run: what was fused, the images, spectra, errors, scores, settings."""
