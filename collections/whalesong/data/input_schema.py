"""Schemas of the items of `input_cfg`: one class for each data type, with NeMo's type names.

Light on purpose (pydantic only): a configuration is checked before anything heavy is imported.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from whalesong.core.schema import Schema

Paths = str | list[Any]
"""A path, a list of paths, NeMo's sharded form `audio__OP_0..127_CL_.tar`, or brace lists."""


class InputItem(Schema):
    """Keys that every item of `input_cfg` takes."""

    weight: float | None = Field(None, gt=0)
    """How often examples are drawn from here, relative to the other items of the same list.
    With weights the items repeat; without, every example is seen exactly once an epoch."""
    tags: dict[str, Any] | None = None
    """Attributes put on every example, for example `context`, `system_prompt`, `task`, `lang`."""
    audio_locator_tag: str | None = None
    """The text that stands for audio in a conversation; the model's own tag when not given."""
    token_equivalent_duration: float | None = Field(None, gt=0)
    """Seconds of audio that count as one token when lengths are measured in tokens."""
    text_field: str | None = None
    """Key of the transcript in a manifest; "text" when not given."""
    lang_field: str | None = None
    """Key of the language in a manifest; "lang" when not given."""


class CutsInput(InputItem):
    """Keys that say where cuts are read from; exactly one of them is given."""

    shar_path: str | list[Any] | dict[str, Any] | None = None
    """Lhotse shar: a folder, a list of folders (or of [folder, weight]), or field -> paths."""
    cuts_path: str | None = None
    """A lhotse cuts manifest, `*.jsonl` or `*.jsonl.gz`."""
    manifest_filepath: Paths | None = None
    """A NeMo manifest: one JSON object a line with `audio_filepath`, `duration`, `text`."""
    tarred_audio_filepaths: Paths | None = None
    """Tar files that hold the audio of `manifest_filepath`, one for each shard."""
    skip_missing_manifest_entries: bool = False
    """Members of a tar file that no manifest line names are left out instead of refused."""

    @model_validator(mode="after")
    def _one_input(self) -> "CutsInput":
        given = [key for key in INPUT_KEYS if getattr(self, key) is not None]
        if len(given) != 1:
            named = " and ".join(f"`{key}`" for key in given) or "none of them"
            raise ValueError(
                "must name exactly one of `shar_path`, `cuts_path` and `manifest_filepath`, "
                f"but has {named} instead"
            )
        if self.tarred_audio_filepaths is not None and self.manifest_filepath is None:
            raise ValueError("has `tarred_audio_filepaths`, but no `manifest_filepath` beside it")
        return self


INPUT_KEYS = ("shar_path", "cuts_path", "manifest_filepath")
"""The keys that say where cuts come from."""


class CutsItem(CutsInput):
    """Cuts as they are: audio with a transcript, no conversation."""

    type: Literal["lhotse_shar", "lhotse", "nemo", "nemo_tarred"]
    """Kind of data; the path key that is given decides how it is read."""


class CutsAsConversationItem(CutsInput):
    """Cuts as conversations: user = [context, audio], assistant = the transcript."""

    type: Literal["lhotse_as_conversation"]
    """Kind of data."""


class MultimodalConversationItem(InputItem):
    """Conversations of text and audio turns, one JSON object a line."""

    type: Literal["multimodal_conversation"]
    """Kind of data."""
    manifest_filepath: Paths
    """Lines `{"id", "conversations": [{"from", "type": "text"|"audio", "value"}, ...]}`."""
    tarred_audio_filepaths: Paths | None = None
    """Tar files with the audio, one for each manifest."""
    audio_root: str | None = None
    """Folder of relative audio paths; the folder of the manifest when not given."""


class ShareGptItem(MultimodalConversationItem):
    """ShareGPT conversations: one sound, placeholders in the text."""

    type: Literal["share_gpt"]  # type: ignore[assignment]
    """Kind of data."""
    audio_placeholders: str | list[str] | None = None
    """Texts that stand for the audio; `<sound>` and `<speech>` when not given."""


class TextItem(InputItem):
    """Plain text, one example a line (`txt`) or one JSON object a line (`txt_jsonl`)."""

    type: Literal["txt", "txt_jsonl"]
    """Kind of data."""
    paths: Paths
    """Text files."""
    language: str | None = None
    """Language of the text."""


