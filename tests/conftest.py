"""Real parts for all tests, made once per session: tiny pretrained parts, data, and models."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tiny tensors: threads that wait cost more than they do
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

pytest_plugins = [
    "fixtures.pretrained",
    "fixtures.salm",
    "fixtures.codes",
    "fixtures.duplex",
    "fixtures.textlm",
    "fixtures.families",
    "fixtures.figures",
]
