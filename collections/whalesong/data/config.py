"""Schemas of the `data` section: datasets, validation sets, and what the families share.

The names and meanings are NeMo's (its lhotse data loading); what we do not support is refused
by name instead of being ignored.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from whalesong.core.schema import Schema, validate
from whalesong.data.input_schema import INPUT_KEYS, Item, Paths

UNSUPPORTED = {
    "concurrent_bucketing": "batches are planned without threads; leave it out",
    "max_open_streams": "files are opened one shard at a time; leave it out",
    "slice_length": "shards are read whole; leave it out",
    "metadata_only": "a plan always reads metadata only; leave it out",
    "force_map_dataset": "there is one way of loading; leave it out",
    "force_iterable_dataset": "there is one way of loading; leave it out",
    "bucketing_2d_strict_mode": "buckets are one-dimensional; leave it out",
    "pretokenize": "lengths in tokens are measured where they are needed; leave it out",
    "tarred_random_access": "use `skip_missing_manifest_entries`",
    "sampler_fusion": "use `input_cfg` groups with weights",
    "sampler_weights": "use `input_cfg` groups with weights",
    "multi_config": "use `input_cfg` groups with weights",
    "noise_path": "noise mixing is not supported yet",
    "rir_enabled": "reverberation is not supported yet",
    "perturb_speed": "speed perturbation is not supported yet; write the copies into the corpus",
    "concatenate_samples": "concatenation is not supported yet",
    "truncate_duration": "truncation is not supported yet",
    "cut_into_windows_duration": "windows are not supported yet",
    "cut_text_into_windows_tokens": "windows are not supported yet",
    "pad_min_duration": "padding to a least duration is not supported yet",
    "lowpass_enabled": "low-pass augmentation is not supported yet",
    "compression_enabled": "compression augmentation is not supported yet",
    "clipping_enabled": "clipping augmentation is not supported yet",
}
"""Keys of NeMo's loader that are refused by name, with what to do instead."""


