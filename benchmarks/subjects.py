"""What is measured: one stage of one implementation, loaded in a process of its own that runs it when told to.

    python benchmarks/subjects.py '{"kind": "ours", …}'

reads one JSON object a line, `{"height": …, "width": …, "batch": …, "guided": …}` to make inputs of a size or
`{"run": 1}`, and answers each with one line. A process each lets subjects take turns without sharing memory, threads
or a heap.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""What torch calls a precision."""
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "export")]


class Subject(Protocol):
    """One stage that can be timed."""

    def prepare(self, size: Any) -> None:
        """Make inputs for `kandinsky22.measure.timing.Size`."""

    def run(self) -> float:
        """Run once, on the whole batch and all branches; the seconds that it took."""


def ours(spec: dict[str, Any]) -> tuple[Subject, dict[str, str]]:
    """A component of a bundle on one of our backends, its version, and the precision and device it computes in."""
    from kandinsky22 import backends
    from kandinsky22.bundle.bundle import Bundle
    from kandinsky22.measure import timing

    bundle = Bundle(spec["bundle"])
    backend = backends.get(spec["backend"], bundle)
    availability = backend.availability(bundle)
    stage = timing.Stage(bundle, spec["stage"], backend, backends.Settings(), 10 if availability.gpu else 1)
    precision = bundle.manifest.precision if availability.precision == "bundle" else availability.precision
    device = "cuda" if availability.gpu else "cpu"
    return stage, {"version": f"{availability.name} {availability.version}", "precision": precision, "device": device}


