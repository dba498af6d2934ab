"""Train DuplexS2SModel from YAML.

    python examples/speechlm2/s2s_duplex_train.py --config-path=conf --config-name=s2s_duplex \
      model.pretrained_llm=path/to/llm model.pretrained_audio_codec=path/to/audio_codec.nemo
"""

from whalesong.cli import main_script

if __name__ == "__main__":
    main_script(__file__, job_type="train", default_config="s2s_duplex", target="DuplexS2SModel")
