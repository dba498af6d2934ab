"""Long runs: after their first steps training and generation hold no more memory than before."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.families import FAMILIES
from fixtures.forked import add_callback, run_forked, xlm
from fixtures.memory import MemoryMeter

STEPS, GENERATIONS = 2000, 200
MOST_GROWTH = 0.02
LONG = [
    f"trainer.max_steps={STEPS}",
    "trainer.val_check_interval=200",
    "trainer.limit_val_batches=2",
    "trainer.num_sanity_val_steps=0",
    "trainer.enable_progress_bar=false",
    "data.train_ds.batch_size=1",
]
SHORT_ANSWERS = {
    "codec_lm": ["model.generation.seconds=0.2"],
    "audiolm": ["model.generation.max_seconds=0.2"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_of_long_runs(
    family: str,
    family_job: Callable[..., list[str]],
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    job = family_job(family, tmp_path / "logs", *LONG, *SHORT_ANSWERS.get(family, []))
    meter = MemoryMeter(tmp_path / "memory", every=STEPS // 10, generations=GENERATIONS)
    command = xlm(job, observe=lambda: add_callback(meter))
    ended = run_forked(command, log=tmp_path / "output", timeout=1200)
    assert ended.code == 0, ended.output[-3000:]
    rows = [line.split() for line in (tmp_path / "memory").read_text().splitlines()]
    growth = {}
    for kind in ("steps", "generations"):
        first, *others = (int(size) for name, _, size in rows if name == kind)
        assert len(others) == 9
        growth[kind] = max(others) / first - 1
    assert max(growth.values()) < MOST_GROWTH, rows
    values = " and ".join(f"{max(value, 0):.1%}" for value in growth.values())
    survival("M1", tried=2, detail=f"{family} {values}")
