"""What an HDF5 file holds, found and judged before any of it is read.

HDF5 can name other files in three ways (external links, external storage, virtual datasets) and
h5py follows all of them; links can dangle or run in circles, and a few bytes can promise any number
of values. So links are followed here one step at a time and stay inside the file, and a dataset's
type, storage and filters are looked at before its values are.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from spectralift_cli.core.cube import AnyArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import OpenRequest, arrays
from spectralift_cli.core.resources import default_memory_bytes

# what h5py turns the errors of a damaged file into, depending on where it finds the damage
H5_ERRORS = (
    OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError,
)  # fmt: skip

# holds a row of chunks, so that blocks of fewer rows than a chunk has inflate each chunk once
_CACHE_BYTES = 32 * 2**20
_CACHE_SLOTS = 10_007  # a prime well above the number of chunks that fit, as HDF5 advises

_MAX_LINKS = 20_000
_MAX_HOPS = 32
_ATTRIBUTE_BYTES = 2**20
_DEFLATE_RATIO = 1032
# values that were never written take no room in the file; up to here that is an honest, small cube
_SPARSE_BYTES = 2**30

# what `small_arrays` takes for a table rather than an image
SMALL_VALUES = 2**20

Check = Callable[[h5py.Dataset, str], np.dtype[Any]]
ShapeOf = Callable[[h5py.Dataset, str], tuple[int, ...]]


@contextlib.contextmanager
def as_data_error(source: object) -> Iterator[None]:
    """Turn what h5py raises for a damaged file into a `DataError`."""
    try:
        yield
    except H5_ERRORS as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(
            f"{source}: cannot be read ({lines[0][:200]})", "the file is truncated or damaged"
        ) from error


def open_file(path: Path) -> h5py.File:
    """Open an HDF5 file for reading, without the lock that read-only disks refuse.

    Raises:
        DataError: it is not HDF5, or is truncated or damaged.
    """
    with path.open("rb"):  # says plainly what h5py wraps: no permission, no such device
        pass
    if not h5py.is_hdf5(path):
        raise DataError(
            f"{path}: is not an HDF5 file", "check the file's ending, or fetch it again"
        )
    settings: dict[str, Any] = {
        "rdcc_nbytes": _CACHE_BYTES,
        "rdcc_nslots": _CACHE_SLOTS,
        "rdcc_w0": 1.0,  # chunks that were read to their end go first
    }
    with as_data_error(path):
        try:
            return h5py.File(path, "r", locking=False, **settings)
        except OSError as error:
            if "locking flag" not in str(error):
                raise
            # HDF5 wants one answer per process, and the caller has the file open with another one
            return h5py.File(path, "r", **settings)


def holds(path: Path, names: Sequence[str]) -> bool:
    """Tell whether a file is HDF5 with a dataset under each of these names."""
    try:
        with open_file(path) as file:
            found = [resolve(file, name, path) for name in names]
            return all(pair is not None and isinstance(pair[1], h5py.Dataset) for pair in found)
    except (DataError, OSError):
        return False  # the format that it comes in says what is wrong with it


def resolve(file: h5py.File, name: str, path: Path) -> tuple[h5py.Group, Any] | None:
    """Follow a path of hard and soft links inside the file.

    Returns:
        The object and the group that holds it, or None if there is no such name.

    Raises:
        DataError: a link leads into another file, to nothing, or in a circle.
    """
    source = f"{path}: {name}"
    with as_data_error(source):
        here: Any = file["/"]
        parent = here
        steps = _steps(name)
        hops = 0
        while steps:
            step = steps.pop()
            link = here.get(step, getlink=True) if isinstance(here, h5py.Group) else None
            if link is None:
                if not hops:
                    return None
                raise DataError(
                    f"{source}: is a soft link to {step!r}, which does not exist",
                    "the link dangles; name the dataset itself with --var",
                )
            if isinstance(link, h5py.ExternalLink):
                raise DataError(
                    f"{source}: is an external link into the file {link.filename!r}",
                    f"open that file instead, with --var {link.path}",
                )
            if isinstance(link, h5py.HardLink):
                parent, here = here, here[step]
                continue
            hops += 1
            if hops > _MAX_HOPS:
                raise DataError(
                    f"{source}: is a soft link that leads in a circle (over {_MAX_HOPS} steps)",
                    "name the dataset itself with --var",
                )
            if link.path.startswith("/"):
                here = file["/"]
            steps += _steps(link.path)
        return parent, here


def _steps(name: str) -> list[str]:
    return [step for step in reversed(name.split("/")) if step not in ("", ".")]


def check_values(dataset: h5py.Dataset, source: str) -> np.dtype[Any]:
    """Return a dataset's type in native byte order.

    Raises:
        DataError: its values are not plain numbers, or it has none.
    """
    with as_data_error(source):
        dtype, shape = dataset.dtype, dataset.shape
    kind = _odd_kind(dtype)
    if kind or shape is None:
        raise DataError(
            f"{source}: holds {kind or 'no values'}, a cube holds real numbers",
            "choose another variable with --var, or save it again as an array of numbers",
        )
    return arrays.check_dtype(dtype, source)


def _odd_kind(dtype: np.dtype[Any]) -> str:
    names = dtype.names or ()
    if dtype.kind == "c" or set(names) == {"real", "imag"}:  # MATLAB's complex numbers
        return "complex numbers"
    if names:
        return f"compound records ({', '.join(names)[:60]})"
    if dtype.kind in "SU" or h5py.check_string_dtype(dtype) is not None:
        return "text"
    if h5py.check_ref_dtype(dtype) is not None:
        return "references to other objects"
    if h5py.check_vlen_dtype(dtype) is not None:
        return "lists of varying length"
    return {"b": "true and false", "V": "opaque or nested values"}.get(dtype.kind, "")


@dataclass
class Listing:
    """The datasets of a file: those that can be a cube's values, and why the others cannot."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    refused: dict[str, DataError] = field(default_factory=dict)


