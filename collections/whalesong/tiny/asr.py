"""A small Conformer CTC recognizer, trained on the spot and saved as a NeMo `.nemo` archive."""

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jiwer
import lightning.pytorch as lightning
import numpy as np
import sentencepiece
import torch
from lhotse import CutSet
from nemo.collections.asr.models import ASRModel, EncDecCTCModelBPE
from nemo.utils import logging as nemo_logging
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader, Dataset

from whalesong.core.atomic import atomic_path
from whalesong.core.errors import DataError

SAMPLE_RATE = 16000

_MODULES = "nemo.collections.asr.modules."
_POOL_BATCHES = 10
_STREAMING = {
    "preprocessor": {
        "normalize": "NA",  # the others look at the whole utterance
        "dither": 0.0,
        "log_zero_guard_value": 1e-3,  # noise in silences is as loud as speech behind the norm
    },
    "encoder": {
        "att_context_size": [70, 0],
        "conv_context_size": "causal",
        "subsampling": "stacking_norm",  # without the norm, words take far longer to learn
    },
}


def build_tiny_asr(
    output: str | Path,
    *,
    texts: Sequence[str],
    d_model: int = 64,
    num_layers: int = 2,
    subsampling_factor: int = 8,
    vocab_size: int = 64,
    streaming: bool = False,
    seed: int = 0,
) -> Path:
    """Save an untrained recognizer as a `.nemo` file; for tests that need the real format.

    Args:
        output: the `.nemo` file; an old one is replaced.
        texts: what the sentencepiece tokenizer is trained on.
        d_model: width of the encoder.
        num_layers: Conformer blocks.
        subsampling_factor: mel frames of 10 ms per encoder frame.
        vocab_size: upper bound for the number of text tokens.
        streaming: the encoder looks back a few seconds and never ahead.
        seed: of the initial weights.

    Returns:
        The path of the archive.
    """
    # NeMo copies the tokenizer into the archive at the end, so its folder must live until then.
    with _quiet(), _seeded(seed), tempfile.TemporaryDirectory() as tokenizer_dir:
        _train_tokenizer(texts, Path(tokenizer_dir), vocab_size=vocab_size)
        model = _create_model(
            tokenizer_dir,
            d_model=d_model,
            num_layers=num_layers,
            subsampling_factor=subsampling_factor,
            streaming=streaming,
        )
        return _save(model, output)


def train_tiny_asr(
    shar_dir: str | Path,
    output: str | Path,
    *,
    max_steps: int = 700,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    d_model: int = 128,
    num_layers: int = 4,
    subsampling_factor: int = 8,
    vocab_size: int = 400,
    streaming: bool = False,
    seed: int = 0,
) -> Path:
    """Train a recognizer on a lhotse shar folder and save it as a `.nemo` file.

    Args:
        shar_dir: a shar folder of 16 kHz cuts with one text each; all of it is held in memory.
        output: the `.nemo` file; an old one is replaced.
        max_steps: optimizer steps.
        batch_size: utterances per step.
        learning_rate: peak of the warmed-up cosine schedule.
        d_model: width of the encoder.
        num_layers: Conformer blocks.
        subsampling_factor: mel frames of 10 ms per encoder frame.
        vocab_size: upper bound for the number of text tokens.
        streaming: the encoder looks back a few seconds and never ahead.
        seed: of the initial weights, the batches and the dither.

    Raises:
        DataError: if the folder has no cuts, or a cut has another sample rate or no text.
    """
    waveforms, texts = read_utterances(shar_dir)
    with _quiet(), _seeded(seed), tempfile.TemporaryDirectory() as tokenizer_dir:
        _train_tokenizer(texts, Path(tokenizer_dir), vocab_size=vocab_size)
        model = _create_model(
            tokenizer_dir,
            d_model=d_model,
            num_layers=num_layers,
            subsampling_factor=subsampling_factor,
            streaming=streaming,
        )
        dataset = _Utterances(waveforms, [model.tokenizer.text_to_ids(text) for text in texts])
        batches = _BatchesOfAlikeLength(dataset, batch_size, max_steps, seed)
        loader = DataLoader(dataset, batch_sampler=batches, collate_fn=_collate)
        _fit(model, loader, max_steps=max_steps, learning_rate=learning_rate)
        return _save(model, output)


