"""What is tested: a model, a few examples of its data, and the batches that they make."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from whalesong.core.config.compose import packaged_conf
from whalesong.core.errors import ConfigError
from whalesong.core.external import compose_job, discover
from whalesong.core.families import family_of
from whalesong.core.language_model import LanguageModelPT
from whalesong.core.parts import Batch, Collator
from whalesong.core.schema import validate
from whalesong.data.config import DataConfig, DatasetConfig
from whalesong.data.loader import BatchLoader
from whalesong.data.plan import make_plan
from whalesong.data.text_example import TextExample
from whalesong.textlm.assemble import assembled
from whalesong.textlm.textlm_model import TextLMModel

NUM_EXAMPLES = 4
NUM_SPECIAL = 2
"""Special tokens that a family may put into a block."""

_SEED = 7
_STIR = 0.05


@dataclass
class Subject:
    """A model under test.

    Attributes:
        name: what it was asked for by.
        model: what is tested; no law changes its parameters.
        examples: as the collators' `load` takes them.
    """

    name: str
    model: LanguageModelPT
    examples: list[Any]

    @property
    def is_text(self) -> bool:
        """Whether it is a text model, with a tokenizer and token ids."""
        return isinstance(self.model, TextLMModel)

    @property
    def collator(self) -> Collator:
        """That of validation."""
        return self.model.parts.validation_collator

    def loaded(self) -> list[Any]:
        """The examples as the collators take them."""
        return [self.collator.load(example) for example in self.examples]

    def batch(self, loaded: Sequence[Any] | None = None, *, seed: int = _SEED) -> Batch:
        """A validation batch of these examples, or of all; the same for the same seed."""
        torch.manual_seed(seed)
        return self.collator(self.loaded() if loaded is None else loaded)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode; afterwards every part is in its mode again."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def find_subject(name: str | LanguageModelPT, config: Mapping[str, Any] | None) -> Subject:
    """Build a model with its examples, or give a ready one its examples.

    Raises:
        UserError: there is no such model, or its YAML or data are wrong.
    """
    job = None if config is None else _prepared(config)
    if isinstance(name, LanguageModelPT):
        return Subject(type(name).__name__, name, _examples(name, job))
    job = _prepared(_composed(name)) if job is None else job
    if OmegaConf.select(job, "model.target") is None:
        job.model.target = name
    torch.manual_seed(_SEED)
    model = family_of(job.model.target).load_class()(job.model)
    if isinstance(model, TextLMModel):
        _stir(model.model)
    return Subject(name, model, _examples(model, job))


def _prepared(config: Mapping[str, Any]) -> DictConfig:
    """A composed job with the two sections that every family has."""
    cfg = OmegaConf.create(config)
    return assembled(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)))


def _composed(name: str) -> DictConfig:
    """The job `model=NAME model_type=NAME` with the smallest star graphs that there are for it."""
    registry = discover()
    registry.get(name)
    roots = [packaged_conf(), *registry.config_roots()]
    datamodules = [f"star_mini_{name}", f"star_easy_{name}"]
    files = {choice: f"datamodule/{choice}.yaml" for choice in datamodules}
    found = [
        choice for choice, file in files.items() if any((root / file).is_file() for root in roots)
    ]
    if not found:
        raise ConfigError(
            f"`config` is mandatory for {name}, which has no {files[datamodules[-1]]}."
        )
    overrides = ["job_type=train", f"model={name}", f"model_type={name}", f"datamodule={found[0]}"]
    return compose_job("config", overrides=overrides).cfg


def _examples(model: LanguageModelPT, job: DictConfig | None) -> list[Any]:
    """A few examples of the job's data; those of text are cut to different lengths.

    Raises:
        ConfigError: there is no data, and the model is none of text.
    """
    section = None if job is None else _section(validate(DataConfig, job.get("data") or {}))
    if not isinstance(model, TextLMModel):
        if section is None:
            raise ConfigError(
                "`config` must have `data.validation_ds`, from which examples are taken."
            )
        return _first(section)
    collator = model.parts.validation_collator
    examples = _made_up(model) if section is None else _first(section)
    return [_cut(collator.tokenized(example), index) for index, example in enumerate(examples)]


def _section(data: DataConfig) -> DatasetConfig | None:
    """The first validation set, or else what is trained on."""
    if data.validation_ds is None:
        return data.train_ds
    sets = data.validation_ds.named_sets(path="data.validation_ds")
    return next(iter(sets.values()), data.train_ds)


def _first(section: DatasetConfig) -> list[Any]:
    """The first examples of a data set, not yet loaded."""
    plan = make_plan(section, path="data", shuffle=False, measure_tokens=lambda example: 1)
    loader = BatchLoader(plan, _Unloaded(), repeat_first_epoch=True)
    try:
        return list(islice(chain.from_iterable(loader), NUM_EXAMPLES))
    finally:
        loader.close()


class _Unloaded:
    """A collator whose batches are lists of examples as the plan gives them."""

    def load(self, example: Any) -> Any:
        return example

    def __call__(self, examples: Sequence[Any]) -> list[Any]:
        return list(examples)


def _made_up(model: TextLMModel) -> list[TextExample]:
    """Random texts that fill the blocks."""
    special = set(model.tokenizer.all_special_ids)
    tokens = torch.tensor([i for i in range(len(model.tokenizer)) if i not in special])
    target, prompt = model.cfg.block_size - NUM_SPECIAL, model.cfg.input_block_size - NUM_SPECIAL

    def drawn(size: int) -> list[int]:
        return tokens[torch.randint(len(tokens), (size,))].tolist()

    return [
        TextExample(
            f"made-up-{index}",
            input_ids=drawn(max(target, 1)),
            prompt_ids=drawn(prompt) if prompt > 0 else None,
        )
        for index in range(NUM_EXAMPLES)
    ]


def _cut(tokens: Mapping[str, Any], index: int) -> TextExample:
    """An example without the last `index` tokens of its text, and twice as many of its prompt."""
    ids, prompt = tokens["input_ids"], tokens.get("prompt_ids")
    return TextExample(
        tokens["id"],
        input_ids=ids[: max(len(ids) - index, 1)],
        prompt_ids=None if prompt is None else prompt[: max(len(prompt) - 2 * index, 1)],
    )


@torch.no_grad()
def _stir(model: nn.Module) -> None:
    """Move all parameters: what starts as zero, such as an output layer, would hide faults."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=_STIR)
