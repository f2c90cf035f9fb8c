"""A whole policy call here beside diffusers 0.42.1, on a CPU or GPU, in one run, interleaved.

    .venv/bin/python benchmarks/engine.py [--preset mid-nano] [--rounds 5] [--json FILE]
    .venv/bin/python benchmarks/engine.py --checkpoint checkpoints/panda-small

Both load one folder and get the same picture, prompt, noise, noise levels and steps, so that their actions
can be compared. A folder whose policy card names a contract is called with that contract's shapes and the
card's sampling; random weights, and a folder without a card, with DROID's: one 528x640 picture, 32 actions,
4 steps, guidance 3. What diffusers had to be handed for that, and what it has no way to do, is printed. Calls
take turns, so that a busy machine is busy for all of them; the medians' ratio is the figure, and processor
time stands beside wall time, as others may be using the machine. The prompt is cached on our side, as on a
robot; the picture and the seed change with every call.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

from wamserve.policy_server.engine.shapes import DROID, folder_shapes
from wamserve.policy_server.engine.versus import print_versus, versus
from wamserve.policy_server.world_model.random_weights import write_random_checkpoint


def shorten_prompts(folder: Path) -> None:
    """The random checkpoint's tokenizer has one token per byte. Merges learned from the prompt itself bring
    its count near that of the published vocabulary (about 100), so that text weighs what it does there."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    file = folder / "text_tokenizer" / "tokenizer.json"
    raw = json.loads(file.read_text())
    pieces = list(Tokenizer.from_file(str(file)).encode(DROID.words, add_special_tokens=False).tokens)
    vocabulary, merges = raw["model"]["vocab"], []
    free = sorted(set(range(480)) - set(vocabulary.values()))
    while free and len(pieces) > 80:
        pairs = Counter(pairwise(pieces))
        left, right = pairs.most_common(1)[0][0]
        merges.append([left, right])
        vocabulary[left + right] = free.pop(0)
        joined: list[str] = []
        for piece in pieces:
            if joined and (joined[-1], piece) == (left, right):
                joined[-1] = left + right
            else:
                joined.append(piece)
        pieces = joined
    raw["model"]["vocab"], raw["model"]["merges"] = vocabulary, merges
    BPE(vocabulary, [tuple(pair) for pair in merges])  # refuses merges that do not fit
    file.write_text(json.dumps(raw))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="mid-nano")
    parser.add_argument(
        "--checkpoint", type=Path, help="a folder in diffusers layout instead of random weights"
    )
    parser.add_argument("--embodiment", help="a contract of the checkpoint's card, where it has several")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--plain", action="store_true", help="the plain path too")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wamserve-bench-") as scratch:
        folder, shapes = args.checkpoint, DROID
        if folder is None:
            folder = write_random_checkpoint(Path(scratch), args.preset)
            shorten_prompts(folder)
        else:
            shapes = folder_shapes(folder, args.embodiment)
        options = {"compile": args.compile}
        found = versus(folder, shapes, args.rounds, args.device, args.dtype, options, args.plain)
    print_versus(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
