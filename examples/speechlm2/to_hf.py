"""Write the LLM of a trained SALM, with LoRA merged in, as a plain Hugging Face folder.

    python examples/speechlm2/to_hf.py salm.nemo output_folder

A folder that NeMo's own SALM saved becomes an archive with --from-nemo:

    python examples/speechlm2/to_hf.py --from-nemo nemo_folder salm.nemo --pretrained-llm llm_folder
"""

import argparse

from whalesong.core.commands import run_command


def convert(options: argparse.Namespace) -> None:
    """Convert in the direction that the options name."""
    import whalesong
    from whalesong.models.salm.exchange import export_to_hf, import_from_nemo

    if options.from_nemo:
        model = import_from_nemo(
            whalesong.SALM, options.source, pretrained_llm=options.pretrained_llm
        )
        model.save_to(options.target)
    else:
        export_to_hf(whalesong.SALM.restore_from(options.source), options.target)
    print(f"Written: {options.target}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a .nemo archive; with --from-nemo a folder")
    parser.add_argument("target", help="a new folder; with --from-nemo a .nemo archive")
    parser.add_argument("--from-nemo", action="store_true", help="import what NeMo's SALM saved")
    parser.add_argument("--pretrained-llm", help="where the LLM of the NeMo folder is now")
    arguments = parser.parse_args()
    run_command(lambda: convert(arguments))
