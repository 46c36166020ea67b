"""Sharp hyperspectral images from a blurry hyperspectral and a sharp multispectral one."""

__version__ = "0.1.0"
