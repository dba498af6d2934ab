"""Damaged shar: `raise` names file and cut in one line, `skip` trains on all the other cuts."""

import gzip
import json
import logging
import tarfile
import time

import numpy as np
import pytest

from whalesong.core.errors import DataError
from whalesong.data.loader import BatchLoader

DAMAGE = {}
"""Name -> (function of the folder, what the message must name, cuts that are lost)."""


def damage(*names, lost):
    """Register a way to damage shard 1 of a corpus of 12 cuts in 2 shards."""

    def register(function):
        DAMAGE[function.__name__] = (function, names, lost)
        return function

    return register


def read_members(path):
    with tarfile.open(path) as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar]


def write_members(path, members):
    import io

    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def edit_line(folder, index, change):
    """Change line `index` of the second cuts file; `change` takes and returns text."""
    path = folder / "cuts.000001.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    lines[index] = change(lines[index])
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))


def edit_cut(folder, index, change):
    """Change the cut of line `index`; `change` edits its dictionary."""

    def edit(line):
        data = json.loads(line)
        change(data)
        return json.dumps(data)

    edit_line(folder, index, edit)


def edit_audio(folder, position, data):
    """Replace the audio of item `position` of the second shard."""
    path = folder / "recording.000001.tar"
    members = read_members(path)
    members[2 * position] = (members[2 * position][0], data)
    write_members(path, members)


TAR, CUTS = "recording.000001.tar", "cuts.000001.jsonl.gz"


@damage(TAR, "utt", lost={"utt9", "utt10", "utt11"})
def tar_truncated_in_a_member(folder, wav):
    path = folder / TAR
    with tarfile.open(path) as tar:
        member = tar.getmembers()[6]
    path.write_bytes(path.read_bytes()[: member.offset_data + 10])


@damage(TAR, "utt", lost={"utt9", "utt10", "utt11"})
def tar_cut_between_members(folder, wav):
    path = folder / TAR
    with tarfile.open(path) as tar:
        member = tar.getmembers()[6]
    path.write_bytes(path.read_bytes()[: member.offset])


@damage(TAR, lost={f"utt{i}" for i in range(6, 12)})
def tar_garbage(folder, wav):
    (folder / TAR).write_bytes(b"garbage" * 5000)


@damage(TAR, lost={f"utt{i}" for i in range(6, 12)})
def tar_empty(folder, wav):
    (folder / TAR).write_bytes(b"")


@damage(CUTS, lost=None)
def gz_truncated(folder, wav):
    path = folder / CUTS
    path.write_bytes(path.read_bytes()[:-30])


@damage(CUTS, "line 3", lost={"utt8"})
def bad_json_line(folder, wav):
    edit_line(folder, 2, lambda line: line[:40])


@damage(CUTS, "line 3", lost={"utt8"})
def missing_id(folder, wav):
    edit_cut(folder, 2, lambda cut: cut.pop("id"))


@damage(CUTS, "line 3", "utt8", lost={"utt8"})
def unknown_type(folder, wav):
    edit_cut(folder, 2, lambda cut: cut.update(type="HoloCut"))


@damage(CUTS, "line 3", "utt8", "duration", lost={"utt8"})
def duration_a_string(folder, wav):
    edit_cut(folder, 2, lambda cut: cut.update(duration="long"))


@damage(CUTS, "line 3", "utt8", "duration", lost={"utt8"})
def duration_zero(folder, wav):
    edit_cut(folder, 2, lambda cut: cut.update(duration=0.0))


@damage(CUTS, "line 3", "utt8", "duration", lost={"utt8"})
def duration_nan(folder, wav):
    edit_cut(folder, 2, lambda cut: cut.update(duration=float("nan")))


@damage(CUTS, "line 3", "utt8", "text", lost={"utt8"})
def text_a_number(folder, wav):
    edit_cut(folder, 2, lambda cut: cut["supervisions"][0].update(text=5))


@damage("utt8", "text", lost={"utt8"})
def text_missing(folder, wav):
    edit_cut(folder, 2, lambda cut: cut["supervisions"][0].pop("text"))


