"""The steps of one rank: plan batches dealt to the ranks, with their place in the plan."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from whalesong.core.errors import DataError
from whalesong.core.seeding import mix
from whalesong.data.conversation import Example
from whalesong.data.plan import BatchPlan


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the plan: before batch `batch` of `epoch`, the same for any number of ranks."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What one rank loads for one step."""

    examples: list[Example]
    seed: int
    """Of the random choices in loading and collating; it depends on the place in the plan."""
    after: Position
    """Where all ranks stand in the plan after this step."""
    ends_epoch: bool


def plan_steps(
    plan: BatchPlan, *, rank: int, world_size: int, start: Position, infinite: bool
) -> Iterator[Step]:
    """Yield the steps of a rank from a position on, without end.

    Batches go to the ranks in turn. Of a finite epoch the last ones, if they are fewer than the
    ranks, are divided among them: every rank makes the same number of steps, some perhaps without
    an example. In an infinite stream they join the first ones of the next epoch.
    """
    group: list[Step] = []
    for entry in _stream(plan, start):
        group.append(entry)
        ends_epoch = entry.ends_epoch and not infinite
        if len(group) == world_size or ends_epoch:
            examples, seed = _share(group, rank, world_size)
            yield Step(examples, seed, entry.after, ends_epoch)
            group = []


def _stream(plan: BatchPlan, start: Position) -> Iterator[Step]:
    """All batches from a position on, each as the step of a single rank."""
    epoch, index = start.epoch, start.batch
    while True:
        batches = islice(plan.batches(epoch), index, None)
        batch = next(batches, None)
        if batch is None and index == 0:
            raise DataError(f"`{plan.path}`: `drop_last` leaves no batch.")
        while batch is not None:
            following = next(batches, None)
            last = following is None
            after = Position(epoch + 1, 0) if last else Position(epoch, index + 1)
            yield Step(batch, mix(plan.seed, epoch, index), after, last)
            batch, index = following, index + 1
        epoch, index = epoch + 1, 0


def _share(group: list[Step], rank: int, world_size: int) -> tuple[list[Example], int]:
    """The examples and the seed of a rank; a batch that has several ranks is divided."""
    mine = rank * len(group) // world_size
    ranks = [r for r in range(world_size) if r * len(group) // world_size == mine]
    step = group[mine]
    if len(ranks) == 1:
        return step.examples, step.seed
    return step.examples[ranks.index(rank) :: len(ranks)], mix(step.seed, rank)
