"""How many portraits a second the portrait world makes, antialiased and with the whole truth.

    python tests/benchmarks/portraits.py [--sizes 128 512] [--count 48] [--threads 1] [--device cpu]

Time is processor time on a CPU (what a core needs; other programs on the machine count little) and wall time elsewhere.
"""

import argparse
import time

import torch
from report import load_pack


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
    from likeness.pipelines.portraits import render, sample_person

    people = [sample_person(0, index) for index in range(options.count)]
    for size in options.sizes:
        some = people if size <= 128 or options.device != "cpu" else people[: max(4, options.count // 8)]
        rates = sorted(portraits_per_second(render, some, size, options.device) for _ in range(3))
        print(f"{options.device}, {options.threads} thread(s), {size}x{size}: {rates[1]:.1f} portraits/s (median of 3)")


if __name__ == "__main__":
    main()
