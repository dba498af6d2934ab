"""What the specification shows works to the letter: its YAML and its commands."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from whalesong import checks, experiment
from whalesong.cli import main_script
from whalesong.core.config.job import check_job
from whalesong.core.config.trainer import ExpManagerConfig, TrainerConfig
from whalesong.core.schema import Schema, validate
from whalesong.data.config import DataConfig
from whalesong.demos.salm import SalmDemo
from whalesong.models.duplex_s2s.config import DuplexS2SConfig
from whalesong.models.duplex_s2s_speech_decoder.config import DuplexS2SSpeechDecoderConfig
from whalesong.models.salm.config import SALMConfig

MODEL = r"""
model:
  # Pretrained model paths
  pretrained_llm: "TinyLlama/TinyLlama_v1.1"  # HF model path
  pretrained_asr: "stt_en_fastconformer_hybrid_large_streaming_80ms"  # NeMo checkpoint name
  pretrained_weights: True  # Whether to load weights or just architecture

  # Special token settings
  audio_locator_tag: "<audio>"  # Tag to replace with audio embeddings

  # Freezing parameters
  freeze_params:
    - "^llm\\.model\\.layers\\.[0-4]\\..+$"  # Regex patterns for parameters to freeze
  prevent_freeze_params: []  # Override freeze_params for specific submodules

  # Optional LoRA settings for efficient fine-tuning
  lora:
    task_type: CAUSAL_LM
    r: 8
    lora_alpha: 32
    lora_dropout: 0.1

  # Audio perception module configuration
  perception:
    target: nemo.collections.speechlm2.modules.perception.AudioPerceptionModule

    preprocessor:
      normalize: 'NA'

    encoder:
      self_attention_model: rel_pos
      att_context_size: [-1, -1]
      conv_context_size: regular
      conv_norm_type: batch_norm

    modality_adapter:
      _target_: nemo.collections.asr.modules.ConformerEncoder
      feat_in: 1024
      feat_out: -1
      n_layers: 2
      d_model: 1024
      subsampling: dw_striding
      subsampling_factor: 1
      subsampling_conv_channels: 256
      causal_downsampling: false
      ff_expansion_factor: 4
      self_attention_model: rel_pos
      n_heads: 8
      att_context_size: [-1, -1]
      att_context_style: regular
      xscaling: true
      untie_biases: true
      pos_emb_max_len: 5000
      conv_kernel_size: 9
      conv_norm_type: batch_norm
      conv_context_size: null
      dropout: 0
      dropout_pre_encoder: 0
      dropout_emb: 0.0
"""

PERCEPTION = "model:\n" + MODEL[MODEL.index("  perception:") :]

DUPLEX_MODEL = """
model:
  # Pretrained model paths
  pretrained_llm: "TinyLlama/TinyLlama_v1.1"
  pretrained_audio_codec: "path/to/audio_codec.nemo"
  pretrained_asr: "stt_en_fastconformer_hybrid_large_streaming_80ms"
  scoring_asr: "stt_en_fastconformer_transducer_large"  # used only in validation

  # Loss weights
  audio_loss_weight: 4
  text_loss_weight: 3
"""

SPEECH_DECODER_MODEL = """
model:
  # Pretrained model paths
  pretrained_llm: "TinyLlama/TinyLlama_v1.1"
  pretrained_audio_codec: "path/to/audio_codec.nemo"
  pretrained_asr: "stt_en_fastconformer_hybrid_large_streaming_80ms"

  # Speech decoder settings
  speech_decoder:
    target: nemo.collections.speechlm2.modules.speech_generation.TransformerARSpeechDecoder
    d_model: 1024
    n_layers: 12
    n_heads: 16
    d_kv: 64
    d_ff: 4096
    max_seq_len: 2048
    dropout: 0.1
    layernorm_epsilon: 1e-5
    activation_function: "gelu_new"
    init_method_std: 0.02
    use_cache: True
"""

TRAINER = """
trainer:
  devices: 1
  num_nodes: 1
  accelerator: gpu
  precision: bf16-true
  logger: false
  enable_checkpointing: false  # handled by exp_manager
  replace_sampler_ddp: false   # handled by lhotse
  max_epochs: null
  max_steps: 100000
  log_every_n_steps: 10
  val_check_interval: 2000
  accumulate_grad_batches: 1
  gradient_clip_val: 1.0
"""

EXP_MANAGER = """
exp_manager:
  explicit_log_dir: path/to/output_dir
  exp_dir: null
  name: ${name}
  create_wandb_logger: false  # set to true if you want to use wandb
  wandb_logger_kwargs:
    project: null
    name: null
  resume_if_exists: true
  resume_ignore_no_checkpoint: true
  create_checkpoint_callback: true
  checkpoint_callback_params:
    monitor: val_loss
    filename: "{step}"  # checkpoint name will be step=<step>.ckpt
    save_top_k: 1
    mode: min
  create_tensorboard_logger: false  # set to true if you want to use tensorboard
  version: null
