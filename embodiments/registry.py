"""Domain registries: which checkpoint family calls which embodiment by which number.

An id means nothing without its registry: two published ones disagree, forks reuse ids, and one id can
hold several domains (droid_lerobot and robomind-franka share 8 and differ up to 4.65x in translation).
"""

from __future__ import annotations

from wamserve.action_codec.errors import ContractError

DOMAINS = 32  # rows of the domain-aware projections

_SHARED = {
    "no_action": 0,
    "av": 1,
    "camera_pose": 2,
    "hand_pose": 3,
    "pusht": 4,
    "libero": 5,
    "umi": 6,
    "bridge_orig_lerobot": 7,
    "droid_lerobot": 8,
    "robomind-franka": 8,
    "robomind-franka-dual": 12,
    "robomind-ur": 13,
    "agibotworld": 15,
    "fractal": 20,
}

REGISTRIES: dict[str, dict[str, int]] = {
    "framework": {
        **_SHARED,
        "embodiment_b": 9,
        "embodiment_c_gripper": 15,
        "embodiment_c_gripper_ext": 15,
        "xdof_yam": 16,
        "molmoact2_yam": 16,
        "abc_yam": 16,
        "robotwin": 17,
        "drawanything": 21,
        "behavior1k_lerobot": 22,
        "maniparena": 23,
    },
    "diffusers": {**_SHARED, "galbot": 9, "agibot_gear_gripper": 15, "agibot_gear_gripper_ext": 15},
    # Ids that neither published registry uses, so that a checkpoint may train both kinds.
    "wamserve": {"panda_joint": 10, "panda_osc": 11, "pusht_block": 14},
}


def check_domain(registry: str, domain: str, domain_id: int, contract: str) -> None:
    """ContractError unless the registry calls this domain by this id."""
    known = REGISTRIES[registry]
    if known.get(domain) != domain_id:
        raise ContractError(
            f"{contract}: registry {registry!r} does not know this domain",
            seen=f"{domain} = {domain_id}",
            expected=f"{domain} = {known[domain]}" if domain in known else ", ".join(known),
        )
