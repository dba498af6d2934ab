"""A failed restore leaves no trace, and a model is not larger than its weights."""

import logging
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from whalesong.core.archive.expressions import hanging
from whalesong.core.archive.json_member import check_json
from whalesong.core.archive.restoring import bounded_by, check_archived, restoring
from whalesong.core.errors import ArchiveError, CheckpointError, ModelNotFoundError
from whalesong.core.instantiate import allowed_targets, register_target

CONFIG = {
    "target": "whalesong.models.salm.salm.SALM",
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1.0},
    "freeze_params": [r"^llm\..+$"],
}


def test_whatever_fails_is_one_line_and_leaves_no_trace(tmp_path: Path) -> None:
    def state() -> tuple:
        return (
            torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()),
            torch.get_default_dtype(), list(sys.path), os.getcwd(), dict(os.environ),
            logging.getLogger("nemo_logger").level, allowed_targets(),
        )  # fmt: skip

    before = state()
    with pytest.raises(CheckpointError, match=r"^x\.ckpt: .* \(KeyError: 'two lines'\)\.$"):
        with restoring("x.ckpt", error=CheckpointError):
            torch.rand(3), random.random(), np.random.rand()
            torch.set_default_dtype(torch.float64)
            sys.path.insert(0, "evil")
            os.chdir(tmp_path)
            os.environ["EVIL"] = "1"
            logging.getLogger("nemo_logger").setLevel(1)
            register_target("evil.Class")
            raise KeyError("two\nlines".replace("\n", " "))
    assert state() == before


def test_the_archive_is_named_once_and_notes_stay() -> None:
    error = ArchiveError("x.nemo: member: rule.")
    error.add_note("Next: try another")
    with pytest.raises(ArchiveError) as caught:
        with restoring("x.nemo"):
            raise error
    assert str(caught.value) == "x.nemo: member: rule."
    assert caught.value.__notes__ == ["Next: try another"]
    with pytest.raises(ModelNotFoundError, match="^install it$"):
        with restoring("x.nemo"):
            raise ModelNotFoundError("install it")


def test_what_succeeds_stays() -> None:
    torch.manual_seed(0)
    with restoring("x.nemo"):
        first = torch.rand(1)
    assert not torch.equal(first, torch.rand(1))


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(10**6, 10**6),
        lambda: nn.Embedding(10**9, 4),
        lambda: torch.arange(10**9),
        lambda: torch.ones(10**5, 1) * torch.ones(1, 10**5),
        lambda: torch.hann_window(10**9),
        lambda: [nn.Linear(1000, 1000) for _ in range(100)],
        lambda: nn.ModuleList(nn.Linear(1, 1) for _ in range(10**4)),
    ],
)
def test_a_model_much_larger_than_its_weights_is_refused(build) -> None:
    with pytest.raises(ArchiveError, match="much larger than its weights"):
        with bounded_by({"weight": torch.ones(100)}):
            build()


def test_a_model_like_its_weights_is_built() -> None:
    weights = nn.Linear(3000, 3000).state_dict()
    with bounded_by(weights):
        model = nn.Linear(3000, 3000)
        torch.cat([model.weight, torch.full((1, 3000), -1e38)])
    model.load_state_dict(weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {"_target_": "os.system"}}, "`optimizer._target_`: 'os.system' is not an"),
        ({"optimizer": {"_target_": CONFIG["target"]}}, "`optimizer._target_`: .* place"),
        ({"a": [{"_target_": "torch.optim.AdamW"}]}, r"`a\[0\]._target_`: .* for this place"),
        ({"freeze_params": ["(.+)+x"]}, "`freeze_params`: .* repeats a repetition"),
        ({"lora": {"target_modules": "(a|b)*(c*)*"}}, "`lora.target_modules`: .* repeats"),
        ({"preprocessor": {"n_fft": 10**9}}, "`preprocessor.n_fft`: must be at most 65536"),
        ({"network": {"num_layers": 10**9}}, "`network.num_layers`: must be at most 10000"),
        ({"a": "${oc.env:HOME}"}, "a: interpolations"),
    ],
)
def test_hostile_sections(change: dict, message: str) -> None:
    check_archived(CONFIG)
    with pytest.raises(ArchiveError, match=f"model_config.yaml: {message}"):
        check_archived({**CONFIG, **change})


@pytest.mark.parametrize(
    "expression", [r"^llm\..+$", r"^a\.(b|c)\..+$", r"(layers\.\d+\.)x", r".*\.(q|v)_proj$"]
)
def test_usual_expressions_pass(expression: str) -> None:
    assert hanging(expression) is None


@pytest.mark.parametrize(
    "expression",
    ["^(.*)*x$", "(a|a)*b", "(.+)+!", ".*.*.*.*.*.*x", "(a{1,50}){1,50}", "(", "a" * 600],
)
def test_expressions_that_may_hang_do_not_pass(expression: str) -> None:
    assert hanging(expression)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": {"_target_": "os.system"}}', "`_target_`: only model_config.yaml"),
        (b'{"class_path": "os.system"}', "`class_path`: only"),
        (b'{"_args_": []}', "`_args_`: only"),
        (b'{"a": "${oc.env:HOME}"}', "`a`: interpolations"),
        (b'{"num_hidden_layers": 1000000000}', "`num_hidden_layers`: must be at most 10000"),
        (b"[]", "must hold an object"),
    ],
)
def test_hostile_json(content: bytes, message: str) -> None:
    with pytest.raises(ArchiveError, match=f"a.json: {message}"):
        check_json("a.json", content)


def test_a_token_may_have_any_name() -> None:
    check_json("tokenizer.json", b'{"vocab": {"_target_": 1, "cls": 2}, "cls": ["[CLS]", 0]}')
