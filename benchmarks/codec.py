"""Action codec: vectorised against a per-step loop, interleaved in one run.

    python benchmarks/codec.py [--json PATH] [--repeats 200]

Encode: 1,000 DROID-like steps (xyz, extrinsic euler, gripper) to normalized [1000, 10] rows. Decode: a
32-row normalized chunk to 33 absolute poses. "by contract" is the same work through the embodiment's adapter.
The loop is the straightforward program: SciPy and 4x4 matrices, one step at a time. All agree to 1e-9.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from wamserve.action_codec import rotations, se3
from wamserve.action_codec.actions import ModelActions, RawActions
from wamserve.action_codec.arrays import Array
from wamserve.action_codec.gripper import FRACTION_ONE_IS_CLOSED, open_fraction_from_gripper
from wamserve.embodiments.adapters import decode_poses, encode
from wamserve.embodiments.contract import load
from wamserve.embodiments.units import chunk_normalizer

STEPS, CHUNK = 1000, 32
GOAL_MS = {"encode": 5.0, "decode": 0.3}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--repeats", type=int, default=200)
    args = parser.parse_args()

    droid = load("droid_lerobot_midtrain")
    turn = np.asarray(droid.model.tracks[0].frame_transform)
    normalizer = chunk_normalizer(droid.model).actions
    cartesian, gripper = droid_like_motion(STEPS + 1)
    columns = {
        "observation.state.cartesian_position": cartesian,
        "action.gripper_position": gripper,
    }

    def encode_vectorised() -> Array:
        source = se3.pose_from_matrix(rotations.matrix_from_euler_xyz(cartesian[:, 3:]), cartesian[:, :3])
        deltas = se3.deltas_framewise_from_poses(se3.rotate_body_frame(source, turn))
        opened = open_fraction_from_gripper(gripper[:-1, None], FRACTION_ONE_IS_CLOSED)
        raw = RawActions(np.concatenate([se3.pose9_from_pose(deltas), opened], axis=1))
        return normalizer.to_model(raw).values

    def encode_by_contract() -> Array:
        return encode(droid, columns).model.values

    def encode_loop() -> Array:
        poses = []
        for row in cartesian:
            pose = np.eye(4)
            pose[:3, :3] = Rotation.from_euler("xyz", row[3:]).as_matrix() @ turn
            pose[:3, 3] = row[:3]
            poses.append(pose)
        out = []
        for i in range(STEPS):
            delta = np.linalg.inv(poses[i]) @ poses[i + 1]
            raw = np.concatenate([delta[:3, 3], delta[:3, 0], delta[:3, 1], [1.0 - gripper[i]]])
            y = (raw - normalizer.offset) / normalizer.half_width
            out.append(np.clip(y, -1.0, 1.0) if normalizer.clamp else y)
        return np.stack(out)

    chunk = encode_vectorised()[:CHUNK].copy()
    start = np.eye(4)

    def decode_vectorised() -> Array:
        raw = normalizer.to_raw(ModelActions(chunk))
        return se3.poses_from_deltas_framewise(start, se3.pose_from_pose9(raw.values[:, :9]))

    def decode_by_contract() -> Array:
        raw = chunk_normalizer(droid.model).to_raw(ModelActions(chunk))
        return decode_poses(droid, raw, {"eef": start})["eef"]

    def decode_loop() -> Array:
        poses = [start]
        for row in chunk:
            raw = row * normalizer.half_width + normalizer.offset
            c0, c1 = raw[3:6], raw[6:9]
            u, _, vt = np.linalg.svd(np.stack([c0, c1, np.cross(c0, c1)], axis=1))
            delta = np.eye(4)
            delta[:3, :3], delta[:3, 3] = u @ vt, raw[:3]
            poses.append(poses[-1] @ delta)
        return np.stack(poses)

    jobs = {
        "encode": {"loop": encode_loop, "vectorised": encode_vectorised, "by contract": encode_by_contract},
        "decode": {"loop": decode_loop, "vectorised": decode_vectorised, "by contract": decode_by_contract},
    }
    figures: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{STEPS} steps encoded, {CHUNK} rows decoded; median of {args.repeats} interleaved runs")
    print(f"{'':8}{'':14}{'p50 ms':>10}{'best ms':>10}{'x loop':>9}  goal")
    for job, ways in jobs.items():
        answers = {way: call() for way, call in ways.items()}
        for way, answer in answers.items():
            np.testing.assert_allclose(answer, answers["loop"], atol=1e-9, err_msg=f"{job} {way}")
        figures[job] = timed(ways, args.repeats)
        loop = figures[job]["loop"]["p50_ms"]
        for way, figure in figures[job].items():
            verdict = ""
            if way != "loop":
                verdict = "met" if figure["p50_ms"] <= GOAL_MS[job] else "MISSED"
                verdict = f"<= {GOAL_MS[job]:g} ms {verdict}"
            print(
                f"{job:8}{way:14}{figure['p50_ms']:10.3f}{figure['best_ms']:10.3f}"
                f"{loop / figure['p50_ms']:9.1f}  {verdict}"
            )
    if args.json:
        record = {
            "steps": STEPS,
            "chunk": CHUNK,
            "repeats": args.repeats,
            "goal_ms": GOAL_MS,
            "figures": figures,
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "load": os.getloadavg(),
                "python": platform.python_version(),
                "numpy": np.__version__,
            },
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")
        print(f"written to {args.json}")


def droid_like_motion(rows: int) -> tuple[Array, Array]:
    """Smooth seeded motion with DROID's step sizes: [rows, 6] xyz m + euler rad, gripper [rows]."""
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(rows, 6)) * [0.004, 0.004, 0.004, 0.012, 0.012, 0.012]
    smooth = np.stack([np.convolve(column, np.ones(9) / 3, mode="same") for column in steps.T], axis=1)
    pose = np.array([0.4, 0.0, 0.4, np.pi - 0.2, 0.0, 0.0]) + np.cumsum(smooth, axis=0)
    return pose, (np.sin(np.arange(rows) / 40) > 0).astype(np.float64)


def timed(ways: dict[str, Callable[[], Array]], repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds per call, the ways taking turns so that a busy machine slows all of them alike."""
    samples: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats):
        for way, call in ways.items():
            if turn % 10 and samples[way] and samples[way][0] > 10.0:
                continue  # a tenth of the long ones is enough
            begin = time.perf_counter()
            call()
            samples[way].append(1e3 * (time.perf_counter() - begin))
    return {way: {"p50_ms": statistics.median(s), "best_ms": min(s)} for way, s in samples.items()}


if __name__ == "__main__":
    main()
