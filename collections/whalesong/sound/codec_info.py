"""What codes of a codec depend on, from the codec itself."""

from whalesong.core.fingerprint import fingerprint
from whalesong.data.codes import CodecInfo
from whalesong.modules.codec.codec import Codec


def describe_codec(codec: Codec) -> CodecInfo:
    """What codes of a codec depend on."""
    return CodecInfo(
        name=type(codec).__name__,
        fingerprint=fingerprint(codec.state_dict()),
        sample_rate=codec.sample_rate,
        num_channels=codec.num_channels,
        num_codebooks=codec.num_codebooks,
        codebook_size=codec.codebook_size,
        downsampling_ratio=codec.downsampling_ratio,
    )
