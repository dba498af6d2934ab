"""The allow-list: exact names of the classes that a configuration may have built."""

_ASR = "nemo.collections.asr.modules."
_PERCEPTION = "nemo.collections.speechlm2.modules."
_SCHEDULERS = "nemo.core.optim.lr_scheduler."
_TEXT_PARTS = (
    "model.{0}Model",
    "loss.{0}Loss",
    "predictor.{0}Predictor",
    "collator.Default{0}Collator",
    "collator.{0}Seq2SeqCollator",
    "collator.{0}Seq2SeqPredCollator",
)

OPTIMIZERS: frozenset[str] = frozenset(
    [
        *(f"torch.optim.{name}" for name in ("Adam", "AdamW", "SGD")),
        "whalesong.core.scaled_adam.ScaledAdam",
    ]
)
"""Optimizers that a configuration may name."""
SCHEDULERS: frozenset[str] = frozenset(
    [
        "whalesong.core.eden.Eden",
        *(
            _SCHEDULERS + name
            for name in (
                "CosineAnnealing",
                "InverseSquareRootAnnealing",
                "NoamAnnealing",
                "NoamHoldAnnealing",
                "PolynomialDecayAnnealing",
                "PolynomialHoldDecayAnnealing",
                "SquareAnnealing",
                "SquareRootAnnealing",
                "T5InverseSquareRootAnnealing",
                "WarmupAnnealHoldPolicy",
                "WarmupAnnealing",
                "WarmupHoldAnnealLinear",
                "WarmupHoldAnnealOneMinusSquareRoot",
                "WarmupHoldPolicy",
                "WarmupPolicy",
            )
        ),
    ]
)
"""Schedules of learning rates that a configuration may name."""
NOISE_SCHEDULES: frozenset[str] = frozenset(["whalesong.models.mdlm.noise_schedule.LogLinearNoise"])
"""Noise schedules that a configuration may name."""
DATA_SETS: frozenset[str] = frozenset(["whalesong.corpora.star_graphs.StarGraphs"])
"""Sets of generated examples that the data sections, but no model, may name."""
DEFAULT_TARGETS: frozenset[str] = frozenset(
    [
        *(
            _ASR + name
            for name in (
                "AudioToMelSpectrogramPreprocessor",
                "audio_preprocessing.AudioToMelSpectrogramPreprocessor",
                "ConformerEncoder",
                "conformer_encoder.ConformerEncoder",
                "SpectrogramAugmentation",
                "audio_preprocessing.SpectrogramAugmentation",
            )
        ),
        *(
            _PERCEPTION + name
            for name in (
                "AudioPerceptionModule",
                "perception.AudioPerceptionModule",
                "perception.IdentityConnector",
                "perception.MultiLayerProjectionConnector",
                "speech_generation.TransformerARSpeechDecoder",
            )
        ),
        "whalesong.modules.speech_decoder.TransformerARSpeechDecoder",
        "whalesong.modules.adapters.QFormerAdapter",
        "whalesong.modules.adapters.StackingMLPAdapter",
        *(
            f"whalesong.models.{family}.{part.format(family.capitalize())}"
            for family in ("arlm", "mlm", "ilm", "mdlm")
            for part in _TEXT_PARTS
        ),
        "whalesong.models.arlm.collator.DefaultArlmPredCollator",
        "whalesong.models.ilm.collator.DefaultIlmPredCollator",
        *NOISE_SCHEDULES,
        "whalesong.metrics.exact_match.ExactMatch",
        "whalesong.metrics.exact_match.TokenAccuracy",
        *DATA_SETS,
        *OPTIMIZERS,
        *SCHEDULERS,
    ]
)
"""Parts of NeMo and of ours, optimizers and schedulers that a configuration may name."""
