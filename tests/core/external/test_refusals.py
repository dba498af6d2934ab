"""What is wrong with an external model is told in one line, with an exit code and a next step."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.plugins import register, write, write_model

from whalesong.cli import main

Refused = Callable[..., str]
CHOSEN = ("job_type=train", "experiment=star_easy_my_model")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The working directory, with one sound external model."""
    write_model(tmp_path / "my_model", "my_model")
    register(tmp_path, {"my_model": "my_model"})
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run `xlm` with arguments that it refuses with an exit code; gives what it says."""

    def run(*arguments: str, code: int = 2) -> str:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == code
        return capsys.readouterr().err

    return run


def commands(place: Path, model: str, text: str) -> Path:
    return write(place / model / "configs" / "commands.yaml", text)


def test_model_without_init(place: Path, refused: Refused) -> None:
    (place / "my_model" / "my_model" / "__init__.py").unlink()
    text = refused("job_type=train", "model=my_model", "model_type=my_model", code=3)
    assert text.startswith("Error: No module named 'my_model'\n")
    assert f"{place / 'my_model' / 'my_model'} has no __init__.py" in text


def test_folder_that_is_gone(place: Path, refused: Refused) -> None:
    register(place, {"my_model": "gone"})
    text = refused(*CHOSEN, code=3)
    assert text.startswith("Error: No module named 'my_model'\n")
    assert f"the folder {place / 'gone'} does not exist" in text


def test_model_without_configs_is_found_but_cannot_be_used(place: Path, refused: Refused) -> None:
    (place / "my_model" / "configs").rename(place / "my_model" / "config")
    text = refused(*CHOSEN, code=3)
    assert text.startswith("Error: The model 'my_model' cannot be used\n")
    assert f"{place / 'my_model'} has no folder configs" in text


def test_near_names_of_a_wrong_experiment(place: Path, refused: Refused) -> None:
    text = refused("job_type=train", "experiment=star_easy_my_modle")
    found = "Could not find 'experiment/star_easy_my_modle'; did you mean `star_easy_my_model`?"
    assert text.startswith(f"hydra.errors.ConfigCompositionException: {found}")


def test_missing_file_of_an_experiment(place: Path, refused: Refused) -> None:
    (place / "my_model" / "configs" / "model_type" / "my_model.yaml").unlink()
    assert "Could not find 'model_type/my_model'" in refused(*CHOSEN)


def test_wrong_yaml_names_file_and_line(place: Path, refused: Refused) -> None:
    file = write(place / "my_model" / "configs" / "model_type" / "my_model.yaml", "a: 1\nb: [1\n")
    assert f"{file}, line 3, is not valid YAML" in refused(*CHOSEN)


def test_syntax_error_is_found_without_importing_it(place: Path, refused: Refused) -> None:
    file = write(place / "my_model" / "my_model" / "model_my_model.py", "x = 1\nclass Model(\n")
    text = refused(*CHOSEN)
    assert text.startswith("Error: Unable to find or instantiate my_model.model_my_model.")
    assert ": SyntaxError: " in text and f"({file}, line 2)" in text


def test_installed_model_that_nobody_registered(
    place: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = place / "site"
    write_model(site / "quiet_model", "quiet_model", flat=True)
    monkeypatch.syspath_prepend(str(site))
    target = "model._target_=quiet_model.model_quiet_model.Model"
    text = refused(*CHOSEN, target, code=3)
    assert text.startswith("Error: No module named 'quiet_model' among the registered models\n")
    assert "Next: export XLM_MODELS_PACKAGES=quiet_model\n" in text


def test_job_types_are_named_when_one_is_wrong(place: Path, refused: Refused) -> None:
    commands(place, "my_model", "report: my_model.model_my_model.report\n")
    assert refused("job_type=reprot") == (
        "Error: `job_type` must be one of train, eval, predict, generate, prepare_data, list,"
        " inspect, report, but is 'reprot' instead; did you mean `report`?\n"
    )


def test_command_of_two_models_is_refused_when_it_is_used(
    place: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(place / "second", "second")
    register(place, {"my_model": "my_model", "second": "second"})
    first = commands(place, "my_model", "report: my_model.model_my_model.report\n")
    function = "second.model_second.report"
    other = commands(place, "second", f"report: {function}\nmine: {function}\n")
    text = refused("job_type=report")
    assert text.startswith("Error: The command `report` stands in two places; rename one:\n")
    assert str(first) in text and str(other) in text
    main(["job_type=mine"])
    assert capsys.readouterr().out == "report of mine None\n"


def test_command_called_like_a_built_in_job_type_is_refused_in_use(
    place: Path, refused: Refused
) -> None:
    file = commands(place, "my_model", "train: my_model.model_my_model.report\n")
    message = f"Error: {file}: the command `train` has the name of a built-in job type; rename it."
    assert refused(*CHOSEN) == f"{message}\n"
    assert "my_model" not in refused("job_type=train", "experiment=salm_demo", "model.lora.rr=3")


def test_missing_function_of_a_command(place: Path, refused: Refused) -> None:
    file = commands(place, "my_model", "report: my_model.model_my_model.reprot\n")
    text = refused("job_type=report")
    assert "Unable to find or instantiate my_model.model_my_model.reprot: ImportError" in text
    assert "did you mean `report`?" in text and str(file) in text


def test_command_that_is_no_function(place: Path, refused: Refused) -> None:
    write(place / "my_model" / "my_model" / "more.py", "report = 3\n")
    file = commands(place, "my_model", "report: my_model.more.report\n")
    message = f"Error: {file}: `my_model.more.report` is no function.\n"
    assert refused("job_type=report") == message


def test_model_that_no_json_names(place: Path, refused: Refused) -> None:
    write_model(place / "other", "other")
    text = refused("job_type=train", "model=other", "model_type=other")
    assert "Could not find 'model/other'" in text
    assert f"{place / 'other'} looks like a model, but no xlm_models.json names it." in text


def test_broken_file_of_commands_is_told_with_an_unknown_job_type(
    place: Path, refused: Refused
) -> None:
    file = commands(place, "my_model", "report: [\n")
    assert f"{file}, line 2, is not valid YAML: " in refused("job_type=report")
