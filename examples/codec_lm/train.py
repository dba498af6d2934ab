"""Train a codec language model from YAML.

    python examples/codec_lm/train.py --config-path=conf --config-name=audio_lm \
      model.pretransform.config.model_path=codec.safetensors \
      data.train_ds.shar_path=path/to/train data.validation_ds.datasets.val.shar_path=path/to/val

`--config-name=music_prefix` and `--config-name=music_fusion` are the text-to-music models A and B.
"""

from whalesong.cli import main_script

if __name__ == "__main__":
    main_script(__file__, job_type="train", default_config="audio_lm", target="CodecLMModel")
