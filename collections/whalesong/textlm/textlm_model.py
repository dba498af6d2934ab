"""`TextLMModel`: the one ModelPT of all text models, whose parts the YAML names."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from whalesong.core.config.job import PredictConfig, check_unused
from whalesong.core.contract import checked_loss, checked_predictions, checked_rows
from whalesong.core.external import activate_for
from whalesong.core.language_model import LanguageModelPT
from whalesong.core.parts import Batch, Evaluation, Parts
from whalesong.core.seeding import mix
from whalesong.core.training.totals import EvaluationTotals
from whalesong.data.datamodule import build_loader
from whalesong.textlm.building import PartBuilder
from whalesong.textlm.collation import TextCollator
from whalesong.textlm.config import TextLMConfig, TokenizerConfig
from whalesong.textlm.requests import requested_examples
from whalesong.textlm.tokenizers import build_tokenizer, tokenizer_files, tokenizer_from_files

ANSWERS_AT_ONCE = 32
"""Rows that `job_type=predict` generates in one batch."""


class TextLMModel(LanguageModelPT):
    """Trains and uses any text model: a core one, or one of a plug-in.

    Network, loss, predictor, collators, metrics and noise schedule are classes that `cfg` names;
    the tokenizer travels in the archive.
    """

    config_schema = TextLMConfig

    def build_parts(self, assets: Mapping[str, bytes] | None) -> Parts:
        """Build tokenizer and parts; the parts get each other by the names they ask for."""
        cfg = OmegaConf.to_container(self.cfg)
        activate_for(cfg)
        if assets is None:
            self.tokenizer = build_tokenizer(TokenizerConfig.model_validate(cfg["tokenizer"]))
        else:
            self.tokenizer = tokenizer_from_files(assets)
        self.assets = tokenizer_files(self.tokenizer)
        sizes = {key: cfg.get(key, 0) for key in ("block_size", "input_block_size")}
        build = PartBuilder(self.tokenizer, **sizes)
        build.noise_schedule(cfg.get("noise_schedule"))
        model = build.network(cfg["network"])
        collators = cfg["collators"]
        train = build.collator(collators["train"])
        validation = build.collator(collators.get("validation") or collators["train"])
        self.prediction_collator = build.collator(collators.get("prediction"))
        loss = build.loss(cfg["loss"])
        return Parts(
            model=model,
            loss=loss,
            predictor=build.predictor(cfg["predictor"]),
            train_collator=TextCollator(self.tokenizer, train),
            validation_collator=TextCollator(
                self.tokenizer, validation, predict=self.prediction_collator
            ),
            make_loader=build_loader,
            metrics=build.metrics(cfg.get("metrics") or {}),
            loss_metrics=getattr(loss, "loss_metrics", {}),
        )

    @property
    def sharding_methods(self) -> tuple[str, ...]:
        """Networks that split their `forward` are gathered in its first half, too."""
        return ("hidden_states",) if hasattr(self.model, "hidden_states") else ()

    def generated_from(self, batch: Batch) -> Batch | None:
        """What the collator of predictions made of the examples."""
        return batch.get("prediction")

    def evaluate(self, loader: Iterable[Batch], *, description: str) -> Evaluation:
        """Measure the loss and generate for each example, with all metrics."""
        totals = EvaluationTotals(self.parts.metrics, loss_metrics=self.parts.loss_metrics)
        rows: list[dict[str, Any]] = []
        for batch in tqdm(loader, desc=description):
            batch = self.transfer_batch_to_device(batch, self.device, 0)
            with torch.inference_mode():
                totals.add_loss(checked_loss(self.parts.loss, batch))
            if "prediction" in batch:
                rows += (generated := self._rows(batch["prediction"]))
                totals.add_rows(generated)
        values = totals.compute(totals.counts())
        return Evaluation(", ".join(f"{key} {value:.4f}" for key, value in values.items()), rows)

    def answer(self, request: PredictConfig) -> Iterator[dict[str, Any]]:
        """Generate for prompts, for texts with gaps, or out of nothing; print each text."""
        check_unused(
            request, ("audio", "conditions", "begin", "end", "output_dir"), family="text models"
        )
        collator = TextCollator(self.tokenizer, None, predict=self.prediction_collator)
        examples = requested_examples(request, collator)
        generation = dict(request.generation)
        seed = generation.pop("seed", None)
        for first in range(0, len(examples), ANSWERS_AT_ONCE):
            chosen = range(first, min(first + ANSWERS_AT_ONCE, len(examples)))
            if seed is not None:
                generation["seeds"] = [mix(seed, index) for index in chosen]
            batch = collator.prediction_batch([examples[index] for index in chosen])
            batch = self.transfer_batch_to_device(batch, self.device, 0)
            for row in self._rows(batch, **generation):
                print(" -> ".join(filter(None, (row.get("prompt"), row.get("text", "")))))
                yield row

    def _rows(self, batch: Batch, **generation: Any) -> list[dict[str, Any]]:
        """Generate from a batch of the prediction collator; a dictionary for each row."""
        predictor = self.parts.predictor
        preds = checked_predictions(predictor, batch, **generation)
        return checked_rows(predictor, batch, preds)
