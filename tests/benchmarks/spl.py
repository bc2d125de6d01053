"""Time and memory of the shipped SPL optimiser against autograd, in one run: python tests/benchmarks/spl.py [--readme]

Both do the paper's full step, structure and colour, with default settings, on random images. Oracle and optimiser take
turns, so that a machine whose speed drifts slows both; the ratio is the median over turns. Peak memory is the growth of
a fresh process (CPU) or of the allocator (CUDA). The bandwidth limit counts each plane once that one iteration must
read (image, velocity, source, its mean and inverse variance, 1/N) or write (image, velocity), at the speed of a large
copy measured in the same run. --readme writes the table into README.md.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time

from report import load_pack, reset_resident_peak, resident_peak, write_into_readme

PLANES = 8
TURNS = 7
SIZES = {512: 10, 1024: 4}


def images(size: int, device: str):
    import torch

    generator = torch.Generator().manual_seed(0)
    source = torch.rand(1, 3, size, size, generator=generator)
    edited = 0.5 * source + 0.5 * torch.rand(1, 3, size, size, generator=generator)
    return edited.to(device), source.to(device)


def implementations():
    from likeness.pipelines.spl import StructureSettings, preserve_structure
    from likeness.pipelines.spl.oracle import preserve_structure_by_autograd

    def run(function, edited, source, iterations):
        return function(edited, source, None, StructureSettings(iterations=iterations))

    return {
        "autograd": lambda *arguments: run(preserve_structure_by_autograd, *arguments),
        "shipped": lambda *arguments: run(preserve_structure, *arguments),
    }


def seconds_per_iteration(function, edited, source, iterations: int) -> float:
    import torch

    start = time.perf_counter()
    function(edited, source, iterations)
    if edited.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / iterations


def copy_bandwidth(device: str) -> float:
    """Bytes a second, read and written, of a copy far larger than any cache; the best of several."""
    import torch

    source = torch.rand(128 * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() * 4 / best


def peak_memory(name: str, size: int, device: str) -> float:
    """MiB that two iterations add to a process that has the images and the libraries loaded."""
    command = [sys.executable, __file__, "--memory-of", name, str(size), device]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_own_memory(name: str, size: int, device: str) -> float:
    import torch

    function = implementations()[name]
    function(*images(32, device), 2)
    edited, source = images(size, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function(edited, source, 2)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    reset_resident_peak()
    before = resident_peak()
    function(edited, source, 2)
    return resident_peak() - before


def row(size: int, device: str, slow_iterations: int, bandwidth: float) -> str:
    functions = implementations()
    edited, source = images(size, device)
    turns = []
    for turn in range(TURNS + 1):
        slow = seconds_per_iteration(functions["autograd"], edited, source, slow_iterations)
        fast = seconds_per_iteration(functions["shipped"], edited, source, 100)
        if turn:  # the first warms up
            turns.append((slow, fast))
    slow, fast = (statistics.median(turn[i] for turn in turns) for i in (0, 1))
    ratio = statistics.median(slow / fast for slow, fast in turns)
    limit = PLANES * 4 * size * size / bandwidth
    memory = [peak_memory(name, size, device) for name in ("autograd", "shipped")]
    return (
        f"| {device} | {size}x{size} | {slow * 1e3:.1f} ms | {fast * 1e3:.2f} ms | {ratio:.0f}x | "
        f"{fast / limit:.1f}x | {memory[0]:.0f} MiB | {memory[1]:.0f} MiB |"
    )


def table() -> str:
    import torch

    lines = [
        "| device | image | autograd, an iteration | shipped, an iteration | faster | above bandwidth limit "
        "| memory autograd | memory shipped |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        bandwidth = copy_bandwidth(device)
        for size, iterations in SIZES.items():
            lines.append(row(size, device, iterations, bandwidth))
            print(lines[-1], flush=True)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU was present"
    lines.append("")
    cpu = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    lines.append(
        f"{torch.get_num_threads()} CPU threads ({cpu}), {name}; torch {torch.__version__}; median of {TURNS} turns; "
        "set-up and colour included."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    load_pack()
    if options.memory_of:
        name, size, device = options.memory_of
        print(measure_own_memory(name, int(size), device))
        return
    text = table()
    print(f"\n{text}")
    if options.readme:
        write_into_readme("spl", text)


if __name__ == "__main__":
    main()