def list_datasets(
    file: h5py.File, path: Path, check: Check, shape_of: ShapeOf, *, nested: bool
) -> Listing:
    """List a file's datasets, each object once however many links lead to it.

    Args:
        file: open for reading.
        path: for messages.
        check: raises `DataError` for a dataset that cannot be a cube's values.
        shape_of: the shape to list for a dataset and its name.
        nested: look into groups as well.

    Raises:
        DataError: the file holds too many links to look at, or its root is damaged.
    """
    listing = Listing()
    with as_data_error(path):
        groups = deque([("", file["/"])])
        seen = {h5py.h5o.get_info(file["/"].id).addr}
    count = 0
    while groups:
        prefix, group = groups.popleft()
        with as_data_error(f"{path}: {prefix or '/'}"):
            leaves = list(group)
        count += len(leaves)
        if count > _MAX_LINKS:
            raise DataError(
                f"{path}: holds more than {_MAX_LINKS:,} objects", "name the dataset with --var"
            )
        for leaf in leaves:
            if isinstance(leaf, bytes):  # h5py's answer to a name that is not UTF-8
                shown = prefix + leaf.decode("utf-8", "replace")
                listing.refused[shown] = DataError(
                    f"{path}: {shown}: its name is not UTF-8", "rename it, or mend the file"
                )
                continue
            name = prefix + leaf
            if leaf in arrays.META_NAMES or leaf.startswith("#"):  # "#refs#": MATLAB's own
                continue
            try:
                node = _look_at(file, group, leaf, name, path, seen)
                if isinstance(node, h5py.Dataset):
                    check(node, f"{path}: {name}")
                    listing.shapes[name] = shape_of(node, name)
                elif isinstance(node, h5py.Group) and nested:
                    groups.append((f"{name}/", node))
                elif isinstance(node, h5py.Group):
                    raise DataError(
                        f"{path}: {name}: is a struct, an object or a sparse matrix",
                        "save the array alone: in MATLAB, save('x.mat', 'cube', '-v7.3')",
                    )
            except DataError as error:
                listing.refused[name] = error
    return listing


def _look_at(
    file: h5py.File, group: h5py.Group, leaf: str, name: str, path: Path, seen: set[int]
) -> Any:
    """Return the object behind a link, or None if it is listed under another name."""
    is_cube = name in arrays.CUBE_NAMES
    with as_data_error(f"{path}: {name}"):
        if not isinstance(group.get(leaf, getlink=True), h5py.HardLink):
            found = resolve(file, name, path)  # for its errors: what it leads to is listed there
            return found[1] if is_cube and found is not None else None
        node = group[leaf]
        address = h5py.h5o.get_info(node.id).addr
    if address in seen and not is_cube:
        return None
    seen.add(address)
    return node


def find_cube(
    file: h5py.File,
    path: Path,
    request: OpenRequest,
    *,
    check: Check = check_values,
    shape_of: ShapeOf = lambda dataset, name: tuple(dataset.shape),
    nested: bool = True,
) -> tuple[str, h5py.Group, h5py.Dataset]:
    """Return the name of the dataset that is the cube, the group that holds it, and the dataset.

    Args:
        file: open for reading.
        path: for messages.
        request: its `var`, `axis_order` and `allow_2d`.
        check: see `list_datasets`.
        shape_of: see `list_datasets`.
        nested: see `list_datasets`.

    Raises:
        DataError: there is none, there are several, or it is one that cannot be read.
    """
    name = request.var
    found = None if name is None else resolve(file, name, path)
    if name is None or found is None or not isinstance(found[1], h5py.Dataset):
        listing = list_datasets(file, path, check, shape_of, nested=nested)
        name = arrays.choose_or_explain(listing.shapes, listing.refused, request, path)
        found = resolve(file, name, path)
    if found is None or not isinstance(found[1], h5py.Dataset):
        raise DataError(f"{path}: {name} cannot be found again", "the file is damaged")
    check(found[1], f"{path}: {name}")
    return name.strip("/"), *found


