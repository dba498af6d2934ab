"""Ask a trained SALM about wav files.

    python examples/speechlm2/salm_generate.py predict.ckpt_path=salm.nemo \
      predict.audio=[a.wav,b.wav] 'predict.prompts=["Transcribe the following:"]'
"""

from whalesong.cli import main_script

if __name__ == "__main__":
    main_script(__file__, job_type="predict", default_config="salm_generate", target="SALM")
