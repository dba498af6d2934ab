"""The log files that `exp_manager` opens and never closes."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("nemo_logger", "lightning.pytorch")


@contextmanager
def log_files_closed() -> Iterator[None]:
    """Close what is opened inside for the loggers of NeMo and Lightning.

    Another run in the same process would otherwise write into the files of this one, too.
    """
    before = {handler for name in _LOGGERS for handler in logging.getLogger(name).handlers}
    try:
        yield
    finally:
        for logger in map(logging.getLogger, _LOGGERS):
            for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
                if handler not in before:
                    logger.removeHandler(handler)
                    handler.close()
