"""Train AudioLM from YAML.

    python examples/audiolm/train.py --config-path=conf --config-name=audiolm \
      data.train_ds.shar_path=path/to/train data.validation_ds.datasets.val.shar_path=path/to/val

`examples/audiolm/validate.py` with the same arguments checks everything first.
"""

from whalesong.cli import main_script

if __name__ == "__main__":
    main_script(__file__, job_type="train", default_config="audiolm", target="AudioLMModel")
