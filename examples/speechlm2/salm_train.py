"""Train SALM from YAML.

    python examples/speechlm2/salm_train.py --config-path=conf --config-name=salm \
      model.pretrained_llm=path/to/llm trainer.max_steps=1000 data.train_ds.batch_size=8
"""

from whalesong.cli import main_script

if __name__ == "__main__":
    main_script(__file__, job_type="train", default_config="salm", target="SALM")
