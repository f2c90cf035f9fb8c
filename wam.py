"""The front door: `wam VERB ...`. Each verb imports its room only when it is called."""

from __future__ import annotations

import sys
from importlib import import_module

# verb -> ("module:function", one line of help). tyro reads the function's signature.
VERBS: dict[str, tuple[str, str]] = {
    "ls embodiments": ("wamserve.embodiments.cli:ls_embodiments", "the robots that have a contract"),
    "ls embodiment": ("wamserve.embodiments.cli:ls_embodiment", "one contract, as a person reads it"),
    "ls instructions": ("wamserve.sim_eval.cli:ls_instructions", "what a suite's tasks tell a policy"),
    "check contract": ("wamserve.embodiments.cli:check_contract", "the fields in which two contracts differ"),
    "check parity": (
        "wamserve.policy_server.cli:parity",
        "a checkpoint's numbers against the reference implementation's",
    ),
    "check episode": ("wamserve.embodiments.cli:check_episode", "what is suspicious in a recorded episode"),
    "infer": ("wamserve.policy_server.cli:infer", "answer one request from files on disk"),
    "serve": ("wamserve.policy_server.serve:serve", "serve a policy to robots and simulators"),
    "bench": ("wamserve.policy_server.engine.cli:bench", "measure where a request's milliseconds go"),
    "replay": ("wamserve.policy_server.serve:replay", "send recorded requests again and compare"),
    "eval": ("wamserve.sim_eval.cli:eval_verb", "score a policy on simulator tasks by rolling it out"),
    "score": ("wamserve.sim_eval.results_cli:score", "compute a run's scores again from its recordings"),
    "score episodes": (
        "wamserve.sim_eval.results_cli:score_episodes",
        "score a model's forward and inverse dynamics on recorded episodes",
    ),
    "compare": ("wamserve.sim_eval.results_cli:compare", "compare runs of one protocol, start by start"),
    "import robolab": ("wamserve.sim_eval.results_cli:import_robolab", "read RoboLab's results as a run"),
    "export": ("wamserve.sim_eval.results_cli:export", "write a run as a LeRobot v3 data set"),
    "view": ("wamserve.sim_eval.results_cli:view", "write a run's report as one self-contained page"),
    "run": ("wamserve.clients.run:run", "watch a policy server on a recorded episode or in a gym"),
    "run task": ("wamserve.sim_eval.live:run_task", "watch a policy server drive one simulator task"),
    "record": ("wamserve.training.record:record", "record scripted demonstrations as a LeRobot data set"),
    "prepare": ("wamserve.training.cli:prepare", "compute a data set's training windows and video latents"),
    "label": ("wamserve.training.cli:label", "ask an oracle what to do in many simulated scenes"),
    "train": ("wamserve.training.cli:train", "train or post-train a world-action model"),
    "train vae": ("wamserve.training.cli:train_vae", "train a small video VAE"),
    "train modes": (
        "wamserve.training.cli:train_modes",
        "compare training modes apart with training them jointly",
    ),
    "train start": ("wamserve.training.cli:train_start", "write the checkpoint a small model starts from"),
    "check task": (
        "wamserve.sim_eval.cli:check_task_verb",
        "is a simulator task what it says, and do mistakes show",
    ),
    "run franka": (
        "wamserve.clients.franka.run:run_franka",
        "drive a Franka arm by a policy, dry by default",
    ),
    "sims install": ("wamserve.sim_eval.sims_install:install", "install libero, robosuite or pusht"),
}


def usage() -> str:
    width = max((len(verb) for verb in VERBS), default=0)
    lines = [f"  wam {verb:<{width}}  {help_}" for verb, (_, help_) in VERBS.items()]
    return "\n".join(
        ["wam: serve and score world-action models", "", *lines, "", "wam VERB --help says more."]
    )


def resolve(words: list[str]) -> tuple[str, list[str]] | None:
    """The longest verb that `words` starts with, and what follows it."""
    for count in range(min(3, len(words)), 0, -1):
        verb = " ".join(words[:count])
        if verb in VERBS:
            return verb, words[count:]
    return None


def main(argv: list[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"wamserve {version('wamserve')}")
        return 0
    found = resolve(words)
    if found is None:
        from difflib import get_close_matches

        wanted = " ".join(word for word in words[:2] if not word.startswith("-"))
        near = get_close_matches(wanted, VERBS, n=3, cutoff=0.4)
        print(f"wam: no verb {wanted!r}; nearest: {', '.join(near) or 'none'}\n\n{usage()}", file=sys.stderr)
        return 2
    verb, rest = found

    import tyro

    from wamserve.action_codec.errors import WamError

    module, function = VERBS[verb][0].split(":")
    try:
        code = tyro.cli(getattr(import_module(module), function), prog=f"wam {verb}", args=rest)
    except WamError as error:
        print(f"wam {verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return int(code or 0)


if __name__ == "__main__":
    sys.exit(main())