@damage("utt8", "empty text", lost={"utt8"})
def text_empty(folder, wav):
    edit_cut(folder, 2, lambda cut: cut["supervisions"][0].update(text="  "))


@damage("utt8", "Unicode", lost={"utt8"})
def text_with_a_lone_surrogate(folder, wav):
    edit_cut(folder, 2, lambda cut: cut["supervisions"][0].update(text="\ud800"))


@damage("utt8", "no text", lost={"utt8"})
def no_supervision(folder, wav):
    edit_cut(folder, 2, lambda cut: cut.update(supervisions=[]))


@damage(CUTS, "utt8", "outside", lost={"utt8"})
def supervision_outside_the_cut(folder, wav):
    edit_cut(folder, 2, lambda cut: cut["supervisions"][0].update(start=9.0))


@damage(TAR, "utt8", lost=set())
def members_swapped(folder, wav):
    members = read_members(folder / TAR)
    write_members(folder / TAR, [*members[:4], *members[6:8], *members[4:6], *members[8:]])


@damage(TAR, "utt8", lost={"utt8"})
def member_missing(folder, wav):
    members = read_members(folder / TAR)
    write_members(folder / TAR, [*members[:4], *members[6:]])


@damage(TAR, "utt8", lost={"utt8"})
def member_of_another_cut(folder, wav):
    members = read_members(folder / TAR)
    renamed = [("other" + name[4:], data) for name, data in members[4:6]]
    write_members(folder / TAR, [*members[:4], *renamed, *members[6:]])


@damage(TAR, "7 items", lost=set())
def member_without_a_cut(folder, wav):
    members = read_members(folder / TAR)
    write_members(folder / TAR, [*members, ("more.wav", members[0][1]), ("more.json", b"{}")])


@damage(TAR, "utt8", "cannot be decoded", lost={"utt8"})
def audio_garbage(folder, wav):
    edit_audio(folder, 2, b"no audio at all " * 200)


@damage(TAR, "utt8", "empty file", lost={"utt8"})
def audio_empty(folder, wav):
    edit_audio(folder, 2, b"")


@damage(TAR, "utt8", lost={"utt8"})
def audio_without_samples(folder, wav):
    edit_audio(folder, 2, wav(np.zeros(0)))


@damage(TAR, "utt8", "manifest says", lost={"utt8"})
def audio_truncated(folder, wav):
    edit_audio(folder, 2, read_members(folder / TAR)[4][1][:600])


@damage(TAR, "utt8", "manifest says", lost={"utt8"})
def audio_longer_than_said(folder, wav):
    edit_audio(folder, 2, wav(np.zeros(8000)))


@damage(TAR, "utt8", "16000 Hz", lost={"utt8"})
def wrong_sample_rate(folder, wav):
    edit_audio(folder, 2, wav(np.zeros(8000), 16000))


@damage(TAR, "utt8", "2 channels", lost={"utt8"})
def stereo_said_to_be_mono(folder, wav):
    edit_audio(folder, 2, wav(np.zeros((8000, 2))))


def broken_samples(value):
    def break_samples(folder, wav):
        cut = json.loads(gzip.decompress((folder / CUTS).read_bytes()).splitlines()[2])
        samples = np.full(cut["recording"]["num_samples"], 0.1, dtype=np.float32)
        samples[7] = value
        edit_audio(folder, 2, wav(samples, subtype="FLOAT"))

    return break_samples


for kind, number, words in [
    ("nan", np.nan, "not finite"),
    ("inf", np.inf, "not finite"),
    ("huge", 1e30, "magnitude"),
]:
    DAMAGE[f"samples_{kind}"] = (broken_samples(number), (TAR, "utt8", words), {"utt8"})


@pytest.fixture(scope="module")
def clean(make_corpus, tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("clean") / "shar", count=12)


@pytest.fixture(params=DAMAGE)
def damaged(request, clean, tmp_path, encode_wav):
    """(folder, names, lost)"""
    function, names, lost = DAMAGE[request.param]
    for file in clean.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    function(tmp_path, encode_wav)
    return tmp_path, names, lost


