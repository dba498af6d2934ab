"""Go on from recordings with a trained AudioLM.

    python examples/audiolm/generate.py predict.ckpt_path=audiolm.nemo 'predict.begin=[a.wav]' \
      predict.generation.max_seconds=8

With `predict.end=[b.wav]` it makes what lies between; with `predict.audio=[c.wav]` it makes that
recording anew in the style of `predict.begin`.
"""

from whalesong.cli import main_script

if __name__ == "__main__":
    main_script(
        __file__, job_type="predict", default_config="audiolm_generate", target="AudioLMModel"
    )