def check_storage(dataset: h5py.Dataset, request: OpenRequest, source: str) -> None:
    """Refuse a dataset that lies elsewhere, cannot be decoded, or promises what it does not hold.

    Raises:
        DataError: external storage, a virtual dataset, a filter this HDF5 lacks, chunks larger than
            the memory allowed, or a shape far beyond the bytes that are there.
    """
    with as_data_error(source):
        if dataset.is_virtual:
            names = sorted({s.file_name for s in dataset.virtual_sources()})[:3]
            raise DataError(
                f"{source}: is a virtual dataset, made of parts in {', '.join(names) or 'no file'}",
                "copy it into an ordinary dataset first: h5repack IN OUT",
            )
        if dataset.external:
            raise DataError(
                f"{source}: has its values in another file, {dataset.external[0][0]!r}",
                "copy it into an ordinary dataset first: h5repack IN OUT",
            )
        _check_filters(dataset, source)
        if dataset.chunks is not None:
            _check_chunk(math.prod(dataset.chunks) * dataset.dtype.itemsize, request, source)
        there = min(dataset.id.get_storage_size(), dataset.file.id.get_filesize())
        promised = math.prod(dataset.shape) * dataset.dtype.itemsize
    if promised > max(there * _DEFLATE_RATIO, _SPARSE_BYTES):
        raise DataError(
            f"{source}: {dataset.shape} needs {promised:,} bytes, the file stores {there:,} of them",
            "the rest would be fill values; store the part that has data in a smaller dataset",
        )


def _check_filters(dataset: h5py.Dataset, source: str) -> None:
    properties = dataset.id.get_create_plist()
    for index in range(properties.get_nfilters()):
        code, _, _, label = properties.get_filter(index)
        if h5py.h5z.filter_avail(code):
            can = h5py.h5z.get_filter_info(code)
            if can & h5py.h5z.FILTER_CONFIG_DECODE_ENABLED:
                continue
        name = label.decode("ascii", "replace").split(";")[0][:40].strip() or "unnamed"
        raise DataError(
            f"{source}: is compressed by the filter {name!r} (number {code}), "
            "which this HDF5 library lacks",
            "where the filter is installed, rewrite the file: h5repack -f GZIP=4 IN OUT",
        )


def _check_chunk(nbytes: int, request: OpenRequest, source: str) -> None:
    limit = request.memory_bytes if request.memory_bytes is not None else default_memory_bytes()
    if nbytes > limit:
        raise DataError(
            f"{source}: each chunk takes {nbytes / 1e6:,.0f} MB, "
            f"more than the {limit / 1e6:,.0f} MB allowed",
            "raise --memory, or store it in smaller chunks with h5repack -l CHUNK=...",
        )


def filters_of(dataset: h5py.Dataset) -> list[str]:
    """Return the names of a dataset's filters in the order they were applied."""
    properties = dataset.id.get_create_plist()
    labels = [properties.get_filter(i)[3] for i in range(properties.get_nfilters())]
    return [label.decode("ascii", "replace").split(";")[0][:40].strip() for label in labels]


def attribute(node: h5py.Dataset | h5py.File, name: str) -> Any:
    """Return an attribute's value (array, number or text), None if there is none of modest size."""
    with as_data_error(f"{node.file.filename}: {node.name}, attribute {name}"):
        if name not in node.attrs:
            return None
        stored = node.attrs.get_id(name)
        if stored.shape is None or stored.get_storage_size() > _ATTRIBUTE_BYTES:
            return None
        value = node.attrs[name]
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def read_beside(
    file: h5py.File, name: str, count: int, request: OpenRequest, path: Path
) -> AnyArray | None:
    """Read a small array; None if there is no dataset of that name with so many values or fewer.

    Args:
        file: open for reading.
        name: its path in the file.
        count: the most values it may have.
        request: for the checks that a cube's dataset goes through as well.
        path: for messages.

    Raises:
        DataError: it lies in another file or is damaged.
    """
    found = resolve(file, name, path)
    if found is None or not isinstance(found[1], h5py.Dataset):
        return None
    dataset, source = found[1], f"{path}: {name}"
    with as_data_error(source):
        too_many = dataset.shape is None or dataset.size > count
        if too_many or dataset.dtype.itemsize > _ATTRIBUTE_BYTES:
            return None
        check_storage(dataset, request, source)
        return np.asarray(dataset[()])


def small_arrays(path: Path) -> dict[str, AnyArray]:
    """Return the numeric datasets of a file's root with at most 2**20 values, by name.

    Raises:
        DataError: the file is damaged, or these have more than 2**23 values together.
    """
    found: dict[str, AnyArray] = {}
    total = 0
    with open_file(path) as file:
        listing = list_datasets(
            file, path, check_values, lambda dataset, _: tuple(dataset.shape), nested=False
        )
        for name in (*listing.shapes, *arrays.META_NAMES):
            values = read_beside(file, name, SMALL_VALUES, OpenRequest(), path)
            if values is None or values.dtype.kind not in "iuf" or not values.size:
                continue
            total += values.size
            if total > 8 * SMALL_VALUES:
                raise DataError(
                    f"{path}: holds more than {8 * SMALL_VALUES:,} values in small arrays",
                    "save the arrays that are meant alone",
                )
            found[name] = values
    return found
