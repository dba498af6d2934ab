"""Generate audio with a trained codec language model.

    python examples/codec_lm/generate.py predict.ckpt_path=music.nemo \
      "predict.prompts=['slow piano', 'fast drums']" predict.generation.seconds=8

`predict.audio=[a.wav]` gives an audio prompt, `predict.begin=[a.wav]` a recording to go on from.
"""

from whalesong.cli import main_script

if __name__ == "__main__":
    main_script(
        __file__, job_type="predict", default_config="audio_lm_generate", target="CodecLMModel"
    )
