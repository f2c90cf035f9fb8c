"""One of two ranks: prints its actions as JSON. argv: how many calls; a rank told to die leaves after one."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import conftest as tools
import torch

from wamserve.policy_server.engine.engine import Engine
from wamserve.policy_server.engine.options import EngineOptions
from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.schedule import flow_schedule
from wamserve.policy_server.sampling.start import Start

torch.set_num_threads(1)
network = tools.make_network("tiny-nano")
engine = Engine(network, tools.NoVAE(), EngineOptions(cfg_parallel=True))
plans = [tools.make_plan()]
prompts = (tools.read(network, 90), tools.read(network, 10))
answers = []
for call in range(int(sys.argv[1])):
    if call == 1 and os.environ.get("DIES") == os.environ["RANK"]:
        os._exit(9)
    start = tools.make_start(plans, seed=call)
    if os.environ["RANK"] == "1":  # what rank 0 drew counts
        start = Start(start.latents, start.actions, start.video_noise + 1, start.action_noise)
    guidance = Guidance(3.0) if call == 0 else Guidance(3.0, (960.0, 1001.0))
    got = engine.sample(network, plans, start, flow_schedule(), guidance, *prompts, want_video=call > 0)
    answers.append({"actions": got.actions.tolist(), "forwards": got.forwards})
print(json.dumps(answers))