class Peer:
    """A stage as diffusers runs it: the calls of its Kandinsky 2.2 pipelines, with random or loaded weights."""

    def __init__(self, spec: dict[str, Any]) -> None:
        import torch

        self.torch, self.stage = torch, spec["stage"]
        self.device = spec.get("device", "cpu")
        self.dtype = getattr(torch, DTYPES[spec["precision"]])
        network, self.scheduler = _network(spec)
        network = network.to(self.dtype).to(self.device).eval()
        if spec.get("channels_last"):
            network = network.to(memory_format=torch.channels_last)
        self.network: Any = network
        self.call: Callable[..., Any] = network.decode if self.stage == "movq_decoder" else network
        if spec.get("compile"):
            self.call = torch.compile(self.call, mode="reduce-overhead" if self.device == "cuda" else None)
        self.inputs: tuple[Any, ...] = ()

    def prepare(self, size: Any) -> None:
        """See Subject."""
        torch, config = self.torch, self.network.config
        torch.manual_seed(0)
        rows = size.batch * (2 if size.guided else 1)

        def noise(*shape: int) -> Any:
            return torch.randn(shape).to(self.dtype).to(self.device)

        if self.stage == "text_encoder":
            ids = torch.randint(1, config.vocab_size - 1, (rows, config.max_position_embeddings))
            self.inputs = (ids.to(self.device),)
        elif self.stage == "prior_step":
            tokens, wide = config.num_embeddings, config.embedding_dim
            mask = torch.ones(rows, tokens, dtype=torch.bool, device=self.device)
            self.inputs = (noise(size.batch, wide), noise(rows, wide), noise(rows, tokens, wide), mask)
        elif self.stage == "decoder_step":
            side = (size.height // 8, size.width // 8)
            channels = config.in_channels
            self.inputs = (noise(size.batch, channels, *side), noise(rows, config.encoder_hid_dim))
        else:
            self.inputs = (noise(size.batch, config.latent_channels, size.height // 8, size.width // 8),)
        if self.scheduler is not None:
            self.scheduler.set_timesteps(50)

    def run(self) -> float:
        """See Subject."""
        torch = self.torch
        with torch.inference_mode():
            if self.device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            getattr(self, f"_{self.stage}")(*self.inputs)
            if self.device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - started

    def _text_encoder(self, ids: Any) -> None:
        output = self.call(ids)
        assert output.text_embeds.shape[0] == len(ids)

    def _prior_step(self, latents: Any, embeds: Any, hidden: Any, mask: Any) -> None:
        torch, branches = self.torch, len(embeds) // len(latents)
        t = self.scheduler.timesteps[20]
        output = self.call(
            torch.cat([latents] * branches),
            timestep=t,
            proj_embedding=embeds,
            encoder_hidden_states=hidden,
            attention_mask=mask,
        ).predicted_image_embedding
        self.scheduler.step(self._guided(output, branches), timestep=t, sample=latents, prev_timestep=t - 20)

    def _decoder_step(self, latents: Any, embeds: Any) -> None:
        torch, branches, channels = self.torch, len(embeds) // len(latents), latents.shape[1]
        t = self.scheduler.timesteps[20]
        output = self.call(
            sample=torch.cat([latents] * branches),
            timestep=t,
            encoder_hidden_states=None,
            added_cond_kwargs={"image_embeds": embeds},
            return_dict=False,
        )[0]
        predicted, variance = output.split(channels, dim=1)
        output = torch.cat([self._guided(predicted, branches), variance.chunk(branches)[-1]], dim=1)
        self.scheduler.step(output, t, latents)

    def _movq_decoder(self, latents: Any) -> None:
        image = self.call(latents, force_not_quantize=True)["sample"]
        image = (image * 0.5 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy()
        assert (image * 255).round().astype("uint8").shape[-1] == 3

    @staticmethod
    def _guided(output: Any, branches: int, scale: float = 4.0) -> Any:
        if branches == 1:
            return output
        away, towards = output.chunk(2)
        return away + scale * (towards - away)


NETWORKS = {"text_encoder": "text_encoder", "prior_step": "prior", "decoder_step": "unet", "movq_decoder": "movq"}


def _network(spec: dict[str, Any]) -> tuple[Any, Any]:
    """The torch network of a stage, and diffusers' scheduler for it, or None."""
    from diffusers import DDPMScheduler, UnCLIPScheduler

    from kandinsky22_export.checkpoints import open_checkpoint
    from kandinsky22_export.random_weights import random_checkpoint

    if spec.get("checkpoint"):
        checkpoint = open_checkpoint(spec["checkpoint"], None, None, None)
    else:
        checkpoint = random_checkpoint("kandinsky-2.2", 0)
    network = checkpoint.networks[NETWORKS[spec["stage"]]].load()
    config = {"prior_step": "prior", "decoder_step": "decoder"}.get(spec["stage"])
    if config is None:
        return network, None
    kind = UnCLIPScheduler if config == "prior" else DDPMScheduler
    return network, kind.from_config(checkpoint.schedulers[config])


def peer(spec: dict[str, Any]) -> tuple[Subject, dict[str, str]]:
    """A stage of diffusers, its version, precision and device."""
    import diffusers
    import torch

    subject, version = Peer(spec), f"diffusers {diffusers.__version__}, torch {torch.__version__}"
    return subject, {"version": version, "precision": spec["precision"], "device": subject.device}


class Ceiling:
    """What a device can do at best: one large matrix product, convolution or copy within its memory.

    `run` gives seconds.
    """

    MATRIX = 4096
    CHANNELS, SIDE = 512, 64
    BYTES = 1 << 30

    def __init__(self, spec: dict[str, Any]) -> None:
        import torch

        self.torch, self.what, device = torch, spec["what"], spec["device"]
        self.cuda = device == "cuda"
        if self.what == "copy":
            # Read and written beforehand: untouched pages would all be the same one.
            self.source, self.target = (torch.full((self.BYTES,), i, dtype=torch.uint8, device=device) for i in (1, 0))
            return
        dtype = getattr(torch, DTYPES[spec["precision"]])
        if self.what == "matmul":
            self.operands = [torch.randn(self.MATRIX, self.MATRIX).to(dtype).to(device) for _ in range(2)]
            self.work = 2 * self.MATRIX**3
        else:
            layer = torch.nn.Conv2d(self.CHANNELS, self.CHANNELS, 3, padding=1).to(dtype).to(device)
            self.layer = layer.to(memory_format=torch.channels_last)
            picture = torch.randn(2, self.CHANNELS, self.SIDE, self.SIDE).to(dtype).to(device)
            self.operands = [picture.contiguous(memory_format=torch.channels_last)]
            self.work = 2 * 2 * 9 * self.CHANNELS**2 * self.SIDE**2

    def prepare(self, size: Any) -> None:
        """It has one size."""

    def run(self) -> float:
        """Seconds for one TFLOP; for the copy, seconds to read and write one GB."""
        started = time.perf_counter()
        with self.torch.inference_mode():
            self._compute()
            if self.cuda:
                self.torch.cuda.synchronize()
        work = 2 * self.BYTES / 1e9 if self.what == "copy" else self.work / 1e12
        return (time.perf_counter() - started) / work

    def _compute(self) -> None:
        if self.what == "copy":
            self.target.copy_(self.source)
        elif self.what == "convolution":
            self.layer(*self.operands)
        else:
            self.torch.mm(*self.operands)


def ceiling(spec: dict[str, Any]) -> tuple[Subject, dict[str, str]]:
    """The machine's own limit, and what it is measured with."""
    import torch

    return Ceiling(spec), {"version": f"torch {torch.__version__}"}


class DeviceShare:
    """Bytes of the GPU's memory that this process holds. The GPU tells what all hold together.

    Since subjects take turns, what changes while this one works is its own.
    """

    def __init__(self, told: Callable[[], int]) -> None:
        self.bytes, self._told = 0, told

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Count what comes and goes in the block."""
        others = self._told() - self.bytes
        yield
        self.bytes = self._told() - others


def main() -> None:
    """Load what the argument describes, and answer requests until the end of the input."""
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr  # libraries print where they like

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    from kandinsky22.backends.cuda import gpu
    from kandinsky22.measure import timing

    spec = json.loads(sys.argv[1])
    share = DeviceShare(gpu.device_memory)
    with share.working():
        started = time.perf_counter()
        subject, about = {"ours": ours, "diffusers": peer, "ceiling": ceiling}[spec["kind"]](spec)
        load_seconds = time.perf_counter() - started
    answer(**about, load_seconds=load_seconds)
    with timing.highest_memory() as memory:
        for line in sys.stdin:
            request = json.loads(line)
            if "run" in request:
                with share.working():
                    seconds = subject.run()
                answer(seconds=seconds, peak_host_memory=memory().host, device_memory=share.bytes)
            else:
                Path("/proc/self/clear_refs").write_text("5")
                with share.working():
                    subject.prepare(timing.Size(**request))
                answer(ready=True)


if __name__ == "__main__":
    main()
