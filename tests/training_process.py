"""One of two processes of test_training.py, told which by RANK: trains, and leaves what came of it in FOLDER.

python training_process.py FOLDER
"""

import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
os.environ["ACCELERATE_USE_CPU"] = "true"
torch.set_num_threads(1)

from safetensors.torch import save_file  # noqa: E402
from test_training import FAMILIES, train_three_steps  # noqa: E402

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for family, size in FAMILIES.items():
        weights, metrics = train_three_steps(family, 4, folder, size)
        if os.environ["RANK"] == "0":
            save_file(weights, folder / f"{family}.safetensors")
            (folder / f"{family}.json").write_text(json.dumps(metrics))
    torch.distributed.destroy_process_group()
