import os
import subprocess
import sys

import pytest
import torch
from lhotse import CutSet
from nemo.collections.asr.models import ASRModel, EncDecCTCModelBPE

from whalesong.core.errors import DataError
from whalesong.corpora.grammar import sample_sentences
from whalesong.corpora.spoken_commands import write_spoken_commands
from whalesong.tiny.asr import (
    build_tiny_asr,
    read_utterances,
    train_tiny_asr,
    word_error_rate,
)

SMALL = {"d_model": 32, "num_layers": 1, "batch_size": 4}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "commands"
    write_spoken_commands(folder, num_train=8, num_validation=1, num_test=4)
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return build_tiny_asr(
        tmp_path_factory.mktemp("asr") / "asr.nemo", texts=sample_sentences(0, 100)
    )


@pytest.mark.slow
def test_archive_restores_and_transcribes_offline_in_another_process(archive, tmp_path):
    code = (
        "import numpy, sys\n"
        "from nemo.collections.asr.models import ASRModel\n"
        "model = ASRModel.restore_from(sys.argv[1])\n"
        "(result,) = model.transcribe([numpy.zeros(16000, numpy.float32)], verbose=False)\n"
        "assert isinstance(result.text, str)\n"
        "print(type(model).__name__, model.tokenizer.ids_to_text("
        "model.tokenizer.text_to_ids('turn on')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(archive)],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == "EncDecCTCModelBPE turn on"


def test_frames_of_an_utterance_do_not_depend_on_its_batch(archive, corpus):
    model = ASRModel.restore_from(str(archive)).eval()
    waveforms = [torch.from_numpy(waveform) for waveform in read_utterances(corpus / "train")[0]]
    lens = torch.tensor([waveform.numel() for waveform in waveforms])
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    with torch.no_grad():
        together, frames, _ = model(input_signal=padded, input_signal_length=lens)
        for row, waveform in enumerate(waveforms):
            alone, (num_frames,), _ = model(
                input_signal=waveform[None], input_signal_length=lens[row : row + 1]
            )
            assert num_frames == frames[row]
            torch.testing.assert_close(
                together[row, :num_frames], alone[0, :num_frames], atol=1e-3, rtol=1e-3
            )


def test_a_streaming_recognizer_does_not_look_ahead(corpus, tmp_path):
    texts = sample_sentences(0, 100)
    path = build_tiny_asr(tmp_path / "asr.nemo", texts=texts, streaming=True)
    model = ASRModel.restore_from(str(path)).eval()
    audio = torch.from_numpy(read_utterances(corpus / "train")[0][0])[None, : 10 * 1280]
    later = torch.cat([audio[:, : 6 * 1280], torch.zeros_like(audio[:, 6 * 1280 :])], dim=1)
    lens = torch.tensor([audio.shape[1]])
    with torch.no_grad():
        ours, theirs = (model(input_signal=a, input_signal_length=lens)[0] for a in (audio, later))
    settled = 5  # half a window of the next frame is heard
    torch.testing.assert_close(ours[:, :settled], theirs[:, :settled])
    assert not torch.equal(ours, theirs)


def test_tokenizer_travels_in_the_archive_and_keeps_to_its_size(archive):
    tokenizer = ASRModel.restore_from(str(archive)).tokenizer
    assert tokenizer.vocab_size <= 64
    for text in sample_sentences(1, 50, split="test"):
        assert tokenizer.ids_to_text(tokenizer.text_to_ids(text)) == text


def test_training_lowers_the_loss_and_is_deterministic(corpus, tmp_path):
    paths = [
        train_tiny_asr(corpus / "train", tmp_path / f"{name}.nemo", max_steps=steps, **SMALL)
        for name, steps in [("start", 1), ("one", 8), ("two", 8)]
    ]
    start, one, two = (EncDecCTCModelBPE.restore_from(str(path)) for path in paths)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name]), name
    assert ctc_loss(one, corpus / "train") < 0.95 * ctc_loss(start, corpus / "train")
    assert word_error_rate(one, corpus / "test") > 0.5


def ctc_loss(model, shar_dir):
    waveforms, texts = read_utterances(shar_dir)
    model.eval()
    losses = []
    for waveform, text in zip(waveforms, texts, strict=True):
        with torch.no_grad():
            log_probs, num_frames, _ = model(
                input_signal=torch.from_numpy(waveform)[None],
                input_signal_length=torch.tensor([waveform.size]),
            )
        ids = torch.tensor([model.tokenizer.text_to_ids(text)])
        blank = log_probs.shape[-1] - 1
        losses.append(
            torch.nn.functional.ctc_loss(
                log_probs.transpose(0, 1),
                ids,
                num_frames,
                torch.tensor([ids.shape[1]]),
                blank=blank,
            )
        )
    return sum(losses) / len(losses)


def test_another_sample_rate_and_an_empty_folder_are_named(tmp_path):
    write_spoken_commands(
        tmp_path / "slow", num_train=1, num_validation=1, num_test=1, sample_rate=8000
    )
    with pytest.raises(DataError, match="Cut train-000000 must be sampled at 16000 Hz"):
        read_utterances(tmp_path / "slow" / "train")
    with pytest.raises(DataError, match="must hold cuts, but .* has none"):
        read_utterances(tmp_path)


def test_shar_cuts_are_read_whole(corpus):
    waveforms, texts = read_utterances(corpus / "train")
    cuts = list(CutSet.from_shar(in_dir=str(corpus / "train")))
    assert [waveform.size for waveform in waveforms] == [cut.num_samples for cut in cuts]
    assert texts == [cut.supervisions[0].text for cut in cuts]


@pytest.mark.slow
def test_trained_recognizer_hears_unseen_voices(tmp_path):
    write_spoken_commands(tmp_path / "corpus", num_train=3000, num_validation=1, num_test=300)
    path = train_tiny_asr(tmp_path / "corpus" / "train", tmp_path / "asr.nemo")
    model = ASRModel.restore_from(str(path))
    assert word_error_rate(model, tmp_path / "corpus" / "test") <= 0.03
