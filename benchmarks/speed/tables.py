"""Speed of a clustered table against `nn.Embedding`: look-ups and training steps.

    python -m benchmarks.speed.tables [--entities 10_000_000] [--width 64] [--batch 8192]
        [--clusters 256] [--threads 1] [--device cpu] [--write]

With --write, the result goes to docs/results/speed.json, in place of the last one of the same kind
of device, and all of them to docs/results/speed.md.

Each figure is the median over repeats, in microseconds, over batches of random ids that differ from
repeat to repeat, so that caches hold only what they would in use; a GPU is waited for at both ends
of a repeat. The answers are compared with a tied table before any clock runs. A training step is
look-up, backward of a given upstream gradient and the optimizer: Adam on the clustered rows,
SparseAdam on `nn.Embedding(sparse=True)`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from celrec import ClusteredEmbedding
from celrec.experiments.run import device_name

WARM_UP = 5
OUT = Path(__file__).parents[2] / "docs" / "results" / "speed.md"
RESULTS = OUT.with_suffix(".json")


def median_microseconds(step: Callable[[Tensor], object], batches: list[Tensor]) -> float:
    wait = torch.cuda.synchronize if batches[0].is_cuda else lambda: None
    for ids in batches[:WARM_UP]:
        step(ids)
    times = []
    for ids in batches[WARM_UP:]:
        wait()
        start = time.perf_counter()
        step(ids)
        wait()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def training_step(
    table: nn.Module, optimizer: torch.optim.Optimizer, upstream: Tensor
) -> Callable[[Tensor], None]:
    def step(ids: Tensor) -> None:
        optimizer.zero_grad()
        table(ids).backward(upstream)
        optimizer.step()

    return step


def touch_state(table: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor) -> None:
    """Make the optimizer's state and write all its pages, or the first steps would pay for that."""
    table(ids).sum().backward()
    optimizer.step()
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.mul_(1)


def bytes_in_training(table: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Of the table and the optimizer's state."""
    states = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [*table.state_dict().values(), *states]
    return sum(one.numel() * one.element_size() for one in tensors if isinstance(one, Tensor))


def check_answers(table: ClusteredEmbedding) -> None:
    """A small tied twin must give the same vectors and row gradients."""
    device = table.weight.device
    ids = torch.randint(1000, (500,), device=device)
    twin = nn.Embedding.from_pretrained(table.to_dense()[:1000], freeze=False)
    assert torch.equal(table(ids), twin(ids))
    upstream = torch.randn(500, table.embedding_dim, device=device)
    table(ids).backward(upstream)
    twin(ids).backward(upstream)
    expected = torch.zeros_like(table.weight)
    expected.index_add_(0, table.cluster_ids()[:1000], twin.weight.grad)
    torch.testing.assert_close(table.weight.grad, expected)
    table.weight.grad = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--entities", type=int, default=10_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--clusters", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = options.device
    batches = [
        torch.randint(options.entities, (options.batch,), device=device)
        for _ in range(options.repeats + WARM_UP)
    ]
    upstream = torch.randn(options.batch, options.width, device=device)
    ours = ClusteredEmbedding.from_pretrained(
        torch.randn(options.clusters, options.width, device=device),
        torch.randint(options.clusters, (options.entities,), device=device),
        freeze=False,
    )
    full = nn.Embedding(options.entities, options.width, sparse=True, device=device)
    check_answers(ours)

    with torch.no_grad():
        look_up_ours = median_microseconds(ours, batches)
        look_up_full = median_microseconds(full, batches)
    adam = torch.optim.Adam(ours.parameters(), fused=True)
    sparse_adam = torch.optim.SparseAdam(full.parameters())
    touch_state(ours, adam, batches[0])
    touch_state(full, sparse_adam, batches[0])
    step_ours = median_microseconds(training_step(ours, adam, upstream), batches)
    step_full = median_microseconds(training_step(full, sparse_adam, upstream), batches)

    result = {
        "entities": options.entities,
        "width": options.width,
        "batch": options.batch,
        "clusters": options.clusters,
        "threads": options.threads,
        "torch": torch.__version__,
        "device": device_name(options.device),
        "machine": platform.machine(),
        "look_up_us": {"clustered": round(look_up_ours, 1), "full": round(look_up_full, 1)},
        "training_step_us": {"clustered": round(step_ours, 1), "full": round(step_full, 1)},
        "look_up_times_faster": round(look_up_full / look_up_ours, 2),
        "training_step_times_faster": round(step_full / step_ours, 2),
        "bytes": {
            "clustered": bytes_in_training(ours, adam),
            "full": bytes_in_training(full, sparse_adam),
        },
    }
    print(json.dumps(result, indent=2))
    if options.write:
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        results[torch.device(options.device).type] = result
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        OUT.write_text(page(results), encoding="utf-8")


def line(name: str, figures: dict[str, float]) -> str:
    ours, full = figures["clustered"], figures["full"]
    return f"| {name} | {ours:,} | {full:,} | {full / ours:.1f} |"


def page(results: dict[str, dict[str, Any]]) -> str:
    return f"""\
# Speed

*Written by `python -m benchmarks.speed.tables --write`, on each device; medians.*

{"".join(section(result) for result in results.values())}
A training step is look-up, backward and optimizer: fused Adam on the clustered rows, SparseAdam on
`nn.Embedding(sparse=True)`, its state made and written before the clock runs. Bytes are those of
table, codes and optimizer state.
"""


def section(result: dict[str, Any]) -> str:
    threads = f", {result['threads']} thread(s)" if result["device"] == "cpu" else ""
    return f"""\
## {"On the CPU" if result["device"] == "cpu" else f"On a GPU: {result['device']}"}

{result["entities"]:,} entities, width {result["width"]}, batches of {result["batch"]:,} random ids,
{result["clusters"]} clusters; torch {result["torch"]}, {result["machine"]}{threads}.

| | clustered | `nn.Embedding` | times better |
|---|---|---|---|
{line("look-up, microseconds", result["look_up_us"])}
{line("training step, microseconds", result["training_step_us"])}
{line("bytes in training", result["bytes"])}

"""


if __name__ == "__main__":
    main()
