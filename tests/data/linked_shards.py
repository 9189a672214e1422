"""Many shards of many samples that take little room on disk: most of them are hard links to a few files."""

import os
import tarfile


def write_linked_shards(folder, shards, samples, distinct=1, size=100):
    """Write shards whose samples have one member of `size` bytes, up to 512, and return their paths."""
    folder.mkdir(exist_ok=True)
    for number in range(distinct):
        with open(folder / f"{number:05d}.tar", "wb") as file:
            for i in range(samples):
                info = tarfile.TarInfo(f"{number:05d}/{i:06d}.txt")
                info.size = size
                file.write(info.tobuf(tarfile.USTAR_FORMAT) + f"{number}/{i}".encode().ljust(512, b"."))
            file.write(bytes(1024))
    for number in range(distinct, shards):
        os.link(folder / f"{number % distinct:05d}.tar", folder / f"{number:05d}.tar")
    return [str(folder / f"{number:05d}.tar") for number in range(shards)]
