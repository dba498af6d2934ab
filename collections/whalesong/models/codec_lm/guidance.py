"""Classifier-free guidance: which conditions are compared, and with which weights."""

from collections.abc import Mapping

from whalesong.modules.conditioning.conditioner import Condition

Conditions = Mapping[str, Condition]


def guidance_variants(
    conditions: Conditions, negative: Conditions, scale: float | Mapping[str, float]
) -> list[tuple[Conditions, float]]:
    """Sets of conditions whose logits, summed with these weights, are the guided logits.

    With one scale s these are `negative + s (conditions - negative)`. With a scale for each
    condition they are added one after the other, in the order of the mapping:
    `negative + s_1 (first - negative) + s_2 (first and second - first) + ...`; conditions without a
    scale are in all of them. The weights always sum to 1; variants of weight 0 are left out.

    Args:
        conditions: what is asked for.
        negative: what to lead away from; null conditions as a rule.
        scale: 1 is no guidance, and costs nothing.

    Raises:
        ValueError: a scale for a condition that there is not.
    """
    if not isinstance(scale, Mapping):
        steps = [(negative, 1.0 - scale), (conditions, float(scale))]
        return [(part, weight) for part, weight in steps if weight] if conditions else steps[1:]
    for name in scale:
        if name not in conditions:
            known = ", ".join(conditions) or "none"
            raise ValueError(f"`guidance_scale` names '{name}', but the model's conditions are: "
                             f"{known}.")  # fmt: skip
    current = {n: negative[n] if n in scale else c for n, c in conditions.items()}
    variants = [(current, 1.0)]
    for name, strength in scale.items():
        last, weight = variants[-1]
        variants[-1] = (last, weight - strength)
        current = {**current, name: conditions[name]}
        variants.append((current, float(strength)))
    return [(part, weight) for part, weight in variants if weight]
