"""Train on what a rule or a policy keeps, under `accelerate launch` or alone.

    accelerate launch tools/train_subset.py --store train.zarr --test test.zarr \
        --score dyn_unc --keep-fraction 0.5 --out run
    accelerate launch --num_processes 8 tools/train_subset.py configs/imagenet.yaml

The first is `shardsieve train`, the second, with a configuration, `shardsieve run`. Killed, or
stopped with SIGTERM, and started again, it goes on where it was.
"""

import sys

from shardsieve.cli import main

if __name__ == "__main__":
    is_recipe = sys.argv[1:] and sys.argv[1].endswith((".yaml", ".yml"))
    sys.argv.insert(1, "run" if is_recipe else "train")
    main()
