r"""Let a trained duplex model, of either kind, answer wav files.

    python examples/speechlm2/s2s_duplex_infer.py predict.ckpt_path=duplex.nemo \
      'predict.audio=[a.wav,b.wav]'

Prints what the agent says with its times, and writes into predict.output_dir (generated) the
agent's audio, user (left) and agent (right) in stereo, and a picture of both.

    predict.generation.stream=true       hear a file in pieces of a frame, print words as they come,
                                         and tell the delays
    predict.generation.temperature=0.7   any key of model.generation: text_temperature, temperature,
                                         top_k, top_p, guidance_scale, seed
    predict.output_file=answers.jsonl    a line of JSON for each answer
    trainer.accelerator=cpu              not on the GPU
"""

from whalesong.cli import main_script

if __name__ == "__main__":
    main_script(
        __file__,
        job_type="predict",
        default_config="s2s_duplex_infer",
        target="DuplexS2SModel",
        epilog=__doc__,
    )
