"""How many portraits a second the portrait world makes, antialiased and with the whole truth.

    python tests/benchmarks/portraits.py [--sizes 128 512] [--count 48] [--threads 1] [--device cpu]

Time is processor time on a CPU (what a core needs; other programs on the machine count little) and wall time elsewhere.
On a CPU with numba the compiled renderer and that with numpy's arrays take turns.
"""

import argparse
import statistics
import time
from unittest import mock

import torch
from report import load_pack

TURNS = 5


def portraits_per_second(render, people, size: int, device: str) -> float:
    render(people[:4], size, device)
    cuda = device.startswith("cuda")
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    render(people, size, device)
    if cuda:
        torch.cuda.synchronize()
    return len(people) / (clock() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load_pack()
    from likeness.pipelines.portraits import kernels, render, sample_person, why_slow

    people = [sample_person(0, index) for index in range(options.count)]
    both = options.device == "cpu" and kernels.kernels() is not None
    ways = {"compiled": kernels._found, "arrays": lambda: (None, "")} if both else {"arrays": kernels._found}
    for size in options.sizes:
        some = people if size <= 128 or options.device != "cpu" else people[: max(4, options.count // 8)]
        rates = {way: [] for way in ways}
        for _ in range(TURNS):
            for way, found in ways.items():
                with mock.patch.object(kernels, "_found", found):
                    rates[way].append(portraits_per_second(render, some, size, options.device))
        shown = ", ".join(f"{way} {statistics.median(values):.1f} portraits/s" for way, values in rates.items())
        print(f"{options.device}, {options.threads} thread(s), {size}x{size}: {shown} (median of {TURNS} turns)")
    if options.device == "cpu" and why_slow():
        print(why_slow())


if __name__ == "__main__":
    main()