"""

DATA = """
data:
  train_ds:
    sample_rate: ${data.target_sample_rate}
    input_cfg:
      - type: lhotse_shar
        shar_path: /path/to/train_data
    seed: 42
    shard_seed: "randomized"
    num_workers: 4
    batch_size: 16
    # Optional bucketing settings
    # batch_duration: 100
    # bucket_duration_bins: [8.94766,10.1551,11.64118,19.30376,42.85]
    # use_bucketing: true
    # num_buckets: 5
    # bucket_buffer_size: 5000

  validation_ds:
    datasets:
      val_set_name:
        shar_path: /path/to/validation_data
    sample_rate: ${data.target_sample_rate}
    batch_size: 1
    seed: 42
    shard_seed: "randomized"
"""

SPEECH_TO_SPEECH_DATA = """
data:
  frame_length: 0.08
  source_sample_rate: 16000
  target_sample_rate: 22050
  input_roles: ["user", "User"]
  output_roles: ["agent", "Assistant"]
"""

BUCKETS = re.sub(r"^( +)# (?=\w+:)", r"\1", DATA, flags=re.MULTILINE)  # the optional settings
NAME = "name: salm\n"
TRAIN = "examples/speechlm2/salm_train.py"


def document(*sections: str) -> DictConfig:
    """Sections of the specification as one resolved config."""
    cfg = OmegaConf.merge(*(OmegaConf.create(section) for section in (NAME, *sections)))
    OmegaConf.resolve(cfg)
    return cfg


@pytest.mark.parametrize(
    "schema, section, others",
    [
        (SALMConfig, MODEL, []),
        (DuplexS2SConfig, DUPLEX_MODEL, [PERCEPTION]),
        (DuplexS2SSpeechDecoderConfig, SPEECH_DECODER_MODEL, [PERCEPTION]),
        (TrainerConfig, TRAINER, []),
        (ExpManagerConfig, EXP_MANAGER, []),
        (DataConfig, DATA, [SPEECH_TO_SPEECH_DATA]),
        (DataConfig, BUCKETS, [SPEECH_TO_SPEECH_DATA]),
    ],
)
def test_section_is_valid_to_the_letter(
    schema: type[Schema], section: str, others: list[str]
) -> None:
    name = section.split(":")[0].strip()
    cfg = document(section, *others)[name]
    checked = validate(schema, cfg, path=name).model_dump(by_alias=True)
    for key, value in OmegaConf.to_container(cfg).items():
        if not isinstance(value, dict) and key != "replace_sampler_ddp":
            assert checked[key] == value


@pytest.mark.parametrize(
    "target, sections",
    [
        ("SALM", [MODEL]),
        ("DuplexS2SModel", [DUPLEX_MODEL, PERCEPTION]),
        ("DuplexS2SSpeechDecoderModel", [SPEECH_DECODER_MODEL, PERCEPTION]),
    ],
)
def test_whole_document_is_a_training_job(
    target: str, sections: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[DictConfig] = []
    monkeypatch.setattr(experiment, "run", received.append)
    whole = document(*sections, TRAINER, EXP_MANAGER, DATA, SPEECH_TO_SPEECH_DATA)
    (tmp_path / "spec.yaml").write_text(OmegaConf.to_yaml(whole))
    argv = [f"--config-path={tmp_path}", "--config-name=spec", "trainer.max_steps=1000"]
    main_script(TRAIN, job_type="train", default_config="salm", target=target, argv=argv)
    job = check_job(received[0])
    assert (job.name, job.trainer.max_steps) == ("salm", 1000)
    checks.check_training(received[0])


@pytest.mark.parametrize(
    "folder, script, config_path",
    [
        (".", TRAIN, "conf"),  # from the working directory
        ("elsewhere", f"../{TRAIN}", "../../conf"),  # from the script
        ("elsewhere", f"../{TRAIN}", "conf"),  # beside the package
    ],
)
def test_relative_config_path(
    folder: str, script: str, config_path: str, checkout: Path, shell: Callable[..., str]
) -> None:
    (checkout / "elsewhere").mkdir()
    command = (
        f"python {script} --config-path={config_path} --config-name=salm --cfg job"
        ' model.pretrained_llm="different/llm/path" trainer.max_steps=1000'
        " data.train_ds.batch_size=8"
    )
    cfg = OmegaConf.create(shell(command, cwd=checkout / folder))
    assert cfg.model.pretrained_llm == "different/llm/path"
    assert (cfg.trainer.max_steps, cfg.data.train_ds.batch_size) == (1000, 8)


@pytest.mark.slow
@pytest.mark.usefixtures("recordings")
def test_training_command(checkout: Path, demo_parts: SalmDemo, shell: Callable[..., str]) -> None:
    shell(
        "python examples/speechlm2/manifest_to_shar.py"
        " recordings/train.jsonl recordings/validation.jsonl shar"
    )
    shell(
        "python examples/speechlm2/salm_train.py --config-path=conf --config-name=salm"
        f' model.pretrained_llm="{demo_parts.llm}" trainer.max_steps=2 data.train_ds.batch_size=2'
        f" model.pretrained_asr={demo_parts.asr} trainer.val_check_interval=2"
        " data.train_ds.input_cfg.0.shar_path=shar/train"
        " data.validation_ds.datasets.val.input_cfg.0.shar_path=shar/validation"
    )
    assert (checkout / "logs" / "salm" / "checkpoints" / "salm.nemo").is_file()
