"""Several ways to say each task, so that a model hears meaning and not one string."""

from __future__ import annotations

from wamserve.sim_eval.seeds import derive

# The first of each is the one that evaluations use.
PARAPHRASES: dict[str, tuple[str, ...]] = {
    "lift the cube": (
        "lift the cube",
        "pick up the cube",
        "raise the cube off the table",
        "grab the cube and lift it",
        "take the cube up",
    ),
    "lift the red cube": (
        "lift the red cube",
        "pick up the red cube",
        "raise the red cube off the table",
        "grab the red cube and lift it",
        "take the cube that is red",
        "get the red one, not the green one",
    ),
    "lift the green cube": (
        "lift the green cube",
        "pick up the green cube",
        "raise the green cube off the table",
        "grab the green cube and lift it",
        "take the cube that is green",
        "get the green one, not the red one",
    ),
    "stack the red cube on the green cube": (
        "stack the red cube on the green cube",
        "put the red cube on top of the green cube",
        "place the red cube onto the green one",
        "build a tower with the green cube below",
    ),
    "push the T-shaped block onto the T-shaped target": (
        "push the T-shaped block onto the T-shaped target",
        "push the T to its goal",
        "move the T block onto the green T",
        "align the T with the target",
    ),
}


def paraphrase(instruction: str, seed: int, number: int) -> str:
    """One way to say `instruction`, by episode; half of the episodes use the plain form."""
    ways = PARAPHRASES.get(instruction, (instruction,))
    draw = derive(seed, instruction, number)
    return ways[0] if draw % 2 == 0 else ways[(draw // 2) % len(ways)]
