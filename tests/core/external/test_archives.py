"""An archive of an external model needs that model, and may name nothing but its own classes."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures.plugins import register, write
from omegaconf import OmegaConf

from whalesong.core import instantiate
from whalesong.core.archive import open_archive, write_archive
from whalesong.core.archived_model import load
from whalesong.core.errors import ArchiveError, ModelNotFoundError
from whalesong.core.external import activate_for
from whalesong.textlm.textlm_model import TextLMModel

PARTS = "from whalesong.models.arlm.model import ArlmModel\nclass Model(ArlmModel): pass\n"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, text_config: Callable[..., dict]) -> Path:
    """The archive of an untrained model whose network is a class of the model `kept`.

    The model is in the folder `home` beside the archive; a folder `away` knows nothing of it.
    """
    folder = tmp_path_factory.mktemp("archives")
    root = folder / "home" / "kept"
    write(root / "kept" / "__init__.py", "")
    write(root / "kept" / "parts.py", f"{PARTS}class Other(ArlmModel): pass\n")
    write(root / "configs" / "model" / "kept.yaml", "_target_: kept.parts.Model\n")
    register(folder / "home", {"kept": "kept"})
    (folder / "away").mkdir()
    config = text_config("arlm")
    config["network"]["_target_"] = "kept.parts.Model"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "home")
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(instantiate, "_REGISTERED", set(instantiate._REGISTERED))
        TextLMModel(OmegaConf.create(config)).save_to(folder / "x.nemo")
    return folder / "x.nemo"


def renamed(archive: Path, target: str) -> Path:
    """The same archive with another class for its network, in the working directory."""
    path = Path.cwd() / f"{target}.nemo"
    with open_archive(archive) as source:
        config = source.config
        config["network"]["_target_"] = target
        files = {name: source.read_file(name) for name in source.files}
        write_archive(path, config=config, tensors=source.tensors(), files=files)
    return path


def test_archive_is_restored_where_its_model_is_known(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(archive.parent / "away")
    monkeypatch.setenv("XLM_MODELS_PATH", str(archive.parent / "home"))
    model = load(archive)
    assert type(model.parts.model).__module__ == "kept.parts"
    restored = TextLMModel.restore_from(archive)
    ids = torch.tensor([[4, 7, 8]])
    assert torch.equal(model.parts.model(ids), restored.parts.model(ids))


def test_archive_whose_model_is_unknown_names_it(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(archive.parent / "away")
    path = renamed(archive, "my_awesome_model.parts.Model")
    for restore in (load, TextLMModel.restore_from):
        with pytest.raises(ModelNotFoundError) as caught:
            restore(path)
        assert str(caught.value).startswith(f"{path}: No module named 'my_awesome_model', ")
        assert "XLM_MODELS_PATH" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["kept.parts.Other", "os.system", "pathlib.Path"])
def test_archive_may_name_only_classes_of_the_yaml(
    archive: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.chdir(archive.parent / "home")
    activate_for({"x": {"_target_": "kept.parts.Model"}})
    path = renamed(archive, target)
    for restore in (load, TextLMModel.restore_from):
        with pytest.raises(ArchiveError, match=f"'{target}' is not an allowed class"):
            restore(path)
