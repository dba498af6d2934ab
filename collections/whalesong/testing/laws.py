"""The laws by their names, in the order in which they are checked."""

from collections.abc import Callable

from whalesong.testing import generation_laws, loss_laws, model_laws, part_laws
from whalesong.testing.subject import Subject

Law = Callable[[Subject], str | None]
"""Raises a `ContractError` where it is broken; gives the reason where it does not apply."""

LAWS: dict[str, Law] = {
    "the parts are complete": part_laws.parts_are_complete,
    "the loss trains": loss_laws.loss_trains,
    "the loss repeats itself": loss_laws.loss_repeats,
    "the loss of a batch is that of its rows": loss_laws.loss_of_singles,
    "padding does not change the loss": loss_laws.loss_ignores_padding,
    "no examples have no targets": part_laws.empty_batch_has_no_targets,
    "prompts hold no truth": part_laws.prompts_hold_no_truth,
    "the future is hidden": model_laws.future_is_hidden,
    "a cache changes nothing": model_laws.cache_changes_nothing,
    "rows are plain": generation_laws.rows_are_plain,
    "tokens are in the vocabulary": generation_laws.tokens_are_in_the_vocabulary,
    "a row is generated as if alone": generation_laws.generation_of_singles,
    "metrics add up": part_laws.metrics_add_up,
    "an archive restores the model": model_laws.archive_restores,
}
