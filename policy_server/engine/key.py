"""What a captured call is fixed by. Everything else is data in its buffers and may change between calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.schedule import Schedule
from wamserve.policy_server.world_model.tokens import LatentShape, RequestPlan

SMALLEST_BUCKET = 64


@dataclass(frozen=True)
class Picture:
    """A first frame that is encoded inside the call, in pixels."""

    height: int  # of the padded canvas
    width: int
    content_height: int
    content_width: int


@dataclass(frozen=True)
class CallKey:
    """Calls of one key share buffers and, on CUDA, one graph. Noise levels, scales and prompts are data."""

    batch: int
    shape: LatentShape
    bucket: int  # prompt tokens that the key and value buffers hold
    guided: tuple[bool, ...]  # per step: whether it needs the unconditional branch
    want_video: bool
    video_moves: bool
    action_moves: bool
    picture: Picture | None  # None: latents are given

    @classmethod
    def of(
        cls,
        shape: LatentShape,
        plans: Sequence[RequestPlan],
        lengths: Sequence[int],
        schedule: Schedule,
        guidance: Guidance,
        want_video: bool,
        picture: Picture | None,
    ) -> CallKey:
        """`lengths`: of every prompt of the call, the empty one included where it is needed."""
        video_moves = not all(clean for plan in plans for clean in plan.video_clean)
        return cls(
            batch=len(plans),
            shape=shape,
            bucket=bucket_of(max(lengths)),
            guided=tuple(guidance.active(t) for t in schedule.timesteps),
            want_video=want_video and video_moves,
            video_moves=video_moves,
            action_moves=not all(clean for plan in plans for clean in plan.action_clean),
            picture=picture,
        )

    @property
    def rows(self) -> int:
        """Rows of the network's buffers: both branches where any step is guided."""
        return self.batch * (2 if any(self.guided) else 1)

    @property
    def forwards(self) -> int:
        return sum(2 if guided else 1 for guided in self.guided)


def bucket_of(length: int) -> int:
    """Prompt tokens rounded up to a power of two, 64 at least."""
    bucket = SMALLEST_BUCKET
    while bucket < length:
        bucket *= 2
    return bucket
