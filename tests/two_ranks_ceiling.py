"""One of two real processes: make the seed run twice, where one is slower than the other."""

import json
import os
import sys
import time
from pathlib import Path

import shardsieve as ss
from shardsieve.commands.training import score_store
from shardsieve.train.config import TrainConfig


def main(path, out):
    read, write, written = ss.Store.score, ss.Store.write_score, Path(out, "written")

    def reads(store, name):
        while os.environ["RANK"] == "1" and not written.exists():
            time.sleep(0.01)
        return read(store, name)

    def writes(store, *given):
        if store.has_score("seed_again_el2n"):  # the runs are compared
            written.touch()
            time.sleep(0.5)  # a score that is made again is none meanwhile
        write(store, *given)

    ss.Store.score, ss.Store.write_score = reads, writes
    config = TrainConfig(epochs=4, batch_size=32, size=8, channels=1)
    how = {"seed_fraction": 0.2, "per_class": False, "scores": ["el2n"]}
    made = score_store(Path(path), config, folder=Path(out, "run"), ceiling=True, **how)
    Path(out, f"{os.environ['RANK']}.json").write_text(json.dumps(made["ceiling"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