class DatasetConfig(Schema):
    """One dataset: where its examples are, which are kept, and how they become batches."""

    input_cfg: list[Item] | str | None = None
    """What to read: a list of items, or a YAML file that lists them."""
    shar_path: str | list[Any] | dict[str, Any] | None = None
    """Short form of `input_cfg` with one `lhotse_shar` item."""
    cuts_path: str | None = None
    """Short form of `input_cfg` with one `lhotse` item."""
    manifest_filepath: Paths | None = None
    """Short form of `input_cfg` with one `nemo` or `nemo_tarred` item."""
    tarred_audio_filepaths: Paths | None = None
    """Tar files of `manifest_filepath`."""
    reweight_temperature: float | list[float] | None = None
    """Weights are raised to this power: 1 keeps them, 0 makes them equal; a list has one value
    for each level of nesting."""

    sample_rate: int = Field(16000, gt=0)
    """Rate in Hz that audio is delivered at."""
    channel_selector: int | Literal["average"] | None = None
    """Channel to take of audio with several, or their mean; several are an error without it."""
    text_field: str = "text"
    """Key of the transcript in manifests."""
    lang_field: str = "lang"
    """Key of the language in manifests."""
    audio_locator_tag: str | None = None
    """The text that stands for audio; handed down to `input_cfg`."""
    prompt_format: str | None = None
    """Prompt format of the text, when it is not the model's own."""
    token_equivalent_duration: float | None = Field(None, gt=0)
    """Seconds of audio that count as one token."""

    batch_size: int | None = Field(None, gt=0)
    """Most examples in a batch."""
    batch_duration: float | None = Field(None, gt=0)
    """Most seconds of padded audio in a batch: examples times the longest."""
    quadratic_duration: float | None = Field(None, gt=0)
    """An example of this length in seconds counts twice, a longer one more (d + d^2 / this)."""
    batch_tokens: int | None = Field(None, gt=0)
    """Most padded tokens in a batch: examples times the longest."""
    quadratic_factor: float | None = Field(None, gt=0)
    """As `quadratic_duration`, for `batch_tokens`."""
    use_multimodal_sampling: bool = False
    """Lengths are measured in tokens; implied by `batch_tokens`."""
    measure_total_length: Literal[True] = True
    """Tokens of prompt and answer count; those of the prompt alone are not supported."""
    use_bucketing: bool = False
    """Examples of about the same length share a batch."""
    num_buckets: int = Field(30, gt=0)
    """Number of buckets when `bucket_duration_bins` is not given."""
    bucket_duration_bins: list[float] | None = None
    """Upper bounds of the buckets in seconds (in tokens with `batch_tokens`); one more bucket
    takes what is longer."""
    bucket_batch_size: list[int] | None = None
    """Examples in a batch, for each bucket."""
    num_cuts_for_bins_estimate: int = Field(10000, gt=0)
    """Examples whose lengths set the bins when `bucket_duration_bins` is not given."""
    bucket_buffer_size: int = Field(2000, gt=0)
    """Examples (metadata only) in the shuffle buffer when bucketing."""
    shuffle_buffer_size: int = Field(2000, gt=0)
    """Examples (metadata only) in the shuffle buffer."""
    shuffle: bool | None = None
    """Whether the order is random; true for training and false for validation when not given."""
    drop_last: bool = False
    """Leave out batches that are not full at the end of an epoch."""

    min_duration: float | None = None
    """Shorter audio is left out; seconds."""
    max_duration: float | None = None
    """Longer audio is left out; seconds."""
    min_tokens: int | None = None
    """Shorter examples are left out; tokens."""
    max_tokens: int | None = None
    """Longer examples are left out; tokens."""
    min_tps: float | None = None
    """Examples with fewer tokens a second are left out."""
    max_tps: float | None = None
    """Examples with more tokens a second are left out."""
    max_cer: float | None = None
    """Cuts whose `cer` is greater are left out."""
    min_context_speaker_similarity: float | None = None
    """Cuts whose `context_speaker_similarity` is smaller are left out."""
    keep: str = "pass"
    """Cuts whose `validation_status` is something else are left out."""

    seed: int = Field(0, ge=0)
    """Seed of the order and of every random choice in loading."""
    shard_seed: int | Literal["randomized", "trng"] = "randomized"
    """Seed of the order alone: `randomized` follows `seed`; `trng` is another order in every run
    and cannot be resumed exactly."""
    num_workers: int = Field(0, ge=0, le=1024)
    """Worker processes; the data are the same whatever it is."""
    worker_timeout: float = Field(25.0, ge=0)
    """Seconds without a batch after which workers count as hanging; 0 waits for ever."""
    pin_memory: bool = False
    """Copy batches into pinned memory."""
    force_finite: bool = False
    """Training ends after each pass over the data instead of repeating it."""
    skip_missing_manifest_entries: bool = False
    """Members of a tar file that no manifest line names are left out instead of refused."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        for key in UNSUPPORTED.keys() & (data.keys() if isinstance(data, dict) else ()):
            if data[key] not in (None, False):
                raise ValueError(f"has `{key}`, which is not supported: {UNSUPPORTED[key]}")
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if key not in UNSUPPORTED}
        return data

    @model_validator(mode="after")
    def _check(self) -> "DatasetConfig":
        for low, high in (("duration", "duration"), ("tokens", "tokens"), ("tps", "tps")):
            least, most = getattr(self, f"min_{low}"), getattr(self, f"max_{high}")
            if least is not None and most is not None and least > most:
                raise ValueError(f"has a `min_{low}` of {least} above its `max_{high}` of {most}")
        self._check_buckets()
        return self

    def _check_buckets(self) -> None:
        bins, sizes = self.bucket_duration_bins, self.bucket_batch_size
        if bins is not None and (not bins or sorted(set(bins)) != bins):
            raise ValueError(f"has `bucket_duration_bins` that do not rise: {bins}")
        if sizes is not None and bins is None:
            raise ValueError("has `bucket_batch_size`, but no `bucket_duration_bins` beside it")
        if sizes is not None and len(sizes) not in (len(bins or ()), len(bins or ()) + 1):
            raise ValueError(
                f"has {len(sizes)} values in `bucket_batch_size`, "
                f"but {len(bins or ())} in `bucket_duration_bins`"
            )

    @property
    def input_keys(self) -> list[str]:
        """The keys that say where the data are, of which exactly one must be given."""
        return [key for key in ("input_cfg", *INPUT_KEYS) if getattr(self, key) is not None]


class ValidationConfig(DatasetConfig):
    """Named validation sets with what they have in common."""

    datasets: dict[str, DatasetConfig] = Field(default_factory=dict)
    """Name -> keys of a dataset; what a set does not say is taken from beside `datasets`."""

    def named_sets(self, *, path: str) -> dict[str, DatasetConfig]:
        """Complete each named set with the common keys; `path` is where this section stands.

        A section with an input of its own and no `datasets` is one set, "validation" or "test".
        """
        common = self.model_dump(exclude_unset=True, exclude={"datasets"})
        if not self.datasets and self.input_keys:
            name = path.rpartition(".")[2].removesuffix("_ds")
            return {name: validate(DatasetConfig, common, path=path)}
        shared = {key: common[key] for key in common if key not in ("input_cfg", *INPUT_KEYS)}
        sets = {}
        for name, dataset in self.datasets.items():
            base = shared if dataset.input_keys else common
            merged = {**base, **dataset.model_dump(exclude_unset=True)}
            sets[name] = validate(DatasetConfig, merged, path=f"{path}.datasets.{name}")
        return sets


class DataConfig(Schema):
    """The `data` section."""

    train_ds: DatasetConfig | None = None
    """What is trained on."""
    validation_ds: ValidationConfig | None = None
    """What is validated on, once at a time and in order."""
    test_ds: ValidationConfig | None = None
    """What is tested on."""
    on_bad_cut: Literal["raise", "skip"] = "raise"
    """What an unreadable, empty or non-finite example does: stop with one line that names file
    and cut, or be left out, logged and counted."""
    default_context: str | None = None
    """The user's text before the audio of a cut that brings none of its own."""

    frame_length: float = Field(0.08, gt=0)
    """Seconds of one step of a duplex model."""
    source_sample_rate: int = Field(16000, gt=0)
    """Rate in Hz of the user's audio."""
    target_sample_rate: int = Field(22050, gt=0)
    """Rate in Hz of the agent's audio."""
    input_roles: list[str] = ["user", "User"]
    """Speakers whose speech goes in."""
    output_roles: list[str] = ["agent", "Assistant"]
    """Speakers whose speech comes out."""
