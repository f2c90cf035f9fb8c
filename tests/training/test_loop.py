"""A run is a function of its configuration: interrupted, spread over ranks or sharded, it ends the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wamserve.action_codec.errors import WamError
from wamserve.policy_server.card import CARD_FILE, read_card
from wamserve.policy_server.world_model.checkpoint import open_checkpoint, weights_hash
from wamserve.training.config import Data, Optimizer, Trainable, TrainConfig
from wamserve.training.loop import samples_by_mode, train
from wamserve.training.objective import Objective

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def quiet(line: str) -> None: ...


@pytest.fixture
def config(start, prepared, tmp_path) -> TrainConfig:
    return TrainConfig(
        start=str(start),
        out=str(tmp_path / "run"),
        steps=4,
        batch=4,
        data=(Data(str(prepared)),),
        optimizer=Optimizer(learning_rate=1e-3, warmup=1, ema_decay=0.9),
        precision="fp32",
        save_every=2,
        log_every=1,
        validate_every=4,
        validation_batches=1,
    )


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(Path(train(config, quiet)) / WEIGHTS)


def curve(config: TrainConfig) -> list[dict]:
    return [json.loads(line) for line in (Path(config.out) / "curve.jsonl").read_text().splitlines()]


def test_resumed_run_ends_with_the_very_weights_of_an_uninterrupted_one(config, tmp_path, monkeypatch):
    straight = weights(config)
    broken = replace(config, out=str(tmp_path / "broken"))
    from wamserve.training import loop

    save = loop.Trainer._save

    def die_after_save(trainer):
        save(trainer)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Trainer, "_save", die_after_save)
    with pytest.raises(KeyboardInterrupt):
        train(broken, quiet)
    monkeypatch.setattr(loop.Trainer, "_save", save)
    resumed = weights(broken)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_text_tower_stays_as_it_was_unless_it_is_trained(config, start, tmp_path):
    before = load_file(start / WEIGHTS)
    after = weights(config)
    text = [n for n in before if n == "embed_tokens.weight" or n.endswith("to_q.weight")]
    assert all(torch.equal(before[n], after[n]) for n in text)
    assert not torch.equal(before["action_proj_in.fc.weight"], after["action_proj_in.fc.weight"])
    moved = weights(replace(config, out=str(tmp_path / "text"), trainable=Trainable(text_tower=True)))
    assert not torch.equal(before["layers.0.self_attn.to_q.weight"], moved["layers.0.self_attn.to_q.weight"])


def test_only_the_trained_domain_rows_of_the_action_heads_move(config, start):
    before, after = load_file(start / WEIGHTS), weights(config)
    change = (after["action_proj_out.bias.weight"] - before["action_proj_out.bias.weight"]).abs().amax(1)
    assert change[4] > 0  # pusht
    assert change[8] == 0  # droid: bias rows carry no weight decay


def test_lora_leaves_a_plain_checkpoint_that_differs_where_it_may(config, start):
    before = load_file(start / WEIGHTS)
    after = weights(replace(config, trainable=Trainable(lora_rank=2)))
    assert before.keys() == after.keys()
    name = "layers.1.self_attn.add_q_proj.weight"
    change = after[name] - before[name]
    assert torch.linalg.matrix_rank(change, atol=1e-6) in (1, 2)
    assert torch.equal(before["layers.1.self_attn.to_q.weight"], after["layers.1.self_attn.to_q.weight"])


def test_loss_falls_on_a_dot_that_goes_where_the_action_says(config):
    train(replace(config, steps=40, batch=8, log_every=1, save_every=100, validate_every=100), quiet)
    losses = [row["total"] for row in curve(config) if row["stream"] == "train"]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


def test_trained_folder_opens_in_diffusers(config):
    from diffusers import Cosmos3OmniTransformer

    folder = train(replace(config, steps=1, save_every=1), quiet)
    _, report = Cosmos3OmniTransformer.from_pretrained(folder / "transformer", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_card_beside_the_weights_names_what_was_trained_and_nothing_else(config):
    from wamserve.embodiments.contract import load
    from wamserve.policy_server.card import CARD_FILE, read_card

    folder = train(replace(config, steps=1, objective=Objective(modes={"fd": 1.0})), quiet)
    card = read_card(folder / CARD_FILE)
    assert [(t.embodiment, t.modes) for t in card.trained] == [("pusht", ("fd",))]
    assert card.trained[0].model_sha256 == load("pusht").model_hash
    assert card.modes(load("droid_lerobot")) == ()


def test_state_of_another_configuration_is_refused(config):
    train(replace(config, steps=2), quiet)
    with pytest.raises(WamError, match="another configuration"):
        train(replace(config, steps=2, seed=1), quiet)


@pytest.mark.parametrize("shard", [False, True], ids=["replicated", "fsdp"])
def test_two_ranks_step_alike_and_export_one_checkpoint(config, start, tmp_path, shard):
    """Two gloo ranks: the same data as two seeds of one rank, and every rank the same weights."""
    script = tmp_path / "job.py"
    config = replace(config, steps=2, shard=shard, save_every=2)
    script.write_text(
        "import torch; torch.set_num_threads(1)\n"
        "from math import inf\n"
        "from wamserve.training.config import *\n"
        "from wamserve.training.objective import Objective\n"
        "from wamserve.training.loop import train\n"
        f"train({config!r})\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, env=env, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    out = load_file(Path(config.out) / "checkpoint" / WEIGHTS)
    before = load_file(start / WEIGHTS)
    assert out.keys() == before.keys()
    assert all(out[name].shape == before[name].shape for name in out)
    assert not torch.equal(out["proj_in.weight"], before["proj_in.weight"])
    if shard:
        torch.save({n: v for n, v in out.items()}, tmp_path / "sharded.pt")
        other = replace(config, shard=False, out=str(tmp_path / "replicated"))
        script.write_text(script.read_text().replace(repr(config), repr(other)))
        done = subprocess.run([*command, str(script)], capture_output=True, text=True, env=env, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        replicated = load_file(Path(other.out) / "checkpoint" / WEIGHTS)
        worst = max(float((out[n] - replicated[n]).abs().max()) for n in out)
        assert worst < 1e-5


def test_checkpoint_carries_its_curve_and_the_render_profile_of_its_data(config, prepared, tmp_path):
    copy = tmp_path / "fast"
    shutil.copytree(prepared, copy)
    meta = json.loads((copy / "meta.json").read_text())
    (copy / "meta.json").write_text(json.dumps(meta | {"render_profile": "fast"}))
    folder = Path(train(replace(config, data=(Data(str(copy)),), stored="bf16"), quiet))
    assert read_card(folder / CARD_FILE).render_profile == "fast"
    assert (folder / "training.jsonl").read_text() == (Path(config.out) / "curve.jsonl").read_text()
    assert (folder / "training.svg").read_text().startswith("<svg xmlns=")
    assert load_file(folder / WEIGHTS)["proj_in.weight"].dtype == torch.bfloat16


def test_first_frames_teach_a_policy_and_leave_the_video_alone(config, prepared, tmp_path):
    stills = tmp_path / "stills"
    shutil.copytree(prepared, stills)
    meta = json.loads((stills / "meta.json").read_text())
    shape = (meta["windows"], *meta["latent_shape"])
    latents = np.fromfile(stills / "latents.f16", np.float16).reshape(shape)
    latents[:, :, :1].tofile(stills / "latents.f16")
    meta["latent_shape"][1] = 1
    (stills / "meta.json").write_text(json.dumps(meta))
    both = replace(config, data=(*config.data, Data(str(stills), batch=8)), steps=8)
    weights(both)
    held_out = {row["data"]: row for row in curve(both) if row["stream"] == "validation"}
    assert held_out["stills"]["video"] == 0 < held_out["stills"]["action"]
    assert held_out["pusht"]["video"] > 0
    seen = {row["video"] > 0 for row in curve(both) if row["stream"] == "train"}
    assert seen == {True, False}
    dynamics = replace(config, data=(Data(str(stills), modes={"fd": 1.0}),), out=str(tmp_path / "other"))
    with pytest.raises(WamError, match="teach a policy only"):
        train(dynamics, quiet)


def test_data_with_modes_of_its_own_is_learned_in_those_alone(config):
    dynamics = replace(config.data[0], modes={"fd": 1.0})
    both = replace(config, data=(dynamics, replace(config.data[0], modes={"policy": 1.0})), steps=8)
    folder = Path(train(both, quiet))
    rows = [row for row in curve(both) if row["stream"] == "train"]
    assert {row["data"] for row in rows} == {"pusht fd", "pusht policy"}
    for row in rows:
        assert (row["action"] == 0) == (row["data"] == "pusht fd")
    assert read_card(folder / CARD_FILE).trained[0].modes == ("policy", "fd")
    drawn = samples_by_mode(both)
    assert drawn["fd"] + drawn["policy"] == 8 * config.batch and drawn["id"] == 0


def test_finished_checkpoint_takes_another_decoder_and_no_other_encoder(config, start, tmp_path):
    vae = tmp_path / "vae"
    shutil.copytree(start / "vae", vae)
    (file,) = vae.glob("*.safetensors")
    weights = load_file(file)
    weights["decoder.conv_in.bias"] += 1.0
    save_file(weights, file)
    folder = Path(train(replace(config, vae=str(vae)), quiet))
    shipped = load_file(folder / "vae" / file.name)
    assert torch.equal(shipped["decoder.conv_in.bias"], weights["decoder.conv_in.bias"])
    assert read_card(folder / CARD_FILE).weights_sha256 == weights_hash(open_checkpoint(folder))
    weights["encoder.conv_in.bias"] += 1.0
    save_file(weights, file)
    with pytest.raises(WamError, match="another encoder"):
        train(replace(config, vae=str(vae), out=str(tmp_path / "other")), quiet)


def test_what_a_killed_run_wrote_after_its_last_state_is_not_kept_twice(config, monkeypatch):
    from wamserve.training import loop

    draw = loop.Trainer._draw

    def dies(trainer, *arguments):
        if trainer.step == 3:
            raise RuntimeError("killed")
        return draw(trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_draw", dies)
        with pytest.raises(RuntimeError, match="killed"):
            train(config, quiet)
    train(config, quiet)
    assert [row["step"] for row in curve(config) if row["stream"] == "train"] == [1, 2, 3, 4]
