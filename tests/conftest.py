"""Real parts for all tests, made once per session: tiny pretrained parts, data, and models."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tiny tensors: threads that wait cost more than they do
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TEXTS = ["turn on the light in the kitchen", "set the heating to twenty one degrees"] * 20
MUSIC_TEXTS = ["a calm piano piece", "a fast techno beat with a synth lead", "rain", "slow tone"]


@pytest.fixture(scope="session")
def tiny_asr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Conformer CTC model in NeMo's format, 12.5 frames/s."""
    from whalesong.tiny.asr import build_tiny_asr

    return build_tiny_asr(tmp_path_factory.mktemp("asr") / "asr.nemo", texts=TEXTS)


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of an untrained LLM: `tiny_llm("qwen2", tie_word_embeddings=False)`."""
    from whalesong.tiny.llm import build_tiny_llm

    built: dict[tuple[Any, ...], Path] = {}

    def build(architecture: str = "llama", **options: Any) -> Path:
        key = (architecture, *sorted(options.items()))
        if key not in built:
            folder = tmp_path_factory.mktemp("llm") / architecture
            built[key] = build_tiny_llm(folder, texts=TEXTS, architecture=architecture, **options)
        return built[key]

    return build


@pytest.fixture(scope="session")
def save_tokenizer() -> Callable[[Path], int]:
    """Writes a word tokenizer that ends each text with </s>, as T5's does; returns its size."""

    def save(folder: Path) -> int:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        words = sorted({word for text in MUSIC_TEXTS for word in text.split()})
        vocab = {word: n for n, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
        tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
        special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
        return len(vocab)

    return save


@pytest.fixture(scope="session")
def tiny_t5(
    save_tokenizer: Callable[[Path], int], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of an untrained T5 with its tokenizer."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("t5")
    config = T5Config(
        vocab_size=save_tokenizer(folder), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        dropout_rate=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encodec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained EnCodec: 4 codebooks of 64 ids at 50 frames/s, of 32 kHz audio."""
    import torch
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    config = EncodecConfig(
        sampling_rate=32000, upsampling_ratios=[8, 5, 4, 4], target_bandwidths=[1.2],
        codebook_size=64, hidden_size=16, num_filters=4, use_causal_conv=False,
    )  # fmt: skip
    model = EncodecModel(config)
    for name, tensor in model.state_dict().items():
        if name.endswith("codebook.embed"):
            tensor.normal_(std=0.02)  # about as much as latents differ
    folder = tmp_path_factory.mktemp("encodec")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def salm_config(tiny_asr: Path, tiny_llm: Callable[..., Path]) -> Callable[..., dict[str, Any]]:
    """The `model` section of a tiny SALM; keyword arguments replace its keys."""

    def config(architecture: str = "llama", **changes: Any) -> dict[str, Any]:
        section = {
            "pretrained_llm": str(tiny_llm(architecture)),
            "pretrained_asr": str(tiny_asr),
            "prompt_format": "llama2",
            "freeze_params": [r"^llm\..+$", r"^perception\.(preprocessor|encoder)\..+$"],
            "lora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
            "perception": {
                "modality_adapter": {
                    "_target_": "whalesong.modules.adapters.StackingMLPAdapter",
                    "feat_in": None,
                    "output_dim": None,
                    "stacking_factor": 2,
                    "hidden_dim": 64,
                }
            },
            "generation": {"max_new_tokens": 12},
            "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3},
        }
        section.update(changes)
        return {key: value for key, value in section.items() if value is not None}

    return config


@pytest.fixture(scope="session")
def build_salm(salm_config: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """A tiny SALM with fixed weights."""
    import torch
    from nemo.utils import logging as nemo_logging

    from whalesong.models.salm.salm import SALM

    nemo_logging.setLevel(logging.ERROR)

    def build(architecture: str = "llama", **changes: Any) -> SALM:
        torch.manual_seed(0)
        return SALM(salm_config(architecture, **changes)).eval()

    return build


@pytest.fixture(scope="session")
def speech_shar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve short cuts of noise with texts, as lhotse shar at 16 kHz."""
    import io

    import numpy as np
    import soundfile
    from lhotse import Recording, SupervisionSegment

    from whalesong.data.shar import write_shar

    rng = np.random.default_rng(0)
    cuts = []
    for index in range(12):
        data = io.BytesIO()
        samples = 0.1 * rng.standard_normal(8000 + 800 * index)
        soundfile.write(data, samples, 16000, format="WAV")
        cut = Recording.from_bytes(data.getvalue(), recording_id=f"utt{index}").to_cut()
        text = " ".join(TEXTS[index % 2].split()[: 2 + index % 4])
        segment = SupervisionSegment(f"utt{index}", f"utt{index}", 0, cut.duration, text=text)
        cut.id, cut.supervisions = f"utt{index}", [segment]
        cuts.append(cut)
    folder = tmp_path_factory.mktemp("speech") / "shar"
    write_shar(cuts, folder, fields={"recording": "flac"}, shard_size=4)
    return folder


@pytest.fixture(scope="session")
def small_job(salm_config: Callable[..., dict[str, Any]], speech_shar: Path) -> list[str]:
    """Overrides that make a training of seconds of the experiment `salm_demo`."""
    parts = salm_config()
    return [
        "job_type=train",
        "job_name=salm_demo",
        "experiment=salm_demo",
        f"model.pretrained_llm={parts['pretrained_llm']}",
        f"model.pretrained_asr={parts['pretrained_asr']}",
        "model.perception.modality_adapter.hidden_dim=32",
        "model.perception.modality_adapter.dropout=0",
        "model.lora.lora_dropout=0",
        "model.generation.max_new_tokens=3",
        f"data.train_ds.shar_path={speech_shar}",
        f"data.validation_ds.datasets.val.shar_path={speech_shar}",
        "exp_manager.checkpoint_callback_params.save_best_model=false",
    ]


@pytest.fixture(scope="session")
def tones() -> list[Any]:
    """Twelve clips of two notes each, mono at 16 kHz, from half a second on."""
    import numpy as np

    clips = []
    for index in range(12):
        time = np.arange(8000 + 640 * index) / 16000
        low, high = 110 * 2 ** (index / 12), 440 * 2 ** (index / 12)
        clip = np.sin(2 * np.pi * low * time) + 0.5 * np.sin(2 * np.pi * high * time)
        clips.append((0.3 * clip * np.exp(-2 * (time % 0.25))).astype(np.float32))
    return clips


@pytest.fixture(scope="session")
def mel_rvq(tones: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec of 3 codebooks of 32 ids at 50 frames/s, fitted on the tones."""
    import torch

    from whalesong.modules.codec.files import save_codec
    from whalesong.modules.codec.mel_rvq import MelRVQSizes, fit_mel_rvq

    path = tmp_path_factory.mktemp("codec") / "codec.safetensors"
    sizes = MelRVQSizes(num_codebooks=3, codebook_size=32)
    save_codec(fit_mel_rvq([torch.from_numpy(clip) for clip in tones], sizes, seed=0), path)
    return path


@pytest.fixture(scope="session")
def music_shar(tones: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tones with captions and a tempo, as lhotse shar."""
    import io

    import soundfile
    from lhotse import Recording, SupervisionSegment

    from whalesong.data.shar import write_shar

    cuts = []
    for index, clip in enumerate(tones):
        data = io.BytesIO()
        soundfile.write(data, clip, 16000, format="WAV")
        cut = Recording.from_bytes(data.getvalue(), recording_id=f"clip{index}").to_cut()
        text = f"{'slow' if index % 2 else 'fast'} tone number {index}"
        segment = SupervisionSegment(f"clip{index}", f"clip{index}", 0, cut.duration, text=text)
        cut.id, cut.supervisions, cut.custom = f"clip{index}", [segment], {"tempo": 60 + 5 * index}
        cuts.append(cut)
    folder = tmp_path_factory.mktemp("music") / "shar"
    write_shar(cuts, folder, fields={"recording": "flac"}, shard_size=4)
    return folder


@pytest.fixture(scope="session")
def codec_lm_config(mel_rvq: Path) -> Callable[..., dict[str, Any]]:
    """The `model` section of a tiny codec LM; `lm`'s keys and other keys can be replaced."""

    def config(lm: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        section = {
            "sample_rate": 16000,
            "pretransform": {"type": "mel_rvq", "config": {"model_path": str(mel_rvq)}},
            "lm": {
                "type": "continuous_transformer",
                "config": {
                    "embed_dim": 64,
                    "depth": 2,
                    "dim_heads": 32,
                    "zero_init_branch_outputs": False,
                },
                "codebook_pattern": "delay",
                "cross_attention_cond_ids": ["text"],
                **(lm or {}),
            },
            "conditioning": {
                "cond_dim": 64,
                "configs": [
                    {"id": "text", "type": "text", "config": {"max_length": 32, "width": 32}},
                    {"id": "prompt", "type": "audio_prompt", "config": {"max_seconds": 0.2}},
                    {"id": "tempo", "type": "number", "config": {"min_val": 40, "max_val": 200}},
                ],
            },
            "generation": {"seconds": 0.5, "top_k": 0},
            "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3},
        }
        section.update(changes)
        return {key: value for key, value in section.items() if value is not None}

    return config


@pytest.fixture(scope="session")
def build_codec_lm(codec_lm_config: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """A tiny codec LM with fixed weights."""
    import torch
    from nemo.utils import logging as nemo_logging

    from whalesong.models.codec_lm.codec_lm import CodecLMModel

    nemo_logging.setLevel(logging.ERROR)

    def build(lm: dict[str, Any] | None = None, **changes: Any) -> CodecLMModel:
        torch.manual_seed(0)
        return CodecLMModel(codec_lm_config(lm, **changes)).eval()

    return build


@pytest.fixture(scope="session")
def small_codec_lm_job(mel_rvq: Path, music_shar: Path) -> list[str]:
    """Arguments of `xlm` for a training of seconds of the codec LM without any chance in it."""
    return [
        "--config-name=audio_lm",
        "job_type=train",
        f"model.pretransform.config.model_path={mel_rvq}",
        "model.lm.config={embed_dim: 64, depth: 2, dim_heads: 32}",
        "model.lm.cross_attention_cond_ids=[text,prompt]",
        "model.conditioning.cond_dim=64",
        "model.conditioning.dropout=0",
        "model.conditioning.configs=[{id: text, type: text, config: {width: 32}},"
        "{id: prompt, type: audio_prompt, config: {max_seconds: 0.2}}]",
        f"data.train_ds.shar_path={music_shar}",
        f"data.validation_ds.datasets.val.shar_path={music_shar}",
        "data.train_ds.num_workers=0",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
    ]


@pytest.fixture(scope="session")
def audiolm_config(mel_rvq: Path) -> Callable[..., dict[str, Any]]:
    """The `model` section of a tiny AudioLM; keyword arguments replace its keys."""

    def config(**changes: Any) -> dict[str, Any]:
        section = {
            "sample_rate": 16000,
            "pretransform": {"type": "mel_rvq", "config": {"model_path": str(mel_rvq)}},
            "d_model": 32,
            "num_heads": 2,
            "num_layers": 2,
            "num_quantizers": 3,
            "codebook_size": 32,
            "dropout": 0.0,
            "generation": {"max_seconds": 0.4},
            "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3},
        }
        section.update(changes)
        return {key: value for key, value in section.items() if value is not None}

    return config


@pytest.fixture(scope="session")
def build_audiolm(audiolm_config: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """A tiny AudioLM with fixed weights."""
    import torch
    from nemo.utils import logging as nemo_logging

    from whalesong.models.audiolm.audiolm import AudioLMModel

    nemo_logging.setLevel(logging.ERROR)

    def build(**changes: Any) -> AudioLMModel:
        torch.manual_seed(0)
        return AudioLMModel(audiolm_config(**changes)).eval()

    return build


@pytest.fixture(scope="session")
def small_audiolm_job(mel_rvq: Path, music_shar: Path) -> list[str]:
    """Arguments of `xlm` for a training of seconds of AudioLM without any chance in the data."""
    return [
        "--config-name=audiolm",
        "job_type=train",
        "model.sample_rate=16000",
        f"model.pretransform={{type: mel_rvq, config: {{model_path: {mel_rvq}}}}}",
        "model.d_model=32",
        "model.num_heads=2",
        "model.num_layers=2",
        "model.num_quantizers=3",
        "model.codebook_size=32",
        "model.dropout=0",
        f"data.train_ds.shar_path={music_shar}",
        f"data.validation_ds.datasets.val.shar_path={music_shar}",
        "data.train_ds.num_workers=0",
        "data.train_ds.use_bucketing=false",
        *(
            f"data.train_ds.{key}=null"
            for key in ("batch_duration", "min_duration", "max_duration")
        ),
        "data.train_ds.batch_size=4",
        "data.validation_ds.batch_duration=null",
        "data.validation_ds.batch_size=4",
        "trainer.max_epochs=null",
        "trainer.check_val_every_n_epoch=null",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
    ]


@pytest.fixture(scope="session")
def dialogues() -> list[Any]:
    """Twelve conversations of 2 to 4 s: (user (N,) at 16 kHz, agent (N',) at 22,050 Hz, turns).

    Each turn is (speaker, begin, duration, text); the agent hums while it speaks.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    made = []
    for index in range(12):
        seconds = 2 + 0.17 * index
        words = TEXTS[index % 2].split()[: 2 + index % 4]
        turns = [("user", 0.1, 0.8, " ".join(words)), ("agent", 1.04, 0.72, " ".join(words[:3]))]
        if seconds > 3:
            turns += [("user", 1.9, 0.5, words[0]), ("agent", 2.4, 0.41, words[1])]
        time = np.arange(round(22050 * seconds)) / 22050
        agent = 0.3 * np.sin(2 * np.pi * 220 * 2 ** (index / 6) * time)
        speaks = [(time >= begin) & (time < begin + length) for _, begin, length, _ in turns[1::2]]
        agent = agent * np.any(speaks, axis=0) + 0.003 * rng.standard_normal(len(time))
        user = 0.1 * rng.standard_normal(round(16000 * seconds))
        made.append((user.astype(np.float32), agent.astype(np.float32), turns))
    return made


@pytest.fixture(scope="session")
def duplex_shar(dialogues: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dialogues as lhotse shar, with a field for each side."""
    import io

    import soundfile
    from lhotse import Recording, SupervisionSegment

    from whalesong.data.shar import write_shar

    def recording(samples: Any, sample_rate: int, id: str) -> Recording:
        data = io.BytesIO()
        soundfile.write(data, samples, sample_rate, format="WAV")
        return Recording.from_bytes(data.getvalue(), recording_id=id)

    cuts = []
    for index, (user, agent, turns) in enumerate(dialogues):
        id = f"talk{index}"
        cut = recording(user, 16000, id).to_cut()
        cut.id, cut.target_audio = id, recording(agent, 22050, f"{id}-agent")
        cut.supervisions = [
            SupervisionSegment(f"{id}-{n}", id, begin, duration, text=text, speaker=speaker)
            for n, (speaker, begin, duration, text) in enumerate(turns)
        ]
        cuts.append(cut)
    folder = tmp_path_factory.mktemp("duplex") / "shar"
    write_shar(cuts, folder, fields={"recording": "flac", "target_audio": "flac"}, shard_size=4)
    return folder


@pytest.fixture(scope="session")
def duplex_codec(dialogues: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec of 4 codebooks of 16 ids at 22,050 Hz and 12.5 frames/s, fitted on the agent."""
    import torch

    from whalesong.modules.codec.files import save_codec
    from whalesong.modules.codec.mel_rvq import MelRVQSizes, fit_mel_rvq

    path = tmp_path_factory.mktemp("codec") / "duplex.safetensors"
    sizes = MelRVQSizes(
        sample_rate=22050, hop_length=1764, n_fft=3528, n_mels=20, num_codebooks=4,
        codebook_size=16, num_iterations=2, block_frames=2, context_frames=1, fade_frames=1,
    )  # fmt: skip
    clips = [torch.from_numpy(agent) for _, agent, _ in dialogues]
    save_codec(fit_mel_rvq(clips, sizes, seed=0), path)
    return path


@pytest.fixture(scope="session")
def causal_asr(tiny_asr: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained recognizer whose encoder hears nothing that is still to come, 12.5 frames/s."""
    import tarfile

    import torch
    from nemo.collections.asr.models import EncDecCTCModelBPE
    from nemo.utils import logging as nemo_logging
    from omegaconf import OmegaConf

    nemo_logging.setLevel(logging.ERROR)
    folder = tmp_path_factory.mktemp("causal")
    with tarfile.open(tiny_asr) as archive:
        files = {Path(name).name: archive.extractfile(name) for name in archive.getnames()}
        config = OmegaConf.create(files["model_config.yaml"].read().decode())
        for ending in ("tokenizer.model", "vocab.txt"):
            file = next(file for name, file in files.items() if name.endswith(ending))
            (folder / ending).write_bytes(file.read())
    config.tokenizer = {"dir": str(folder), "type": "bpe"}
    config.preprocessor.update(normalize="NA", pad_to=0, dither=0.0)
    config.encoder.update(
        subsampling="dw_striding", subsampling_conv_channels=16, causal_downsampling=True,
        att_context_size=[8, 0], conv_context_size="causal", conv_norm_type="layer_norm",
    )  # fmt: skip
    torch.manual_seed(0)
    EncDecCTCModelBPE(cfg=config).save_to(str(folder / "asr.nemo"))
    return folder / "asr.nemo"


@pytest.fixture(scope="session")
def duplex_config(
    causal_asr: Path, tiny_llm: Callable[..., Path], duplex_codec: Path
) -> Callable[..., dict[str, Any]]:
    """The `model` section of a tiny duplex family; keyword arguments replace its keys."""

    def config(family: str = "duplex_s2s", **changes: Any) -> dict[str, Any]:
        connector = "nemo.collections.speechlm2.modules.perception.IdentityConnector"
        section = {
            "pretrained_llm": str(tiny_llm()),
            "pretrained_asr": str(causal_asr),
            "pretrained_audio_codec": str(duplex_codec),
            "perception": {"modality_adapter": {"_target_": connector, "d_model": None}},
            "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3},
        }
        if family == "duplex_s2s_speech_decoder":
            section["speech_decoder"] = {
                "d_model": 32, "n_layers": 2, "n_heads": 2, "d_kv": 16, "d_ff": 64, "dropout": 0.0,
            }  # fmt: skip
        section.update(changes)
        return {key: value for key, value in section.items() if value is not None}

    return config


@pytest.fixture(scope="session")
def build_duplex(duplex_config: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """A tiny model of a duplex family with fixed weights."""
    import torch
    from nemo.utils import logging as nemo_logging

    import whalesong

    nemo_logging.setLevel(logging.ERROR)
    names = {
        "duplex_s2s": "DuplexS2SModel",
        "duplex_s2s_speech_decoder": "DuplexS2SSpeechDecoderModel",
    }

    def build(family: str = "duplex_s2s", **changes: Any) -> Any:
        torch.manual_seed(0)
        return getattr(whalesong, names[family])(duplex_config(family, **changes)).eval()

    return build


@pytest.fixture(scope="session")
def small_duplex_job(
    causal_asr: Path, tiny_llm: Callable[..., Path], duplex_codec: Path, duplex_shar: Path
) -> Callable[..., list[str]]:
    """Arguments of `xlm` for a duplex training of seconds, without any chance in the data.

    `small_duplex_job("s2s_duplex_speech_decoder")` names the config.
    """

    def job(config_name: str = "s2s_duplex") -> list[str]:
        decoder = "{d_model: 32, n_layers: 2, n_heads: 2, d_kv: 16, d_ff: 64, dropout: 0}"
        has_decoder = config_name == "s2s_duplex_speech_decoder"
        return [
            f"--config-name={config_name}",
            "job_type=train",
            f"model.pretrained_llm={tiny_llm()}",
            f"model.pretrained_asr={causal_asr}",
            f"model.pretrained_audio_codec={duplex_codec}",
            "model.perception.encoder={}",
            "model.lr_scheduler.warmup_steps=1",
            *([f"model.speech_decoder={decoder}"] if has_decoder else []),
            f"data.train_ds.input_cfg.0.shar_path={duplex_shar}",
            "data.train_ds.num_workers=0",
            "data.train_ds.batch_size=4",
            f"data.validation_ds.datasets.val.shar_path={duplex_shar}",
            "data.validation_ds.batch_size=4",
            "trainer.accelerator=cpu",
            "trainer.enable_progress_bar=false",
        ]

    return job
