"""What somebody would write by hand to see whether two hosts work together: run by torchrun on each of them.

The same sizes and dtypes as the gate verifies, each twice, and the rate of 4 MiB; one closed form, compared whole.
"""

import torch
import torch.distributed as dist

from probe.cluster.worlds import SIZES

SIZES_BYTES = SIZES["gloo", "world"].verified_bytes
DTYPES = (torch.float32, torch.bfloat16, torch.int64)


def main() -> None:
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for size_bytes in SIZES_BYTES:
        for dtype in DTYPES:
            for turn in range(2):
                index = torch.arange(size_bytes // dtype.itemsize)
                mine = ((index + rank + turn) % 3 - 1).to(dtype)
                expected = sum(((index + other + turn) % 3 - 1) for other in range(ranks))
                dist.all_reduce(mine)
                assert torch.equal(mine, torch.as_tensor(expected).to(dtype))
    block = torch.zeros(1 << 20)
    for _ in range(20):
        dist.all_reduce(block)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