def word_error_rate(model: ASRModel, shar_dir: str | Path, *, batch_size: int = 32) -> float:
    """Transcribe every cut of a shar folder and return errors per reference word."""
    waveforms, texts = read_utterances(shar_dir)
    with _quiet():
        hypotheses = model.transcribe(waveforms, batch_size=batch_size, verbose=False)
    return jiwer.wer(texts, [hypothesis.text for hypothesis in hypotheses])


def read_utterances(shar_dir: str | Path) -> tuple[list[np.ndarray], list[str]]:
    """Read the waveforms, float32 (N,), and the texts of a shar folder into memory.

    Raises:
        DataError: if the folder has no cuts, or a cut has another sample rate or no text.
    """
    if not any(Path(shar_dir).glob("cuts.*")):
        raise DataError(f"The shar folder must hold cuts, but {shar_dir} has none.")
    waveforms, texts = [], []
    for cut in CutSet.from_shar(in_dir=str(shar_dir)):
        if cut.sampling_rate != SAMPLE_RATE:
            raise DataError(
                f"Cut {cut.id} must be sampled at {SAMPLE_RATE} Hz, "
                f"but is at {cut.sampling_rate} instead."
            )
        if len(cut.supervisions) != 1 or not cut.supervisions[0].text:
            raise DataError(f"Cut {cut.id} must have one supervision with text, but has not.")
        waveforms.append(cut.load_audio()[0])
        texts.append(cut.supervisions[0].text)
    return waveforms, texts


class _Utterances(Dataset):
    """Item: waveform float32 (N,), token ids int64 (T,)."""

    def __init__(self, waveforms: list[np.ndarray], token_ids: list[list[int]]) -> None:
        self.waveforms = waveforms
        self.token_ids = token_ids

    def __len__(self) -> int:
        return len(self.waveforms)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(self.waveforms[index]), torch.tensor(self.token_ids[index])


class _BatchesOfAlikeLength:
    """`max_steps` batches of indices, shuffled, with little padding.

    A shuffled epoch is cut into pools of ten batches, and each pool is sorted by duration.
    """

    def __init__(self, dataset: _Utterances, batch_size: int, max_steps: int, seed: int) -> None:
        self.lengths = np.array([waveform.size for waveform in dataset.waveforms])
        self.batch_size = min(batch_size, len(dataset))
        self.max_steps = max_steps
        self.seed = seed

    def __len__(self) -> int:
        return self.max_steps

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng(self.seed)
        num_batches = 0
        while num_batches < self.max_steps:
            for batch in self._epoch(rng)[: self.max_steps - num_batches]:
                num_batches += 1
                yield batch

    def _epoch(self, rng: np.random.Generator) -> list[list[int]]:
        order = rng.permutation(len(self.lengths))
        batches = []
        for start in range(0, len(order), self.batch_size * _POOL_BATCHES):
            pool = order[start : start + self.batch_size * _POOL_BATCHES]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches += [
                pool[first : first + self.batch_size].tolist()
                for first in range(0, len(pool), self.batch_size)
            ]
        rng.shuffle(batches)
        return batches


