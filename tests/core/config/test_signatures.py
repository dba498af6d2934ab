"""Arguments in YAML are checked against the source of a class, without importing it."""

import inspect
import subprocess
import sys

import pytest

from whalesong.core.config.signatures import arguments_schema, check_arguments
from whalesong.core.errors import ConfigError
from whalesong.core.instantiate import import_target
from whalesong.core.targets import DEFAULT_TARGETS

ADAMW = "torch.optim.AdamW"
COSINE = "nemo.core.optim.lr_scheduler.CosineAnnealing"
IDENTITY = "nemo.collections.speechlm2.modules.perception.IdentityConnector"
ILM = "whalesong.models.ilm.model.IlmModel"


def refusal(target: str, **arguments: object) -> str:
    with pytest.raises(ConfigError) as caught:
        check_arguments({"part": {"_target_": target, **arguments}}, path="model")
    return str(caught.value)


@pytest.mark.parametrize(
    "target", sorted(t for t in DEFAULT_TARGETS if t.startswith(("whalesong.", "torch.")))
)
def test_what_is_read_is_what_python_says(target: str) -> None:
    schema = arguments_schema(target)
    if schema is None:  # the allow-list names every kind of collator of every text model
        with pytest.raises(ConfigError, match="Unable to find"):
            import_target(target)
        return
    names = set(inspect.signature(import_target(target)).parameters) - {"params", "optimizer"}
    assert set(schema.model_fields) - {"no_decay"} == names


def test_nothing_is_imported() -> None:
    code = (
        "import sys; from whalesong.core.config.signatures import arguments_schema as read; "
        f"assert all(map(read, {[ADAMW, COSINE, ILM]!r})); "
        "assert not {'torch', 'nemo', 'lightning'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_arguments_of_base_classes_count() -> None:
    fields = arguments_schema(COSINE).model_fields
    assert {"warmup_steps", "warmup_ratio", "min_lr", "max_steps"} <= set(fields)
    section = {"_target_": COSINE, "warmup_steps": 5, "max_steps": None, "min_lr": 0}
    check_arguments({"lr_scheduler": section}, path="model")


def test_unknown_argument_has_its_path_and_the_near_one() -> None:
    assert refusal(ADAMW, lrr=1e-3) == (
        "`model.part.lrr` (0.001) is not a known key; did you mean `lr`?"
    )
    assert "did you mean `warmup_steps`?" in refusal(COSINE, warmup_stepss=5)
    assert "did you mean `d_model`?" in refusal(ILM, d_modle=5)


def test_arguments_that_a_class_would_ignore_are_unknown() -> None:
    check_arguments({"part": {"_target_": IDENTITY, "d_model": None}}, path="model")
    assert "`model.part.dropout` (0.1) is not a known key" in refusal(IDENTITY, dropout=0.1)


@pytest.mark.parametrize(
    "target, key, value, rule",
    [
        (ADAMW, "lr", "fast", "must be a number, but is 'fast' instead"),
        (ADAMW, "lr", -1, "must be greater than 0"),
        (ADAMW, "weight_decay", None, "must be a number, but is null instead"),
        (ADAMW, "weight_decay", float("nan"), "must be a finite number"),
        (COSINE, "warmup_steps", "x", "must be an integer or null"),
        (COSINE, "warmup_ratio", 2, "must be less than or equal to 1"),
        (ILM, "d_model", 0, "must be greater than 0"),
        (ILM, "num_layers", 10**30, "must be less than or equal to 4096"),
        (ILM, "dropout", 2, "must be less than 1"),
        (ILM, "activation", "gleu", "did you mean `gelu`?"),
        (ILM, "final_norm", 1, "must be true or false"),
    ],
)
def test_wrong_value_is_refused(target: str, key: str, value: object, rule: str) -> None:
    message = refusal(target, **{key: value})
    assert message.startswith(f"`model.part.{key}` ") and rule in message


def test_members_of_lists_have_their_place() -> None:
    message = refusal(ADAMW, betas=[0.9, 1.5])
    assert message.startswith("`model.part.betas[1]` must be less than 1")


def test_sections_in_lists_and_below_are_found() -> None:
    content = {"items": [{"inner": {"_target_": ADAMW, "lr": "x"}}]}
    with pytest.raises(ConfigError, match=r"`data.items\[0\].inner.lr`"):
        check_arguments(content, path="data")


def test_what_stands_beside_the_arguments_of_an_item_is_no_argument() -> None:
    item = {"_target_": "whalesong.corpora.star_graphs.StarGraphs", "type": "generated"}
    check_arguments({"input_cfg": [item]}, path="data", item_keys=("type", "weight"))
    with pytest.raises(ConfigError, match="sizze"):
        check_arguments({"input_cfg": [{**item, "sizze": 1}]}, path="data", item_keys=("type",))


def test_class_without_source_is_left_to_its_import() -> None:
    assert arguments_schema("no_such_package.module.Class") is None
    check_arguments({"_target_": "no_such_package.module.Class", "a": 1}, path="model")
