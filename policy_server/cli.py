"""`wam infer`: one request from files on disk. `wam check parity`: a checkpoint against the reference."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from wamserve.action_codec.errors import RequestError
from wamserve.clients.policy import Mode, Observation, Prediction, Request
from wamserve.policy_server.progress import progress_bar, stage_bar

Space = Literal["raw", "model"]

if TYPE_CHECKING:
    from wamserve.embodiments.contract import Embodiment
    from wamserve.policy_server.policy import WorldActionPolicy


def infer(
    checkpoint: Annotated[str, Positional, arg(help="folder, or org/name[@revision] on the Hub")],
    out: Annotated[Path, arg(help="folder for actions.json, actions.npz, video.mp4, request.json")],
    mode: Mode = "policy",
    embodiment: Annotated[str | None, arg(help="contract name or TOML file")] = None,
    instruction: Annotated[str, arg(help="the task, one sentence; an episode's own by default")] = "",
    image: Annotated[tuple[str, ...], arg(help="a composed canvas, or VIEW=FILE for each view")] = (),
    video: Annotated[Path | None, arg(help="id: a composed video; others: its frame at --start")] = None,
    episode: Annotated[
        Path | None, arg(help="LeRobot folder: frames, states and actions come from it")
    ] = None,
    episode_index: int | None = None,
    camera: Annotated[tuple[str, ...], arg(help="VIEW=KEY: which dataset camera is which view")] = (),
    start: Annotated[int, arg(help="control row of the episode, or frame of the video")] = 0,
    state: Annotated[Path | None, arg(help="JSON object: state name -> numbers")] = None,
    actions: Annotated[Path | None, arg(help="fd: rows as .json, .npz or .npy")] = None,
    actions_in: Annotated[Space, arg(help="what --actions holds: robot units, or model space")] = "raw",
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    want_video: Annotated[bool, arg(help="policy: decode the imagined video too")] = False,
    card: Annotated[str | None, arg(help="card file or shipped card, if the weights have none")] = None,
    random_weights: Annotated[bool, arg(help="CHECKPOINT is a preset such as tiny-nano")] = False,
    device: str = "auto",
    dtype: str = "auto",
) -> int:
    """Answer one policy, forward-dynamics or inverse-dynamics request from files."""
    folder_for(out)
    policy = _load(checkpoint, embodiment, card, random_weights, mode, device, dtype)
    request = _request(
        policy,
        mode,
        instruction,
        image,
        video,
        episode,
        episode_index,
        camera,
        start,
        state,
        actions,
        actions_in,
    )
    request = replace(request, seed=seed, steps=steps, guidance=guidance, want_video=want_video)
    sampling = policy.card.requested(request)
    where = policy.describe()["device"]
    print(f"{policy.card.name} as {policy.contract.name}, {mode}, {sampling.line()}, {where}")
    with progress_bar("denoise", "steps") as bar:
        policy.on_step = bar
        prediction = policy.infer(request)
    files = save(policy, request, prediction, out)
    print("\n".join(str(file) for file in files))
    return 0


def parity(
    checkpoint: Annotated[str, Positional, arg(help="folder, or org/name[@revision] on the Hub")],
    against: Annotated[str, arg(help="diffusers, or a recorded call (.npz)")] = "diffusers",
    tolerance: Annotated[float, arg(help="largest difference that passes")] = 2e-5,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "fp32",
) -> int:
    """Compare this implementation's numbers with the reference's; exit code 1 when they differ."""
    from wamserve.policy_server import parity as compare
    from wamserve.policy_server.load import load_network, load_vae, pick_device, pick_dtype
    from wamserve.policy_server.recorded_call import read_call
    from wamserve.policy_server.world_model.checkpoint import open_checkpoint
    from wamserve.policy_server.world_model.text import load_tokenizer

    with stage_bar() as say:
        opened = open_checkpoint(checkpoint, lambda done, total: say("download", done / max(total, 1)))
        recorded = None if against == "diffusers" else read_call(Path(against), opened.config)
        place, kind = pick_device(device), pick_dtype(dtype, device)
        network = load_network(opened, place, kind, say)
    print(f"{opened.source} against {against}, {dtype} on {place}")
    if recorded is None:
        tokenizer = load_tokenizer(opened.tokenizer_folder, opened.config.vocab_size)
        found = compare.against_diffusers(opened, network, load_vae(opened, place, kind), tokenizer, seed)
    else:
        found = compare.against_golden(network, recorded)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("output", "max |Δ|", "of max", "max |Δ| per action dimension"):
        table.add_column(head)
    for one in found:
        each = " ".join(f"{value:.0e}" for value in one.worst)
        if "latents" in one.what:
            each = f"over {len(one.worst)} channels"
        table.add_row(one.what, f"{one.max:.1e}", f"{one.scale:.2f}", each)
    Console(width=None if Console().is_terminal else 200).print(table)
    worst = max(found, key=lambda one: one.max)
    passed = worst.max <= tolerance
    sign = "<=" if passed else ">"
    print(f"{'pass' if passed else 'FAIL'}: max |Δ| {worst.max:.1e} ({worst.what}) {sign} {tolerance:.0e}")
    return 0 if passed else 1


def folder_for(out: Path) -> Path:
    """The folder of the answer, made now: hours of sampling should not end at a path that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"no folder can be made at {out}", seen=str(error), fix="another --out") from error
    return out


