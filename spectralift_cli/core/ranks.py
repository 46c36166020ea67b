"""Several processes that train one model, as `torchrun` starts them.

They differ by their rank, and all hold all pixels. What each has summed is added in one fixed
order, so that the sum has the bytes of a single process.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

from spectralift_cli.core.errors import DataError, OptionError

# after so long without a word another process is given up; one that dies is noticed at once
_PATIENCE = timedelta(minutes=10)
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR")


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those of a training.

    Args:
        rank: from 0; the first leads: it alone writes and speaks.
        count: of all processes, at least 2.
        local_rank: among those of this machine.
        local_count: of this machine.

    Raises:
        OptionError: the numbers do not fit each other.
    """

    rank: int
    count: int
    local_rank: int
    local_count: int

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.count and 0 <= self.local_rank < self.local_count):
            raise OptionError(
                f"rank {self.rank} of {self.count} processes, {self.local_rank} of "
                f"{self.local_count} on this machine, does not exist",
                "start the training by torchrun, which sets RANK, WORLD_SIZE, LOCAL_RANK and "
                "LOCAL_WORLD_SIZE",
            )

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Ranks | None:
        """Return the place that torchrun's variables tell, or None for a process on its own.

        Args:
            environment: such as `os.environ`.

        Raises:
            OptionError: some of the variables are missing or no numbers.
        """
        if not all(name in environment for name in _VARIABLES):
            return None
        try:
            rank, count = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            local_rank = int(environment.get("LOCAL_RANK", rank))
            local_count = int(environment.get("LOCAL_WORLD_SIZE", count))
        except ValueError as error:
            raise OptionError(
                f"torchrun's variables are no whole numbers: {error}",
                "unset RANK and WORLD_SIZE to train in one process",
            ) from error
        return cls(rank, count, local_rank, local_count) if count > 1 else None

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def device_name(self, wanted: str) -> str:
        """Return the name of this process's own device.

        Raises:
            OptionError: all processes of a machine would share one GPU.
        """
        if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()):
            return f"cuda:{self.local_rank}"
        if wanted.startswith("cuda:") and self.local_count > 1:
            raise OptionError(
                f"--device {wanted} is one GPU, {self.local_count} processes of this machine cannot "
                "share it",
                "give --device cuda, by which each process takes a GPU of its own",
            )
        return "cpu" if wanted == "auto" else wanted


class Group:
    """The processes of a training once they have found each other.

    Args:
        ranks: the place of this one.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.rank, self.count = ranks.rank, ranks.count

    def share(self, items: int, rank: int | None = None) -> range:
        """Return which of some items a process works on, this one or another."""
        rank = self.rank if rank is None else rank
        return range(items * rank // self.count, items * (rank + 1) // self.count)

    def send_to_all(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the first one's values of these tensors, in place."""
        import torch.distributed as dist

        with _losing_processes():
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def sum_in_order(self, parts: Sequence[Tensor], items: int, total: Tensor) -> None:
        """Put the sum of all items into `total`, item after item, in every process.

        The sum travels along the processes, each adds its own, and the last gives it to all.

        Args:
            parts: this process's own, those of `share(items)` in their order.
            items: of all processes.
            total: shaped like a part.
        """
        import torch.distributed as dist

        holders = [rank for rank in range(self.count) if self.share(items, rank)]
        with _losing_processes():
            if parts:
                place = holders.index(self.rank)
                if place:
                    dist.recv(total, holders[place - 1])
                    total += parts[0]
                else:
                    total.copy_(parts[0])
                for part in parts[1:]:
                    total += part
                if place + 1 < len(holders):
                    dist.send(total, holders[place + 1])
            dist.broadcast(total, holders[-1])

    def check_same(self, digest: bytes, device: torch.device) -> None:
        """Refuse processes that would not train the same.

        Args:
            digest: of all that the training depends on, equally long everywhere.
            device: where tensors to send live.

        Raises:
            DataError: this process's digest is not the first one's.
        """
        own = torch.frombuffer(bytearray(digest), dtype=torch.uint8).to(device)
        first = own.clone()
        self.send_to_all([first])
        if not torch.equal(own, first):
            raise DataError(
                f"process {self.rank} of {self.count} was given other data, options or another kind "
                "of device than process 0",
                "give all processes the same files and options",
            )


@contextlib.contextmanager
def joined(ranks: Ranks | None, device: torch.device) -> Iterator[Group | None]:
    """Let the processes find each other and yield their group; None for a process on its own.

    By NCCL where tensors live on GPUs, else by Gloo.

    Raises:
        DataError: PyTorch cannot connect processes, or the others do not come.
        OptionError: the device takes no part in groups.
    """
    if ranks is None:
        yield None
        return
    import torch.distributed as dist

    if not dist.is_available():
        raise DataError(
            f"this PyTorch {torch.__version__} cannot connect processes",
            "train in one process, without torchrun",
        )
    if device.type not in ("cpu", "cuda"):
        raise OptionError(
            f"{ranks.count} processes cannot train on {device}", "use --device cpu or cuda"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _losing_processes():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=ranks.rank, world_size=ranks.count, timeout=_PATIENCE)
    try:
        yield Group(ranks)
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _losing_processes() -> Iterator[None]:
    """Turn the loss of another process into an error that tells it."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:  # PyTorch's own are its children
        reason = re.sub(r"^\[[^\]]*\]\s*", "", str(error)).partition(". ")[0].splitlines()[0]
        raise DataError(
            f"another process of this training was lost ({reason:.200})",
            "its own message says why; --resume continues from MODEL.state if there is one",
        ) from error
