"""Train on what a rule keeps, under `accelerate launch` or alone.

    accelerate launch tools/train_subset.py --store train.zarr --test test.zarr \
        --score dyn_unc --keep-fraction 0.5 --out run

Killed and started again, it goes on where it was.
"""

import sys

from shardsieve.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
