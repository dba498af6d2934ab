"""Transcribe a test set with a trained SALM and report its word error rate.

Writes one JSON line per example with id, reference, hypothesis and WER.

    python examples/speechlm2/salm_eval.py eval.ckpt_path=salm.nemo eval.output_file=test.jsonl \
      data.test_ds.shar_path=path/to/test        # or data.test_ds.manifest_filepath=test.json
"""

from whalesong.cli import main_script

if __name__ == "__main__":
    main_script(__file__, job_type="eval", default_config="salm_eval", target="SALM")