def _collate(
    items: list[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return audio (B, N), audio_lens (B,), token ids (B, T), token_lens (B,)."""
    waveforms, token_ids = zip(*items, strict=True)
    pad = torch.nn.utils.rnn.pad_sequence
    return (
        pad(waveforms, batch_first=True),
        torch.tensor([waveform.numel() for waveform in waveforms]),
        pad(token_ids, batch_first=True),
        torch.tensor([ids.numel() for ids in token_ids]),
    )


def _create_model(
    tokenizer_dir: str,
    *,
    d_model: int,
    num_layers: int,
    subsampling_factor: int,
    streaming: bool,
) -> EncDecCTCModelBPE:
    cfg = _model_config(
        tokenizer_dir,
        d_model=d_model,
        num_layers=num_layers,
        subsampling_factor=subsampling_factor,
    )
    return EncDecCTCModelBPE(cfg=OmegaConf.merge(cfg, _STREAMING) if streaming else cfg)


def _fit(
    model: EncDecCTCModelBPE, loader: DataLoader, *, max_steps: int, learning_rate: float
) -> None:
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=max_steps,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[_LossInProgressBar()],
        log_every_n_steps=max_steps + 1,  # at such steps NeMo also decodes the batch
    )
    model.set_trainer(trainer)
    model.setup_optimization(_optimizer_config(learning_rate, max_steps))
    trainer.fit(model, train_dataloaders=loader)


def _train_tokenizer(texts: Iterable[str], folder: Path, *, vocab_size: int) -> None:
    """Write `tokenizer.model` and `vocab.txt`, the two files that NeMo looks for."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=vocab_size,
        model_type="bpe",
        character_coverage=1.0,
        bos_id=-1,
        eos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    rows = (folder / "tokenizer.vocab").read_text(encoding="utf-8").splitlines()
    pieces = [row.split("\t")[0] for row in rows[1:]]  # NeMo wants it without <unk>
    (folder / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")


def _model_config(
    tokenizer_dir: str, *, d_model: int, num_layers: int, subsampling_factor: int
) -> DictConfig:
    return OmegaConf.create(
        {
            "sample_rate": SAMPLE_RATE,
            "log_prediction": False,
            "ctc_reduction": "mean_batch",
            "skip_nan_grad": False,
            "tokenizer": {"dir": tokenizer_dir, "type": "bpe"},
            "preprocessor": {
                "_target_": _MODULES + "AudioToMelSpectrogramPreprocessor",
                "sample_rate": SAMPLE_RATE,
                "normalize": "per_feature",
                "window_size": 0.025,
                "window_stride": 0.01,
                "window": "hann",
                "features": 64,
                "n_fft": 512,
                "log": True,
                "frame_splicing": 1,
                "dither": 1e-5,
                # NeMo's stacking counts the frames of a row by the padding of its batch, unless
                # batches come in whole stacks.
                "pad_to": subsampling_factor,
                "pad_value": 0.0,
            },
            "encoder": {
                "_target_": _MODULES + "ConformerEncoder",
                "feat_in": 64,
                "feat_out": -1,
                "n_layers": num_layers,
                "d_model": d_model,
                # Learns in a quarter of the time that NeMo's usual convolutions (dw_striding) take.
                "subsampling": "stacking",
                "subsampling_factor": subsampling_factor,
                "ff_expansion_factor": 4,
                "self_attention_model": "rel_pos",
                "n_heads": 4,
                "att_context_size": [-1, -1],
                "att_context_style": "regular",
                "xscaling": False,
                "untie_biases": True,
                "pos_emb_max_len": 5000,
                "conv_kernel_size": 9,
                "conv_norm_type": "batch_norm",
                "conv_context_size": None,
                # In so few epochs, 5 % dropout and SpecAugment raise the WER from 3 % to 17 %.
                "dropout": 0.0,
                "dropout_pre_encoder": 0.0,
                "dropout_emb": 0.0,
                "dropout_att": 0.0,
            },
            "decoder": {
                "_target_": _MODULES + "ConvASRDecoder",
                "feat_in": None,
                "num_classes": -1,
                "vocabulary": [],
            },
            "decoding": {"strategy": "greedy_batch"},
            "optim": {"name": "adamw", "lr": 1e-3},
        }
    )


def _optimizer_config(learning_rate: float, max_steps: int) -> DictConfig:
    return OmegaConf.create(
        {
            "name": "adamw",
            "lr": learning_rate,
            "betas": [0.9, 0.98],
            "weight_decay": 1e-3,
            "sched": {
                "name": "CosineAnnealing",
                "max_steps": max_steps,
                "warmup_steps": max(1, max_steps // 10),
                "min_lr": learning_rate / 100,
            },
        }
    )


class _LossInProgressBar(lightning.Callback):
    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: dict[str, torch.Tensor],
        batch: tuple[torch.Tensor, ...],
        batch_idx: int,
    ) -> None:
        pl_module.log("loss", outputs["loss"], prog_bar=True, logger=False)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch inside the block and leave the caller's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the notes and warnings of NeMo and Lightning, which fill pages."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with nemo_logging.temp_verbosity(nemo_logging.ERROR), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _save(model: EncDecCTCModelBPE, output: str | Path) -> Path:
    with atomic_path(output) as partial:
        model.save_to(str(partial))
    return Path(output)
