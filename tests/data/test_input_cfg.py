"""What `input_cfg` means: types, groups, weights, attributes, and its errors."""

import json
import tarfile

import numpy as np
import pytest
import soundfile

from whalesong.core.errors import ConfigError, DataError
from whalesong.data.audio import load_audio
from whalesong.data.conversation import Conversation, Turn, as_conversation, conversation_from_nemo


def examples(plan):
    """All examples of an epoch by id."""
    return {example.id: example for batch in plan.batches(0) for example in batch}


def write_lines(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


@pytest.fixture
def read(plan_of):
    """Examples of one item of `input_cfg`."""

    def build(item, **keys):
        return examples(plan_of(input_cfg=[item], batch_size=4, shuffle=False, **keys))

    return build


@pytest.fixture
def recordings(tmp_path):
    """Files of equal stems in two folders: level 0.1 to 0.6, 0.5 to 1 s."""
    rows = []
    for k, name in enumerate(f"{folder}/utt{i}.wav" for folder in "ab" for i in range(3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        samples = np.full(4000 + 800 * k, 0.1 * (k + 1))
        soundfile.write(tmp_path / name, samples, 8000, subtype="FLOAT")
        rows.append(
            {"audio_filepath": name, "duration": len(samples) / 8000, "text": name, "lang": "en"}
        )
    return tmp_path, rows


def level(cut, sample_rate=8000):
    return round(float(np.median(load_audio(cut, sample_rate=sample_rate))), 3)


def test_equal_file_stems_keep_their_own_audio(read, recordings):
    folder, rows = recordings
    path = write_lines(folder / "m.jsonl", rows)
    cuts = read({"type": "nemo", "manifest_filepath": path})
    assert {id: level(cut) for id, cut in cuts.items()} == {
        row["audio_filepath"]: round(0.1 * (k + 1), 3) for k, row in enumerate(rows)
    }
    cut = cuts["b/utt0.wav"]
    assert cut.supervisions[0].text == "b/utt0.wav" and cut.supervisions[0].language == "en"
    talks = [
        {"id": f"c{k}", "conversations": [
            {"from": "User", "type": "audio", "value": f"{folder}/utt1.wav"},
            {"from": "Assistant", "type": "text", "value": folder},
        ]}
        for k, folder in enumerate("ab")
    ]  # fmt: skip
    path = write_lines(folder / "c.jsonl", talks)
    talks = read({"type": "multimodal_conversation", "manifest_filepath": path})
    assert [level(talks[f"c{k}"].audios[0]) for k in range(2)] == [0.2, 0.5]


def test_offsets_and_missing_durations(read, recordings):
    folder, rows = recordings
    samples = np.repeat(np.linspace(0.1, 0.4, 4), 2000)
    soundfile.write(folder / "steps.wav", samples, 8000, subtype="FLOAT")
    rows = [
        {"audio_filepath": "steps.wav", "offset": 0.25 * k, "duration": 0.25, "text": str(k)}
        for k in range(4)
    ] + [{"audio_filepath": "a/utt0.wav", "text": "all"}]
    cuts = list(
        read({"type": "nemo", "manifest_filepath": write_lines(folder / "m", rows)}).values()
    )
    assert [level(cut) for cut in cuts] == [0.1, 0.2, 0.3, 0.4, 0.1]
    assert len({cut.id for cut in cuts}) == 5 and cuts[4].duration == 0.5


def test_a_duration_that_is_not_that_of_the_file(read, recordings):
    folder, rows = recordings
    rows[0]["duration"] = 0.3
    cuts = read({"type": "nemo", "manifest_filepath": write_lines(folder / "m", rows)})
    with pytest.raises(DataError, match=r"a/utt0.wav, cut a/utt0.wav: holds 0.50 s .* says 0.30 s"):
        load_audio(cuts["a/utt0.wav"], sample_rate=8000)


def write_tar(path, folder, names):
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.add(folder / name, arcname=name)
    return str(path)


def test_nemo_tarred(read, recordings):
    folder, rows = recordings
    names = [row["audio_filepath"] for row in rows]
    for shard in range(2):
        part = slice(3 * shard, 3 * shard + 3)
        write_tar(folder / f"audio_{shard}.tar", folder, reversed(names[part]))
        write_lines(folder / f"manifest_{shard}.json", rows[part])
    item = {
        "type": "nemo_tarred",
        "manifest_filepath": f"{folder}/manifest__OP_0..1_CL_.json",
        "tarred_audio_filepaths": f"{folder}/audio_{{0..1}}.tar",
    }
    expected = {name: round(0.1 * (k + 1), 3) for k, name in enumerate(names)}
    assert {id: level(cut) for id, cut in read(item).items()} == expected
    single = [{**row, "shard_id": k // 3} for k, row in enumerate(rows)]
    item["manifest_filepath"] = write_lines(folder / "all.json", single)
    assert {id: level(cut) for id, cut in read(item).items()} == expected


def test_nemo_tarred_segments_and_missing_members(read, recordings, plan_of):
    folder, rows = recordings
    tar = write_tar(folder / "audio_0.tar", folder, ["a/utt0.wav", "a/utt1.wav"])
    rows = [
        {**rows[0], "audio_filepath": f"a/utt0-sub{k}.wav", "offset": 0.1 * k, "duration": 0.1}
        for k in range(2)
    ]
    path = write_lines(folder / "m.json", rows)
    item = {"type": "nemo_tarred", "manifest_filepath": path, "tarred_audio_filepaths": tar}
    with pytest.raises(DataError, match=r"1 members are not named in .*, first a/utt1.wav"):
        read(item)
    cuts = read({**item, "skip_missing_manifest_entries": True})
    assert [level(cut) for cut in cuts.values()] == [0.1, 0.1] and len(cuts) == 2
    write_lines(folder / "m.json", [{**rows[0], "audio_filepath": "a/utt9.wav"}])
    with pytest.raises(DataError, match=r"m.json, line 1: .*audio_0.tar has no members a/utt9.wav"):
        read(item)


def test_lhotse_cuts_with_paths_beside_the_manifest(read, recordings):
    from lhotse import AudioSource, CutSet, Recording

    folder, _ = recordings
    recording = Recording.from_file(folder / "b" / "utt2.wav")
    recording.sources = [AudioSource("file", channels=[0], source="b/utt2.wav")]
    CutSet.from_cuts([recording.to_cut()]).to_file(folder / "cuts.jsonl.gz")
    [cut] = read({"type": "lhotse", "cuts_path": f"{folder}/cuts.jsonl.gz"}).values()
    assert level(cut) == 0.6


def test_lhotse_as_conversation(read, corpus):
    tags = {"context": "Repeat after me:", "system_prompt": "Be brief.", "task": "asr"}
    item = {"type": "lhotse_as_conversation", "shar_path": str(corpus), "tags": tags}
    example = read(item)["utt3"]
    assert [turn.role for turn in example.turns] == ["system", "user", "assistant"]
    system, user, assistant = (turn.parts for turn in example.turns)
    assert (system, assistant) == (("Be brief.",), ("number 3",))
    assert user[0] == "Repeat after me:" and user[1].id == "utt3"
    assert example.custom["task"] == "asr" and example.audios == [user[1]]
    assert example.duration == user[1].duration


def test_the_context_is_the_first_that_is_given(read, corpus):
    item = {"type": "lhotse_shar", "shar_path": str(corpus)}

    def contexts(tags, default=None):
        cut = read({**item, "tags": tags})["utt0"] if tags else read(item)["utt0"]
        return as_conversation(cut, default_context=default).texts[:-1]

    assert contexts({"default_context": "d", "question": "q", "context": "c"}) == ["c"]
    assert contexts({"default_context": "d", "question": "q"}) == ["q"]
    assert contexts({"default_context": "d"}, "x") == ["d"]
    assert contexts(None, "x") == ["x"] and contexts(None) == []


def test_several_turns_and_audios_tar_and_files(read, recordings):
    folder, _ = recordings
    turns = [
        {"from": "User", "type": "text", "value": "What is said?"},
        {"from": "User", "type": "audio", "value": "a/utt0.wav", "duration": 0.5},
        {"from": "User", "type": "audio", "value": "b/utt0.wav", "duration": 0.8},
        {"from": "Assistant", "type": "text", "value": "one and four"},
        {"from": "User", "type": "audio", "value": "a/utt1.wav", "duration": 0.6},
        {"from": "Assistant", "type": "text", "value": "two"},
    ]
    rows = [
        {"id": "skipped", "conversations": turns, "custom": {"_skipme": 1}},
        {"id": "talk", "conversations": turns},
        {"id": "text", "conversations": [turns[0], turns[3]]},
    ]
    path = write_lines(folder / "c.jsonl", rows)
    tar = write_tar(folder / "c.tar", folder, ["a/utt0.wav", "b/utt0.wav", "a/utt1.wav"] * 2)
    item = {"type": "multimodal_conversation", "manifest_filepath": path}
    tags = {"system_prompt": "Listen."}
    for place in ({}, {"tarred_audio_filepaths": tar}):
        found = read({**item, **place, "tags": tags})
        assert set(found) == {"talk", "text"} and found["text"].duration == 0
        talk = found["talk"]
        roles = ["system", "user", "assistant", "user", "assistant"]
        assert [turn.role for turn in talk.turns] == roles
        assert [level(cut) for cut in talk.audios] == [0.1, 0.4, 0.2]
        assert talk.duration == pytest.approx(1.9)


def test_a_context_goes_before_audio_that_opens_a_conversation(read, recordings):
    folder, _ = recordings
    turns = [
        {"from": "User", "type": "audio", "value": "a/utt0.wav"},
        {"from": "Assistant", "type": "text", "value": "x"},
    ]
    path = write_lines(folder / "c.jsonl", [{"id": "c", "conversations": turns}])
    item = {"type": "multimodal_conversation", "manifest_filepath": path}
    assert read({**item, "tags": {"context": "Listen:"}})["c"].texts == ["Listen:", "x"]


def test_share_gpt(read, recordings):
    folder, _ = recordings
    turns = [
        {"from": "human", "value": "Hear this: <sound> What is it?"},
        {"from": "gpt", "value": "a tone"},
    ]
    rows = [{"id": "s", "sound": "utt2.wav", "conversations": turns}]
    path = write_lines(folder / "s.jsonl", rows)
    item = {"type": "share_gpt", "manifest_filepath": path, "audio_root": str(folder / "b")}
    example = read(item)["s"]
    before, cut, after = example.turns[0].parts
    assert (before, after) == ("Hear this:", "What is it?") and level(cut) == 0.6
    write_lines(folder / "s.jsonl", [{"id": "s", "conversations": turns}])
    with pytest.raises(
        DataError, match=r"s.jsonl, line 1, conversation s: .*<sound>, but no `sound`"
    ):
        read(item)


def test_text_types(read, tmp_path):
    source = write_lines(tmp_path / "de", ["eins", "zwei", "drei"])
    target = write_lines(tmp_path / "en", ["one", "two", "three"])
    pairs = read({"type": "txt_pair", "source_paths": source, "target_paths": target})
    assert [turn for turn in pairs["de:2"].turns] == [
        Turn("user", ("zwei",)),
        Turn("assistant", ("two",)),
    ]
    questions = write_lines(tmp_path / "q", ["Translate:", "In English:"])
    item = {"type": "txt_pair", "source_paths": source, "target_paths": target}
    asked = read({**item, "questions_path": questions})
    assert asked["de:1"].texts[0] in ("Translate: eins", "In English: eins")
    assert asked == read({**item, "questions_path": questions})
    plain = read({"type": "txt", "paths": target, "language": "en"})
    assert plain["en:3"].turns == (Turn("assistant", ("three",)),)
    rows = write_lines(tmp_path / "j", [{"words": "hello"}])
    lines = read({"type": "txt_jsonl", "paths": rows, "text_field": "words"})
    assert lines["j:1"].texts == ["hello"]
    chat = [{"from": "User", "value": "hi"}, {"from": "Assistant", "value": "hello"}]
    rows = write_lines(tmp_path / "s", [{"system": "Be kind.", "conversations": chat}])
    assert read({"type": "nemo_sft_jsonl", "paths": rows})["s:1"].texts == [
        "Be kind.",
        "hi",
        "hello",
    ]


def test_pairs_that_do_not_fit(read, tmp_path):
    source = write_lines(tmp_path / "de", ["eins", "zwei", "drei"])
    target = write_lines(tmp_path / "en", ["one", "", "three"])
    item = {"type": "txt_pair", "source_paths": source, "target_paths": target}
    with pytest.raises(DataError, match=r"en, line 2: is empty"):
        read(item)
    assert set(read(item, on_bad_cut="skip")) == {"de:1", "de:3"}
    write_lines(tmp_path / "en", ["one"])
    with pytest.raises(DataError, match=r"en: ends before line 2"):
        read(item)


def test_groups_files_weights_and_temperature(plan_of, corpus, tmp_path):
    one = {"type": "lhotse_shar", "shar_path": str(corpus)}
    inner = [{**one, "weight": 3, "tags": {"lang": "en"}}, {**one, "weight": 1}]
    (tmp_path / "inner.yaml").write_text(json.dumps(inner))
    group = {"type": "group", "input_cfg": str(tmp_path / "inner.yaml"), "weight": 8}
    items = [{**group, "tags": {"task": "asr", "lang": "xx"}}, {**one, "weight": 2}]
    plan = plan_of(input_cfg=items, batch_size=4)
    assert [source.weight for source in plan.sources] == pytest.approx([0.6, 0.2, 0.2])
    cut = next(plan.sources[0].iterate(0))
    assert (cut.task, cut.lang) == ("asr", "en")
    plan = plan_of(input_cfg=items, batch_size=4, reweight_temperature=0.0)
    assert [source.weight for source in plan.sources] == pytest.approx([0.25, 0.25, 0.5])
    folders = [[str(corpus), 1], [str(corpus), 3]]
    plan = plan_of(input_cfg=[{"type": "lhotse_shar", "shar_path": folders}], batch_size=4)
    assert [source.weight for source in plan.sources] == pytest.approx([0.25, 0.75])


def test_shar_as_fields(plan_of, corpus):
    fields = {
        "cuts": f"{corpus}/cuts._OP_000000..000003_CL_.jsonl.gz",
        "recording": [f"{corpus}/recording.{k:06d}.tar" for k in range(4)],
    }
    plan = plan_of(input_cfg=[{"type": "lhotse_shar", "shar_path": fields}], batch_size=24)
    [batch] = plan.batches(0)
    assert len(batch) == 24
    fields["recording"].pop()
    with pytest.raises(DataError, match=r"3 files of the field recording, but 4 of cuts"):
        plan_of(shar_path=fields, batch_size=24)


SHAR = {"type": "lhotse_shar", "shar_path": "x"}
TEXT = {"type": "txt", "paths": "x"}
ERRORS = [
    ([SHAR, SHAR, {**SHAR, "wieght": 1}], r"input_cfg\[2\].wieght` .*did you mean `weight`"),
    ([{**SHAR, "type": "lhotse_sharr"}], r"input_cfg\[0\].type` .*lhotse_shar"),
    ([{"type": "group", "input_cfg": [{**TEXT, "pahts": 1}]}], r"\[0\].input_cfg\[0\].pahts"),
    ([{**TEXT, "weight": 1}, TEXT], r"input_cfg\[1\].weight` is missing"),
    ([], r"input_cfg` must list at least one item"),
    ("nowhere.yaml", r"input_cfg`: cannot read nowhere.yaml"),
    ([{**SHAR, "shar_path": [["x", "y"]]}], r"shar_path\[0\]` must be \[folder, weight\]"),
    ([{**TEXT, "paths": "s3://bucket/x"}], r"must hold local paths"),
]


@pytest.mark.parametrize(("items", "message"), ERRORS)
def test_errors_name_the_place(plan_of, items, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(input_cfg=items, batch_size=4)


def test_errors_in_a_file_name_the_file(plan_of, tmp_path):
    path = tmp_path / "items.yaml"
    path.write_text("- {type: txt, paths: x, wieght: 2}")
    with pytest.raises(ConfigError, match=r"items.yaml\[0\].wieght"):
        plan_of(input_cfg=str(path), batch_size=4)


def test_exactly_one_input(plan_of, corpus):
    with pytest.raises(ConfigError, match="but has none"):
        plan_of(batch_size=4)
    with pytest.raises(ConfigError, match="but has `input_cfg` and `shar_path`"):
        plan_of(batch_size=4, shar_path=str(corpus), input_cfg=[{"type": "txt", "paths": "x"}])


def test_conversation_from_nemo(corpus, plan_of):
    class Text:
        role, value = "user", "hello"

    class Audio:
        role = "user"
        cut = next(plan_of(shar_path=str(corpus), batch_size=1).examples(0))

    class Example:
        id, turns, custom = "n", [Text, Audio], None

    assert conversation_from_nemo(Example) == Conversation(
        "n", (Turn("user", ("hello", Audio.cut)),), {}
    )


def test_nemo_parsed_types(plan_of, corpus):
    """NeMo's parser reads; the example carries its audio."""
    item = {
        "type": "s2s_as_conversation",
        "shar_path": str(corpus),
        "audio_locator_tag": "<audio>",
        "token_equivalent_duration": 0.08,
        "options": {"input_roles": [None], "output_roles": ["agent"]},
    }
    first, second = (plan_of(input_cfg=[item], batch_size=4) for _ in range(2))
    found = examples(first)
    assert len(found) == 24 and list(found) == list(examples(second))
    [cut] = found["utt7"].audios
    assert float(load_audio(cut, sample_rate=8000)[0]) == pytest.approx(0.007, abs=1e-4)
    wrong = plan_of(input_cfg=[{**item, "options": {"input_roles": 3}}], batch_size=4)
    with pytest.raises(DataError, match=r"`data.train_ds.input_cfg\[0\]`: NeMo stops at example 0"):
        examples(wrong)
