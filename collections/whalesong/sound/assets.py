"""The files of an archive that codec and conditioners need, beside configuration and weights."""

from collections.abc import Mapping

from whalesong.modules.codec.codec import Codec
from whalesong.modules.conditioning.multi import MultiConditioner

CODEC_ASSETS = "pretransform-"
CONDITIONER_ASSETS = "conditioner-"


def collect_assets(codec: Codec, conditioner: MultiConditioner | None) -> dict[str, bytes]:
    """What an archive needs to build both without a hub."""
    assets = {CODEC_ASSETS + name: data for name, data in codec.assets.items()}
    if conditioner is not None:
        assets |= {CONDITIONER_ASSETS + name: data for name, data in conditioner.assets.items()}
    return assets


def assets_of(assets: Mapping[str, bytes] | None, prefix: str) -> dict[str, bytes] | None:
    """The files of one part under their own names; None where nothing is archived."""
    if assets is None:
        return None
    return {n.removeprefix(prefix): data for n, data in assets.items() if n.startswith(prefix)}
