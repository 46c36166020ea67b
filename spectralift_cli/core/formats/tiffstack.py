"""Plain stacks of TIFF pages: every page is a band, as microscopes and cameras write them.

Only the directories count. What ImageJ, OME or tifffile say in a description about further images
is not believed: a page that has no directory is not read, and a file that relies on one is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from spectralift_cli.core.cube import AnyArray, CubeMeta
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats.gdalio import PlaneReader, open_dataset
from spectralift_cli.core.formats.tiffpages import Page

# open files are a scarce thing; a taller stack opens its pages anew for each block of rows
_MOST_OPEN = 256


class StackReader(PlaneReader):
    """A stack of pages, each opened as a dataset of one band.

    Args:
        path: the file.
        meta: the cube's metadata.
        layout: for `info`.
        axes: which of (page, y, x) are the cube's rows, columns and bands.
        block: (1, rows, columns) of a strip or tile.
        pages: the directories.
    """

    def __init__(
        self,
        path: Path,
        meta: CubeMeta,
        layout: Mapping[str, Any],
        axes: tuple[int, int, int],
        block: tuple[int, int, int],
        pages: tuple[Page, ...],
    ) -> None:
        super().__init__(path, meta, layout, axes, block)
        self._pages = pages
        self._open: dict[int, Any] = {}

    def _planes(self, planes: slice, rows: slice, cols: slice) -> AnyArray:
        window = Window(cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start)
        shape = (planes.stop - planes.start, window.height, window.width)
        array: AnyArray = np.empty(shape, self.meta.dtype)
        for index in range(planes.start, planes.stop):
            if index in self._open:
                dataset = self._open[index]
            else:
                if len(self._open) >= _MOST_OPEN:
                    self.close()
                dataset = open_dataset(self.path, self._pages[index].offset)
                self._open[index] = dataset
            dataset.read(1, window=window, out=array[index - planes.start])
        return array

    def close(self) -> None:
        """Close the pages."""
        for dataset in self._open.values():
            dataset.close()
        self._open.clear()


def band_texts(pages: tuple[Page, ...]) -> tuple[str, ...] | None:
    """Return what names the bands of a stack: every page's PageName, or else description."""
    for texts in (tuple(p.name for p in pages), tuple(p.description for p in pages)):
        if all(texts) and max(map(len, texts)) <= 200:
            return texts
    return None


def check_no_hidden_pages(page: Page, path: Path) -> None:
    """Refuse a single directory whose description speaks of more images than it describes.

    ImageJ (above 4 GB) and tifffile (`truncate`) write such files: the images follow one another
    and only the first has a directory.

    Raises:
        DataError: with both numbers.
    """
    here = page.width * page.height * page.samples
    there = 0
    if page.description.startswith("ImageJ="):
        found = re.search(r"^images=(\d{1,9})\s*$", page.description, re.MULTILINE)
        there = here * int(found.group(1)) if found else 0
    elif page.description.startswith('{"shape"'):
        try:
            shape = json.loads(page.description).get("shape")
        except (ValueError, RecursionError):
            shape = None
        if isinstance(shape, list) and all(isinstance(n, int) and n > 0 for n in shape):
            there = math.prod(shape[:8])
    if there > here:
        raise DataError(
            f"{path}: its description speaks of {there:,} values, its only directory of {here:,}",
            "save it again with one directory a page (in ImageJ and tifffile: as BigTIFF)",
        )
