"""Damaged shar: `raise` names file and cut in one line, `skip` trains on all the other cuts."""

import logging
import time

import pytest
import torch
from fixtures.damage import (
    DAMAGES,
    audio_garbage,
    copy_shar,
    cuts_missing,
    gz_truncated,
    read_members,
    write_members,
)
from fixtures.damage_families import CODES
from lhotse import CutSet

from whalesong.core.errors import DataError
from whalesong.data.clips import ClipCollator
from whalesong.data.codes import CodecInfo
from whalesong.data.codes_writer import write_codes
from whalesong.data.loader import BatchLoader

CODEC = CodecInfo("Tiny", "0123456789abcdef", 8000, 1, 3, 32, 80)


@pytest.fixture(scope="module")
def clean(make_corpus, tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("clean") / "shar", count=12)


@pytest.fixture(scope="module")
def coded(clean, tmp_path_factory):
    """The corpus with codes of 3 codebooks of 32 ids at 100 frames/s."""
    folder = tmp_path_factory.mktemp("coded") / "shar"
    copy_shar(clean, folder)
    for number in ("000000", "000001"):
        files = {"cuts": f"cuts.{number}.jsonl.gz", "recording": f"recording.{number}.tar"}
        fields = {name: [str(folder / file)] for name, file in files.items()}
        items = [
            (cut, torch.arange(3 * n).view(3, n) % 32)
            for cut in CutSet.from_shar(fields=fields)
            if (n := CODEC.num_frames(cut.duration))
        ]
        write_codes(folder / f"codes.{number}.tar", items, CODEC)
    return folder


@pytest.fixture(params=DAMAGES)
def damaged(request, clean, tmp_path):
    """(corpus, fault, what the message must name, cuts that must be seen, and may be)"""
    fault, shar = DAMAGES[request.param], copy_shar(clean, tmp_path / "shar")
    named, kept = fault.named(shar), fault.kept(shar)
    fault.apply(shar)
    return shar, fault, named, *kept


def loader_of(plan_of, folder, collator, *, on_bad_cut, num_workers=0):
    items = [{"type": "lhotse_as_conversation", "shar_path": str(folder)}]
    plan = plan_of(input_cfg=items, batch_size=4, on_bad_cut=on_bad_cut)
    return BatchLoader(plan, collator, num_workers=num_workers)


def test_raise_names_file_and_cut_in_one_line(plan_of, damaged, collator):
    shar, fault, names, _, _ = damaged
    if fault.legal:
        assert len(list(loader_of(plan_of, shar.folder, collator, on_bad_cut="raise"))) == 3
        return
    begin = time.monotonic()
    with pytest.raises(DataError) as caught:
        list(loader_of(plan_of, shar.folder, collator, on_bad_cut="raise"))
    message = str(caught.value)
    assert time.monotonic() - begin < 5
    assert "\n" not in message and len(message) < 500
    for name in names:
        assert name in message


def test_skip_sees_every_other_cut_and_counts(plan_of, damaged, collator, caplog):
    shar, fault, names, must, may = damaged
    with caplog.at_level(logging.WARNING, logger="whalesong"):
        loader = loader_of(plan_of, shar.folder, collator, on_bad_cut="skip")
        pairs = [pair for b in loader for pair in zip(b["ids"], b["firsts"], strict=True)]
        loader.close()
    seen = dict(pairs)
    assert len(seen) == len(pairs) and must <= set(seen) <= may
    assert all(first == int(id[3:]) / 1000 for id, first in seen.items())
    if fault.legal:
        assert not caplog.messages
        return
    assert any(all(name in message for name in names) for message in caplog.messages)
    lost = loader.plan.faults.total
    assert lost == len(shar.ids) - len(seen) or fault.apply in (gz_truncated, cuts_missing)
    assert f"left out in all: {lost} example" in caplog.messages[-1]


@pytest.mark.parametrize("on_bad_cut", ["raise", "skip"])
def test_workers_answer_as_the_main_process(plan_of, clean, tmp_path, collator, on_bad_cut):
    shar = copy_shar(clean, tmp_path / "shar")
    audio_garbage(shar)
    answers = []
    for num_workers in (0, 2):
        loader = loader_of(
            plan_of, shar.folder, collator, on_bad_cut=on_bad_cut, num_workers=num_workers
        )
        try:
            answers.append((list(loader), loader.plan.faults.total))
        except DataError as error:
            answers.append(str(error))
    assert answers[0] == answers[1]


def test_a_batch_that_loses_everything_is_collated_of_nothing(plan_of, clean, tmp_path, collator):
    for file in clean.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    members = read_members(tmp_path / "recording.000001.tar")
    garbage = [
        (name, b"garbage") if name.endswith(".wav") else (name, data) for name, data in members
    ]
    write_members(tmp_path / "recording.000001.tar", garbage)
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


@pytest.mark.parametrize("on_bad_cut", ["raise", "skip"])
@pytest.mark.parametrize("name", CODES)
def test_damaged_codes(plan_of, coded, tmp_path, caplog, name, on_bad_cut):
    fault, shar = CODES[name], copy_shar(coded, tmp_path / "shar", field="codes")
    names, (must, may) = fault.named(shar), fault.kept(shar)
    fault.apply(shar)
    collator = ClipCollator(CODEC, training=False)

    def ids():
        plan = plan_of(shar_path=str(shar.folder), batch_size=4, on_bad_cut=on_bad_cut)
        return [id for batch in BatchLoader(plan, collator) for id in batch["ids"]]

    if on_bad_cut == "raise":
        with pytest.raises(DataError) as caught:
            ids()
        messages = [str(caught.value)]
    else:
        caplog.set_level(logging.WARNING)
        seen = ids()
        assert len(set(seen)) == len(seen) and must <= set(seen) <= may
        messages = caplog.messages
    assert any(all(word in message for word in names) for message in messages)
