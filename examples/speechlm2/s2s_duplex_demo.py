"""From nothing to spoken answers for unseen voices on two CPU cores: `make demo-duplex`.

Run again, it goes on where it stopped.
"""

from whalesong.demos.duplex import DuplexDemo
from whalesong.demos.stages import run_demo

if __name__ == "__main__":
    run_demo(DuplexDemo, description=__doc__)