def loader_of(plan_of, folder, collator, *, on_bad_cut, num_workers=0):
    items = [{"type": "lhotse_as_conversation", "shar_path": str(folder)}]
    plan = plan_of(input_cfg=items, batch_size=4, on_bad_cut=on_bad_cut)
    return BatchLoader(plan, collator, num_workers=num_workers)


def test_raise_names_file_and_cut_in_one_line(plan_of, damaged, collator):
    folder, names, _ = damaged
    begin = time.monotonic()
    with pytest.raises(DataError) as caught:
        list(loader_of(plan_of, folder, collator, on_bad_cut="raise"))
    message = str(caught.value)
    assert time.monotonic() - begin < 5
    assert "\n" not in message and len(message) < 500
    for name in names:
        assert name in message


def test_skip_sees_every_other_cut_and_counts(plan_of, damaged, collator, caplog):
    folder, names, lost = damaged
    loader = loader_of(plan_of, folder, collator, on_bad_cut="skip")
    with caplog.at_level(logging.WARNING, logger="whalesong"):
        seen = {id: first for b in loader for id, first in zip(b["ids"], b["firsts"], strict=True)}
        loader.close()
    everything = {f"utt{i}" for i in range(12)}
    if lost is not None:
        assert set(seen) == everything - lost
    assert set(seen) >= {f"utt{i}" for i in range(6)} and set(seen) <= everything
    assert all(first == int(id[3:]) / 1000 for id, first in seen.items())
    assert any(all(name in r.getMessage() for name in names) for r in caplog.records)
    assert "examples left out" in caplog.messages[-1] or not lost


@pytest.mark.parametrize("on_bad_cut", ["raise", "skip"])
def test_workers_answer_as_the_main_process(
    plan_of, clean, tmp_path, collator, encode_wav, on_bad_cut
):
    for file in clean.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    audio_garbage(tmp_path, encode_wav)
    answers = []
    for num_workers in (0, 2):
        loader = loader_of(
            plan_of, tmp_path, collator, on_bad_cut=on_bad_cut, num_workers=num_workers
        )
        try:
            answers.append((list(loader), loader.plan.faults.total))
        except DataError as error:
            answers.append(str(error))
    assert answers[0] == answers[1]


def test_a_batch_that_loses_everything_is_collated_of_nothing(plan_of, clean, tmp_path, collator):
    for file in clean.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for position in range(6):
        edit_audio(tmp_path, position, b"garbage")
    plan = plan_of(shar_path=str(tmp_path), batch_size=6, on_bad_cut="skip", shuffle=False)
    batches = list(BatchLoader(plan, collator))
    assert [batch["ids"] for batch in batches] == [[f"utt{i}" for i in range(6)], []]
    assert plan.faults.total == 6


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("recording.000001.tar", r"no file recording\.000001\.\* of shard 000001"),
        ("cuts.000001.jsonl.gz", r"no file cuts\.000001\.\* of shard 000001"),
        ("cuts.*", "holds no cuts"),
    ],
)
def test_missing_files_are_named_before_anything_is_read(plan_of, clean, tmp_path, remove, message):
    for file in clean.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for file in tmp_path.glob(remove):
        file.unlink()
    with pytest.raises(DataError, match=message):
        plan_of(shar_path=str(tmp_path), batch_size=4)


def test_a_missing_folder_is_named(plan_of, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such shar folder"):
        plan_of(shar_path=str(tmp_path / "nowhere"), batch_size=4)


class Picky:
    """Refuses one example only when it makes a batch."""

    def load(self, example):
        return example.id

    def __call__(self, loaded):
        if "utt3" in loaded:
            raise DataError("cut utt3: has no place in a batch.")
        return loaded


def test_an_example_that_cannot_be_collated_is_left_out(plan_of, clean):
    plan = plan_of(shar_path=str(clean), batch_size=6, on_bad_cut="skip", shuffle=False)
    batches = list(BatchLoader(plan, Picky()))
    assert batches[0] == ["utt0", "utt1", "utt2", "utt4", "utt5"] and plan.faults.total == 1
    with pytest.raises(DataError, match="utt3"):
        list(BatchLoader(plan_of(shar_path=str(clean), batch_size=6), Picky()))
