"""Index, score, embed and extrapolate in one go; alone or under `accelerate launch`.

    python tools/build_store.py 'train-*.tar' --store train.zarr
    accelerate launch tools/build_store.py 'train-*.tar' --store train.zarr

Killed and started again, it goes on where it was.
"""

import sys

from shardsieve.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "build")
    main()
