"""The one idea: a language model is a Model, a LossFunction, a Predictor and a Collator.

Every family, built in or external, gives these four; `LanguageModelPT` runs them. The parts of one
family know each other and nobody else's; none of them knows the trainer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

Batch = dict[str, Any]
"""What a collator gives and the other parts take: tensors, and strings that stay on the CPU."""

T_in = TypeVar("T_in", contravariant=True)
"""The batch of a family."""
T_out = TypeVar("T_out", covariant=True)
"""What a loss function returns."""
T_out_pred = TypeVar("T_out_pred")
"""What a predictor returns."""


@runtime_checkable
class LossFunction(Protocol, Generic[T_in, T_out]):
    """Computes the loss of a batch in training, validation and test.

    A text model's loss that does not take them gets the attributes `model`, the network, and
    `tokenizer`.
    """

    def loss_fn(self, batch: T_in) -> T_out:
        """Return a dictionary with "loss", the mean over the targets of this batch.

        With "num_targets" beside it (a 0-d tensor) the mean is taken over all ranks and
        accumulation steps; without it every batch weighs the same. "num_correct" is counted as
        token accuracy; "sums", a dictionary of tensors, is what `Parts.loss_metrics` count;
        "parts", a dictionary of tensors, is logged in training under its names.
        """
        ...

    def configure(self, pl_module: nn.Module) -> None:
        """Called once before training, for buffers on the device or `torch.compile`.

        A part that needs neither may leave it out.
        """
        ...


@runtime_checkable
class Predictor(Protocol, Generic[T_in, T_out_pred]):
    """Generates from a batch.

    A text model's predictor that does not take them gets the attributes `model`, `tokenizer` and
    `noise_schedule`, which is None for a model without one.
    """

    def predict(self, batch: T_in, **generation: Any) -> T_out_pred:
        """Run the model until it stops and return a dictionary with at least "text" or "ids"."""
        ...

    def to_dict(self, batch: T_in, preds: T_out_pred) -> list[dict[str, Any]]:
        """One plain dictionary for each example of the batch, ready for a JSON line."""
        ...


@runtime_checkable
class Collator(Protocol):
    """Prepares batches: pads what the examples hold. Runs in the workers of the loader.

    A text model's collators get `{"id", "input_ids"}`, plain token ids, and with a prompt
    "prompt_ids" beside them; to generate from, "partial_ids" may stand in place of "input_ids".
    """

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad examples into one batch; no examples at all give a batch without targets."""
        ...


@runtime_checkable
class ExampleCollator(Protocol):
    """A collator that reads examples itself; what loaders take."""

    def load(self, example: Any) -> Any:
        """Read what one example points to; a `DataError` here concerns this example only."""
        ...

    def __call__(self, examples: Sequence[Any]) -> Batch:
        """Pad loaded examples into one batch; no examples at all give a batch without targets."""
        ...


@runtime_checkable
class NoiseSchedule(Protocol):
    """How noisy a text is at each moment of a diffusion, between 0, clean, and 1, all masked.

    A token is masked at time t with the probability `1 - exp(-total_noise(t))`.
    """

    min_time: float
    """The earliest time that is trained on, and at which generation ends."""

    def total_noise(self, t: Tensor) -> Tensor:
        """The noise so far, sigma(t); any shape."""
        ...

    def noise_rate(self, t: Tensor) -> Tensor:
        """How fast it grows, the derivative of `total_noise`."""
        ...


class Metric(Protocol):
    """Counts over rows of `Predictor.to_dict`, summed over ranks before it divides."""

    def update(self, rows: list[dict[str, Any]]) -> None:
        """Add the counts of these rows."""
        ...

    def totals(self) -> list[float]:
        """The counts so far; sums over ranks are taken elementwise."""
        ...

    def compute(self, totals: list[float]) -> dict[str, float]:
        """Named values from summed counts."""
        ...

    def reset(self) -> None:
        """Forget all counts."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found on one test set."""

    summary: str
    """The outcome in one line."""
    rows: list[dict[str, Any]]
    """Plain dictionaries, ready for JSON lines."""


@dataclass
class Parts:
    """The four parts of a family, how batches are loaded, and metrics of generated rows."""

    model: nn.Module
    loss: LossFunction
    predictor: Predictor
    train_collator: ExampleCollator
    validation_collator: ExampleCollator
    make_loader: Callable[..., Iterable[Batch]]
    """`(data section, collator, *, path) -> loader`, for NeMo's `setup_training_data`."""
    metrics: dict[str, Metric] = field(default_factory=dict)
    loss_metrics: dict[str, Metric] = field(default_factory=dict)
    """Metrics over the "sums" of the loss, one row for a batch."""
