"""The training loop every stage shares: seeded by step, averaged weights, resumable after a kill."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

SEED = 22
SAVE_EVERY_SECONDS = 60.0

LossFunction = Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]]


def generator_for(stage: str, step: int) -> torch.Generator:
    """Random numbers of one step: they depend on stage and step alone, so a resumed run continues the same one."""
    stage_number = int.from_bytes(stage.encode()[:4], "big")
    return torch.Generator().manual_seed((SEED * 1_000_003 + stage_number) * 1_000_003 + step)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100, decay_share: float = 0.4) -> float:
    """Warm up, hold, and fall to zero along a half cosine over the last `decay_share` of the steps."""
    rise = min(1.0, (step + 1) / warmup)
    into_decay = max(0.0, (step - steps * (1 - decay_share)) / (steps * decay_share))
    fall = 0.5 * (1 + torch.cos(torch.tensor(into_decay * torch.pi)).item())
    return peak * rise * fall


def save_atomically(state: dict, path: Path) -> None:
    """Write beside the file, then rename: a kill leaves the old state or the new one, never half of one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def train(
    stage: str,
    module: nn.Module,
    loss_of: LossFunction,
    steps: int,
    peak_rate: float,
    work: Path,
    average: float = 0.998,
    weight_decay: float = 0.0,
) -> None:
    """Train `module` for `steps` steps and leave the averaged weights in it.

    State is saved to `work/<stage>.pt` about once a minute and picked up from there by the next call.
    Buffers (statistics, a codebook) are saved with the weights and not averaged.
    """
    path = work / f"{stage}.pt"
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=peak_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    averaged = [p.detach().clone() for p in parameters]
    first = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        averaged = state["averaged"]
        first = state["step"]

    def save(step: int) -> None:
        state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "averaged": averaged, "step": step}
        save_atomically(state, path)

    module.train()
    saved_at = time.monotonic()
    shown: dict[str, float] = {}
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=stage, mininterval=5.0)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak_rate)
        loss, metrics = loss_of(step, generator_for(stage, step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        # A short memory at first, so that the average forgets the random start.
        memory = min(average, (step + 1) / (step + 10))
        torch._foreach_lerp_(averaged, [p.detach() for p in parameters], 1 - memory)
        for name, value in metrics.items():
            shown[name] = value if name not in shown else 0.98 * shown[name] + 0.02 * value
        bar.set_postfix({name: f"{value:.4f}" for name, value in shown.items()}, refresh=False)
        if time.monotonic() - saved_at > SAVE_EVERY_SECONDS:
            save(step + 1)
            saved_at = time.monotonic()
    if first < steps:
        save(steps)
    with torch.no_grad():
        for parameter, value in zip(parameters, averaged, strict=True):
            parameter.copy_(value)
    module.eval()
