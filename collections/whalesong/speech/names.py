"""The parameter names that `freeze_params` may use."""

from collections.abc import Callable

from torch import nn

from whalesong.modules.lora import canonical_name, is_lora


def canonical_names(llm: nn.Module) -> Callable[[str], list[str]]:
    """Real parameter name -> the names that `freeze_params` may use.

    The same with and without LoRA; LoRA's own parameters have none, so they are always trained.
    NeMo keeps the embedding beside the LLM, so `embed_tokens.weight` names it here, too; and the
    encoder is `perception.encoder` also where an adapter reads several of its layers.
    """
    embedding = llm.get_input_embeddings()
    path = next(name for name, module in llm.named_modules() if module is embedding)

    def names_of(name: str) -> list[str]:
        if is_lora(name):
            return []
        canonical = canonical_name(name).replace(".encoder_multilayer.encoder.", ".encoder.")
        inside = canonical.removeprefix(f"llm.{path}.")
        return [canonical] if inside == canonical else [canonical, f"embed_tokens.{inside}"]

    return names_of
