"""`job_type=prepare_data`: look at the data of a text model before training, and write them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf

from whalesong.core.atomic import atomic_folder
from whalesong.core.config.job import JobConfig
from whalesong.core.errors import ConfigError
from whalesong.core.external.activation import activate_for
from whalesong.core.schema import validate
from whalesong.data.config import DataConfig, DatasetConfig
from whalesong.textlm.assemble import assembled

if TYPE_CHECKING:
    from whalesong.textlm.collation import TextCollator
    from whalesong.textlm.survey import Survey

SIZES = ("block_size", "input_block_size")
"""What bounds the length of an example."""


def prepare(cfg: DictConfig, job: JobConfig, *, name: str | None = None) -> Path:
    """Read every set of a job, tell what is in it, and write it as JSON lines.

    Examples that training would refuse are counted and left out. Nothing is overwritten.

    Args:
        cfg: a composed job of a text model.
        job: its checked top level; `prepare_data.output_dir` is the folder.
        name: of the data module; the folder is called so inside `data/` if none is given.

    Returns:
        The folder.

    Raises:
        ConfigError: the job is of another family, or something in it is wrong.
        DataError: the folder is not empty, a set cannot be read, or nothing of it can be used.
    """
    if not cfg.get("model_type"):
        raise ConfigError(
            "`job_type=prepare_data` is for text models; choose one with experiment=NAME, or with "
            "model=NAME model_type=NAME."
        )
    cfg = assembled(cfg)
    activate_for(cfg)
    data = validate(DataConfig, cfg.data, path="data")
    folder = Path(job.prepare_data.output_dir or Path("data") / (name or "prepared"))
    from whalesong.data.plan import make_plan
    from whalesong.textlm.survey import draw_lengths, survey_of

    with atomic_folder(folder) as partial:
        collator = _collator(cfg.model)
        sets = named_sets(data)
        if not sets:
            raise ConfigError("`datamodule` has no `train_ds`, `validation_ds` or `test_ds`.")
        surveys = []
        for name, (path, section) in sets.items():
            measure = collator.measure_tokens
            plan = make_plan(section, path=path, on_bad_cut="skip", measure_tokens=measure)
            surveys.append(survey_of(plan, collator, partial / f"{name}.jsonl"))
        figures = {survey.name: survey.figures() for survey in surveys}
        (partial / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
        sizes = {key: cfg.model.get(key, 0) for key in SIZES}
        draw_lengths(surveys, sizes, partial / "lengths.png")
        _draw_example(data, partial / "example.png")
        names = sorted(path.name for path in partial.iterdir())
    _report(surveys, sizes, folder, names)
    return folder


def named_sets(data: DataConfig) -> dict[str, tuple[str, DatasetConfig]]:
    """Every set of a `data` section: name -> its place in the YAML and its configuration."""
    sets = {} if data.train_ds is None else {"train": ("data.train_ds", data.train_ds)}
    for section in ("validation_ds", "test_ds"):
        config = getattr(data, section)
        found = {} if config is None else config.named_sets(path=f"data.{section}")
        kind = section.removesuffix("_ds")
        for name, dataset in found.items():
            path = f"data.{section}.datasets.{name}" if config.datasets else f"data.{section}"
            sets[f"{kind}-{name}" if config.datasets else kind] = (path, dataset)
    return sets


def _collator(model: DictConfig) -> "TextCollator":
    """The tokenizer and the collator that training would have."""
    from whalesong.textlm.building import PartBuilder
    from whalesong.textlm.collation import TextCollator
    from whalesong.textlm.config import TokenizerConfig
    from whalesong.textlm.tokenizers import build_tokenizer

    section = OmegaConf.to_container(model)
    config = validate(TokenizerConfig, section["tokenizer"], path="datamodule.tokenizer")
    tokenizer = build_tokenizer(config)
    build = PartBuilder(tokenizer, **{key: section.get(key, 0) for key in SIZES})
    build.noise_schedule(section.get("noise_schedule"))
    return TextCollator(tokenizer, build.collator(section["collators"]["train"]))


def _draw_example(data: DataConfig, path: Path) -> None:
    """Draw the first training example, if its data set can `draw(index, axes)`."""
    from whalesong.data.generated_source import build_dataset
    from whalesong.data.input_schema import GeneratedItem

    items = data.train_ds.input_cfg if data.train_ds is not None else None
    generated = [item for item in items or () if isinstance(item, GeneratedItem)]
    if not generated:
        return
    dataset = build_dataset(generated[0], path="data.train_ds.input_cfg")
    if not hasattr(dataset, "draw"):
        return
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 5))
    dataset.draw(0, axes)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _report(
    surveys: "Sequence[Survey]", sizes: dict[str, int], folder: Path, names: list[str]
) -> None:
    """Print what was found, and how to train on it."""
    print(f"\n{'set':16}{'examples':>10}{'refused':>9}   tokens (min, median, p99, max)")
    for survey in surveys:
        figures = survey.figures()
        tokens = "; ".join(
            f"{name} {', '.join(map(str, spread.values()))}"
            for name, spread in figures["tokens"].items()
        )
        print(f"{survey.name:16}{figures['examples']:10}{figures['refused']:9}   {tokens}")
        for reason in survey.reasons:
            print(f"    refused: {reason}")
    limits = " and ".join(f"`{key}` {size}" for key, size in sizes.items() if size)
    print(f"Special tokens come on top; {limits} hold both.")
    for row in surveys[0].shown:
        print(f"\n{row.pop('id')}")
        for key, value in row.items():
            print(f"    {key:10} {str(value)[:200]}")
    print(f"\nWrote {folder}: {', '.join(names)}")
    print("To train on these files:")
    print(yaml.safe_dump({"datamodule": _sections(surveys, folder)}, sort_keys=False).rstrip())


def _sections(surveys: "Sequence[Survey]", folder: Path) -> dict[str, Any]:
    """The data sets of a data module that reads the written files."""
    sections: dict[str, Any] = {}
    for survey in surveys:
        inputs = {"input_cfg": [survey.item(folder)]}
        kind, _, name = survey.name.partition("-")
        section = sections.setdefault(f"{kind}_ds", {})
        if name:
            section.setdefault("datasets", {})[name] = inputs
        else:
            section |= inputs
    return sections
