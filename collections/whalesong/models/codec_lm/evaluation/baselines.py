"""Likelihood of a codec language model beside that of models that it should beat."""

import math

import torch
from torch import Tensor
from tqdm import tqdm

from whalesong.data.loader import BatchLoader
from whalesong.metrics.likelihood import unigram_likelihood
from whalesong.models.codec_lm.codec_lm import CodecLMModel
from whalesong.models.codec_lm.evaluation.report import Likelihoods


def measure_likelihoods(
    model: CodecLMModel, held_out: BatchLoader, *, train: BatchLoader | None = None, seed: int = 0
) -> Likelihoods:
    """The likelihood of a set by the trained model, by an untrained one, and by frequencies.

    Args:
        model: the trained one.
        held_out: batches of the validation collator, which may be read several times.
        train: batches of the training set, for the frequencies of its codes.
        seed: of the untrained weights.
    """
    trained = model.evaluate(held_out, description="NLL, trained").rows[0]
    untrained = untrained_copy(model, seed=seed)
    before = untrained.evaluate(held_out, description="NLL, untrained").rows[0]
    unigram = None
    if train is not None:
        counts = count_codes(model, train, description="codes, train")
        test = count_codes(model, held_out, description="codes, held-out")
        unigram = with_bits(unigram_likelihood(counts, test))
    return Likelihoods(with_bits(trained), with_bits(before), unigram)


def untrained_copy(model: CodecLMModel, *, seed: int) -> CodecLMModel:
    """The model before its training: with the same frozen parts, all else as it begins."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = type(model)(model.cfg, assets=model.assets)
    parameters = model.named_parameters(remove_duplicate=False)
    learned = {name for name, parameter in parameters if parameter.requires_grad}
    state = {name: t for name, t in model.state_dict().items() if name not in learned}
    untrained.load_state_dict(state, strict=False)
    return untrained.to(model.device).eval()


@torch.no_grad()
def count_codes(model: CodecLMModel, loader: BatchLoader, *, description: str) -> Tensor:
    """How often each code occurs in the batches, (K, V)."""
    num_codebooks, size = model.model.num_quantizers, model.model.codebook_size
    counts = torch.zeros(num_codebooks * size, dtype=torch.long)
    first = size * torch.arange(num_codebooks)[:, None]
    for batch in tqdm(loader, desc=description, unit="batch"):
        batch = model.transfer_batch_to_device(batch, model.device, 0)
        codes, lens = (tensor.cpu() for tensor in model.model.codes_of(batch))
        mask = torch.arange(codes.shape[2]) < lens[:, None]  # (B, F)
        real = codes.transpose(0, 1)[:, mask]  # (K, M)
        counts += torch.bincount((real + first).flatten(), minlength=len(counts))
    return counts.view(num_codebooks, size)


def with_bits(values: dict[str, float]) -> dict[str, float]:
    """The values of `CodeLikelihood` with `bits_0`, ... of each codebook."""
    of_codebooks = {key: value for key, value in values.items() if key.startswith("nll_")}
    bits = {key.replace("nll", "bits"): v / math.log(2) for key, v in of_codebooks.items()}
    return {**values, **bits}