class TextPairItem(InputItem):
    """Line-aligned files: each source line is asked, the target line is the answer."""

    type: Literal["txt_pair"]
    """Kind of data."""
    source_paths: Paths
    """Files with the user's lines."""
    target_paths: Paths
    """Files with the assistant's lines, as many and as long as the sources."""
    source_language: str | None = None
    """Language of the sources."""
    target_language: str | None = None
    """Language of the targets."""
    questions_path: str | None = None
    """File of questions; one is drawn for each example and put before the source."""
    questions_language: str | None = None
    """Language of the questions."""


class GeneratedItem(InputItem):
    """Examples of a class with `__len__` and `__getitem__`; further keys are its arguments."""

    model_config = ConfigDict(extra="allow")

    type: Literal["generated"]
    """Kind of data."""
    target: str = Field(alias="_target_")
    """The class; its items are `{"text", "prompt"?}` or `{"input_ids", "prompt_ids"?}`."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What the class is called with."""
        return dict(self.model_extra or {})


class TextFieldsItem(InputItem):
    """Keys that say where the text of a row is; token ids take its place where they are named."""

    prompt_field: str | None = None
    """Key of the prompt."""
    input_ids_field: str | None = None
    """Key of the token ids of the text, without special tokens."""
    prompt_ids_field: str | None = None
    """Key of the token ids of the prompt, without special tokens."""

    @model_validator(mode="after")
    def _one_of_each(self) -> "TextFieldsItem":
        for text, ids in (("text_field", "input_ids_field"), ("prompt_field", "prompt_ids_field")):
            given = {text, ids} & self.model_fields_set
            if len([key for key in given if getattr(self, key) is not None]) == 2:
                raise ValueError(f"must have one of `{text}` and `{ids}`, but has both")
        return self


class HfDatasetItem(TextFieldsItem):
    """A data set that the library `datasets` has written with `save_to_disk`."""

    type: Literal["hf_dataset"]
    """Kind of data."""
    path: str
    """Its folder."""
    split: str | None = None
    """Which split, where the folder holds several."""


class TextPairsItem(TextFieldsItem):
    """Prompts and texts, one JSON object a line."""

    type: Literal["text_pairs"]
    """Kind of data."""
    paths: Paths
    """JSONL files."""
    prompt_field: str | None = "prompt"
    """Key of the prompt; null where there is none."""


class SftItem(InputItem):
    """NeMo's SFT chat format: `{"system", "conversations": [{"from", "value"}, ...]}`."""

    type: Literal["nemo_sft_jsonl"]
    """Kind of data."""
    paths: Paths
    """JSONL files."""
    language: str | None = None
    """Language of the text."""


class NemoItem(InputItem):
    """A type that NeMo's own parser reads; its examples are taken in one fixed order."""

    type: Literal[
        "share_gpt_webdataset",
        "parquet",
        "sqa_as_conversation",
        "s2s_as_conversation",
        "s2s_duplex_overlap_as_s2s_duplex",
        "s2s_duplex_reverse_role",
        "lhotse_magpietts_data_as_continuation",
        "nemo_tarred_to_duplex",
        "multi_speaker_simulator",
    ]
    """Kind of data."""
    shar_path: str | list[Any] | dict[str, Any] | None = None
    """Lhotse shar folder or folders."""
    cuts_path: str | None = None
    """A lhotse cuts manifest."""
    manifest_filepath: Paths | None = None
    """A manifest of the type."""
    tarred_audio_filepaths: Paths | None = None
    """Tar files of the manifest."""
    data_dir: str | None = None
    """Folder of `share_gpt_webdataset`."""
    audio_placeholders: str | list[str] | None = None
    """Texts that stand for the audio."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keys for NeMo's parser, handed over unchanged."""


class GroupItem(InputItem):
    """Several inputs under one weight and one set of tags."""

    type: Literal["group"]
    """Kind of data."""
    input_cfg: "list[Item] | str"
    """The items of the group, or a YAML file that lists them."""


Item = Annotated[
    CutsItem
    | CutsAsConversationItem
    | MultimodalConversationItem
    | ShareGptItem
    | TextItem
    | TextPairItem
    | TextPairsItem
    | HfDatasetItem
    | GeneratedItem
    | SftItem
    | NemoItem
    | GroupItem,
    Field(discriminator="type"),
]
"""One item of `input_cfg`."""

GroupItem.model_rebuild()