def save(policy: WorldActionPolicy, request: Request, prediction: Prediction, out: Path) -> list[Path]:
    """The answer as files, with everything needed to ask again."""
    from wamserve.policy_server.media import write_actions, write_video

    model, reply = policy.contract.model, policy.contract.wire.reply
    files: list[Path] = []
    about = {
        "mode": request.mode,
        "embodiment": policy.contract.name,
        "instruction": request.observation.instruction,
        "seed": prediction.seed,
        "weights_sha256": policy.weights_sha256,
    }
    if prediction.chunk is not None:
        raw = [f"{b.name}[{i}]" for b in model.blocks for i in range(b.stop - b.start)]
        names = raw if request.mode == "id" else list(reply.fields)
        units = "raw action rows" if request.mode == "id" else f"robot commands: {reply.form}"
        files += write_actions(
            out, prediction.chunk.actions, names, 1 / prediction.chunk.period, units=units, **about
        )
    if prediction.video is not None:
        files.append(write_video(out / "video.mp4", prediction.video, model.rate_hz))
    record = folder_for(out) / "request.json"
    sampling = asdict(policy.card.requested(request))
    ledger = asdict(prediction.ledger)
    record.write_text(
        json.dumps({**about, "card": policy.card.name, "sampling": sampling, "ledger": ledger}, indent=1)
    )
    return [*files, record]


def _request(
    policy: WorldActionPolicy,
    mode: Mode,
    instruction: str,
    image: tuple[str, ...],
    video: Path | None,
    episode: Path | None,
    episode_index: int | None,
    camera: tuple[str, ...],
    start: int,
    state: Path | None,
    actions: Path | None,
    actions_in: Space,
) -> Request:
    from wamserve.policy_server.clip import clip_from_episode, clip_from_video
    from wamserve.policy_server.media import read_states, read_video

    contract = policy.contract
    sources = [name for name, given in (("image", image), ("video", video), ("episode", episode)) if given]
    if len(sources) != 1:
        raise RequestError(
            "one source of pictures is needed",
            seen=", ".join(f"--{s}" for s in sources) or "none",
            expected="--image, --video or --episode",
        )
    if mode == "id" and image:
        raise RequestError(
            "inverse dynamics reads a whole clip",
            seen="--image",
            expected=f"--video or --episode, {contract.model.chunk + 1} frames",
        )
    frames: np.ndarray | None = None
    rows = _actions(policy, actions, actions_in)
    if episode is not None:
        pairs = _pairs("--camera", camera) if camera else None
        clip = clip_from_episode(
            contract, episode, episode=episode_index, start=start, cameras=pairs, instruction=instruction
        )
        observation, frames = clip.observation, clip.frames
        rows = clip.actions if rows is None else rows
    else:
        states = read_states(state) if state else {}
        if video is not None and mode == "id":
            frames = clip_from_video(contract, video, start)
            images: dict[str, Any] = {"canvas": frames[0]}
        elif video is not None:
            images = {"canvas": read_video(video, start, 1)[0][0]}
        else:
            images = _images(contract, image)
        observation = Observation(images, states, instruction)
    if mode == "policy" and not (observation.instruction.strip() or contract.model.instruction):
        raise RequestError("a policy needs a task", fix="--instruction 'Put the banana in the bowl'")
    return Request(
        observation, mode, actions=rows if mode == "fd" else None, video=frames if mode == "id" else None
    )


def _images(contract: Embodiment, image: tuple[str, ...]) -> dict[str, np.ndarray]:
    """One file is the canvas (or the only view); otherwise VIEW=FILE each."""
    from wamserve.policy_server.media import read_image

    if len(image) == 1 and "=" not in image[0]:
        views = contract.model.canvas.views
        return {views[0] if len(views) == 1 else "canvas": read_image(Path(image[0]))}
    return {view: read_image(Path(file)) for view, file in _pairs("--image", image).items()}


def _actions(policy: WorldActionPolicy, file: Path | None, space: Space) -> np.ndarray | None:
    """fd rows in raw units; the file's first `chunk` rows."""
    from wamserve.policy_server.media import read_actions

    if file is None:
        return None
    model = policy.contract.model
    rows = read_actions(file)[: model.chunk]
    if space == "model":
        return policy.codec.raw_from_model(rows)
    for block in model.layout.blocks:
        turned = block.rotation_columns
        if turned is None or turned.stop - turned.start != 6 or rows.shape[1] != model.width:
            continue
        off = np.abs(np.linalg.norm(rows[:, turned].reshape(-1, 2, 3), axis=-1) - 1).max()
        if off > 1e-3:
            print(
                f"warning: the rot6d columns of {block.name!r} are {off:.3f} off unit length; "
                "rows in model space need --actions-in model",
                file=sys.stderr,
            )
    return rows


def _pairs(option: str, words: tuple[str, ...]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    if not all(key and value for key, _, value in pairs):
        raise RequestError(f"{option} is not understood", seen=" ".join(words), expected="NAME=VALUE ...")
    return {key: value for key, _, value in pairs}


def _load(
    checkpoint: str,
    embodiment: str | None,
    card: str | None,
    random_weights: bool,
    mode: Mode,
    device: str,
    dtype: str,
) -> WorldActionPolicy:
    from wamserve.policy_server.load import load_policy, random_policy

    with stage_bar() as say:
        if random_weights:
            return random_policy(
                checkpoint, embodiment or "droid_lerobot", device=device, dtype=dtype, progress=say
            )
        return load_policy(
            checkpoint, embodiment, mode=mode, device=device, dtype=dtype, card=card, progress=say
        )
