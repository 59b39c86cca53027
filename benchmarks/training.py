"""Peak memory of one update, with and without gradient caching, in fresh processes.

    python benchmarks/training.py [--json FILE]

A SigLIP of 7 million parameters (112 pixels, patch 16, width 192, 12 layers) takes one step of `ContrastiveTrainer` on
random pairs. Memory is the peak above what is resident before the step.
"""

import json
import tempfile

import torch
from common import (
    MB,
    Case,
    in_fresh_process,
    option_parser,
    parse_options,
    process_arguments,
    resident_bytes,
    write_results,
)

CASES = [(64, None), (256, None), (64, 16), (256, 16)]  # pairs of the update, and pairs embedded at a time
IMAGE_SIZE, PATCH_SIZE = 112, 16  # pixels
TEXT_LENGTH, VOCABULARY_SIZE = 16, 1000  # tokens
TOWER = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 3}


def peak_of_update(pairs: int, gradient_cache_size: int | None) -> float:
    """Return the bytes resident at most in an update, above those resident before it."""
    import twinlens
    from twinlens.training import ContrastiveTrainer, ContrastiveTrainingArguments

    config = twinlens.SiglipConfig(
        vision_config={**TOWER, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE},
        text_config={**TOWER, "vocab_size": VOCABULARY_SIZE, "max_position_embeddings": TEXT_LENGTH},
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = ContrastiveTrainingArguments(
            output_dir=folder, use_cpu=True, gradient_cache_size=gradient_cache_size
        )
        trainer = ContrastiveTrainer(model=twinlens.SiglipModel(config), args=arguments, data_collator=list)
        trainer.current_gradient_accumulation_steps = 1
        optimizer = trainer.create_optimizer()

        def update(pairs: int) -> None:
            pixels = torch.randn(pairs, 3, IMAGE_SIZE, IMAGE_SIZE)
            ids = torch.randint(2, VOCABULARY_SIZE, (pairs, TEXT_LENGTH))
            trainer.training_step(trainer.model, {"pixel_values": pixels, "input_ids": ids})
            optimizer.step()

        update(2)  # makes the optimizer's state
        before = resident_bytes("VmRSS")
        update(pairs)
    return resident_bytes("VmHWM") - before


def measure(pairs: int, gradient_cache_size: int | None) -> Case:
    """Measure an update in a fresh process."""
    peak = in_fresh_process(__file__, pairs, gradient_cache_size or 0)
    inputs = pairs * (3 * IMAGE_SIZE**2 * torch.float32.itemsize + TEXT_LENGTH * torch.int64.itemsize)
    return {
        "pairs": pairs,
        "at_a_time": gradient_cache_size,
        "peak_mb": round(peak / MB),
        "of_which_inputs_mb": round(inputs / MB),
    }


def main() -> None:
    """Measure every case, or one of `in_fresh_process`."""
    if arguments := process_arguments():
        pairs, gradient_cache_size = map(int, arguments)
        print(peak_of_update(pairs, gradient_cache_size or None))
        return
    options = parse_options(option_parser(__doc__))
    cases: list[Case] = []
    for case in CASES:
        cases.append(measure(*case))
        print(json.dumps(cases[-1]), flush=True)
    write_results(options, cases, "accelerate")


if __name__ == "__main__":
    main()
