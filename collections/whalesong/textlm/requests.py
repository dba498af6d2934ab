"""What `job_type=predict` asks a text model for, as examples of its prediction collator."""

from whalesong.core.config.job import PredictConfig
from whalesong.core.errors import ConfigError
from whalesong.textlm.collation import TextCollator, TokenExample


def requested_examples(request: PredictConfig, collator: TextCollator) -> list[TokenExample]:
    """The examples of a request: prompts, texts with gaps, or nothing to begin with.

    Raises:
        ConfigError: the model has no collator for generation, or several kinds are asked for.
    """
    if collator.predict is None:
        raise ConfigError(
            "`model.collators.prediction` is mandatory for generation, but this model was trained "
            "without one."
        )
    kinds = {
        "prompts": request.prompts,
        "infill": request.infill,
        "num_samples": request.num_samples,
    }
    given = [f"`predict.{key}`" for key, value in kinds.items() if value]
    if len(given) != 1:
        raise ConfigError(
            "a text model needs one of `predict.prompts`, `predict.infill` and "
            f"`predict.num_samples`, but has {' and '.join(given) or 'none'}."
        )
    examples: list[TokenExample] = [
        {"id": f"prompt-{index}", "prompt_ids": collator.encoded(text)}
        for index, text in enumerate(request.prompts)
    ]
    examples += [
        {"id": f"infill-{index}", "partial_ids": collator.encoded(text)}
        for index, text in enumerate(request.infill)
    ]
    return examples + [{"id": f"sample-{index}"} for index in range(request.num_samples)]
