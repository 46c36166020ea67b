"""How wrong a sharp spectrum is expected to be, pixel by pixel, and where nothing alike was seen."""
