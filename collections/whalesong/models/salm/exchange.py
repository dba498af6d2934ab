"""SALM to and from other formats: a plain Hugging Face folder, a folder of NeMo's own SALM."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from whalesong.core.archive import check_state_keys
from whalesong.core.atomic import atomic_folder
from whalesong.core.errors import ConfigError
from whalesong.models.salm.config import SALMConfig
from whalesong.modules.llm import llm_from_config
from whalesong.modules.lora import canonical_name, is_lora, merged_state_dict
from whalesong.speech.config import PERCEPTION

if TYPE_CHECKING:
    from whalesong.models.salm.salm import SALM

_LOG = logging.getLogger(__name__)


def export_to_hf(model: "SALM", folder: str | Path) -> None:
    """Write the LLM with LoRA merged in as a plain Hugging Face folder.

    `AutoModelForCausalLM.from_pretrained(folder)` and `AutoTokenizer` read it without PEFT and
    without Whalesong. Perception lies beside it in `perception/` as `config.yaml` and
    `model.safetensors`.

    Args:
        model: a SALM.
        folder: must be new or empty.

    Raises:
        DataError: the folder holds something.
    """
    plain = llm_from_config(model.model.llm.config.to_dict(), dtype=model.dtype)
    plain.load_state_dict(merged_state_dict(model.model.llm))
    plain.generation_config = model.model.llm.generation_config
    with atomic_folder(folder) as output:
        plain.save_pretrained(output)
        model.tokenizer.tokenizer.save_pretrained(output)
        perception = output / "perception"
        perception.mkdir()
        OmegaConf.save(model.cfg.perception, perception / "config.yaml", resolve=True)
        state = {name: t.contiguous() for name, t in model.model.perception.state_dict().items()}
        save_file(state, perception / "model.safetensors")


def import_from_nemo(
    cls: "type[SALM]", folder: str | Path, *, pretrained_llm: str | None = None
) -> "SALM":
    """Read a folder that NeMo's `nemo.collections.speechlm2.models.SALM.save_pretrained` wrote.

    NeMo's folder holds no tokenizer and no LLM configuration: they come from `pretrained_llm`.
    Remote code is not run, whatever the folder says.

    Args:
        cls: the SALM class.
        folder: with `config.json` and `model.safetensors`.
        pretrained_llm: where the LLM's tokenizer and configuration are now; default: what the
            folder says.

    Raises:
        ConfigError: a file is missing, or perception is described incompletely.
        ArchiveError: weights are missing, left over or of another shape.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ConfigError(f"the folder '{folder}' must hold '{name}', but does not.")
    model = cls(_section(json.loads((folder / "config.json").read_text()), pretrained_llm))
    state = model.model.state_dict()
    own_name = {name_in_nemo(name): name for name in state}
    given = {
        own_name.get(name_in_nemo(name), name): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    for name, tensor in state.items():  # NeMo stores tied weights once
        twin = own_name.get("embed_tokens.weight")
        if name not in given and twin in given and tensor.data_ptr() == state[twin].data_ptr():
            given[name] = given[twin]
    check_state_keys(state, given, path=folder)
    model.model.load_state_dict(given)
    return model.eval()


def name_in_nemo(name: str) -> str:
    """One name for a weight in NeMo's SALM and in ours: NeMo keeps the embedding beside the LLM."""
    return canonical_name(name).replace("llm.model.embed_tokens.", "embed_tokens.")


def _section(config: dict[str, Any], pretrained_llm: str | None) -> dict[str, Any]:
    """NeMo's configuration as our `model` section, with weights to follow."""
    known = set(SALMConfig.model_fields)
    ignored = sorted(key for key in config if key not in known)
    if ignored:
        _LOG.info(
            "keys of NeMo's configuration that SALM here does not have: %s", ", ".join(ignored)
        )
    section = {key: value for key, value in config.items() if key in known}
    section.pop("target", None)
    section |= {"pretrained_weights": False, "pretrained_asr": None}
    section["pretrained_llm"] = pretrained_llm or section.get("pretrained_llm")
    perception = dict(section.get("perception") or {})
    perception["target"] = PERCEPTION
    section["perception"] = perception
    for pattern_list in ("freeze_params", "prevent_freeze_params"):
        section[pattern_list] = [p for p in section.get(pattern_list) or [] if not is_lora(p)]
    return section
